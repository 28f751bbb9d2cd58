"""Passes over tensors whose channels alternate: channels-last ones, and batches of short planes.

An item is a piece of a unit's rows times a tile of channels. Rows are worked on as long vectors,
each value with its own coefficients; where a row is short, ``FOLD`` of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import helper, kernel, narrowed, row_at, workspace
from normalform.kernels.cpu.memory import ALIKE
from normalform.kernels.cpu.planes import (
    distances,
    gradient,
    moments_of,
    output,
    products,
    scaled,
)
from normalform.kernels.cpu.values import Values
from normalform.kernels.cpu.vectors import (
    add,
    any_beyond,
    beyond,
    copy,
    fill,
    is_double,
    load,
    mapped,
    sum_runs,
    summed,
)

# The most values that are worked on side by side; their arrays are STEP numbers apart, which is no
# multiple of 4 KiB: a load would have to wait for a store to another array.
LONG = 1024
STEP = LONG + 168
_room = workspace(4 * STEP)


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
def _fours(p: Any, rows: int, ahead: int) -> int:
    """Rows that are taken four at a time.

    None where one stream comes from beyond the cache: two thirds to half as fast as one after the
    other (25 MB). Where rows are cut into tiles it is the other way round, and the next four are
    asked for meanwhile: without, the processor sees no stream (forward in 0.65 of the time).
    """
    return rows - rows % 4 if ahead < 0 or p[t.TILES] > 1 else 0


@helper
def _fours_written(p: Any, rows: int, ahead: int) -> int:
    """The same where they are also written to.

    Past the cache rows go one by one that are a multiple of 4 KiB apart: forward in 0.5 of the
    time (2048 channels).
    """
    apart = p[t.CHANNELS] * p[t.WIDTH]
    return 0 if ahead >= 0 and apart % ALIKE == 0 else _fours(p, rows, ahead)


@helper
def _repeat(out: Any, values: int, times: int) -> None:
    """Repeat the values for every row that is folded into one."""
    for at in range(values, times * values, values):
        copy(out + at, out, values)


@helper
def _expand(source: Any, values: int, p: Any, out: Any) -> None:
    """One number a channel, repeated for every value of a folded row."""
    width = p[t.WIDTH]
    if width == 1:
        copy(out, source, values)
    else:
        for c in range(values // width):
            fill(out + c * width, source[c], width)
    _repeat(out, values, p[t.FOLD])


def _beyond(point: Values, *others: Values) -> Sequence[Values]:
    """As :func:`beyond`, of a point that is a number of float32 unless it is large."""
    return (beyond(*others)[0] + point.counted(point.large()),)


_any_beyond = summed(_beyond, 1)


@helper
def _fit(x: Any, rows: Any, count: int) -> bool:
    """Whether the type that x is computed in holds a row of points and others of coefficients."""
    return is_double(x) or _any_beyond(0, count, rows)[0] == 0.0


@helper
def _in_double(rows: Any, channels: int, width: int, out: Any) -> None:
    """Several such rows in float64, for every value of a row; ``STEP`` numbers apart."""
    for i in range(len(rows)):
        for c in range(channels):
            fill(out + i * STEP + c * width, rows[i][c], width)


@helper
def _collapse(sums: Any, values: int, p: Any) -> None:
    """The sum over the values of each channel, left in the first places.

    By halves: the longer a sum is taken one after the other, the more of it is rounded away.
    """
    width, left = p[t.WIDTH], p[t.FOLD] * values
    while left > values:
        half = (left // values + 1) // 2 * values
        add((sums,), 0, left - half, (sums + half,))
        left = half
    sum_runs(sums, values // width, width)


# Each of these takes rows four at a time, which read and write the sums and coefficients in ``s``
# once for all, and then one by one.
def _together(values: Sequence[Values]) -> Values:
    a, b, c, d = values
    return (a + b) + (c + d)


def _four_moments(*rows: Values) -> Sequence[Values]:
    *four, shift = rows
    return [_together(each) for each in zip(*(distances(x, shift) for x in four), strict=True)]


_moments_of_row = mapped(distances, adds=2, streams=1, at_once=2)
_moments_of_four = mapped(_four_moments, adds=2, streams=4, at_once=2)


@helper
def _add_moments(p: Any, data: Any, s: Any, rows: int, step: int, n: int) -> None:
    """Add the values of each column, and their squares, as distances from its shift."""
    sums, fours = (s + STEP, s + 2 * STEP), _fours(p, rows, p[t.AHEAD])
    for row in range(0, fours, 4):
        x = data + row * step
        _moments_of_four(sums, 0, n, (x, x + step, x + 2 * step, x + 3 * step, s), 4 * p[t.AHEAD])
    for row in range(fours, rows):
        _moments_of_row(sums, 0, n, (data + row * step, s), p[t.AHEAD])


@helper
def _sum_moments(
    data: Any, s: Any, steps: int, n: int, step: int, left: int, values: int, p: Any
) -> None:
    """Both sums of each channel about its shift."""
    fill(s + STEP, 0.0, n)
    fill(s + 2 * STEP, 0.0, n)
    _add_moments(p, data, s, steps, step, n)
    _add_moments(p, data + steps * step, s, 1 if left > 0 else 0, step, left)
    _collapse(s + STEP, values, p)
    _collapse(s + 2 * STEP, values, p)


def _moments(count: Values, shift: Values, sum_: Values, squares: Values) -> Sequence[Values]:
    rest = sum_ / count
    return count, shift, rest, (squares / count - rest * rest).or_zero()


_finish = mapped(_moments)


@kernel
def moments(x: Any, args: int, part: int) -> None:
    """Moments of each channel in each piece, about its first value; or of a piece of one cell."""
    a, p = t.tables(args)
    slots, count_of_slots = t.numbers(a[t.SMALL], 0), p[t.SLOTS]
    s = _room()
    shifts = s + 3 * STEP
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, piece, c0, c1, start, rows, values = _item(p, item)
        if p[t.RUN] > 1:
            near, rest, var = moments_of(x, start, start + rows * values)
            slots[item], slots[count_of_slots + item] = rows * values, near
            slots[2 * count_of_slots + item], slots[3 * count_of_slots + item] = rest, var
            continue
        width, count, channels = p[t.WIDTH], float(rows * p[t.WIDTH]), c1 - c0
        for c in range(channels):
            shifts[c] = load(x, start + c * width)
        steps, n, step, left = _steps(p, rows, values)
        _expand(shifts, values, p, s)
        _sum_moments(x + start, s, steps, n, step, left, values, p)
        if is_double(x):  # again about the means
            for c in range(channels):
                shifts[c] += s[STEP + c] / count
            _expand(shifts, values, p, s)
            _sum_moments(x + start, s, steps, n, step, left, values, p)
        slot = slots + t.slot_of(p, unit, piece, c0)
        _finish(
            (slot, slot + count_of_slots, slot + 2 * count_of_slots, slot + 3 * count_of_slots),
            0,
            channels,
            (count, shifts, s + STEP, s + 2 * STEP),
        )


_output = mapped(output, streams=1, at_once=2, single=True)
_outputs_of_four = mapped(output, streams=4, at_once=2, single=True)


@helper
def _apply(p: Any, data: Any, out: Any, s: Any, rows: int, step: int, n: int) -> None:
    """``y = (x - high) * scale + shift``."""
    at, fours = (s, s + STEP, s + 2 * STEP), _fours_written(p, rows, p[t.AHEAD])
    for row in range(0, fours, 4):
        x, y = data + row * step, out + row * step
        _outputs_of_four(
            (y, y + step, y + 2 * step, y + 3 * step),
            0,
            n,
            (x, x + step, x + 2 * step, x + 3 * step, *at),
            4 * p[t.AHEAD],
        )
    for row in range(fours, rows):
        _output((out + row * step,), 0, n, (data + row * step, *at), p[t.AHEAD])


@kernel
def apply(x: Any, args: int, part: int) -> None:
    """The output, from each channel's coefficients."""
    a, p = t.tables(args)
    out, channels = row_at(a[t.Y], x), p[t.CHANNELS]
    spread, exact = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), _room()
    s, by = narrowed(exact, x), (exact, exact + STEP, exact + 2 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, c1, start, rows, values = _item(p, item)
        at = spread + t.SPREAD * t.spread_at(p, unit) + c0
        of = at + t.HIGH * channels, at + t.SCALE * channels, at + t.SHIFT * channels
        if not _fit(x, of, c1 - c0):
            _in_double(of, c1 - c0, p[t.WIDTH], exact)
            for i in range(start, start + rows * channels * p[t.WIDTH], channels * p[t.WIDTH]):
                _output((out + i,), 0, values, (x + i, *by), p[t.AHEAD])
            continue
        _expand(of[0], values, p, s)
        _expand(of[1], values, p, s + STEP)
        _expand(of[2], values, p, s + 2 * STEP)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _apply(p, x + start, out + start, s, steps, step, n)
        _apply(p, x + end, out + end, s, 1 if left > 0 else 0, step, left)


def _four_sums(*operands: Values) -> Sequence[Values]:
    pairs = zip(operands[:4], operands[4:8], strict=True)
    four = [products(x, dy, operands[8]) for x, dy in pairs]
    return [_together(each) for each in zip(*four, strict=True)]


_sums_of_row = mapped(products, adds=2, streams=2, at_once=2)
_sums_of_four = mapped(_four_sums, adds=2, streams=8, at_once=2)


@helper
def _add_sums(p: Any, data: Any, dy: Any, s: Any, rows: int, step: int, n: int) -> None:
    """Add dy of each column, and ``dy (x - high)``."""
    sums, fours = (s + STEP, s + 2 * STEP), _fours(p, rows, p[t.AHEAD_BACK])
    for row in range(0, fours, 4):
        x, g = data + row * step, dy + row * step
        four = x, x + step, x + 2 * step, x + 3 * step
        _sums_of_four(
            sums, 0, n, (*four, g, g + step, g + 2 * step, g + 3 * step, s), 4 * p[t.AHEAD_BACK]
        )
    for row in range(fours, rows):
        x, g = data + row * step, dy + row * step
        _sums_of_row(sums, 0, n, (x, g, s), p[t.AHEAD_BACK])


@kernel
def sums(x: Any, args: int, part: int) -> None:
    """Both sums of each channel in each piece."""
    a, p = t.tables(args)
    dy = row_at(a[t.DY], x)
    spread = t.numbers(a[t.SMALL], p[t.AT_SPREAD])
    slots, s = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), _room()
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, piece, c0, c1, start, rows, values = _item(p, item)
        high = t.SPREAD * t.spread_at(p, unit) + t.HIGH * p[t.CHANNELS] + c0
        _expand(spread + high, values, p, s)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        fill(s + STEP, 0.0, n)
        fill(s + 2 * STEP, 0.0, n)
        _add_sums(p, x + start, dy + start, s, steps, step, n)
        _add_sums(p, x + end, dy + end, s, 1 if left > 0 else 0, step, left)
        _collapse(s + STEP, values, p)
        _collapse(s + 2 * STEP, values, p)
        slot = slots + t.slot_of(p, unit, piece, c0)
        copy(slot, s + STEP, c1 - c0)
        copy(slot + p[t.SLOTS] * p[t.RUN], s + 2 * STEP, c1 - c0)


_input_of = mapped(gradient, streams=2, at_once=2, single=True)
_inputs_of_four = mapped(gradient, streams=8, at_once=2, single=True)


@helper
def _input(p: Any, data: Any, dy: Any, dx: Any, s: Any, rows: int, step: int, n: int) -> None:
    """``dx = scale dy + (slope (x - point) + offset)``."""
    at, fours = (s, s + STEP, s + 2 * STEP, s + 3 * STEP), _fours_written(p, rows, p[t.AHEAD_BACK])
    for row in range(0, fours, 4):
        x, g, d = data + row * step, dy + row * step, dx + row * step
        four = x, x + step, x + 2 * step, x + 3 * step
        _inputs_of_four(
            (d, d + step, d + 2 * step, d + 3 * step),
            0,
            n,
            (*four, g, g + step, g + 2 * step, g + 3 * step, *at),
            4 * p[t.AHEAD_BACK],
        )
    for row in range(fours, rows):
        x, g, d = data + row * step, dy + row * step, dx + row * step
        _input_of((d,), 0, n, (x, g, *at), p[t.AHEAD_BACK])


@kernel
def grad_input(x: Any, args: int, part: int) -> None:
    """The gradient of the input, with the statistics' part."""
    a, p = t.tables(args)
    dy, dx, channels = row_at(a[t.DY], x), row_at(a[t.DX], x), p[t.CHANNELS]
    spread, terms = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), t.numbers(a[t.SCRATCH], p[t.AT_TERMS])
    exact = _room()
    s, by = narrowed(exact, x), (exact, exact + STEP, exact + 2 * STEP, exact + 3 * STEP)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, c1, start, rows, values = _item(p, item)
        scale = spread + t.SPREAD * t.spread_at(p, unit) + t.SCALE * channels + c0
        to = terms + t.TERMS * t.spread_at(p, unit) + c0
        of = to + t.POINT * channels, scale, to + t.SLOPE * channels, to + t.OFFSET * channels
        if not _fit(x, of, c1 - c0):
            _in_double(of, c1 - c0, p[t.WIDTH], exact)
            for i in range(start, start + rows * channels * p[t.WIDTH], channels * p[t.WIDTH]):
                _input_of((dx + i,), 0, values, (x + i, dy + i, *by), p[t.AHEAD_BACK])
            continue
        _expand(of[0], values, p, s)
        _expand(of[1], values, p, s + STEP)
        _expand(of[2], values, p, s + 2 * STEP)
        _expand(of[3], values, p, s + 3 * STEP)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _input(p, x + start, dy + start, dx + start, s, steps, step, n)
        _input(p, x + end, dy + end, dx + end, s, 1 if left > 0 else 0, step, left)


_scaled = mapped(scaled, streams=1, at_once=2, single=True)


@helper
def _scale(p: Any, dy: Any, dx: Any, s: Any, rows: int, step: int, n: int) -> None:
    for row in range(rows):
        _scaled((dx + row * step,), 0, n, (dy + row * step, s), p[t.AHEAD_BACK])


@kernel
def scale(x: Any, args: int, part: int) -> None:
    """The gradient of the input where all statistics are constants."""
    a, p = t.tables(args)
    dy, dx, exact = row_at(a[t.DY], x), row_at(a[t.DX], x), _room()
    spread, channels, s = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), p[t.CHANNELS], narrowed(exact, x)
    first, last = t.items_of(p, part)
    for item in range(first, last):
        unit, _, c0, c1, start, rows, values = _item(p, item)
        factor = spread + t.SPREAD * t.spread_at(p, unit) + t.SCALE * channels + c0
        if not is_double(x) and any_beyond(0, c1 - c0, (factor,))[0] > 0.0:
            _in_double((factor,), c1 - c0, p[t.WIDTH], exact)
            for i in range(start, start + rows * channels * p[t.WIDTH], channels * p[t.WIDTH]):
                _scaled((dx + i,), 0, values, (dy + i, exact), p[t.AHEAD_BACK])
            continue
        _expand(factor, values, p, s)
        steps, n, step, left = _steps(p, rows, values)
        end = start + steps * step
        _scale(p, dy + start, dx + start, s, steps, step, n)
        _scale(p, dy + end, dx + end, s, 1 if left > 0 else 0, step, left)
