"""What is computed, apart from the tensors: which cells, how they blend, what is given.

Tensors here have the axes (n, c, *s). *Compact* moments hold one value a cell, one entry for each
run of equal blocks; *spread* moments broadcast against x. Everything particular to one norm happens
in this file, on arrays of one value a cell; the passes over x are in the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normalform.cells import Cells, Run

Pair = tuple[Tensor, Tensor]


class Moments(NamedTuple):
    """Mean and biased variance. The mean is ``shift + mean``, kept apart.

    ``shift`` is a constant near the mean from which x is measured, so that ``x - shift`` loses
    nothing; a mean in one float64 is off by ``2^-53 |mean|``, which at ``|mean| = 1e6 std`` shows.
    """

    shift: Tensor
    mean: Tensor
    var: Tensor


class Coefficients(NamedTuple):
    """What ``y = weight * ((x - shift) - mean) * rstd + bias`` needs, spread."""

    shift: Tensor
    mean: Tensor
    rstd: Tensor


class Terms(NamedTuple):
    """The statistics' part of dx, ``slope * ((x - shift) - mean) + offset``, spread."""

    shift: Tensor
    mean: Tensor
    slope: Tensor
    offset: Tensor


class Blend(NamedTuple):
    """Coefficients, the spread moments they blend, and the weights; None where there is one."""

    at: Coefficients
    branches: list[Moments]
    weights: Pair | None


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
        if len(taken) < 2:
            return Plan(taken[0] if taken else None, branches, eps)
        spatial = all(cells.spatial for cells in taken)
        base = taken[0].planes(spatial)
        for cells in taken:
            if cells.are_planes(spatial):  # needs no pooling: branches are told apart by identity
                base = cells
        return Plan(base, branches, eps)


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 exist on the device."""
    return device.type != "mps"


def wide(t: Tensor) -> Tensor:
    """A small array in float64, on the CPU where its device has none."""
    return (t if has_float64(t.device) else t.cpu()).to(torch.float64)


def total(t: Tensor, dims: list[int]) -> Tensor:
    """Sum over ``dims``, kept, in an order that does not depend on the number of threads.

    torch divides a sum among threads where there is a single output; then we do it in fixed parts.
    Over axes that do not lie together in memory it adds one by one; then we take them in turn.
    """
    if torch.compiler.is_compiling() or t.numel() < 64:
        return t.sum(dims, keepdim=True)
    if math.prod(size for d, size in enumerate(t.shape) if d not in dims) > 1:
        for turn in _runs(dims) if t.is_contiguous() else [[d] for d in reversed(dims)]:
            t = t.sum(turn, keepdim=True)
        return t
    flat = t.reshape(-1)
    parts = flat[: len(flat) // 64 * 64].view(64, -1)
    rest = flat[parts.numel() :]
    return (parts.sum(1).sum() + rest.sum()).reshape([1] * t.ndim)


def _runs(dims: list[int]) -> list[list[int]]:
    """Neighbouring axes together, the last first.

    >>> _runs([1, 3, 4])
    [[3, 4], [1]]
    """
    runs: list[list[int]] = []
    for d in reversed(dims):
        if runs and runs[-1][0] == d + 1:
            runs[-1].insert(0, d)
        else:
            runs.append([d])
    return runs


def pool(parts: Moments, cells: Cells) -> list[Moments]:
    """Merge the moments of equal parts into those of ``cells``: compact, an entry for each run.

    ``mean(var) + mean((mean - M)^2)`` [Chan, Golub & LeVeque 1983]; never ``E[x^2] - M^2``, which
    cancels.
    """
    return [
        _merge(*(split(t, run, cells.groups) for t in parts), cells=cells) for run in cells.runs
    ]


def of_values(x: Tensor, cells: Cells) -> list[Moments]:
    """Moments of ``cells`` from x itself, in two passes: parts of one value have no variance."""
    return [_merge(split(x, run, cells.groups), None, None, cells=cells) for run in cells.runs]


def split(t: Tensor, run: Run, groups: int) -> Tensor:
    """The samples of a run (n, c, *s) as (blocks, block, groups, channels, *s)."""
    if run.start > 0 or run.stop < t.shape[0]:
        t = t[run.start : run.stop]
    blocks = (run.stop - run.start) // run.block
    return t.view(blocks, run.block, groups, t.shape[1] // groups, *t.shape[2:])


def _merge(shift: Tensor, mean: Tensor | None, var: Tensor | None, *, cells: Cells) -> Moments:
    dims = [d for d in (1, 3) if shift.shape[d] != 1]
    dims += range(4, shift.ndim) if cells.spatial else ()
    count = math.prod([shift.shape[d] for d in dims])

    def average(t: Tensor) -> Tensor:
        return total(t, dims) / count if dims else t

    if not cells.center:
        second = (shift if mean is None else shift + mean).square()
        var = average(second if var is None else second + var)
        return Moments(torch.zeros_like(var), torch.zeros_like(var), var)
    near = average(shift.detach())
    distance = shift - near if mean is None else shift - near + mean
    rest = average(distance)
    # What is there must be kept; and what a tracer writes down must not depend on gradients.
    again = torch.is_grad_enabled() or torch.jit.is_tracing()
    square = (distance - rest).square() if again else distance.sub_(rest).square_()
    return Moments(near, rest, average(square if var is None else square + var))


def spread(compact: list[Tensor], cells: Cells) -> Tensor:
    """One value a cell, made to broadcast against x (n, c, *s) without copying where it can."""
    samples, channels = cells.shape[:2]
    parts: list[Tensor] = []
    for (start, stop, block), value in zip(cells.runs, compact, strict=True):
        blocks, groups = (stop - start) // block, cells.groups
        repeat_n = block if len(cells.runs) > 1 or 1 < blocks < samples else 1
        repeat_c = channels // groups if 1 < groups < channels else 1
        if repeat_n > 1 or repeat_c > 1:
            value = value.expand(blocks, repeat_n, groups, repeat_c, *value.shape[4:])
        parts.append(value.reshape(blocks * repeat_n, groups * repeat_c, *value.shape[4:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def branch_moments(compact: list[Moments], cells: Cells, base: Cells) -> Moments:
    """Spread moments of one branch, pooled from those of ``base``."""
    if cells is not base:
        compact = pool(branch_moments(compact, base, base), cells)
    return Moments(*(spread([*each], cells) for each in zip(*compact, strict=True)))


def blend(compact: list[Moments], running: Pair | None, logits: Pair | None, plan: Plan) -> Blend:
    """The coefficients, and what they were made of; differentiable in all but the shifts."""
    branches: list[Moments] = []
    for cells in plan.branches:
        if cells is not None and plan.base is not None:
            branches.append(branch_moments(compact, cells, plan.base))
        elif running is not None:
            branches.append(Moments(running[0], torch.zeros_like(running[0]), running[1]))
    shift, mean, var = branches[0]
    weights = None
    if logits is not None:
        weights = logits[0].to(var).softmax(0), logits[1].to(var).softmax(0)
        var = torch.zeros_like(var)
        for k, branch in enumerate(branches):
            # Differences of means, not means: a common offset must not be rounded into the blend.
            mean = mean + weights[0][k] * _apart(branch, branches[0])
            var = var + weights[1][k] * branch.var
    return Blend(Coefficients(shift, mean, (var + plan.eps).rsqrt()), branches, weights)


def _apart(one: Moments, other: Moments) -> Tensor:
    return one.shift - other.shift + (one.mean - other.mean)


def terms_of_dx(blended: Blend, plan: Plan, dmean: Tensor, dvar: Tensor) -> Terms | None:
    """From the gradients of mean and variance to those of x, by way of every branch's cells.

    A branch of n values a cell adds ``dmean / n + 2 dvar / n (x - mean)``, with the sums over its
    cell. Here all are brought to one point, the mean of their means by how steep they are: about
    another, means far apart would make a small sum of a large slope and a large offset.
    """
    _, branches, weights = blended
    own = [k for k, cells in enumerate(plan.branches) if cells is not None]
    tilts: list[Tensor] = []
    offset = dmean.new_zeros(())
    for k in own:
        cells = plan.branches[k]
        assert cells is not None
        gm, gv = (dmean, dvar) if weights is None else (dmean * weights[0][k], dvar * weights[1][k])
        tilts.append(_share(gv, cells, 2.0))
        if cells.center:
            offset = offset + _share(gm, cells)
    if not own:  # running statistics are constants
        return None
    slope, first = sum(tilts[1:], tilts[0]), branches[own[0]]
    if len(own) == 1:
        return Terms(first.shift, first.mean, slope, offset)
    steep = apart = slope.new_zeros(())
    for k, tilt in zip(own, tilts, strict=True):
        steep = steep + tilt.abs()
        apart = apart + tilt.abs() * _apart(branches[k], first)
    # 0 / 0 would be NaN. Whatever the point is rounded to, the offset is that about it.
    point = first.shift + first.mean + apart / steep.clamp_min(torch.finfo(steep.dtype).tiny)
    for k, tilt in zip(own, tilts, strict=True):
        offset = offset + tilt * (point - branches[k].shift - branches[k].mean)
    return Terms(point, torch.zeros_like(point), slope, offset)


def _share(t: Tensor, cells: Cells, times: float = 1.0) -> Tensor:
    """Of each value in the sum over its cell."""
    pairs = zip(_gather(t, cells), cells.counts, strict=True)
    return spread([times * total / n for total, n in pairs], cells)


def logit_gradients(blended: Blend, dmean: Tensor, dvar: Tensor) -> Pair:
    """The chain rule of the blend, through the softmax."""
    _, branches, weights = blended
    to_mean = [_sum(dmean * _apart(branch, branches[0])) for branch in branches]
    to_var = [_sum(dvar * branch.var) for branch in branches]
    pairs = zip(weights or (), (torch.stack(to_mean), torch.stack(to_var)), strict=True)
    mean, var = (weight * (gradient - weight @ gradient) for weight, gradient in pairs)
    return mean, var


def _sum(t: Tensor) -> Tensor:
    return total(t, list(range(t.ndim))).reshape(())


def _gather(t: Tensor, cells: Cells) -> list[Tensor]:
    """The sum over each cell of a spread array: :func:`spread` the other way."""
    sums: list[Tensor] = []
    for start, stop, block in cells.runs:
        part = t if len(cells.runs) == 1 else t[start:stop]
        blocks = (stop - start) // block
        rows, columns = part.shape[0] // blocks, part.shape[1] // cells.groups
        part = part.reshape(blocks, rows, cells.groups, columns, *part.shape[2:])
        dims = [1, 3, *(range(4, part.ndim) if cells.spatial else ())]
        dims = [d for d in dims if part.shape[d] > 1]
        sums.append(total(part, dims) if dims else part)
    return sums


def population(compact: list[Moments], cells: Cells, base: Cells) -> Pair:
    """Mean and *unbiased* variance of each channel (C,), averaged over the blocks by their size."""
    if cells is not base:
        compact = pool(branch_moments(compact, base, base), cells)
    unbiased = [m.var * (n / max(n - 1, 1)) for m, n in zip(compact, cells.counts, strict=True)]
    mean = spread([m.shift + m.mean for m in compact], cells)
    var = spread(unbiased, cells)
    if mean.shape[0] > 1:
        mean, var = mean.mean(0), var.mean(0)
    channels = cells.shape[1]
    return mean.flatten().expand(channels), var.flatten().expand(channels)
