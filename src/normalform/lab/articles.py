"""What the source articles print, computed again: by our layers and by the reference.

Four articles print numbers. The *overview* and the *framework notes* print tensors; these must come
out again. The *notebook* prints sums of differences, and the *book analogy* prints one, that the
articles take for rounding; they come from dividing by n - 1 instead of n, which is shown here.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import normalform as nf
from normalform.testing import judge

# Printed inputs and outputs are rounded to four decimals: half of 1e-4 in y itself, and what half
# of 1e-4 in each x makes of it.
TENSOR_LIMIT = 1.5e-4
SUM_LIMIT = 0.01  # relative: the articles drew other random numbers

_MISLABELLED = "group_4_called_layer.y"

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """A tensor that an article prints, and the layer it says made it.

    Attributes:
        article: which article.
        code: the layer as the article writes it.
        layer: makes our layer of the same kind.
        x: the input.
        y: the printed output, of the first ``len(y)`` samples.
        running: the running mean and variance the layer has afterwards, where it keeps them. The
            article prints their shapes only; the values follow from its constant maps.
        called: the norm the article takes it for, where that is wrong.
    """

    article: str
    code: str
    layer: Callable[[], nn.Module]
    x: Tensor
    y: Array
    running: tuple[Array, Array] | None = None
    called: str = ""


@dataclass(frozen=True)
class Checked:
    """The largest difference from what is printed, running statistics included."""

    example: Example
    ours: float
    reference: float

    @property
    def ok(self) -> bool:
        """Both are within the rounding of the article."""
        return self.ours <= TENSOR_LIMIT and self.reference <= TENSOR_LIMIT


@dataclass(frozen=True)
class Mislabelled:
    """The block called layer norm over ``GroupNorm(4, 4)``.

    Attributes:
        from_instance: its largest difference from the output of instance norm.
        from_layer: its largest difference from layer norm of a sample, ``GroupNorm(1, 4)``.
        repeats: it is, number for number, the block printed above it as instance norm.
    """

    from_instance: float
    from_layer: float
    repeats: bool

    @property
    def ok(self) -> bool:
        """It is instance norm, and it is not layer norm."""
        return self.repeats and self.from_instance <= TENSOR_LIMIT < self.from_layer


@dataclass(frozen=True)
class Sum:
    """A sum of absolute differences between a layer and the same formula with ``torch.var``.

    Attributes:
        norm: which norm.
        values: how many values a cell has.
        printed: the sum in the notebook.
        measured: the same experiment with our layer, in float64.
        expected: the sum in closed form.
    """

    norm: str
    values: int
    printed: float
    measured: float
    expected: float

    @property
    def ok(self) -> bool:
        """Experiment and formula both give what is printed."""
        found = (self.measured, self.expected)
        return all(abs(each - self.printed) <= SUM_LIMIT * self.printed for each in found)


@dataclass(frozen=True)
class SignedSum:
    """The book analogy's check of group norm: a sum of signed differences.

    It looks at ``total``, which hides the ``largest`` of the differences.
    """

    total: float
    largest: float


@dataclass(frozen=True)
class Report:
    """Everything the articles print, computed again."""

    examples: tuple[Checked, ...]
    mislabelled: Mislabelled
    sums: tuple[Sum, ...]
    signed: SignedSum

    @property
    def ok(self) -> bool:
        """Every number came out again."""
        return all(each.ok for each in (*self.examples, self.mislabelled, *self.sums))


@cache
def tensors() -> dict[str, Array]:
    """Every tensor the articles print, by name, digit for digit.

    >>> tensors()["group_2.y"].shape
    (2, 4, 3, 3)
    """
    text = (files("normalform.lab") / "data" / "articles.txt").read_text(encoding="utf-8")
    blocks = (block.split("\n", 1) for block in text.split("# ")[1:])
    return {name: np.array(ast.literal_eval(numbers.strip())) for name, numbers in blocks}


def examples() -> tuple[Example, ...]:
    """The printed tensors, each with its input and its layer.

    >>> [example.code for example in examples()][-1]
    'GroupNorm(2, 4)'
    """
    printed = tensors()
    t = {name: torch.tensor(array, dtype=torch.float32) for name, array in printed.items()}
    planes, groups = t["planes.x"], t["groups.x"]
    # The notes print one of eight equal samples, and of two the first; the second is twice that.
    channels = torch.arange(1.0, 5).reshape(1, 4, 1, 1).expand(1, 4, 2, 2)
    notes_group = torch.cat([channels, 2 * channels])
    notes_layer = t["notes_layer.x"].expand(8, 3, 3, 4)
    rows: list[tuple[str, Callable[[], nn.Module], Tensor, str]] = [
        ("BatchNorm2d(2)", _batch_affine, t["batch_affine.x"], "batch_affine.y"),
        ("BatchNorm2d(2, affine=False)", _batch, t["batch.x"], "batch.y"),
        ("InstanceNorm2d(3)", lambda: nf.InstanceNorm2d(3), planes, "instance.y"),
        ("LayerNorm([3, 2, 2])", lambda: nf.LayerNorm([3, 2, 2]), planes, "layer_3_2_2.y"),
        ("LayerNorm([2, 2])", lambda: nf.LayerNorm([2, 2]), planes, "layer_2_2.y"),
        ("LayerNorm(2)", lambda: nf.LayerNorm(2), planes, "layer_2.y"),
        ("GroupNorm(2, 4)", lambda: nf.GroupNorm(2, 4), groups, "group_2.y"),
        ("GroupNorm(4, 4)", lambda: nf.GroupNorm(4, 4), groups, "group_4.y"),
        ("GroupNorm(4, 4)", lambda: nf.GroupNorm(4, 4), groups, _MISLABELLED),
        ("LayerNorm([3, 3, 4])", lambda: nf.LayerNorm([3, 3, 4]), notes_layer, "notes_layer.y"),
        ("InstanceNorm2d(3, momentum=0.3)", _tracked, t["notes_instance.x"], "notes_instance.y"),
        ("GroupNorm(2, 4)", lambda: nf.GroupNorm(2, 4), notes_group, "notes_group.y"),
    ]
    return tuple(
        Example(
            "framework notes" if y.startswith("notes") else "overview",
            code,
            layer,
            x,
            printed[y].reshape(-1, *x.shape[1:]),
            running=(np.array([0.3, 0.6, 0.9]), np.full(3, 0.7)) if layer is _tracked else None,
            called="layer norm" if y == _MISLABELLED else "",
        )
        for code, layer, x, y in rows
    )


def check(kernel: str = "auto") -> Report:
    """Compute again what the articles print, our layers with this kernel."""
    checked = tuple(_checked(example, kernel) for example in examples())
    return Report(checked, mislabelled(kernel), sums(kernel), signed_sum(kernel))


def mislabelled(kernel: str = "auto") -> Mislabelled:
    """What the block called layer norm is.

    >>> round(mislabelled().from_layer, 3)
    0.906
    """
    printed = tensors()[_MISLABELLED]
    x = torch.tensor(tensors()["groups.x"], dtype=torch.float32)
    return Mislabelled(
        from_instance=_difference(_run(nf.InstanceNorm2d(4), x, kernel), printed),
        from_layer=_difference(_run(nf.GroupNorm(1, 4), x, kernel), printed),
        repeats=bool(np.array_equal(printed, tensors()["group_4.y"])),
    )


def sums(kernel: str = "auto") -> tuple[Sum, ...]:
    """The notebook's experiment: sums of what ``torch.var``, divided by n - 1, changes.

    An element moves by ``|x - mean| (1 / sqrt(var + eps) - 1 / sqrt(var n / (n - 1) + eps))``; with
    ``var = 1/12`` and ``mean |x - mean| = 1/4`` of uniform numbers that gives the closed form.
    """
    shape, eps = (16, 32, 64, 64), 1e-5
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grouped = (16, 8, 4, 64, 64)
    cases: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...], float]] = [
        ("batch", nf.BatchNorm2d(32), shape, (0, 2, 3), 13.8286),
        ("layer", nf.LayerNorm([32, 64, 64]), shape, (1, 2, 3), 6.9151),
        ("instance", nf.InstanceNorm2d(32), shape, (2, 3), 221.6718),
        ("group", nf.GroupNorm(8, 32), grouped, (2, 3, 4), 55.4126),
    ]
    found: list[Sum] = []
    for norm, layer, view, dims, printed in cases:
        cells = x.reshape(view)
        var = torch.var(cells, dims, keepdim=True)
        unbiased = (cells - cells.mean(dims, keepdim=True)) / torch.sqrt(var + eps)
        measured = float((_run(layer.double(), x, kernel) - unbiased.reshape(shape)).abs().sum())
        n = math.prod(view[d] for d in dims)
        shift = 1 / math.sqrt(1 / 12 + eps) - 1 / math.sqrt(n / (n - 1) / 12 + eps)
        found.append(Sum(norm, n, printed, measured, x.numel() / 4 * shift))
    return tuple(found)


def signed_sum(kernel: str = "auto") -> SignedSum:
    """The book analogy's experiment: group norm against its own, with ``torch.std``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((10, 20, 5, 5), generator=generator, dtype=torch.float64) * 10000
    cells = x.reshape(10, 4, -1)
    theirs = (cells - cells.mean(-1, keepdim=True)) / cells.std(-1, keepdim=True)
    difference = _run(nf.GroupNorm(4, 20, eps=0, affine=False), x, kernel) - theirs.reshape(x.shape)
    return SignedSum(float(difference.sum()), float(difference.abs().max()))


def _checked(example: Example, kernel: str) -> Checked:
    layer = example.layer()
    exact = judge(layer, example.x)  # before the layer runs and moves its running statistics
    y = _run(layer, example.x, kernel)
    first = len(example.y)
    ours = [_difference(y[:first], example.y)]
    reference = [_difference(exact.y[:first], example.y)]
    if example.running is not None:
        names = ("running_mean", "running_var")
        for name, expected in zip(names, example.running, strict=True):
            ours.append(_difference(layer.get_buffer(name), expected))
            reference.append(_difference(getattr(exact, name), expected))
    return Checked(example, max(ours), max(reference))


def _run(layer: nn.Module, x: Tensor, kernel: str) -> Tensor:
    layer.kernel = kernel  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return layer(x)


def _difference(found: Tensor | Array, printed: Array) -> float:
    """Largest absolute difference; infinite where something is not a number."""
    values = found.numpy() if isinstance(found, Tensor) else found
    largest = float(np.max(np.abs(values.astype(np.float64) - printed)))
    return math.inf if math.isnan(largest) else largest


def _batch() -> nn.Module:
    return nf.BatchNorm2d(2, affine=False)


def _batch_affine() -> nn.Module:
    layer = nf.BatchNorm2d(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5247, 0.4397]))
    return layer


def _tracked() -> nn.Module:
    return nf.InstanceNorm2d(3, momentum=0.3, affine=True, track_running_stats=True)
