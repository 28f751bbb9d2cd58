"""The judge judged: against plain loops and central differences in 100-digit decimals.

Bounds: one rounding to float64, and 64 roundings of the wider type the judge computes in, which on
x86 are a 32nd of a float64's.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import exact
from exact import cell_of, values
from normalform import normal_form, reference
from normalform.reference import Result

U = 2.0**-53
WORK = 64 * float(np.finfo(normal_form.WIDEST).eps)


@pytest.fixture(autouse=True)
def _hundred_digits() -> Any:
    with decimal.localcontext(exact.DIGITS):
        yield


def inputs(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=shape)
    if kind == "outlier":
        x.flat[0] = 1e6
    return {"mean 1e6": 1e6 + x, "huge": 1e30 * x, "tiny": 1e-30 * x}.get(kind, 1 + 2 * x)


KINDS = ["plain", "mean 1e6", "huge", "tiny", "outlier"]


def check_result(
    result: Result,
    norm: exact.Norm,
    given: dict[str, np.ndarray],
    running: dict[str, np.ndarray] | None = None,
    branches: Sequence[int] = (0, 1, 2),
) -> None:
    """``y`` and the gradient of everything ``given`` within a rounding of the truth.

    Of a blend only ``branches`` take part: the logits of the others have a gradient of zero.
    """
    shape = result.y.shape
    truth = {name: values(array) for name, array in {**given, **(running or {})}.items()}
    for name in {"mean_weight", "var_weight"} & truth.keys():
        truth[name] = {k: logit for k, logit in truth[name].items() if k in branches}
    weight = 1.0 if result.weight is None else np.abs(result.weight)
    bias = 0.0 if result.bias is None else np.abs(result.bias)
    peak = np.maximum(1, result.largest(np.abs(result.xhat)))
    close("y", result.y, exact.array(norm.forward(truth), shape), WORK * (weight * peak + bias))

    dy = np.random.default_rng(2).normal(size=shape)
    found = result.backward(dy)

    def gradient(name: str) -> np.ndarray:
        return exact.array(norm.gradient(truth, values(dy), name), given[name].shape)

    close("dx", found.x, gradient("x"), WORK * found.terms.max())
    for name in ("weight", "bias", "mean_weight", "var_weight"):
        got, scale = getattr(found, name), getattr(found, f"{name}_scale")
        assert (got is None) == (scale is None) == (name not in given)
        if got is not None:
            close(f"d{name}", got, gradient(name), WORK * np.sqrt(dy.size) * scale)


def close(name: str, got: np.ndarray, truth: np.ndarray, room: Any) -> None:
    assert got.dtype == np.float64
    assert got.shape == truth.shape, name
    error = np.abs(got - truth) / (U * np.abs(truth) + room + 5e-324)
    assert error.max() <= 1, f"{name}: {error.max():.3g} times the bound, of {truth.ravel()[:4]}"


@dataclass(frozen=True)
class Case:
    """A norm that is asked for as ``how``, and which its name or ``cell`` tells the loops."""

    how: str
    shape: tuple[int, ...]
    params: str = "c"
    cell: exact.Key | None = None
    channels_last: bool = False
    sizes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.how} {self.params} {'x'.join(map(str, self.shape))}"

    def dims(self) -> list[int]:
        """The axes of the tensor that weight and bias vary over."""
        last = len(self.shape) - 1
        of = {"n": [0], "c": [last if self.channels_last else 1]}
        of["s"] = [d for d in range(1, last + 1) if d not in of["c"]]
        return sorted(d for letter in self.params.split() for d in of[letter])

    def param(self, index: exact.Index) -> Any:
        key = tuple(index[d] for d in self.dims())
        return key if len(key) > 1 else key[0]


CASES = [
    Case("batch", (4, 3)),
    Case("batch", (3, 2, 2, 2)),
    Case("batch", (2, 2, 2, 1, 2)),
    Case("layer", (2, 3, 2, 2)),
    Case("layer", (2, 3, 2, 2), "c s"),
    Case("instance", (2, 3, 4)),
    Case("instance", (2, 3, 2, 2), "n c"),
    Case("group:2", (2, 4, 3)),
    Case("group:4", (2, 4, 3)),
    Case("ghost:2", (4, 3, 2)),
    Case("ghost:2", (5, 2, 2)),  # a tail of one sample
    Case("ghost:2", (5, 3)),  # a tail of one value, which joins the block before
    Case("ghost:3", (8, 2)),
    Case("ghost:8", (3, 2, 2)),
    Case("token", (2, 3, 4), channels_last=True),
    Case("token", (2, 2, 2, 3), "s c", channels_last=True),
    Case("position", (2, 3, 2, 2)),
    Case("rms", (2, 3, 4), channels_last=True),
    Case("[n s] c", (3, 2, 2, 3), "c", lambda i: i[-1], True),
    Case("n [s] c", (3, 2, 2, 3), "c", lambda i: (i[0], i[-1]), True),
    Case("n s (g [c])", (3, 2, 6), "c", lambda i: (*i[:-1], i[-1] // 3), True, (("g", 2),)),
    Case("(b [n]) [c s]", (4, 3, 2), "c", lambda i: i[0] // 2, sizes=(("b", 2),)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_recipe(case: Case, kind: str) -> None:
    x = inputs(kind, case.shape)
    eps = 1e-62 if kind == "tiny" else 1e-5
    cell = case.cell or cell_of(case.how, case.shape)
    rng = np.random.default_rng(3)
    given = {
        name: rng.normal(size=[case.shape[d] for d in case.dims()]) for name in ("weight", "bias")
    }
    result = reference.norm(x, case.how, **given, eps=eps, params=case.params, **dict(case.sizes))
    norm = exact.Norm([cell], case.param, eps=eps, center=case.how != "rms")
    check_result(result, norm, {"x": x, **given})
    mean, var = norm.moments(cell, {"x": values(x)})
    close(
        "mean",
        np.broadcast_to(result.mean, x.shape),
        exact.array(mean, x.shape),
        WORK * np.abs(x).max(),
    )
    close("var", np.broadcast_to(result.var, x.shape), exact.array(var, x.shape), WORK * result.var)


LOGITS = {"mean_weight": np.array([0.3, -1.1, 0.8]), "var_weight": np.array([-0.6, 0.2, 1.3])}
RUNNING = {"running_mean": np.array([0.5, -2.0, 7.0]), "running_var": np.array([1.5, 0.25, 3.0])}
AFFINE = {"weight": np.array([1.5, -0.5, 2.0]), "bias": np.array([0.0, 1.0, -3.0])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "over",
    [("instance", "layer", "batch"), ("batch", "ghost:2", "group:3"), ("position", "layer")],
    ids="+".join,
)
def test_blends(over: tuple[str, ...], kind: str) -> None:
    x = inputs(kind, (3, 3, 2, 2))
    eps = 1e-62 if kind == "tiny" else 1e-5
    given = {**AFFINE, **{name: logits[: len(over)] for name, logits in LOGITS.items()}}
    result = reference.switch_norm(x, **given, eps=eps, over=over)
    norm = exact.Norm([cell_of(name, x.shape) for name in over], eps=eps)
    check_result(result, norm, {"x": x, **given})


@pytest.mark.parametrize("kind", ["plain", "mean 1e6", "tiny"])
@pytest.mark.parametrize("affine", [AFFINE, {}], ids=["affine", "bare"])
@pytest.mark.parametrize("name", ["batch", "instance", "ghost"])
def test_evaluation(name: str, affine: dict[str, np.ndarray], kind: str) -> None:
    x = inputs(kind, (4, 3, 2, 2))
    if name == "instance":
        result = reference.instance_norm(x, **affine, **RUNNING, use_input_stats=False)
    else:
        block = 2 if name == "ghost" else None
        result = reference.batch_norm(x, **affine, **RUNNING, training=False, block=block)
    check_result(result, exact.Norm([None]), {"x": x, **affine}, RUNNING)
    np.testing.assert_array_equal(result.running_mean, RUNNING["running_mean"])
    np.testing.assert_array_equal(result.running_var, RUNNING["running_var"])


@pytest.mark.parametrize(
    ("shape", "training", "kept"),
    [
        ((3, 3, 2, 2), False, [0, 1, 2]),
        ((1, 3, 2, 2), True, [0, 1, 2]),
        ((4, 3), True, [1, 2]),  # instance: one value
        ((4, 3, 1, 1), True, [1, 2]),
        ((4, 3), False, [1, 2]),
        ((1, 3), True, [1]),  # batch: one value
        ((1, 3), False, [1, 2]),
    ],
)
def test_branches_that_are_dropped_or_replaced(
    shape: tuple[int, ...], training: bool, kept: list[int]
) -> None:
    x = inputs("plain", shape)
    result = reference.switch_norm(x, **LOGITS, **AFFINE, **RUNNING, training=training)
    names = ("instance", "layer", "batch")
    cells = [cell_of(name, shape) if name != "batch" or training else None for name in names]
    given = {"x": x, **AFFINE, **LOGITS}
    check_result(result, exact.Norm(cells), given, RUNNING, branches=kept)


def test_no_branch_left() -> None:
    with pytest.raises(ValueError, match="holds one value"):
        reference.switch_norm(np.ones((4, 3, 1, 1)), [0.0], [0.0], over=["instance"])


@pytest.mark.parametrize("shape", [(60000, 2), (5000, 2, 4)], ids=str)
def test_sums_of_many_values_lose_no_digit(shape: tuple[int, ...]):
    """NumPy adds neighbours by halves, rows one by one; alike ones are rounded alike."""
    x = np.random.default_rng(0).standard_normal(shape)
    zeros, ones = np.zeros(shape[1]), np.ones(shape[1])
    result = reference.batch_norm(x, running_mean=zeros, running_var=ones, momentum=1.0)
    values = [Fraction(value) for value in x[:, 0].ravel()]
    mean = sum(values) / len(values)
    var = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert result.running_var is not None
    assert abs(Fraction(result.running_var[0]) - var) <= Fraction(1.01 * U) * var
