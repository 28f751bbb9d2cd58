"""Passes over tensors whose channels alternate: channels-last ones, and batches of short planes.

An item is a piece of a unit's rows times a tile of channels. Rows are worked on as long vectors,
each value with its own coefficients; where a row is short, ``FOLD`` of them at a time.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    add,
    array,
    copy,
    elementwise,
    fill,
    helper,
    kernel,
    load,
    reduction,
    store,
    workspace,
)
from normalform.kernels.cpu.planes import is_double

# The most values that are worked on side by side; their arrays are STEP numbers apart, so that the
# compiler sees that they do not overlap: no multiple of 4 KiB, or a load has to wait for a store to
# another array.
LONG = 1024
STEP = LONG + 168


@helper
def _item(p: Any, item: int) -> tuple[int, int, int, int, int, int, int]:
    """Unit, piece, first channel and end; first value, rows and values in a row of the tile."""
    tile = item % p[t.TILES]
    rest = item // p[t.TILES]
    unit, piece = rest // p[t.PIECES], rest % p[t.PIECES]
    c0 = tile * p[t.TILE]
    c1 = c0 + p[t.TILE]
    c1 = c1 if c1 < p[t.CHANNELS] else p[t.CHANNELS]
    first = piece * p[t.LENGTH]
    last = first + p[t.LENGTH]
    rows = (last if last < p[t.ROWS] else p[t.ROWS]) - first
    start = ((unit * p[t.ROWS] + first) * p[t.CHANNELS] + c0) * p[t.WIDTH]
    return unit, piece, c0, c1, start, rows, (c1 - c0) * p[t.WIDTH]


@helper
def _steps(p: Any, rows: int, values: int) -> tuple[int, int, int, int]:
    """Rows after folding, values in each, the step between them, and values that are left over."""
    if p[t.FOLD] == 1:
        return rows, values, p[t.CHANNELS] * p[t.WIDTH], 0
    long = values * p[t.FOLD]
    return rows // p[t.FOLD], long, long, rows % p[t.FOLD] * values


@helper
def _fours(p: Any, rows: int) -> int:
    """Rows that are taken four at a time.

    None where one stream comes from beyond the cache: two thirds to half as fast as one after the
    other (25 MB). Where rows are cut into tiles it is the other way round.
    """
    return rows - rows % 4 if p[t.STAYS] == 1 or p[t.TILES] > 1 else 0


@helper
def _repeat(out: Any, to: int, values: int, times: int) -> None:
    """Repeat the values for every row that is folded into one."""
    once = out[to : to + values]
    for fold in range(1, times):
        again = out[to + fold * values : to + (fold + 1) * values]
        copy(again, once)


@helper
def _expand(source: Any, at: int, c0: int, values: int, p: Any, out: Any, to: int) -> None:
    """One number a channel, repeated for every value of a folded row."""
    width = p[t.WIDTH]
    if width == 1:
        for j in range(values):
            out[to + j] = source[at + c0 + j]
    else:
        for c in range(values // width):
            for j in range(c * width, (c + 1) * width):
                out[to + j] = source[at + c0 + c]
    _repeat(out, to, values, p[t.FOLD])


@reduction
def _total(row: Any) -> float:
    total = 0.0
    for j in range(row.size):
        total += row[j]
    return total


@helper
def _collapse(sums: Any, at: int, values: int, p: Any) -> None:
    """The sum over the values of each channel, left in the first places.

    By halves: the longer a sum is taken one after the other, the more of it is rounded away.
    """
    width, left = p[t.WIDTH], p[t.FOLD] * values
    while left > values:
        half = (left // values + 1) // 2 * values
        once, again = sums[at : at + left - half], sums[at + half : at + left]
        for j in range(once.size):
            once[j] += again[j]
        left = half
    if width > 1:
        for c in range(values // width):
            sums[at + c] = _total(sums[at + c * width : at + (c + 1) * width])


@reduction
def _add_moments(data: Any, s: Any, rows: int, step: int, n: int, fours: int) -> None:
    """Add the values of each column, and their squares, as distances from its shift."""
    for row in range(0, fours, 4):
        i0, i1, i2, i3 = row * step, (row + 1) * step, (row + 2) * step, (row + 3) * step
        x0, x1, x2, x3 = data[i0 : i0 + n], data[i1 : i1 + n], data[i2 : i2 + n], data[i3 : i3 + n]
        for j in range(n):
            shift = load(s, j)
            d0, d1 = load(x0, j) - shift, load(x1, j) - shift
            d2, d3 = load(x2, j) - shift, load(x3, j) - shift
            add(s, STEP + j, (d0 + d1) + (d2 + d3))
            add(s, 2 * STEP + j, (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3))
    for row in range(fours, rows):
        x = data[row * step : row * step + n]
        for j in range(n):
            d = load(x, j) - load(s, j)
            add(s, STEP + j, d)
            add(s, 2 * STEP + j, d * d)


@helper
def _sum_moments(
    data: Any, s: Any, steps: int, n: int, step: int, left: int, values: int, p: Any
) -> None:
    """Both sums of each channel about its shift."""
    fill(s[STEP : STEP + n], 0.0)
    fill(s[2 * STEP : 2 * STEP + n], 0.0)
    _add_moments(data, s, steps, step, n, _fours(p, steps))
    _add_moments(data[steps * step :], s, 1 if left > 0 else 0, step, left, 0)
    _collapse(s, STEP, values, p)
    _collapse(s, 2 * STEP, values, p)


@kernel
def moments(x: Any, args: int, part: int) -> None:
    """Moments of each channel in each piece, about its first value."""
    a, p = t.tables(args)
    data, slots = carray(x, (1 << 40,)), t.numbers(a[t.SMALL], 0)
    s = workspace(4 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, piece, c0, c1, start, rows, values = _item(p, item)
        width, count = p[t.WIDTH], rows * p[t.WIDTH]
        for c in range(c1 - c0):
            shift = load(data, start + c * width)
            for j in range(c * width, (c + 1) * width):
                s[j] = shift
        _repeat(s, 0, values, p[t.FOLD])
        steps, n, step, left = _steps(p, rows, values)
        _sum_moments(data[start:], s, steps, n, step, left, values, p)
        if is_double(data):  # again about the means
            for c in range(c1 - c0):
                s[3 * STEP + c] = s[c * width] + s[STEP + c] / count
            _expand(s, 3 * STEP, 0, values, p, s, 0)
            _sum_moments(data[start:], s, steps, n, step, left, values, p)
        for c in range(c1 - c0):
            slot = t.slot_of(p, unit, piece, c0 + c)
            rest = s[STEP + c] / count
            var = s[2 * STEP + c] / count - rest * rest
            slots[slot], slots[p[t.SLOTS] + slot] = count, s[c * width]
            slots[2 * p[t.SLOTS] + slot] = rest
            slots[3 * p[t.SLOTS] + slot] = 0.0 if var < 0.0 else var


@elementwise
def _apply(data: Any, out: Any, s: Any, rows: int, step: int, n: int, fours: int) -> None:
    for row in range(0, fours, 4):
        i0, i1, i2, i3 = row * step, (row + 1) * step, (row + 2) * step, (row + 3) * step
        x0, x1, x2, x3 = data[i0 : i0 + n], data[i1 : i1 + n], data[i2 : i2 + n], data[i3 : i3 + n]
        y0, y1, y2, y3 = out[i0 : i0 + n], out[i1 : i1 + n], out[i2 : i2 + n], out[i3 : i3 + n]
        for j in range(n):
            high, scale, shift = load(s, j), load(s, STEP + j), load(s, 2 * STEP + j)
            store(y0, j, (load(x0, j) - high) * scale + shift)
            store(y1, j, (load(x1, j) - high) * scale + shift)
            store(y2, j, (load(x2, j) - high) * scale + shift)
            store(y3, j, (load(x3, j) - high) * scale + shift)
    for row in range(fours, rows):
        x, y = data[row * step : row * step + n], out[row * step : row * step + n]
        for j in range(n):
            y_j = (load(x, j) - load(s, j)) * load(s, STEP + j) + load(s, 2 * STEP + j)
            store(y, j, y_j)


@kernel
def apply(x: Any, args: int, part: int) -> None:
    """The output, from each channel's coefficients."""
    a, p = t.tables(args)
    data, out = carray(x, (1 << 40,)), array(a[t.Y], x, 1 << 40)
    spread, s = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), workspace(3 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, _, start, rows, values = _item(p, item)
        at = t.spread_at(p, unit, t.SPREAD)
        _expand(spread, at + t.HIGH * p[t.CHANNELS], c0, values, p, s, 0)
        _expand(spread, at + t.SCALE * p[t.CHANNELS], c0, values, p, s, STEP)
        _expand(spread, at + t.SHIFT * p[t.CHANNELS], c0, values, p, s, 2 * STEP)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _apply(data[start:], out[start:], s, steps, step, n, _fours(p, steps))
        _apply(data[end:], out[end:], s, 1 if left > 0 else 0, step, left, 0)


@reduction
def _add_sums(data: Any, dy: Any, s: Any, rows: int, step: int, n: int, fours: int) -> None:
    for row in range(0, fours, 4):
        i0, i1, i2, i3 = row * step, (row + 1) * step, (row + 2) * step, (row + 3) * step
        x0, x1, x2, x3 = data[i0 : i0 + n], data[i1 : i1 + n], data[i2 : i2 + n], data[i3 : i3 + n]
        g0, g1, g2, g3 = dy[i0 : i0 + n], dy[i1 : i1 + n], dy[i2 : i2 + n], dy[i3 : i3 + n]
        for j in range(n):
            high, a, b, c, d = load(s, j), load(g0, j), load(g1, j), load(g2, j), load(g3, j)
            add(s, STEP + j, (a + b) + (c + d))
            first = a * (load(x0, j) - high) + b * (load(x1, j) - high)
            second = c * (load(x2, j) - high) + d * (load(x3, j) - high)
            add(s, 2 * STEP + j, first + second)
    for row in range(fours, rows):
        x, g = data[row * step : row * step + n], dy[row * step : row * step + n]
        for j in range(n):
            a = load(g, j)
            add(s, STEP + j, a)
            add(s, 2 * STEP + j, a * (load(x, j) - load(s, j)))


@kernel
def sums(x: Any, args: int, part: int) -> None:
    """Both sums of each channel in each piece."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    spread = t.numbers(a[t.SMALL], p[t.AT_SPREAD])
    slots, s = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), workspace(3 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, piece, c0, c1, start, rows, values = _item(p, item)
        high = t.spread_at(p, unit, t.SPREAD) + t.HIGH * p[t.CHANNELS]
        _expand(spread, high, c0, values, p, s, 0)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        fill(s[STEP : STEP + n], 0.0)
        fill(s[2 * STEP : 2 * STEP + n], 0.0)
        _add_sums(data[start:], dy[start:], s, steps, step, n, _fours(p, steps))
        _add_sums(data[end:], dy[end:], s, 1 if left > 0 else 0, step, left, 0)
        _collapse(s, STEP, values, p)
        _collapse(s, 2 * STEP, values, p)
        for c in range(c1 - c0):
            slot = 2 * t.slot_of(p, unit, piece, c0 + c)
            slots[slot], slots[slot + 1] = s[STEP + c], s[2 * STEP + c]


@elementwise
def _input(data: Any, dy: Any, dx: Any, s: Any, rows: int, step: int, n: int, fours: int) -> None:
    for row in range(0, fours, 4):
        i0, i1, i2, i3 = row * step, (row + 1) * step, (row + 2) * step, (row + 3) * step
        x0, x1, x2, x3 = data[i0 : i0 + n], data[i1 : i1 + n], data[i2 : i2 + n], data[i3 : i3 + n]
        g0, g1, g2, g3 = dy[i0 : i0 + n], dy[i1 : i1 + n], dy[i2 : i2 + n], dy[i3 : i3 + n]
        d0, d1, d2, d3 = dx[i0 : i0 + n], dx[i1 : i1 + n], dx[i2 : i2 + n], dx[i3 : i3 + n]
        for j in range(n):
            centre, factor = load(s, j), load(s, STEP + j)
            slope, offset = load(s, 2 * STEP + j), load(s, 3 * STEP + j)
            store(d0, j, load(g0, j) * factor + ((load(x0, j) - centre) * slope + offset))
            store(d1, j, load(g1, j) * factor + ((load(x1, j) - centre) * slope + offset))
            store(d2, j, load(g2, j) * factor + ((load(x2, j) - centre) * slope + offset))
            store(d3, j, load(g3, j) * factor + ((load(x3, j) - centre) * slope + offset))
    for row in range(fours, rows):
        i = row * step
        x, g, d = data[i : i + n], dy[i : i + n], dx[i : i + n]
        for j in range(n):
            slope, offset = load(s, 2 * STEP + j), load(s, 3 * STEP + j)
            statistics = (load(x, j) - load(s, j)) * slope + offset
            store(d, j, load(g, j) * load(s, STEP + j) + statistics)


@kernel
def grad_input(x: Any, args: int, part: int) -> None:
    """The gradient of the input, with the statistics' part."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, channels = array(a[t.DX], x, 1 << 40), p[t.CHANNELS]
    terms, s = t.numbers(a[t.SCRATCH], p[t.AT_TERMS]), workspace(4 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, _, start, rows, values = _item(p, item)
        at = t.spread_at(p, unit, t.TERMS)
        _expand(terms, at + t.CENTRE * channels, c0, values, p, s, 0)
        _expand(terms, at + t.FACTOR * channels, c0, values, p, s, STEP)
        _expand(terms, at + t.SLOPE * channels, c0, values, p, s, 2 * STEP)
        _expand(terms, at + t.OFFSET * channels, c0, values, p, s, 3 * STEP)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _input(data[start:], dy[start:], dx[start:], s, steps, step, n, _fours(p, steps))
        _input(data[end:], dy[end:], dx[end:], s, 1 if left > 0 else 0, step, left, 0)


@elementwise
def _scale(dy: Any, dx: Any, s: Any, rows: int, step: int, n: int) -> None:
    for row in range(rows):
        g, d = dy[row * step : row * step + n], dx[row * step : row * step + n]
        for j in range(n):
            store(d, j, load(g, j) * load(s, j))


@kernel
def scale(x: Any, args: int, part: int) -> None:
    """The gradient of the input where all statistics are constants."""
    a, p = t.tables(args)
    dy, dx = array(a[t.DY], x, 1 << 40), array(a[t.DX], x, 1 << 40)
    terms, s = t.numbers(a[t.SCRATCH], p[t.AT_TERMS]), workspace(STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, _, start, rows, values = _item(p, item)
        factor = t.spread_at(p, unit, t.TERMS) + t.FACTOR * p[t.CHANNELS]
        _expand(terms, factor, c0, values, p, s, 0)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _scale(dy[start:], dx[start:], s, steps, step, n)
        _scale(dy[end:], dx[end:], s, 1 if left > 0 else 0, step, left)
