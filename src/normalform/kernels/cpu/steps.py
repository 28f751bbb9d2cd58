"""Which norms the compiled kernels take, and a norm laid over a tensor as they compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels import composite, cpu, warn_not_finite
from normalform.kernels.cpu.compiled import HOLDS, KINDS
from normalform.kernels.cpu.layout import Layout, Request, memory_order, pattern
from normalform.kernels.plan import Pair, Plan


class Compiled(NamedTuple):
    """The steps of a norm on tensors of one shape, in machine code. See ``kernels.Steps``.

    ``order`` brings x's axes into (n, c, *s); weight and bias are as the user has them.
    """

    layout: Layout
    order: tuple[int, ...]
    param_shape: tuple[int, ...]

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
        running: Pair | None,
        momentum: float,
    ) -> tuple[Tensor, cpu.Kept]:
        """The output; running statistics are moved where they are tracked."""
        y, kept = cpu.forward(self.layout, x, weight, bias, logits, running, momentum)
        for name, bad in zip(("running_mean", "running_var"), kept.not_finite, strict=True):
            if bad:
                warn_not_finite(name, bad, self.layout.request.shape[1])
        return y, kept

    def backward(
        self,
        kept: cpu.Kept,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """The gradients that are needed."""
        return cpu.backward(self.layout, kept, dy, x, weight, bias, logits, needs)

    def again(
        self,
        kept: cpu.Kept,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
    ) -> Tensor:
        """The output in operators that torch differentiates."""
        constants = cpu.constants(self.layout, kept)
        if constants is not None:
            mean, var = (c.view(1, -1, *(1,) * (x.ndim - 2)) for c in constants)
            constants = mean, var
        # (n, c) comes before the positions in every order that is taken.
        w, b = (None if t is None else t.reshape(self.param_shape) for t in (weight, bias))
        plan, back = self.layout.request.plan, [self.order.index(d) for d in range(x.ndim)]
        y, _ = composite(x.permute(self.order), plan, w, b, logits, constants)
        return y.permute(back)


def find(
    x: Tensor,
    cells: Sequence[Cells],
    eps: float,
    param_dims: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
    tracked: int | None,
    given: bool,
) -> Compiled | str:
    """The steps, or why there are none. It depends on shapes, strides and types alone.

    All that can be wrong with the arguments has been refused before. ``tracked`` is the branch that
    running statistics belong to, and stand for where ``given``.
    """
    if x.dtype not in HOLDS:
        return f"it takes float32, float64 and bfloat16, not {_name(x.dtype)}"
    for name, pair in (("parameters", (weight, bias)), ("logits", logits), ("buffers", running)):
        there = [t for t in pair or () if t is not None]
        if any(t.dtype not in KINDS or not t.is_contiguous() for t in there):
            return f"it takes contiguous {name} of float32, float64 or bfloat16"
        if name != "parameters" and len({t.dtype for t in there}) > 1:
            return f"it takes {name} of one type"
    if x.numel() == 0:
        return "there is nothing to compute"
    branches = tuple(None if given and k == tracked else c for k, c in enumerate(cells))
    if logits is not None and any(c is not None and max(c.counts) == 1 for c in branches):
        return "a branch whose cells hold one value is left out"
    n_dim, c_dim = (order := cells[0].order)[:2]
    if param_dims not in ((c_dim,), (n_dim, c_dim)):
        return "it takes weight and bias along c, or n c"
    kept = x.is_contiguous() or (x.ndim in (4, 5) and _is_channels_last(x))
    stored = memory_order((x if kept else x.contiguous()).permute(order))
    if stored is None:
        return "the axes are in another order than n c s or n s c"
    dtypes = [
        None if t is None else t.dtype
        for t in (weight, bias, (logits or (None,))[0], (running or (None,))[0])
    ]
    request = Request(
        Plan.of(branches, eps), cells[0].shape, stored, x.dtype, *dtypes,
        per_sample=len(param_dims) == 2,
        tracked=tracked if running is not None and not given else None,
        copies=not kept,
    )  # fmt: skip
    kind = pattern(request)
    if kind is None:
        return "its memory pattern has no kernel"
    sizes = [size if d in param_dims else 1 for d, size in enumerate(x.shape)]
    return Compiled(Layout(request, kind), order, tuple(sizes[d] for d in order))


def _is_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.is_contiguous(memory_format=formats[x.ndim])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
