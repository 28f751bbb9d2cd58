"""Layers that torch does not have: switchable and ghost batch norm."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform.testing import assert_layer_accurate
from steps import assert_same, direction, example, prepared, step

SWITCHES = {1: nf.SwitchNorm1d, 2: nf.SwitchNorm2d, 3: nf.SwitchNorm3d}
GHOSTS = {1: nf.GhostBatchNorm1d, 2: nf.GhostBatchNorm2d, 3: nf.GhostBatchNorm3d}
each_dim = pytest.mark.parametrize("dim", [1, 2, 3])


def images(dim: int, samples: int = 4, channels: int = 6, seed: int = 0) -> Tensor:
    return example((samples, channels, *(5, 3, 2)[:dim]), seed=seed)


def blend(
    x: Tensor, means: list[Tensor], variances: list[Tensor], layer: nn.Module, kept: list[int]
) -> Tensor:
    """The formula of the paper, in float64, from the statistics of the branches that are left."""
    shares = [logit.double()[kept].softmax(0) for logit in (layer.mean_weight, layer.var_weight)]
    mean = sum(w * m for w, m in zip(shares[0], means, strict=True))
    var = sum(w * v for w, v in zip(shares[1], variances, strict=True))
    shape = (-1, *(1 for _ in x.shape[2:]))
    weight, bias = layer.weight.double().view(shape), layer.bias.double().view(shape)
    return weight * (x.double() - mean) / (var + layer.eps).sqrt() + bias


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    apart = (actual.double() - expected).abs().max()
    assert apart <= 2.0**-22 * (1 + expected.abs().max()), float(apart)


# Switchable norm


@each_dim
def test_switch_is_the_blend_of_the_paper(dim: int):
    layer, x = prepared(f"switch {dim}d")
    axes = tuple(range(2, x.ndim))
    branches = [moments(x, dims) for dims in (axes, (1, *axes), (0, *axes))]
    means, variances = map(list, zip(*branches, strict=True))
    assert_near(layer(x), blend(x, means, variances, layer, [0, 1, 2]))


@each_dim
def test_switch_in_evaluation_takes_running_statistics_for_the_batch(dim: int):
    layer, x = prepared(f"switch {dim}d", training=False)
    axes = tuple(range(2, x.ndim))
    shape = (1, -1, *(1 for _ in axes))
    running = layer.running_mean.double().view(shape), layer.running_var.double().view(shape)
    branches = [moments(x, axes), moments(x, (1, *axes)), running]
    means, variances = map(list, zip(*branches, strict=True))
    assert_near(layer(x), blend(x, means, variances, layer, [0, 1, 2]))
    assert_near(layer(x[1:2]), layer(x)[1:2].double())  # samples do not meet


def test_switch_without_positions_leaves_the_instance_branch_out():
    layer, x = prepared("switch rows")
    branches = [moments(x, (1,)), moments(x, (0,))]
    means, variances = map(list, zip(*branches, strict=True))
    assert_near(layer(x), blend(x, means, variances, layer, [1, 2]))
    found = step(layer, layer, x)
    assert found["dmean_weight"][0] == found["dvar_weight"][0] == 0
    assert found["dmean_weight"][1] == pytest.approx(-float(found["dmean_weight"][2]), rel=1e-5)
    assert found["dmean_weight"][1] != 0


def test_switch_of_one_pixel_of_one_sample_is_layer_norm():
    layer, x = prepared("switch, one value")
    expected = nf.functional.group_norm(x, 1, layer.weight, layer.bias, layer.eps)
    assert_same({"y": layer(x)}, {"y": expected})


@pytest.mark.parametrize("training", [True, False])
def test_switch_of_a_batch_of_one(training: bool):
    layer, x = prepared("switch of two", training)
    axes = tuple(range(2, x.ndim))
    branches = [moments(x, axes), moments(x, (1, *axes))]
    means, variances = map(list, zip(*branches, strict=True))
    assert_near(layer(x), blend(x, means, variances, layer, [0, 1]))
    assert not any("running" in key for key in layer.state_dict())


@pytest.mark.parametrize(
    ("over", "shape"),
    [(("instance",), (2, 4)), (("instance", "batch"), (1, 4)), (("instance", "layer"), (3, 1))],
)
def test_switch_with_nothing_left_is_refused(over: tuple[str, ...], shape: tuple[int, ...]):
    layer = nf.SwitchNorm1d(shape[1], over=over)
    with pytest.raises(ValueError, match="every branch has one value a cell"):
        layer(example(shape))


@each_dim
@pytest.mark.parametrize("branch", range(3))
def test_switch_of_one_branch_is_that_norm(dim: int, branch: int):
    layer, x = prepared(f"switch {dim}d")
    with torch.no_grad():
        for logit in (layer.mean_weight, layer.var_weight):
            logit.fill_(-1e4)[branch] = 0
    norms = [getattr(nf, f"InstanceNorm{dim}d")(6 if dim < 3 else 4, affine=True)]
    norms += [
        nf.GroupNorm(1, layer.num_features),
        getattr(nf, f"BatchNorm{dim}d")(layer.num_features),
    ]
    norm = norms[branch]
    norm.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    expected, found = step(norm, norm, x), step(layer, layer, x)
    for key in ("y", "dx", "dweight", "dbias"):
        assert_same({key: found[key]}, {key: expected[key]}, terms=2)


@each_dim
def test_switch_loads_a_batch_norm(dim: int):
    batch, _ = prepared(f"batch {dim}d")
    switch = SWITCHES[dim](batch.num_features)
    with torch.no_grad():
        switch.mean_weight.fill_(7)
    with pytest.warns(UserWarning, match="no mean_weight and no var_weight") as caught:
        switch.load_state_dict(batch.state_dict())
    assert len(caught) == 1
    for key, value in batch.state_dict().items():
        assert torch.equal(switch.state_dict()[key], value)
    assert torch.equal(switch.mean_weight, torch.ones(3))
    assert torch.equal(switch.var_weight, torch.ones(3))


def test_switch_loads_a_network_with_batch_norms():
    batches = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    switches = nn.Sequential(nn.Conv2d(3, 6, 1), nf.SwitchNorm2d(6), nf.SwitchNorm2d(6))
    state = batches.state_dict()
    keys = list(state)
    with pytest.warns(UserWarning, match=r"^[12]\.?: the state_dict has no mean_weight"):
        switches.load_state_dict(state)
    assert list(state) == keys  # the caller's dict is the caller's


def test_switch_that_lacks_one_logit_is_refused():
    state = nf.SwitchNorm2d(4).state_dict()
    del state["var_weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "var_weight"'):
            nf.SwitchNorm2d(4).load_state_dict(state)


def test_switch_loads_itself_without_a_word():
    layer, x = prepared("switch 2d")
    other = nf.SwitchNorm2d(layer.num_features)
    other.load_state_dict(layer.state_dict())
    assert_same(step(other, other, x), step(layer, layer, x))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "none": ({"over": ()}, ValueError, "name at least one norm"),
    "text": ({"over": "instance"}, TypeError, r'takes several: over=\("instance",\)'),
    "unknown": (
        {"over": ("instanse",)},
        ValueError,
        "unknown norm 'instanse'; did you mean 'instance'[?] known",
    ),
    "channels last": ({"over": ("token",)}, ValueError, "axes must be n c s"),
    "not centred": ({"over": ("rms",)}, ValueError, "must subtract the mean"),
    "two batches": ({"over": ("batch", "ghost:2")}, ValueError, "two sets of running statistics"),
    "groups": ({"over": ("group:4",)}, ValueError, "6 channels do not divide by g=4"),
    "no size": ({"over": ("group",)}, ValueError, "needs a size"),
    "no positions": ({"over": ("[n] c s",)}, ValueError, "no running statistics of shape"),
}


def test_what_it_shows_makes_it_again():
    layer = nf.SwitchNorm2d(6, over=("instance", "group:3", "ghost:2"))
    names = {"SwitchNorm2d": nf.SwitchNorm2d, "recipe": nf.recipe}
    assert eval(repr(layer), names).over == layer.over


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_switch_refuses_at_once_what_could_not_run(
    options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        nf.SwitchNorm2d(6, **options)


@pytest.mark.parametrize(
    "layer", [nf.SwitchNorm2d(6), nf.GhostBatchNorm2d(6, 2)], ids=["switch", "ghost"]
)
def test_wrong_shapes_are_refused_in_words(layer: nn.Module):
    with pytest.raises(ValueError, match=r"got 5 channels in an input of shape \[2, 5, 4, 4\]"):
        layer(torch.ones(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\)"):
        layer(torch.ones(2, 6, 4))


# Ghost batch norm


@each_dim
def test_ghost_is_batch_norm_of_each_block(dim: int):
    x = images(dim, samples=7)
    ghost, batch = GHOSTS[dim](6, 3), getattr(nf, f"BatchNorm{dim}d")(6)
    expected = torch.cat([batch(part) for part in x.split(3)])
    assert_same({"y": ghost(x)}, {"y": expected})


def test_ghost_with_a_tail_of_one_value_joins_it_to_the_block_before():
    x = example((5, 6))
    expected = torch.cat([nf.BatchNorm1d(6)(part) for part in x.split([2, 3])])
    assert_same({"y": nf.GhostBatchNorm1d(6, 2)(x)}, {"y": expected})


def test_ghost_of_a_large_block_is_batch_norm():
    x = images(2)
    ghost, batch = nf.GhostBatchNorm2d(6, 9), nf.BatchNorm2d(6)
    assert_same(step(ghost, ghost, x), step(batch, batch, x))
    assert_layer_accurate(ghost, x, direction(x))


def test_ghost_of_single_values_is_refused():
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*a larger block"):
        nf.GhostBatchNorm1d(6, 1)(example((3, 6)))
    with pytest.raises(ValueError, match="n=0 is not a positive integer"):
        nf.GhostBatchNorm1d(6, 0)


def test_synchronizing_leaves_what_torch_does_not_know():
    network = nn.Sequential(nf.SwitchNorm2d(6), nf.GhostBatchNorm2d(6, 2), nf.BatchNorm2d(6))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    kinds = [type(module) for module in converted]
    assert kinds == [nf.SwitchNorm2d, nf.GhostBatchNorm2d, nn.SyncBatchNorm]


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_no_channels_are_normalized_to_none(kernel, training):
    layer = nf.SwitchNorm2d(0).train(training)
    layer.kernel = kernel
    x = torch.randn(2, 0, 3, 3, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert torch.equal(layer.mean_weight.grad, torch.zeros(3))
