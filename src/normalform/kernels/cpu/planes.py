"""Passes over contiguous tensors: every channel of a sample is one run of neighbouring values.

An item is a piece of a plane (n, c), and there is a slot for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import helper, inlined, kernel, row_at
from normalform.kernels.cpu.values import Values
from normalform.kernels.cpu.vectors import is_double, load, mapped, summed


@helper
def _opening(p: Any, item: int) -> tuple[int, int, int, int]:
    """First value of an item, end of its plane, and unit and channel of that."""
    plane = item // p[t.PIECES]
    unit = plane // p[t.CHANNELS]
    end = (plane + 1) * p[t.EXTENT]
    start = end - p[t.EXTENT] + (item - plane * p[t.PIECES]) * p[t.LENGTH]
    return start, end, unit, plane - unit * p[t.CHANNELS]


@helper
def _stop(p: Any, start: int, end: int) -> int:
    """Where an item ends, and the next one begins."""
    stop = start + p[t.LENGTH]
    return stop if stop < end else end


@helper
def _after(
    p: Any, stop: int, end: int, unit: int, c: int, spread: int
) -> tuple[int, int, int, int]:
    """End, unit and channel of the next item's plane, and where the unit's coefficients begin.

    A short plane takes as long as what is computed for each plane.
    """
    if stop == end:
        end, c = end + p[t.EXTENT], c + 1
        if c == p[t.CHANNELS]:
            unit, c = unit + 1, 0
            spread = t.spread_at(p, unit)
    return end, unit, c, spread


def distances(x: Values, shift: Values) -> Sequence[Values]:
    """From a point, and their squares."""
    d = x - shift
    return d, d * d


# ``sum (x - shift)`` and ``sum (x - shift)^2`` of a run.
run_moments = summed(distances, 2)


@inlined
def moments_of(row: Any, start: int, stop: int) -> tuple[float, float, float]:
    """A point near the mean of a run, the mean's distance from it, and the variance.

    About its first value; float64, which has no digits to spare, again about the mean.
    """
    near, of_all = load(row, start), 1.0 / (stop - start)
    total, square = run_moments(start, stop, (row, near))
    rest = total * of_all
    if is_double(row):
        near += rest
        total, square = run_moments(start, stop, (row, near))
        rest = total * of_all
    var = square * of_all - rest * rest
    return near, rest, 0.0 if var < 0.0 else var


@kernel
def moments(x: Any, args: int, part: int) -> None:
    """Moments of each piece, or of each cell that is one run."""
    a, p = t.tables(args)
    slots = t.numbers(a[t.SMALL], 0)
    first, last = t.items_of(p, part)
    start, end, unit, c = _opening(p, first)
    for slot in range(first // p[t.RUN], last // p[t.RUN]):
        if p[t.RUN] > 1:
            start, stop = slot * p[t.RUN] * p[t.EXTENT], (slot + 1) * p[t.RUN] * p[t.EXTENT]
        else:
            stop = _stop(p, start, end)
        near, rest, var = moments_of(x, start, stop)
        slots[slot], slots[p[t.SLOTS] + slot] = stop - start, near
        slots[2 * p[t.SLOTS] + slot], slots[3 * p[t.SLOTS] + slot] = rest, var
        end, unit, c, _ = _after(p, stop, end, unit, c, 0)
        start = stop


def output(*operands: Values) -> Sequence[Values]:
    """``y = (x - high) * scale + shift`` of some x."""
    *rows, high, scale, shift = operands
    return [(x - high) * scale + shift for x in rows]


_apply = mapped(output, streams=1, at_once=4, single=True)


@kernel
def apply(x: Any, args: int, part: int) -> None:
    """The output, from each plane's coefficients."""
    a, p = t.tables(args)
    out = row_at(a[t.Y], x)
    spread, channels = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), p[t.CHANNELS]
    first, last = t.items_of(p, part)
    start, end, unit, c = _opening(p, first)
    of_unit = t.spread_at(p, unit)
    for _ in range(first, last):
        stop, at = _stop(p, start, end), t.SPREAD * of_unit + c
        high = spread[at + t.HIGH * channels]
        scale, shift = spread[at + t.SCALE * channels], spread[at + t.SHIFT * channels]
        _apply((out,), start, stop, (x, high, scale, shift), p[t.AHEAD])
        end, unit, c, of_unit = _after(p, stop, end, unit, c, of_unit)
        start = stop


def products(x: Values, dy: Values, high: Values) -> Sequence[Values]:
    """dy, and ``dy (x - high)``."""
    return dy, dy * (x - high)


_sums = summed(products, 2)


@kernel
def sums(x: Any, args: int, part: int) -> None:
    """Both sums of each piece."""
    a, p = t.tables(args)
    dy = row_at(a[t.DY], x)
    spread = t.numbers(a[t.SMALL], p[t.AT_SPREAD])
    slots = t.numbers(a[t.SCRATCH], p[t.AT_SUMS])
    first, last = t.items_of(p, part)
    start, end, unit, c = _opening(p, first)
    of_unit = t.spread_at(p, unit)
    for item in range(first, last):
        stop, high = _stop(p, start, end), spread[t.SPREAD * of_unit + t.HIGH * p[t.CHANNELS] + c]
        total, product = _sums(start, stop, (x, dy, high))
        slots[item], slots[p[t.SLOTS] * p[t.RUN] + item] = total, product
        end, unit, c, of_unit = _after(p, stop, end, unit, c, of_unit)
        start = stop


def gradient(*operands: Values) -> Sequence[Values]:
    """``dx = scale dy + (slope (x - point) + offset)`` of some x and as many dy."""
    *rows, point, scale, slope, offset = operands
    pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
    return [g * scale + ((x - point) * slope + offset) for x, g in pairs]


_input = mapped(gradient, streams=2, at_once=4, single=True)


def scaled(dy: Values, scale: Values) -> Sequence[Values]:
    """``dx = scale dy``."""
    return (dy * scale,)


_scale = mapped(scaled, streams=1, at_once=2, single=True)


@kernel
def grad_input(x: Any, args: int, part: int) -> None:
    """The gradient of the input, with the statistics' part."""
    a, p = t.tables(args)
    dy, dx, channels = row_at(a[t.DY], x), row_at(a[t.DX], x), p[t.CHANNELS]
    spread, terms = t.numbers(a[t.SMALL], p[t.AT_SPREAD]), t.numbers(a[t.SCRATCH], p[t.AT_TERMS])
    first, last = t.items_of(p, part)
    start, end, unit, c = _opening(p, first)
    of_unit = t.spread_at(p, unit)
    for _ in range(first, last):
        stop, at, to = _stop(p, start, end), t.SPREAD * of_unit + c, t.TERMS * of_unit + c
        scale, point = spread[at + t.SCALE * channels], terms[to + t.POINT * channels]
        slope, offset = terms[to + t.SLOPE * channels], terms[to + t.OFFSET * channels]
        _input((dx,), start, stop, (x, dy, point, scale, slope, offset), p[t.AHEAD_BACK])
        end, unit, c, of_unit = _after(p, stop, end, unit, c, of_unit)
        start = stop


@kernel
def scale(x: Any, args: int, part: int) -> None:
    """The gradient of the input where all statistics are constants."""
    a, p = t.tables(args)
    dy, dx = row_at(a[t.DY], x), row_at(a[t.DX], x)
    spread = t.numbers(a[t.SMALL], p[t.AT_SPREAD])
    first, last = t.items_of(p, part)
    start, end, unit, c = _opening(p, first)
    of_unit = t.spread_at(p, unit)
    for _ in range(first, last):
        stop = _stop(p, start, end)
        factor = spread[t.SPREAD * of_unit + t.SCALE * p[t.CHANNELS] + c]
        _scale((dx,), start, stop, (dy, factor), p[t.AHEAD_BACK])
        end, unit, c, of_unit = _after(p, stop, end, unit, c, of_unit)
        start = stop
