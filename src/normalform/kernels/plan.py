"""What is computed, apart from the tensors: which cells, how they blend, which branches are constants.

Tensors here have the axes (n, c, *s). *Compact* moments hold one value a cell, one pair for each run
of equal blocks; *spread* moments broadcast against x. Everything particular to one norm happens in
this file, on arrays of one value a cell; the passes over x are in the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normalform.recipes import Cells

Moments = tuple[Tensor, Tensor]  # mean, biased variance


@dataclass(frozen=True)
class Plan:
    """A norm laid over one shape.

    Attributes:
        base: the cells whose moments are taken from x; None where all statistics are given.
        branches: what is blended, pooled from ``base``; None stands for the running statistics.
        eps: added to the variance.
    """

    base: Cells | None
    branches: tuple[Cells | None, ...]
    eps: float

    @staticmethod
    def of(branches: tuple[Cells | None, ...], eps: float) -> Plan:
        """Choose the coarsest cells from which every branch can be pooled."""
        taken = [cells for cells in branches if cells is not None]
        if not taken:
            return Plan(None, branches, eps)
        if all(cells == taken[0] for cells in taken):
            return Plan(taken[0], branches, eps)
        return Plan(taken[0].planes(all(cells.spatial for cells in taken)), branches, eps)


def pool(mean: Tensor, var: Tensor | None, cells: Cells) -> list[Moments]:
    """Merge the moments of equal parts into those of ``cells``: compact, a pair for each run.

    ``mean(var) + mean((mean - M)^2)`` [Chan, Golub & LeVeque 1983]; never ``E[x^2] - M^2``, which
    cancels. With ``var=None`` the parts are single values: this is the two-pass variance of x.
    """
    merged: list[Moments] = []
    for start, stop, block in cells.runs:
        blocks = ((stop - start) // block, block, cells.groups, mean.shape[1] // cells.groups)
        dims = [d for d in (1, 3) if blocks[d] != 1]
        if cells.spatial:
            dims += range(4, mean.ndim + 2)

        def split(t: Tensor, run: slice = slice(start, stop), blocks: tuple[int, ...] = blocks) -> Tensor:
            t = t if run == slice(0, t.shape[0]) else t[run]
            return t.unflatten(1, blocks[2:]).unflatten(0, blocks[:2])

        values = split(mean)
        if cells.center:
            total = values.mean(dims, keepdim=True) if dims else values
            square = (values - total).square()
        else:
            total = torch.zeros((), dtype=mean.dtype, device=mean.device)
            square = values.square()
        if var is not None:
            square = square + split(var)
        spread = square.mean(dims, keepdim=True) if dims else square
        merged.append((total.expand_as(spread), spread))
    return merged


def spread(compact: list[Tensor], cells: Cells) -> Tensor:
    """One value a cell, made to broadcast against x (n, c, *s) without copying where it can."""
    samples, channels = cells.shape[:2]
    parts: list[Tensor] = []
    for (start, stop, block), value in zip(cells.runs, compact, strict=True):
        blocks, groups = (stop - start) // block, cells.groups
        many = len(cells.runs) > 1
        repeat_n = block if many or 1 < blocks < samples else 1
        repeat_c = channels // groups if 1 < groups < channels else 1
        value = value.expand(blocks, repeat_n, groups, repeat_c, *value.shape[4:])
        parts.append(value.flatten(2, 3).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def branch_moments(compact: list[Moments], cells: Cells, base: Cells) -> Moments:
    """Spread moments of one branch, pooled from those of ``base``."""
    if cells != base:
        mean, var = branch_moments(compact, base, base)
        compact = pool(mean, var, cells)
    return spread([mean for mean, _ in compact], cells), spread([var for _, var in compact], cells)


def coefficients(
    compact: list[Moments],
    running: Moments | None,
    logits: Moments | None,
    plan: Plan,
) -> Moments:
    """Mean and 1 / sqrt(var + eps) of every cell, spread. Differentiable in all arguments."""
    moments: list[Moments] = []
    for cells in plan.branches:
        if cells is None or plan.base is None:
            assert running is not None
            moments.append(running)
        else:
            moments.append(branch_moments(compact, cells, plan.base))
    mean, var = moments[0] if logits is None else _blend(moments, *logits)
    return mean, (var + plan.eps).rsqrt()


def _blend(moments: list[Moments], mean_logits: Tensor, var_logits: Tensor) -> Moments:
    mean_weights = mean_logits.to(moments[0][0].dtype).softmax(0)
    var_weights = var_logits.to(moments[0][1].dtype).softmax(0)
    first, var = moments[0]
    mean, var = first, var_weights[0] * var
    for k, (mean_k, var_k) in enumerate(moments[1:], start=1):
        # Differences of means, not means: a common offset must not be rounded into the blend.
        mean = mean + mean_weights[k] * (mean_k - first)
        var = var + var_weights[k] * var_k
    return mean, var


def population(compact: list[Moments], cells: Cells, base: Cells) -> Moments:
    """Mean and *unbiased* variance of each channel (C,), averaged over the blocks by their size."""
    if cells != base:
        compact = pool(*branch_moments(compact, base, base), cells)
    unbiased = [var * (n / max(n - 1, 1)) for (_, var), n in zip(compact, cells.counts, strict=True)]
    mean, var = spread([mean for mean, _ in compact], cells), spread(unbiased, cells)
    channels = cells.shape[1]
    return mean.mean(0).flatten().expand(channels), var.mean(0).flatten().expand(channels)
