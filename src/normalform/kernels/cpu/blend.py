"""Between the passes: from slots to coefficients, and from sums to gradients. Any norm is a blend.

A branch is three numbers: how many units share statistics (``BLOCK``, in ``BLOCKS`` of which the
last may differ), and how many ``GROUPS`` of channels there are. Batch norm is a blend of one branch
with one block and a group for each channel; instance norm has a block for each sample. Its cells
may be the slots themselves. A branch is *own* where a part has cells of its own, else *shared*.
"""

from __future__ import annotations

import math
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    add,
    copy,
    double_of_bits,
    elementwise,
    helper,
    load,
    peek,
    poke,
    small_kernel,
)


@helper
def first_cell(p: Any, b: int, unit: int) -> int:
    """The first cell of a unit's block."""
    block, last = unit // p[b + t.BLOCK], p[b + t.BLOCKS] - 1
    return (block if block < last else last) * p[b + t.GROUPS]


@elementwise
def _side_by_side(
    counts: Any, near: Any, rest: Any, var: Any, origin: Any, count: Any, total: Any, squares: Any
) -> None:
    """As the inner loop of :func:`_about`, of cells with a slot each that lie as the slots do."""
    for j in range(count.size):
        n, apart = load(counts, j), (load(near, j) - load(origin, j)) + load(rest, j)
        add(count, j, n)
        add(total, j, n * apart)
        add(squares, j, n * (load(var, j) + apart * apart))


@helper
def _about(p: Any, small: Any, b: int, u: int, end: int, c0: int, c1: int) -> None:
    """Into the cells of a block, what their slots hold, as distances from the points in them.

    Number of values, sum of the distances and of their squares; in the order of memory.
    """
    slots, cells, size = p[t.SLOTS], p[b + t.CELLS], p[t.CHANNELS] // p[b + t.GROUPS]
    to, step = p[b + t.AT_CELLS] + first_cell(p, b, u), p[t.CHANNEL_STEP]
    for cell in range(to + c0 // size, to + c1 // size):
        small[cell] = small[2 * cells + cell] = small[3 * cells + cell] = 0.0
    for unit in range(u, end):
        for piece in range(p[t.PIECES]):
            at = t.slot_of(p, unit, piece, c0) // p[t.RUN]
            if size == 1 and step == 1:
                first, last = to + c0, to + c1
                _side_by_side(
                    small[at:], small[slots + at :], small[2 * slots + at :],
                    small[3 * slots + at :], small[cells + first :], small[first:last],
                    small[2 * cells + first :], small[3 * cells + first :],
                )  # fmt: skip
                continue
            for cell in range(to + c0 // size, to + c1 // size):
                origin, count, total, squares = small[cells + cell], 0.0, 0.0, 0.0
                for _ in range(size // p[t.RUN]):
                    n, apart = small[at], (small[slots + at] - origin) + small[2 * slots + at]
                    count += n
                    total += n * apart
                    squares += n * (small[3 * slots + at] + apart * apart)
                    at += step
                small[cell] += count
                small[2 * cells + cell] += total
                small[3 * cells + cell] += squares


@small_kernel
def pool(x: Any, args: int, part: int) -> None:
    """The cells that lie within a part; with part -1, those that parts share.

    ``mean(v) + mean((m - M)^2)`` [Chan, Golub & LeVeque 1983], never ``E[x^2] - M^2``, which
    cancels. About the first slot's mean, the last sum cancels by as many times as there are slots:
    nothing for float32 in float64. For float64 M comes first.
    """
    a, p = t.tables(args)
    small, slots = t.numbers(a[t.SMALL], 0), p[t.SLOTS]
    u0, u1, c0, c1 = t.extent_of(p, part)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] != (t.SHARED if part < 0 else t.OWN):
            continue
        cells, size, u = p[b + t.CELLS], p[t.CHANNELS] // p[b + t.GROUPS], u0
        while u < u1:
            first, end = first_cell(p, b, u), u + 1
            while end < u1 and first_cell(p, b, end) == first:
                end += 1
            g0, g1 = p[b + t.AT_CELLS] + first + c0 // size, p[b + t.AT_CELLS] + first + c1 // size
            for cell in range(g0, g1):
                slot = t.slot_of(p, u, 0, c0 + (cell - g0) * size) // p[t.RUN]
                small[cells + cell] = small[slots + slot]
            _about(p, small, b, u, end, c0, c1)
            if p[t.DOUBLE] == 1:
                for cell in range(g0, g1):
                    small[cells + cell] += small[2 * cells + cell] / small[cell]
                _about(p, small, b, u, end, c0, c1)
            for cell in range(g0, g1):
                rest = small[2 * cells + cell] / small[cell]
                var = small[3 * cells + cell] / small[cell] - rest * rest
                small[2 * cells + cell] = rest
                small[3 * cells + cell] = 0.0 if var < 0.0 else var
            u = end


@small_kernel
def given(x: Any, args: int, part: int) -> None:
    """Running statistics as the cells of the branches they stand for."""
    a, p = t.tables(args)
    small, channels = t.numbers(a[t.SMALL], 0), p[t.CHANNELS]
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN:
            to = small[p[b + t.AT_CELLS] :]
            for c in range(channels):
                to[c] = to[2 * channels + c] = 0.0
                to[channels + c] = peek(a[t.RUNNING_MEAN], c, p[t.RUNNING_KIND])
                to[3 * channels + c] = peek(a[t.RUNNING_VAR], c, p[t.RUNNING_KIND])


@small_kernel
def weigh(x: Any, args: int, part: int) -> None:
    """The softmax of the logits: how much each branch counts."""
    a, p = t.tables(args)
    weights, branches = t.numbers(a[t.SMALL], p[t.AT_WEIGHTS]), p[t.BRANCHES]
    for which in range(2):
        largest, total = -math.inf, 0.0
        for k in range(branches):
            logit = peek(a[t.MEAN_LOGITS + which], k, p[t.LOGIT_KIND])
            weights[2 * k + which] = logit
            largest = largest if largest > logit else logit
        for k in range(branches):
            weights[2 * k + which] = math.exp(weights[2 * k + which] - largest)
            total += weights[2 * k + which]
        for k in range(branches):
            weights[2 * k + which] /= total


@elementwise
def _two_parts(high: Any, low: Any) -> None:
    """Their sum as the nearest number to it, and what is missing."""
    for j in range(high.size):
        near, rest = high[j], low[j]
        high[j] = near + rest
        low[j] = (near - high[j]) + rest


@elementwise
def _roots(rstd: Any, scale: Any, eps: float) -> None:
    for j in range(rstd.size):
        rstd[j] = scale[j] = 1.0 / math.sqrt(rstd[j] + eps)


@elementwise
def _coefficients(a: Any, p: Any, to: Any, u: int, c0: int, c1: int) -> None:
    channels, first = p[t.CHANNELS], u * p[t.PARAM_STEP] + c0
    low = to[t.LOW * channels + c0 : t.LOW * channels + c1]
    _two_parts(to[t.HIGH * channels + c0 : t.HIGH * channels + c1], low)
    scale = to[t.SCALE * channels + c0 : t.SCALE * channels + c1]
    rstd = to[t.RSTD * channels + c0 : t.RSTD * channels + c1]
    _roots(rstd, scale, double_of_bits(p[t.EPS]))
    shift = to[t.SHIFT * channels + c0 : t.SHIFT * channels + c1]
    weight, weight_kind = a[t.WEIGHT], p[t.WEIGHT_KIND]
    if weight != 0:
        for j in range(scale.size):
            scale[j] *= peek(weight, first + j, weight_kind)
    for j in range(scale.size):
        shift[j] = -low[j] * scale[j]
    bias, bias_kind = a[t.BIAS], p[t.BIAS_KIND]
    if bias != 0:
        for j in range(scale.size):
            shift[j] += peek(bias, first + j, bias_kind)


@small_kernel
def mix(x: Any, args: int, part: int) -> None:
    """From the cells to the coefficients of each channel.

    ``y = (x - high) * scale + shift``; the mean is high + low, which one number cannot hold.
    """
    a, p = t.tables(args)
    small, channels = t.numbers(a[t.SMALL], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        to = small[p[t.AT_SPREAD] + u * t.SPREAD * channels :]
        for k in range(p[t.BRANCHES]):
            b = t.AT_BRANCHES + k * t.BRANCH
            size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
            cell = small[p[b + t.AT_CELLS] + first_cell(p, b, u) :]
            to_mean, to_var = 1.0, 1.0
            if p[t.BRANCHES] > 1:
                to_mean = small[p[t.AT_WEIGHTS] + 2 * k]
                to_var = small[p[t.AT_WEIGHTS] + 2 * k + 1]
            if size == 1 and p[t.BRANCHES] == 1:
                copy(to[t.HIGH * channels + c0 : t.HIGH * channels + c1], cell[cells + c0 :])
                copy(to[t.LOW * channels + c0 : t.LOW * channels + c1], cell[2 * cells + c0 :])
                copy(to[t.RSTD * channels + c0 : t.RSTD * channels + c1], cell[3 * cells + c0 :])
                continue
            for g in range(c0 // size, c1 // size):
                near, rest, var = cell[cells + g], cell[2 * cells + g], to_var * cell[3 * cells + g]
                for c in range(g * size, (g + 1) * size):
                    if k == 0:
                        to[t.HIGH * channels + c], to[t.LOW * channels + c] = near, rest
                        to[t.RSTD * channels + c] = var
                        if p[t.BRANCHES] > 1:
                            to[t.NEAR * channels + c], to[t.REST * channels + c] = near, rest
                    else:
                        # Differences of means: a common offset must not be rounded into the blend.
                        near_apart = near - to[t.NEAR * channels + c]
                        rest_apart = rest - to[t.REST * channels + c]
                        to[t.LOW * channels + c] += to_mean * (near_apart + rest_apart)
                        to[t.RSTD * channels + c] += var
        _coefficients(a, p, to, u, c0, c1)


@helper
def _move(buffer: int, c: int, kind: int, new: float, share: float) -> int:
    """Move a running statistic, unless it would not be finite; 1 then."""
    old = peek(buffer, c, kind)  # exactly new at a share of 1
    moved = old + share * (new - old) if share < 0.5 else new - (new - old) * (1.0 - share)
    largest = 3.4028235677973366e38 if kind != 1 else math.inf  # where float32 rounds to infinity
    if not abs(moved) < largest:
        return 1
    poke(buffer, c, kind, moved)
    return 0


@small_kernel
def track(x: Any, args: int, part: int) -> None:
    """Move the running statistics towards mean and unbiased variance, averaged over the blocks."""
    a, p = t.tables(args)
    b, share = p[t.TRACKED], double_of_bits(a[t.MOMENTUM])
    cell, cells, groups = t.numbers(a[t.SMALL], p[b + t.AT_CELLS]), p[b + t.CELLS], p[b + t.GROUPS]
    size, kind, blocks = p[t.CHANNELS] // groups, p[t.RUNNING_KIND], p[b + t.BLOCKS]
    for c in range(p[t.CHANNELS]):
        mean, var = 0.0, 0.0
        for block in range(blocks):
            i, units = block * groups + c // size, p[b + t.BLOCK]
            if block == blocks - 1:
                units = p[t.UNITS] - block * units
            n, of_all = cell[i], units / p[t.UNITS]
            mean += of_all * (cell[cells + i] + cell[2 * cells + i])
            var += of_all * (cell[3 * cells + i] * (n / (n - 1.0 if n > 2.0 else 1.0)))
        a[t.NOT_FINITE_MEAN] += _move(a[t.RUNNING_MEAN], c, kind, mean, share)
        a[t.NOT_FINITE_VAR] += _move(a[t.RUNNING_VAR], c, kind, var, share)
