"""Between the passes of the backward: from sums to gradients, and to the coefficients of dx."""

from __future__ import annotations

from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.blend import first_cell, most_single
from normalform.kernels.cpu.compiled import helper, small_kernel
from normalform.kernels.cpu.values import Values
from normalform.kernels.cpu.vectors import copy, fill, mapped, narrow, summed

# Channels whose gradients of weight and bias one thread sums at a time.
SHARE = 512
SMALLEST = 2.0**-1022  # normal number: 0 / 0 would be NaN


def _gradients(
    total: Values, product: Values, low: Values, scale: Values, rstd: Values, half: Values
) -> tuple[Values, Values]:
    """Of mean and variance, from ``sum dy`` and ``sum dy (x - high)``."""
    return -(total * scale), -(half * ((product - low * total) * scale) * (rstd * rstd))


_of_statistics = mapped(_gradients)
_add_both = mapped(lambda total, product: (total, product), adds=2)


@small_kernel
def collect(x: Any, args: int, part: int) -> None:
    """Both sums of each channel from those of its slots, and the gradients of mean and variance."""
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    alike = p[t.UNITS] if p[t.SPREAD_UNITS] < p[t.UNITS] else 1
    totals, step = scratch + p[t.AT_SUMS], p[t.CHANNEL_STEP]
    products = totals + p[t.SLOTS] * p[t.RUN]
    for u in range(u0, u1):
        at = small + p[t.AT_SPREAD] + u * t.SPREAD * channels
        to = scratch + p[t.AT_GRADS] + u * t.GRADS * channels
        total, product = to + t.TOTAL * channels + c0, to + t.PRODUCT * channels + c0
        fill(total, 0.0, c1 - c0)
        fill(product, 0.0, c1 - c0)
        for unit in range(u, u + alike):
            for piece in range(p[t.PIECES]):
                slot = t.slot_of(p, unit, piece, c0)
                if step == 1:
                    _add_both((total, product), 0, c1 - c0, (totals + slot, products + slot))
                    continue
                for j in range(c1 - c0):
                    total[j] += totals[slot + j * step]
                    product[j] += products[slot + j * step]
        low, rstd = at + t.LOW * channels + c0, at + t.RSTD * channels + c0
        _of_statistics(
            (to + t.DMEAN * channels + c0, to + t.DVAR * channels + c0),
            0,
            c1 - c0,
            (total, product, low, at + t.SCALE * channels + c0, rstd, 0.5),
        )


_both = summed(lambda dmean, dvar: (dmean, dvar), 2)


@small_kernel
def gather(x: Any, args: int, part: int) -> None:
    """Sums of these gradients over the cells of a part; with part -1, over those parts share."""
    a, p = t.tables(args)
    scratch, channels = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN or (p[b + t.ROLE] == t.SHARED) != (part < 0):
            continue
        size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
        for u in range(u0, u1):
            grads = scratch + p[t.AT_GRADS] + u * t.GRADS * channels
            opens = u == 0 or first_cell(p, b, u) != first_cell(p, b, u - 1)
            of_mean, of_var = grads + t.DMEAN * channels, grads + t.DVAR * channels
            if size == 1:
                to = scratch + p[b + t.AT_GATHER] + first_cell(p, b, u)
                if opens:
                    copy(to + c0, of_mean + c0, c1 - c0)
                    copy(to + cells + c0, of_var + c0, c1 - c0)
                else:
                    _add_both((to, to + cells), c0, c1, (of_mean, of_var))
                continue
            for g in range(c0 // size, c1 // size):
                at = p[b + t.AT_GATHER] + first_cell(p, b, u) + g
                dmean, dvar = _both(g * size, (g + 1) * size, (of_mean, of_var))
                scratch[at] = dmean if opens else scratch[at] + dmean
                scratch[cells + at] = dvar if opens else scratch[cells + at] + dvar


def _cells_of_channels(
    n: Values, near: Values, rest: Values, dmean: Values, dvar: Values,
    point: Values, twice: Values,
) -> tuple[Values, Values]:  # fmt: skip
    """Slope and offset from a cell."""
    of_all = n.inverse()
    tilt = twice * dvar * of_all
    return tilt, dmean * of_all + tilt * ((point - near) - rest)


_of_cells = mapped(_cells_of_channels)


@helper
def _unblended(p: Any, cell: Any, sums: Any, at: Any, to: Any, c0: int, c1: int) -> None:
    """Slope and offset from the cells of the only branch; once a cell of several channels."""
    channels, b = p[t.CHANNELS], t.AT_BRANCHES
    size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
    slope, offset = to + t.SLOPE * channels, to + t.OFFSET * channels
    point = to + t.POINT * channels
    copy(point + c0, at + t.HIGH * channels + c0, c1 - c0)
    if size == 1:
        operands = cell, cell + cells, cell + 2 * cells, sums, sums + cells, point, 2.0
        _of_cells((slope, offset), c0, c1, operands)
        return
    for g in range(c0 // size, c1 // size):
        first = g * size
        of = (
            cell[g], cell[cells + g], cell[2 * cells + g], sums[g], sums[cells + g], point[first],
            2.0,
        )  # fmt: skip
        _of_cells((slope, offset), first, first + size, of)


def _branch_of_channels(
    n: Values, near: Values, rest: Values, dmean: Values, dvar: Values,
    point: Values, to_mean: Values, twice_to_var: Values,
) -> tuple[Values, Values]:  # fmt: skip
    return _cells_of_channels(n, near, rest, to_mean * dmean, dvar, point, twice_to_var)


def _of_weights(
    near: Values, rest: Values, var: Values, high: Values, low: Values, dmean: Values, dvar: Values
) -> tuple[Values, Values]:
    """How much they would gain by a branch."""
    return -(dmean * ((high - near) + (low - rest))), dvar * var


_add_terms, _to_logits = mapped(_branch_of_channels, adds=2), summed(_of_weights, 2)


@helper
def _add_branch(
    constant: bool, rows: Any, start: int, stop: int,
    n: Any, near: Any, rest: Any, var: Any, of_mean: Any, of_var: Any,
    point: Any, high: Any, low: Any, dmean: Any, dvar: Any, to_mean: float, to_var: float,
) -> tuple[float, float]:  # fmt: skip
    """What a branch adds to some channels, whose cells are rows, or one cell; and to its logits."""
    if not constant:
        of = n, near, rest, of_mean, of_var, point, to_mean, 2.0 * to_var
        _add_terms(rows, start, stop, of)
    return _to_logits(start, stop, (near, rest, var, high, low, dmean, dvar))


def _leaning(
    n: Values, near: Values, rest: Values, dvar: Values, high: Values, twice: Values
) -> tuple[Values, Values]:
    """How steep dx is along x by a branch, and that times its mean's distance."""
    steep = (dvar * n.inverse() * twice).magnitude()
    return steep, steep * ((near - high) + rest)


def _between(
    steep: Values, apart: Values, high: Values, least: Values, most: Values
) -> tuple[Values]:
    return ((high + apart * (steep + least).inverse()).nearest(most),)


_lean, _point = mapped(_leaning, adds=2), mapped(_between)


@helper
def _points(
    p: Any, small: Any, scratch: Any, u: int, high: Any, rows: Any, point: Any, c0: int, c1: int
) -> None:
    """What x is taken about: the mean of the branches' means, by how steep dx is along each.

    About any other point what branches of means far apart add to dx, ``tilt (x - mean)``, may be
    the small difference of a large slope and a large offset. ``rows`` hold the sums.
    """
    channels = p[t.CHANNELS]
    for row in rows:
        fill(row + c0, 0.0, c1 - c0)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN:
            continue
        size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
        n = small + p[b + t.AT_CELLS] + first_cell(p, b, u)
        near, rest = n + cells, n + 2 * cells
        of_var = scratch + p[b + t.AT_GATHER] + first_cell(p, b, u) + cells
        twice = 2.0 * small[p[t.AT_WEIGHTS] + 2 * k + 1]
        if size == 1:
            _lean(rows, c0, c1, (n, near, rest, of_var, high, twice))
            continue
        for g in range(c0 // size, c1 // size):
            of_cell = n[g], near[g], rest[g], of_var[g], high, twice
            _lean(rows, g * size, (g + 1) * size, of_cell)
    steep, apart = rows
    _point((point,), c0, c1, (steep, apart, high, SMALLEST, most_single(p)))


@helper
def _blended(p: Any, small: Any, scratch: Any, u: int, at: Any, to: Any, c0: int, c1: int) -> None:
    """The sum of this over the branches, and the unit's part in logit gradients."""
    channels, branches = p[t.CHANNELS], p[t.BRANCHES]
    grads = scratch + p[t.AT_GRADS] + u * t.GRADS * channels
    high, low = at + t.HIGH * channels, at + t.LOW * channels
    dmean, dvar = grads + t.DMEAN * channels, grads + t.DVAR * channels
    rows, point = (to + t.SLOPE * channels, to + t.OFFSET * channels), to + t.POINT * channels
    _points(p, small, scratch, u, high, rows, point, c0, c1)
    for row in rows:
        fill(row + c0, 0.0, c1 - c0)
    for k in range(branches):
        b = t.AT_BRANCHES + k * t.BRANCH
        size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
        n = small + p[b + t.AT_CELLS] + first_cell(p, b, u)
        near, rest, var = n + cells, n + 2 * cells, n + 3 * cells
        of_mean = scratch + p[b + t.AT_GATHER] + first_cell(p, b, u)
        of_var = of_mean + cells
        to_mean, to_var = small[p[t.AT_WEIGHTS] + 2 * k], small[p[t.AT_WEIGHTS] + 2 * k + 1]
        by = point, high, low, dmean, dvar, to_mean, to_var
        constant, logit_mean, logit_var = p[b + t.ROLE] == t.GIVEN, 0.0, 0.0
        if size == 1:
            of = n, near, rest, var, of_mean, of_var
            logit_mean, logit_var = _add_branch(constant, rows, c0, c1, *of, *by)
        else:
            for g in range(c0 // size, c1 // size):
                of_cell = n[g], near[g], rest[g], var[g], of_mean[g], of_var[g]
                start, stop = g * size, (g + 1) * size
                of_means, of_vars = _add_branch(constant, rows, start, stop, *of_cell, *by)
                logit_mean, logit_var = logit_mean + of_means, logit_var + of_vars
        scratch[p[t.AT_LOGITS] + 2 * (u * branches + k)] = logit_mean
        scratch[p[t.AT_LOGITS] + 2 * (u * branches + k) + 1] = logit_var


@small_kernel
def terms(x: Any, args: int, part: int) -> None:
    """``dx = scale dy + slope (x - point) + offset``, where there is one branch.

    A branch of n values a cell adds ``dmean / n + 2 dvar / n (x - mean)``, with the sums over its
    cell; here all are brought to one point.
    """
    a, p = t.tables(args)
    small, scratch = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0)
    channels, b = p[t.CHANNELS], t.AT_BRANCHES
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        cell = small + p[b + t.AT_CELLS] + first_cell(p, b, u)
        sums = scratch + p[b + t.AT_GATHER] + first_cell(p, b, u)
        at = small + p[t.AT_SPREAD] + u * t.SPREAD * channels
        to = scratch + p[t.AT_TERMS] + u * t.TERMS * channels
        _unblended(p, cell, sums, at, to, c0, c1)


@small_kernel
def terms_several(x: Any, args: int, part: int) -> None:
    """The same where there are several, and each unit's part in logit gradients."""
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        at = small + p[t.AT_SPREAD] + u * t.SPREAD * channels
        to = scratch + p[t.AT_TERMS] + u * t.TERMS * channels
        _blended(p, small, scratch, u, at, to, c0, c1)


def _parameters(total: Values, product: Values, low: Values, rstd: Values) -> tuple[Values, Values]:
    """A unit's part in the gradients of weight and bias."""
    return (product - low * total) * rstd, total


_add_unit = mapped(_parameters, adds=2)


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, summed in the place of those of a unit's statistics.

    A part is ``SHARE`` channels.
    """
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    sets = p[t.SPREAD_UNITS] if p[t.PARAM_STEP] > 0 else 1
    c0 = part * SHARE
    count = min(SHARE, channels - c0)
    for first in range(sets):
        sums = scratch + p[t.AT_GRADS] + first * t.GRADS * channels + c0
        dweight, dbias = sums + t.DMEAN * channels, sums + t.DVAR * channels
        fill(dweight, 0.0, count)
        fill(dbias, 0.0, count)
        for u in range(first, first + p[t.SPREAD_UNITS] // sets):
            grads = scratch + p[t.AT_GRADS] + u * t.GRADS * channels + c0
            at = small + p[t.AT_SPREAD] + u * t.SPREAD * channels + c0
            both = grads + t.TOTAL * channels, grads + t.PRODUCT * channels
            operands = *both, at + t.LOW * channels, at + t.RSTD * channels
            _add_unit((dweight, dbias), 0, count, operands)
        for which in range(2):
            if a[t.DWEIGHT + which] != 0:
                row, kind = sums + (t.DMEAN + which) * channels, p[t.WEIGHT_KIND + which]
                narrow(a[t.DWEIGHT + which], first * channels + c0, kind, row, count)


@small_kernel
def logits(x: Any, args: int, part: int) -> None:
    """The gradients of the logits, through the softmax: ``w_k (g_k - sum_j w_j g_j)``."""
    a, p = t.tables(args)
    weights, sums = t.numbers(a[t.SMALL], p[t.AT_WEIGHTS]), t.numbers(a[t.SCRATCH], p[t.AT_LOGITS])
    both = 2 * p[t.BRANCHES]
    for u in range(1, p[t.SPREAD_UNITS]):
        for i in range(both):
            sums[i] += sums[u * both + i]
    for which in range(2 if a[t.DMEAN_LOGITS] != 0 else 0):  # both are learned, or neither
        common = 0.0
        for i in range(which, both, 2):
            common += weights[i] * sums[i]
        for i in range(which, both, 2):
            sums[i] = weights[i] * (sums[i] - common)
            if a[t.DMEAN_LOGITS + which] != 0:
                to = a[t.DMEAN_LOGITS + which]
                narrow(to, i // 2, p[t.LOGIT_KIND], sums + i, 1)
