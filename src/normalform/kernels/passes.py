"""A call by a kernel's passes over x, or in operators that torch differentiates and traces.

Lay the recipes over x, bring its axes into the order (n, c, *s), normalize, update running
statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels import RUNNING, is_channels_last, normalize, warn_not_finite
from normalform.kernels.call import Call
from normalform.kernels.plan import Pair, Plan, population, wide
from normalform.kernels.watchers import is_plain


def normalized(call: Call, kernel: str) -> Tensor:
    """The result; running statistics that are tracked move."""
    x, weight, bias, logits, running = call.tensors
    cells, dims = call.laid()
    order, branches = cells[0].order, call.branches(cells)
    weight, bias = _param(weight, x, dims, order), _param(bias, x, dims, order)
    z = x if order == tuple(range(x.ndim)) else x.permute(order)
    if x.numel() == 0:
        y = affine(z, weight, bias, logits)
    else:
        if logits is not None:
            branches, logits = _drop_single_values(branches, logits, x, call.who)
        plan = Plan.of(branches, call.eps)
        constants = _constants(running, z) if call.given and running is not None else None
        y, compact = normalize(z, plan, weight, bias, logits, constants, kernel)
        moved = call.moved
        if running is not None and moved is not None and plan.base is not None:
            batch = cells[moved]
            if any(each is batch for each in plan.branches):  # it was not left out
                update(running, population(compact, batch, plan.base), call.momentum)
    if z is not x:
        y = y.permute([order.index(d) for d in range(x.ndim)])
    return y if x.is_contiguous() or is_channels_last(x) else y.contiguous()


def _constants(running: Pair, z: Tensor) -> Pair:
    """Running statistics made to broadcast; copies, as they may move before the backward."""
    shape = (1, z.shape[1]) + (1,) * (z.ndim - 2)
    mean, var = (t.detach().clone() for t in running)
    return wide(mean).view(shape), wide(var).view(shape)


def update(running: Pair, batch: Pair, momentum: float | Tensor) -> None:
    """``running = (1 - momentum) * running + momentum * batch``, only where that is finite."""
    with torch.no_grad():
        for name, buffer, new in zip(RUNNING, running, batch, strict=True):
            new = new.to(buffer.device).view(buffer.shape)
            new = torch.lerp(buffer.to(new.dtype), new, momentum).to(buffer.dtype)
            finite = new.isfinite()
            # Asking an accelerator would stop it once a step, so only a CPU warns.
            if buffer.device.type == "cpu" and is_plain(new):
                if finite.all():
                    buffer.copy_(new)
                    continue
                warn_not_finite(name, int((~finite).sum()), finite.numel())
            buffer.copy_(torch.where(finite, new, buffer))


def _param(
    value: Tensor | None, x: Tensor, dims: tuple[int, ...], order: tuple[int, ...]
) -> Tensor | None:
    """Weight or bias along ``dims`` of x, made to broadcast against x (n, c, *s)."""
    if value is None:
        return None
    full = value.reshape([size if d in dims else 1 for d, size in enumerate(x.shape)])
    return full if order == tuple(range(x.ndim)) else full.permute(order)


def _drop_single_values(
    branches: tuple[Cells | None, ...], logits: Pair, x: Tensor, who: object
) -> tuple[tuple[Cells | None, ...], Pair]:
    """Leave out the branches of a blend whose cells hold one value."""
    kept = [k for k, cells in enumerate(branches) if cells is None or max(cells.counts) != 1]
    if not kept:
        raise ValueError(
            f"{who}: every branch has one value a cell in an input of shape {list(x.shape)}, and "
            "one value has no variance. Use a larger batch or image, or blend larger cells"
        )
    if len(kept) == len(branches):
        return branches, logits
    return tuple(branches[k] for k in kept), (logits[0][kept], logits[1][kept])


def affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, logits: Pair | None = None
) -> Tensor:
    """What is left of a norm of an empty tensor: an empty result, and gradients of zeros."""
    y = x.clone() if weight is None else x * weight.to(x.dtype)
    for t in (bias, *(each.sum() for each in logits or ())):
        y = y if t is None else y + t.to(x.dtype)
    return y
