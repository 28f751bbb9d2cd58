"""Passes over contiguous tensors: every channel of a sample is one run of neighbouring values.

An item is a piece of a plane (n, c), and there is a slot for each.
"""

from __future__ import annotations

from typing import Any

from numba import carray, types
from numba.extending import overload

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    array,
    elementwise,
    helper,
    kernel,
    load,
    reduction,
    store,
)


@helper
def _place(p: Any, item: int) -> tuple[int, int, int]:
    """Unit, channel and piece of an item."""
    plane = item // p[t.PIECES]
    unit = plane // p[t.CHANNELS]
    return unit, plane - unit * p[t.CHANNELS], item - plane * p[t.PIECES]


@helper
def _after(p: Any, unit: int, c: int, piece: int) -> tuple[int, int, int]:
    """Those of the next item: a short plane takes as long as a few divisions."""
    piece += 1
    if piece == p[t.PIECES]:
        piece, c = 0, c + 1
        if c == p[t.CHANNELS]:
            unit, c = unit + 1, 0
    return unit, c, piece


@helper
def _run(p: Any, unit: int, c: int, piece: int) -> tuple[int, int]:
    """First value and end of an item."""
    start, first = (unit * p[t.CHANNELS] + c) * p[t.EXTENT], piece * p[t.LENGTH]
    last = first + p[t.LENGTH]
    return start + first, start + (last if last < p[t.EXTENT] else p[t.EXTENT])


@reduction
def run_moments(row: Any, shift: float) -> tuple[float, float]:
    """``sum (x - shift)`` and ``sum (x - shift)^2``."""
    total, square = 0.0, 0.0
    for j in range(row.size):
        d = load(row, j) - shift
        total += d
        square += d * d
    return total, square


def is_double(row: Any) -> bool:
    """Whether float64 is no wider than the tensor's own type."""
    return row.dtype == types.float64


@overload(is_double, strict=False)
def _is_double(row: Any) -> Any:
    answer = row.dtype == types.float64
    return lambda row: answer


@helper
def moments_of(row: Any) -> tuple[float, float, float]:
    """A point near the mean, the mean's distance from it, and the variance.

    About its first value; float64, which has no digits to spare, again about the mean.
    """
    near = load(row, 0)
    total, square = run_moments(row, near)
    rest = total / row.size
    if is_double(row):
        near += rest
        total, square = run_moments(row, near)
        rest = total / row.size
    var = square / row.size - rest * rest
    return near, rest, 0.0 if var < 0.0 else var


@kernel
def moments(x: Any, args: int, part: int) -> None:
    """Moments of each piece, or of each cell that is one run."""
    a, p = t.tables(args)
    data, slots = carray(x, (1 << 40,)), t.numbers(a[t.SMALL], 0)
    first, last = t.items_of(p, part)
    unit, c, piece = _place(p, first)
    for slot in range(first // p[t.RUN], last // p[t.RUN]):
        if p[t.RUN] > 1:
            start, stop = slot * p[t.RUN] * p[t.EXTENT], (slot + 1) * p[t.RUN] * p[t.EXTENT]
        else:
            start, stop = _run(p, unit, c, piece)
            unit, c, piece = _after(p, unit, c, piece)
        near, rest, var = moments_of(data[start:stop])
        slots[slot], slots[p[t.SLOTS] + slot] = stop - start, near
        slots[2 * p[t.SLOTS] + slot], slots[3 * p[t.SLOTS] + slot] = rest, var


@elementwise
def run_apply(row: Any, y: Any, high: float, scale: float, shift: float) -> None:
    """``y = (x - high) * scale + shift``."""
    for j in range(row.size):
        store(y, j, (load(row, j) - high) * scale + shift)


@kernel
def apply(x: Any, args: int, part: int) -> None:
    """The output, from each plane's coefficients."""
    a, p = t.tables(args)
    data, out = carray(x, (1 << 40,)), array(a[t.Y], x, 1 << 40)
    spread, channels = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), p[t.CHANNELS]
    first, last = t.items_of(p, part)
    unit, c, piece = _place(p, first)
    for _ in range(first, last):
        start, stop = _run(p, unit, c, piece)
        at = t.spread_at(p, unit, t.SPREAD) + c
        unit, c, piece = _after(p, unit, c, piece)
        high = spread[at + t.HIGH * channels]
        scale, shift = spread[at + t.SCALE * channels], spread[at + t.SHIFT * channels]
        run_apply(data[start:stop], out[start:stop], high, scale, shift)


@reduction
def run_sums(row: Any, dy: Any, high: float) -> tuple[float, float]:
    """``sum dy`` and ``sum dy (x - high)``."""
    total, product = 0.0, 0.0
    for j in range(row.size):
        g = load(dy, j)
        total += g
        product += g * (load(row, j) - high)
    return total, product


@kernel
def sums(x: Any, args: int, part: int) -> None:
    """Both sums of each piece."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    spread = t.numbers(a[t.SMALL], p[t.AT_SPREAD])
    slots = t.numbers(a[t.SCRATCH], p[t.AT_SUMS])
    first, last = t.items_of(p, part)
    unit, c, piece = _place(p, first)
    for item in range(first, last):
        start, stop = _run(p, unit, c, piece)
        high = spread[t.spread_at(p, unit, t.SPREAD) + t.HIGH * p[t.CHANNELS] + c]
        unit, c, piece = _after(p, unit, c, piece)
        total, product = run_sums(data[start:stop], dy[start:stop], high)
        slots[2 * item], slots[2 * item + 1] = total, product


@elementwise
def run_input(
    row: Any, dy: Any, dx: Any,
    centre: float, factor: float, slope: float, offset: float,
) -> None:  # fmt: skip
    """``dx = factor dy + (slope (x - centre) + offset)``."""
    for j in range(row.size):
        statistics = (load(row, j) - centre) * slope + offset
        store(dx, j, load(dy, j) * factor + statistics)


@elementwise
def run_scale(dy: Any, dx: Any, factor: float) -> None:
    """``dx = factor dy``."""
    for j in range(dy.size):
        store(dx, j, load(dy, j) * factor)


@kernel
def grad_input(x: Any, args: int, part: int) -> None:
    """The gradient of the input, with the statistics' part."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, channels = array(a[t.DX], x, 1 << 40), p[t.CHANNELS]
    terms = t.numbers(a[t.SCRATCH], p[t.AT_TERMS])
    first, last = t.items_of(p, part)
    unit, c, piece = _place(p, first)
    for _ in range(first, last):
        start, stop = _run(p, unit, c, piece)
        at = t.spread_at(p, unit, t.TERMS) + c
        unit, c, piece = _after(p, unit, c, piece)
        centre, factor = terms[at + t.CENTRE * channels], terms[at + t.FACTOR * channels]
        slope, offset = terms[at + t.SLOPE * channels], terms[at + t.OFFSET * channels]
        run_input(data[start:stop], dy[start:stop], dx[start:stop], centre, factor, slope, offset)


@kernel
def scale(x: Any, args: int, part: int) -> None:
    """The gradient of the input where all statistics are constants."""
    a, p = t.tables(args)
    dy, dx = array(a[t.DY], x, 1 << 40), array(a[t.DX], x, 1 << 40)
    terms = t.numbers(a[t.SCRATCH], p[t.AT_TERMS])
    first, last = t.items_of(p, part)
    unit, c, piece = _place(p, first)
    for _ in range(first, last):
        start, stop = _run(p, unit, c, piece)
        factor = terms[t.spread_at(p, unit, t.TERMS) + t.FACTOR * p[t.CHANNELS] + c]
        unit, c, piece = _after(p, unit, c, piece)
        run_scale(dy[start:stop], dx[start:stop], factor)
