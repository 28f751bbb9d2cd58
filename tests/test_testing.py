"""The check on rounding errors: it takes what is exact, rounded once, and nothing that is wrong."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import normalform as nf
from normalform import budget, reference
from normalform.testing import (
    HARD_INPUTS,
    assert_accurate,
    assert_layer_accurate,
    judge,
    measure,
)
from planted import (
    ConstantMean,
    ConstantShares,
    ConstantVariance,
    EpsOutside,
    Exact,
    ExactSwitch,
    FloatMoments,
    Folded,
    LearnsBiased,
    LinearShares,
    NoEps,
    OneElement,
    OneNaN,
    OnePass,
    OneSetOfShares,
    Scaled,
    Unbiased,
    WithSpread,
    hard_input,
    normal,
    randomized,
)

HALF = [torch.float32, torch.float16, torch.bfloat16]

PLANTED = [
    (Unbiased, "plain", torch.float32, "y"),
    (Unbiased, "plain", torch.bfloat16, "y"),
    (OnePass, "mean 1e6", torch.float32, "y"),
    (FloatMoments, "mean 1e3", torch.float32, "y"),
    (EpsOutside, "variance below eps", torch.float32, "y"),
    (EpsOutside, "variance below eps", torch.bfloat16, "y"),
    (NoEps, "variance below eps", torch.float32, "y"),
    (Folded, "mean 1e3", torch.float32, "y"),
    (Scaled, "plain", torch.bfloat16, "y"),
    (Scaled, "plain", torch.float16, "y"),
    (OneElement, "plain", torch.float32, "y"),
    (OneNaN, "plain", torch.float32, "y"),
    (LearnsBiased, "plain", torch.float32, "running_var"),
    (ConstantMean, "plain", torch.float32, "dx"),
    (ConstantMean, "plain", torch.bfloat16, "dx"),
    (ConstantVariance, "plain", torch.float32, "dx"),
    (Unbiased, "plain", torch.float32, "dweight"),
]


@pytest.mark.parametrize(("layer", "kind", "dtype", "result"), PLANTED)
def test_planted_errors_are_caught(
    layer: type[Exact], kind: str, dtype: torch.dtype, result: str
) -> None:
    x, dy = hard_input(kind, dtype)
    wrong = randomized(layer(3))
    assert measure(wrong, x, dy)[result] > 1
    with pytest.raises(AssertionError, match="outside; worst at"):
        assert_layer_accurate(wrong, x, dy)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", HARD_INPUTS)
def test_what_is_exact_but_for_one_rounding_is_accurate(kind: str, dtype: torch.dtype) -> None:
    x, dy = hard_input(kind, dtype)
    if x.isfinite().all():
        for layer in (Exact(3), Exact(3).eval()):
            assert_layer_accurate(randomized(layer), x, dy)


@pytest.mark.parametrize(
    ("layer", "result"),
    [
        (LinearShares, "y"),
        (OneSetOfShares, "y"),
        (WithSpread, "y"),
        (ConstantShares, "dvar_weight"),
    ],
)
def test_errors_planted_in_a_blend_are_caught(layer: type[ExactSwitch], result: str) -> None:
    x, dy = hard_input("plain", torch.float32)
    options = {"track_running_stats": False}
    assert_layer_accurate(randomized(ExactSwitch(3, **options)), x, dy)
    assert measure(randomized(layer(3, **options)), x, dy)[result] > 1


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize("dtype", HALF)
def test_the_limit_is_where_it_is_said_to_be(dtype: torch.dtype, share: float) -> None:
    x, dy = (t.double().numpy() for t in hard_input("plain", dtype))
    result = reference.batch_norm(x, [2.0, -1.0, 0.5], [0.0, 3.0, 1.0])
    for exact, allowed in (
        (result.y, budget.allowed_y(result, dtype)),
        (result.backward(dy).x, budget.allowed_dx(result, result.backward(dy), dtype)),
    ):
        off = torch.from_numpy(exact.copy())
        off[3, 2, 1, 0] += share * allowed[3, 2, 1, 0]
        if share < 1:
            assert_accurate(off, exact, allowed)
        else:
            with pytest.raises(AssertionError, match=r"1 of 768 outside; worst at \(3, 2, 1, 0\)"):
                assert_accurate(off, exact, allowed)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_roundoff_is_what_rounding_does(dtype: torch.dtype) -> None:
    step = budget.roundoff(dtype)
    halfway = torch.tensor(1 + step, dtype=torch.float64 if step > 2**-53 else dtype)
    assert halfway.to(dtype).item() == 1  # to even
    assert torch.tensor(1 + 2 * step, dtype=dtype).item() == 1 + 2 * step
    assert torch.tensor(1 + step, dtype=dtype).item() == 1


def test_nan_and_infinity() -> None:
    half = torch.tensor([math.inf, -math.inf, math.nan, 1.0], dtype=torch.float16)
    assert_accurate(half, np.array([7e4, -math.inf, math.nan, 1.0]), np.full(4, 10.0))
    for got, exact in (
        (math.inf, 6e4),
        (math.inf, -7e4),
        (math.nan, 1.0),
        (1.0, math.nan),
        (1.0, math.inf),
    ):
        with pytest.raises(AssertionError, match="1 of 1 outside"):
            assert_accurate(torch.tensor([got], dtype=torch.float16), np.array([exact]), np.ones(1))
    with pytest.raises(AssertionError, match="shape"):
        assert_accurate(half, np.ones(3), np.ones(3))


def layers(source: object) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Every norm that torch and this library share, with a shape it takes."""
    return [
        (source.BatchNorm1d(4), (6, 4)),
        (source.BatchNorm1d(4, affine=False), (6, 4, 3)),
        (source.BatchNorm2d(4, eps=1e-3, momentum=0.3), (3, 4, 5, 2)),
        (source.BatchNorm2d(4, momentum=None), (3, 4, 5, 2)),
        (source.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 2)),
        (source.BatchNorm3d(4), (3, 4, 2, 3, 2)),
        (source.InstanceNorm1d(4), (2, 4, 5)),
        (source.InstanceNorm1d(4, affine=True), (4, 5)),
        (source.InstanceNorm2d(4, track_running_stats=True), (2, 4, 5, 2)),
        (source.InstanceNorm2d(4, momentum=None, track_running_stats=True), (2, 4, 5, 2)),
        (source.InstanceNorm3d(4, affine=True, track_running_stats=True), (4, 2, 3, 2)),
        (source.GroupNorm(2, 4), (3, 4)),
        (source.GroupNorm(4, 4, affine=False), (3, 4, 2, 5)),
        (source.LayerNorm(6), (2, 3, 6)),
        (source.LayerNorm([3, 6], bias=False), (2, 4, 3, 6)),
        (source.LayerNorm([3, 6]), (3, 6)),
        (source.RMSNorm(6), (5, 6)),
        (source.RMSNorm([3, 6], eps=1e-3), (2, 3, 6)),
    ]


OURS = [
    (nf.GhostBatchNorm1d(4, block=2), (5, 4)),
    (nf.GhostBatchNorm2d(4, block=3, momentum=None), (5, 4, 2, 2)),
    (nf.FrozenBatchNorm1d(4), (5, 4)),
    (nf.FrozenBatchNorm2d(4, affine=False, eps=1e-3), (3, 4, 2, 5)),
    (nf.FrozenBatchNorm3d(4, trainable=True), (3, 4, 2, 1, 2)),
    (nf.SwitchNorm1d(4), (5, 4)),
    (nf.SwitchNorm2d(4), (3, 4, 2, 5)),
    (nf.SwitchNorm2d(4, over=("instance", "layer")), (1, 4, 2, 5)),
    (nf.SwitchNorm3d(4, over=("ghost:2", "group:2"), momentum=0.5), (5, 4, 2, 1, 2)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"), [*layers(torch.nn), *layers(nf), *OURS], ids=lambda each: str(each)[:60]
)
def test_every_layer_is_judged_in_its_mode(
    layer: nn.Module, shape: tuple[int, ...], training: bool
) -> None:
    layer = randomized(copy.deepcopy(layer)).double().train(training)
    x, dy = 3 + 2 * normal(*shape).double(), normal(*shape).double()
    assert_layer_accurate(layer, x, dy)
    assert_accurate(layer(x), judge(layer.train(training), x).y, np.full(shape, 1e-13))


def test_pytorch_is_as_far_off_as_is_known() -> None:
    x, dy = 1e4 + normal(8, 3, 16, 16), normal(8, 3, 16, 16)
    for layer in (nn.BatchNorm2d(3), nn.GroupNorm(1, 3)):
        found = measure(layer, x, dy)
        assert found["y"] > 100
        assert found["dx"] > 100
    ours = measure(nf.BatchNorm2d(3), x, dy)
    assert max(ours.values()) <= 1


def test_layers_are_left_as_they_were() -> None:
    layer = randomized(nf.SwitchNorm2d(3))
    before = copy.deepcopy(layer.state_dict())
    x, dy = hard_input("plain", torch.float32)
    assert set(measure(layer, x)) == {"y", "running_mean", "running_var"}
    assert set(measure(layer, x, dy)) == {
        *("y", "running_mean", "running_var", "dx"),
        *("dweight", "dbias", "dmean_weight", "dvar_weight"),
    }
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert x.grad is None
    assert not x.requires_grad


def test_tracking_that_was_turned_off() -> None:
    layer = randomized(nn.BatchNorm2d(3))
    layer.track_running_stats = False  # its buffers stay, unused until evaluation
    x, dy = hard_input("plain", torch.float32)
    assert set(measure(layer, x)) == {"y"}
    assert max(measure(layer.double(), x.double(), dy.double()).values()) <= 1
    assert measure(layer.eval(), x.double())["y"] <= 1


def test_compiled_layers() -> None:
    x, dy = hard_input("plain", torch.float32)
    layer = torch.compile(randomized(Exact(3)), backend="eager")
    assert max(measure(layer, x, dy).values()) <= 1


def test_parameters_of_another_type_than_x() -> None:
    x, dy = hard_input("plain", torch.bfloat16)
    layer = randomized(Exact(3))  # float32
    found = measure(layer, x, dy)
    assert max(found.values()) <= 1
    assert found["dweight"] > 0
    assert measure(randomized(Unbiased(3)), x, dy)["dweight"] > 1  # not hidden by bfloat16


def test_what_is_not_a_norm() -> None:
    with pytest.raises(TypeError, match="Conv2d is not a norm"):
        judge(nn.Conv2d(3, 3, 1), normal(1, 3, 4, 4))
