"""Between the passes: from slots to coefficients, and from sums to gradients. Any norm is a blend.

A branch is three numbers: how many units share statistics (``BLOCK``, in ``BLOCKS`` of which the
last may differ), and how many ``GROUPS`` of channels there are. Batch norm is a blend of one branch
with one block and a group for each channel; instance norm has a block for each sample. Its cells
may be the slots themselves. A branch is *own* where a part has cells of its own, else *shared*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import double_of_bits, helper, small_kernel
from normalform.kernels.cpu.values import MOST, Values
from normalform.kernels.cpu.vectors import fill, mapped, narrow, summed, widen


@helper
def first_cell(p: Any, b: int, unit: int) -> int:
    """The first cell of a unit's block."""
    block, last = unit // p[b + t.BLOCK], p[b + t.BLOCKS] - 1
    return (block if block < last else last) * p[b + t.GROUPS]


def _distances(
    n: Values, near: Values, rest: Values, var: Values, origin: Values
) -> Sequence[Values]:
    apart = (near - origin) + rest
    return n, n * apart, n * (var + apart * apart)


# Of cells with a slot each that lie as the slots do, and of the slots of one cell.
_side_by_side, _of_one = mapped(_distances, adds=3), summed(_distances, 3)


@helper
def _about(p: Any, small: Any, b: int, u: int, end: int, c0: int, c1: int) -> None:
    """Into the cells of a block, what their slots hold, as distances from the points in them.

    Number of values, sum of the distances and of their squares; in the order of memory, where the
    slots of a cell are neighbours: those of a piece, or of all pieces.
    """
    slots, cells, size = p[t.SLOTS], p[b + t.CELLS], p[t.CHANNELS] // p[b + t.GROUPS]
    to, step = p[b + t.AT_CELLS] + first_cell(p, b, u), p[t.CHANNEL_STEP]
    near, rest, var = small + slots, small + 2 * slots, small + 3 * slots
    for cell in range(to + c0 // size, to + c1 // size):
        small[cell] = small[2 * cells + cell] = small[3 * cells + cell] = 0.0
    for unit in range(u, end):
        for piece in range(p[t.PIECES] if step == 1 else 1):
            at, of_cell = t.slot_of(p, unit, piece, c0) // p[t.RUN], size * step // p[t.RUN]
            if size == 1 and step == 1:
                cell, origin = small + to + c0, small + cells + to + c0
                rows = cell, cell + 2 * cells, cell + 3 * cells
                of = small + at, near + at, rest + at, var + at, origin
                _side_by_side(rows, 0, c1 - c0, of)
                continue
            for cell in range(to + c0 // size, to + c1 // size):
                of = small, near, rest, var, small[cells + cell]
                count, total, squares = _of_one(at, at + of_cell, of)
                small[cell] += count
                small[2 * cells + cell] += total
                small[3 * cells + cell] += squares
                at += of_cell


@helper
def _for_each_block(args: int, part: int, pooled: Any) -> None:
    """``pooled(p, small, b, u, end, c0, c1)`` for units that share statistics, in each branch."""
    a, p = t.tables(args)
    small = t.numbers(a[t.SMALL], 0)
    u0, u1, c0, c1 = t.extent_of(p, part)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] != (t.SHARED if part < 0 else t.OWN):
            continue
        u = u0
        while u < u1:
            end = u + 1
            while end < u1 and first_cell(p, b, end) == first_cell(p, b, u):
                end += 1
            pooled(p, small, b, u, end, c0, c1)
            u = end


@helper
def _rest_and_var(count: float, total: float, squares: float) -> tuple[float, float]:
    """From sums about a point near the mean, its distance from there, and the variance."""
    rest = total / count
    var = squares / count - rest * rest
    return rest, 0.0 if var < 0.0 else var


@helper
def _pooled(p: Any, small: Any, b: int, u: int, end: int, c0: int, c1: int) -> None:
    """The cells of a block, about their first slot's mean."""
    slots, cells, size = p[t.SLOTS], p[b + t.CELLS], p[t.CHANNELS] // p[b + t.GROUPS]
    first = p[b + t.AT_CELLS] + first_cell(p, b, u)
    g0, g1 = first + c0 // size, first + c1 // size
    at, of_cell = t.slot_of(p, u, t.ZERO, c0) // p[t.RUN], size * p[t.CHANNEL_STEP] // p[t.RUN]
    for i in range(g1 - g0):
        small[cells + g0 + i] = small[slots + at + i * of_cell]
    _about(p, small, b, u, end, c0, c1)
    for cell in range(g0, g1):
        rest, var = _rest_and_var(small[cell], small[2 * cells + cell], small[3 * cells + cell])
        small[2 * cells + cell], small[3 * cells + cell] = rest, var


@small_kernel
def pool(x: Any, args: int, part: int) -> None:
    """The cells that lie within a part; with part -1, those that parts share.

    ``mean(v) + mean((m - M)^2)`` [Chan, Golub & LeVeque 1983], never ``E[x^2] - M^2``, which
    cancels. About the first slot's mean, the last sum cancels by as many times as there are slots:
    nothing for float32 in float64.
    """
    _for_each_block(args, part, _pooled)


@helper
def _added(total: float, missing: float, value: float) -> tuple[float, float]:
    """The sum, and what its roundings took [Knuth, The Art of Computer Programming 2, 4.2.2]."""
    after = total + value
    part = after - total
    return after, missing + ((total - (after - part)) + (value - part))


@helper
def _sums_about(
    p: Any, small: Any, u: int, end: int, c: int, size: int, point: float
) -> tuple[float, float, float]:
    """As :func:`_about` of one cell, but as if sums were rounded once."""
    slots, count, total, lost, squares, missing = p[t.SLOTS], 0.0, 0.0, 0.0, 0.0, 0.0
    for unit in range(u, end):
        for piece in range(p[t.PIECES]):
            for channel in range(c, c + size, p[t.RUN]):
                at = t.slot_of(p, unit, piece, channel) // p[t.RUN]
                n, apart = small[at], (small[slots + at] - point) + small[2 * slots + at]
                count += n
                total, lost = _added(total, lost, n * apart)
                square = n * (small[3 * slots + at] + apart * apart)
                squares, missing = _added(squares, missing, square)
    return count, total + lost, squares + missing


@helper
def _pooled_double(p: Any, small: Any, b: int, u: int, end: int, c0: int, c1: int) -> None:
    """The cells of a block, about their means."""
    slots, cells, size = p[t.SLOTS], p[b + t.CELLS], p[t.CHANNELS] // p[b + t.GROUPS]
    for c in range(c0, c1, size):
        near = small[slots + t.slot_of(p, u, t.ZERO, c) // p[t.RUN]]
        count, total, _ = _sums_about(p, small, u, end, c, size, near)
        near += total / count
        cell = p[b + t.AT_CELLS] + first_cell(p, b, u) + c // size
        rest, var = _rest_and_var(*_sums_about(p, small, u, end, c, size, near))
        small[cell], small[cells + cell] = count, near
        small[2 * cells + cell], small[3 * cells + cell] = rest, var


@small_kernel
def pool_double(x: Any, args: int, part: int) -> None:
    """The same of float64, which has no digits to spare: M comes first, and no sum is rounded."""
    _for_each_block(args, part, _pooled_double)


@small_kernel
def given(x: Any, args: int, part: int) -> None:
    """Running statistics as the cells of the branches they stand for."""
    a, p = t.tables(args)
    small, channels, kind = t.numbers(a[t.SMALL], 0), p[t.CHANNELS], p[t.RUNNING_KIND]
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN:
            to = small + p[b + t.AT_CELLS]
            fill(to, 0.0, 4 * channels)
            for which in range(2):
                row = to + (1 + 2 * which) * channels
                widen(row, channels, a[t.RUNNING_MEAN + which], t.ZERO, kind)


@small_kernel
def weigh(x: Any, args: int, part: int) -> None:
    """The softmax of the logits: how much each branch counts."""
    a, p = t.tables(args)
    weights, branches = t.numbers(a[t.SMALL], p[t.AT_WEIGHTS]), p[t.BRANCHES]
    for which in range(2):
        largest, total = -math.inf, 0.0
        for k in range(branches):
            weight = weights + 2 * k + which
            widen(weight, 1, a[t.MEAN_LOGITS + which], k, p[t.LOGIT_KIND])
            largest = largest if largest > weight[0] else weight[0]
        for k in range(branches):
            weights[2 * k + which] = math.exp(weights[2 * k + which] - largest)
            total += weights[2 * k + which]
        for k in range(branches):
            weights[2 * k + which] /= total


@helper
def most_single(p: Any) -> float:
    """The largest point that is a number of float32, unless the tensor is of float64."""
    return -1.0 if p[t.DOUBLE] == 1 else MOST


def _statistics(
    near: Values, rest: Values, var: Values, eps: Values, most: Values
) -> tuple[Values, Values, Values]:
    """The mean as the nearest number to it and what is missing, and rstd."""
    high = (near + rest).nearest(most)
    return high, (near - high) + rest, (var + eps).inverse_root()


_of_cells = mapped(_statistics)


@helper
def _unblended(p: Any, cell: Any, b: int, to: Any, c0: int, c1: int) -> None:
    """High, low and rstd of the only branch; once a cell where it has several channels."""
    channels, cells, eps = p[t.CHANNELS], p[b + t.CELLS], double_of_bits(p[t.EPS])
    size, most = channels // p[b + t.GROUPS], most_single(p)
    high, low = to + t.HIGH * channels, to + t.LOW * channels
    rstd = to + t.RSTD * channels
    if size == 1:
        of = cell + cells, cell + 2 * cells, cell + 3 * cells, eps, most
        _of_cells((high, low, rstd), c0, c1, of)
        return
    for g in range(c0 // size, c1 // size):
        of_cell = cell[cells + g], cell[2 * cells + g], cell[3 * cells + g], eps, most
        _of_cells((high, low, rstd), g * size, (g + 1) * size, of_cell)


def _first(
    near: Values, rest: Values, var: Values, to_var: Values
) -> tuple[Values, Values, Values, Values]:
    return near, rest, rest, to_var * var


def _further(
    near: Values, rest: Values, var: Values, near_of: Values, rest_of: Values,
    to_mean: Values, to_var: Values,
) -> tuple[Values, Values]:  # fmt: skip
    # Differences of means: a common offset must not be rounded into the blend.
    return to_mean * ((near - near_of) + (rest - rest_of)), to_var * var


_of_first, _of_further = mapped(_first), mapped(_further, adds=2)


@helper
def _blended(p: Any, small: Any, u: int, to: Any, c0: int, c1: int) -> None:
    """The same of the weighted sums over the branches."""
    channels = p[t.CHANNELS]
    near_of, rest_of = to + t.NEAR * channels, to + t.REST * channels
    apart_of, var_of = to + t.SHIFT * channels, to + t.SCALE * channels
    rows = near_of, rest_of, apart_of, var_of
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
        cell = small + p[b + t.AT_CELLS] + first_cell(p, b, u)
        near, rest, var = cell + cells, cell + 2 * cells, cell + 3 * cells
        to_mean, to_var = small[p[t.AT_WEIGHTS] + 2 * k], small[p[t.AT_WEIGHTS] + 2 * k + 1]
        if size == 1:
            if k == 0:
                _of_first(rows, c0, c1, (near, rest, var, to_var))
            else:
                of = near, rest, var, near_of, rest_of, to_mean, to_var
                _of_further((apart_of, var_of), c0, c1, of)
            continue
        for g in range(c0 // size, c1 // size):
            start, stop, of_cell = g * size, (g + 1) * size, (near[g], rest[g], var[g])
            if k == 0:
                _of_first(rows, start, stop, (*of_cell, to_var))
            else:
                of_all = *of_cell, near_of, rest_of, to_mean, to_var
                _of_further((apart_of, var_of), start, stop, of_all)
    at = to + t.HIGH * channels, to + t.LOW * channels, to + t.RSTD * channels
    _of_cells(at, c0, c1, (near_of, apart_of, var_of, double_of_bits(p[t.EPS]), most_single(p)))


def _scale_and_shift(
    rstd: Values, low: Values, weight: Values, bias: Values
) -> tuple[Values, Values]:
    scale = rstd * weight
    return scale, bias - low * scale


_with_parameters = mapped(_scale_and_shift)


@helper
def _coefficients(a: Any, p: Any, to: Any, u: int, c0: int, c1: int) -> None:
    """Scale and shift, with weight and bias, which come in place of what was blended."""
    channels, first = p[t.CHANNELS], u * p[t.PARAM_STEP] + c0
    weight, bias = to + t.NEAR * channels, to + t.REST * channels
    for which in range(2):
        row = to + (t.NEAR + which) * channels + c0
        if a[t.WEIGHT + which] != 0:
            widen(row, c1 - c0, a[t.WEIGHT + which], first, p[t.WEIGHT_KIND + which])
        else:
            fill(row, 1.0 - which, c1 - c0)
    rows = to + t.SCALE * channels, to + t.SHIFT * channels
    _with_parameters(rows, c0, c1, (to + t.RSTD * channels, to + t.LOW * channels, weight, bias))


@small_kernel
def mix(x: Any, args: int, part: int) -> None:
    """From the cells of the only branch to the coefficients of each channel.

    ``y = (x - high) * scale + shift``; the mean is high + low, which one number cannot hold.
    """
    a, p = t.tables(args)
    small, b = t.numbers(a[t.SMALL], 0), t.AT_BRANCHES
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        to = small + p[t.AT_SPREAD] + u * t.SPREAD * p[t.CHANNELS]
        _unblended(p, small + p[b + t.AT_CELLS] + first_cell(p, b, u), b, to, c0, c1)
        _coefficients(a, p, to, u, c0, c1)


@small_kernel
def mix_several(x: Any, args: int, part: int) -> None:
    """The same of several branches."""
    a, p = t.tables(args)
    small = t.numbers(a[t.SMALL], 0)
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        to = small + p[t.AT_SPREAD] + u * t.SPREAD * p[t.CHANNELS]
        _blended(p, small, u, to, c0, c1)
        _coefficients(a, p, to, u, c0, c1)


def _unbiased(near: Values, rest: Values, var: Values, factor: Values) -> tuple[Values, Values]:
    return near + rest, var * factor


_of_one_block = mapped(_unbiased)
_between = mapped(lambda start, end, share: (start + (end - start) * share,))


@helper
def _averages(p: Any, b: int, cell: Any, means: Any, variances: Any) -> None:
    """Mean and unbiased variance of each channel, averaged over the blocks."""
    channels, cells, groups = p[t.CHANNELS], p[b + t.CELLS], p[b + t.GROUPS]
    blocks, size = p[b + t.BLOCKS], channels // groups
    if blocks == 1 and size == 1:
        factor = cell[0] / (cell[0] - 1.0 if cell[0] > 2.0 else 1.0)
        of = cell + cells, cell + 2 * cells, cell + 3 * cells, factor
        _of_one_block((means, variances), 0, channels, of)
        return
    for c in range(channels):
        mean = var = lost = missing = 0.0
        for block in range(blocks):
            i, units = block * groups + c // size, p[b + t.BLOCK]
            if block == blocks - 1:
                units = p[t.UNITS] - block * units
            n, of_all = cell[i], units / p[t.UNITS]
            unbiased = cell[3 * cells + i] * (n / (n - 1.0 if n > 2.0 else 1.0))
            mean, lost = _added(mean, lost, of_all * (cell[cells + i] + cell[2 * cells + i]))
            var, missing = _added(var, missing, of_all * unbiased)
        means[c], variances[c] = mean + lost, var + missing


@helper
def _move(moved: Any, old: Any, new: Any, count: int, share: float, kind: int) -> int:
    """Running statistics moved, unless they would not be finite; how many stayed."""
    start, end = (old, new) if share < 0.5 else (new, old)  # exactly new at a share of 1
    _between((moved,), 0, count, (start, end, share if share < 0.5 else 1.0 - share))
    largest = 3.4028235677973366e38 if kind != 1 else math.inf  # where float32 rounds to infinity
    stayed = 0
    for c in range(count):
        if not abs(moved[c]) < largest:
            moved[c] = old[c]
            stayed += 1
    return stayed


@small_kernel
def track(x: Any, args: int, part: int) -> None:
    """Move the running statistics towards mean and unbiased variance, averaged over the blocks."""
    a, p = t.tables(args)
    b, share = p[t.TRACKED], double_of_bits(a[t.MOMENTUM])
    channels, kind = p[t.CHANNELS], p[t.RUNNING_KIND]
    old = t.numbers(a[t.SCRATCH], 0)
    new, moved = old + 2 * channels, old + 4 * channels
    _averages(p, b, t.numbers(a[t.SMALL], p[b + t.AT_CELLS]), new, new + channels)
    for which in range(2):
        at = which * channels
        widen(old + at, channels, a[t.RUNNING_MEAN + which], t.ZERO, kind)
        stayed = _move(moved + at, old + at, new + at, channels, share, kind)
        a[t.NOT_FINITE_MEAN + which] += stayed
        narrow(a[t.RUNNING_MEAN + which], t.ZERO, kind, moved + at, channels)
