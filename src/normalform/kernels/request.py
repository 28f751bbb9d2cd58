"""What is asked of the compiled kernels, and which of them fit, or why none do.

It depends on shapes, strides and types alone. ``torch.compile`` traces it, so sizes may be symbols,
and nothing here needs Numba.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels import is_channels_last
from normalform.kernels.call import Call
from normalform.kernels.plan import Plan

TYPES = (torch.float32, torch.float64, torch.bfloat16)
# Planes shorter than this are taken side by side where statistics run across samples.
SHORT = 128
MANY = 4
# Up to so many, weights for each value of a sample, and their sums, stay in a core's cache.
WEIGHTS = 16384
# Channels last, samples of so many values, and their gradients, stay in a core's cache.
SAMPLE = 1 << 17


@dataclass(frozen=True)
class Request:
    """What is asked for, apart from the values: all that a layout depends on.

    Attributes:
        plan: the norm laid over the shape.
        shape: of x, (n, c, *s).
        order: how x lies in memory: "planes", or "columns" (channels last).
        dtype: of x.
        weight, bias, logits, running: the type of each, None where there is none.
        per_sample: whether weight and bias differ from sample to sample.
        tracked: the branch whose statistics move the running ones.
        copies: whether x is copied before it lies so.
    """

    plan: Plan
    shape: tuple[int, ...]
    order: str
    dtype: torch.dtype
    weight: torch.dtype | None
    bias: torch.dtype | None
    logits: torch.dtype | None
    running: torch.dtype | None
    per_sample: bool
    tracked: int | None
    copies: bool

    @property
    def positions(self) -> int:
        """How many there are: the product of the axes in ``s``."""
        return math.prod(self.shape[2:])

    @property
    def whole(self) -> bool:
        """Whether all statistics run across all samples."""
        cells = [c for c in self.plan.branches if c is not None]
        return not self.per_sample and all(c.runs[0].block == self.shape[0] for c in cells)


def requested(call: Call, cells: list[Cells], dims: tuple[int, ...]) -> Request | str:
    """The request of a call, laid over x as :meth:`Call.laid` answers, or why none can be met."""
    x, weight, bias, logits, running = call.tensors
    if x.dtype not in TYPES:
        return f"it takes float32, float64 and bfloat16, not {_name(x.dtype)}"
    for name, pair in (("parameters", (weight, bias)), ("logits", logits), ("buffers", running)):
        there = [t for t in pair or () if t is not None]
        if not all(_is_read(t) for t in there):
            return f"it takes contiguous {name} of float32, float64 or bfloat16, on the CPU"
        if name != "parameters" and any(t.dtype != there[0].dtype for t in there):
            return f"it takes {name} of one type"
    if x.numel() == 0:
        return "there is nothing to compute"
    branches = call.branches(cells)
    if logits is not None and any(c is not None and max(c.counts) == 1 for c in branches):
        return "a branch whose cells hold one value is left out"
    axes = cells[0].order
    if dims not in (axes[1:2], axes[:2]):
        return "it takes weight and bias along c, or n c"
    last = not x.is_contiguous() and is_channels_last(x)
    order = memory_order(x.shape, last, axes)
    if order is None:
        return "the axes are in another order than n c s or n s c"
    request = Request(
        Plan.of(branches, call.eps), cells[0].shape, order, x.dtype,
        weight=None if weight is None else weight.dtype,
        bias=None if bias is None else bias.dtype,
        logits=None if logits is None else logits[0].dtype,
        running=None if running is None else running[0].dtype,
        per_sample=len(dims) == 2,
        tracked=call.moved,
        copies=not (x.is_contiguous() or last),
    )  # fmt: skip
    return request if _blends(request) or are_rows(request) else "its memory pattern has no kernel"


def _is_read(t: Tensor) -> bool:
    # Not asked while tracing, which cannot: an operator is never given a negated view.
    plain = torch.compiler.is_compiling() or not t.is_neg()
    return plain and t.device.type == "cpu" and t.is_contiguous() and t.dtype in TYPES


def memory_order(shape: tuple[int, ...], last: bool, axes: tuple[int, ...]) -> str | None:
    """How a tensor without gaps lies in memory: "planes", "columns" (channels last), or neither.

    ``last`` says whether it is channels last as its axes stand; ``axes`` brings them into the order
    (n, c, *s).
    """
    stored = tuple(range(len(shape)))
    if last:
        stored = (0, *stored[2:], 1)

    def lies(order: tuple[int, ...]) -> bool:  # an axis of size 1 may be anywhere
        return [d for d in order if shape[d] != 1] == [d for d in stored if shape[d] != 1]

    n, c, *s = axes
    if lies(axes):
        return "planes"
    return "columns" if lies((n, *s, c)) else None


def pattern(r: Request) -> str:
    """Which kernels fit: "rows", "planes" or "columns"."""
    if are_rows(r):
        return "rows"
    short = r.positions < SHORT and r.shape[0] >= MANY and r.whole and r.plan.base is not None
    return "columns" if r.order == "columns" or r.positions == 1 or short else "planes"


def are_rows(r: Request) -> bool:
    """Whether cells are runs of neighbouring values, each with its own weight or nearly so."""
    cells, *others = r.plan.branches
    if cells is None or others or r.per_sample or r.tracked is not None:
        return False
    if [run.block for run in cells.runs] != [1]:
        return False
    if r.positions == 1 or (not cells.spatial and r.order == "columns"):
        return cells.groups == 1
    values = math.prod(r.shape[1:])
    if not cells.spatial or r.shape[0] * cells.groups < 2 * MANY:
        return False
    if r.order == "columns":
        return cells.groups == 1 and values <= SAMPLE
    return r.positions < SHORT and values <= WEIGHTS


def _blends(r: Request) -> bool:
    """Whether every branch is pooled from planes of all positions."""
    cells = [c for c in r.plan.branches if c is not None]
    return all(c.center and (c.spatial or r.positions == 1) for c in cells)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
