"""The gradients of norms whose cells are rows, see :mod:`~normalform.kernels.cpu.rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import helper, inlined, kernel, row_at, small_kernel, workspace
from normalform.kernels.cpu.planes import products
from normalform.kernels.cpu.rows import first_of_four, fours_of
from normalform.kernels.cpu.values import Values
from normalform.kernels.cpu.vectors import (
    add,
    copy,
    fill,
    mapped,
    narrow,
    sum_runs,
    summed,
)

# Between the sums for weight and those for bias, so that they are no multiple of 4 KiB apart: a
# load would have to wait for a store to the other array.
APART = 168
_room = workspace(20)


def _products(x: Values, dy: Values, weight: Values, high: Values) -> Sequence[Values]:
    return products(x, dy * weight, high)


# ``sum weight dy`` and ``sum weight dy (x - high)``.
_row_sums = summed(_products, 2)


def _four_products(
    x0: Values, x1: Values, x2: Values, x3: Values,
    g0: Values, g1: Values, g2: Values, g3: Values, weight: Values, *high: Values,
) -> Sequence[Values]:  # fmt: skip
    pairs = zip((x0, x1, x2, x3), (g0, g1, g2, g3), high, strict=True)
    return [each for x, g, h in pairs for each in _products(x, g, weight, h)]


_rows_sums = summed(_four_products, 8, at_once=1)


@inlined
def _four_sums(data: Any, dy: Any, step: int, n: int, weight: Any, k: Any) -> None:
    """Add those of four rows of n, ``step`` values apart, in the place of slope and offset."""
    t0, q0, t1, q1, t2, q2, t3, q3 = _rows_sums(
        0,
        n,
        (
            data, data + step, data + 2 * step, data + 3 * step,
            dy, dy + step, dy + 2 * step, dy + 3 * step, weight, k[0], k[5], k[10], k[15],
        ),
    )  # fmt: skip
    k[3], k[4], k[8], k[9] = k[3] + q0, k[4] + t0, k[8] + q1, k[9] + t1
    k[13], k[14], k[18], k[19] = k[13] + q2, k[14] + t2, k[18] + q3, k[19] + t3


def _gradients(
    x: Values, dy: Values, weight: Values,
    high: Values, low: Values, rstd: Values, slope: Values, offset: Values,
) -> tuple[Values, Values, Values]:  # fmt: skip
    """The gradient of a row, and its part in those of weight and bias."""
    u, g = x - high, dy * rstd
    return g * weight + (u * slope + offset), g * (u - low), dy


_row_gradients = mapped(_gradients, adds=2, streams=2)


@inlined
def _one(
    data: Any, dy: Any, dx: Any, n: int, weight: Any, dweight: Any, dbias: Any, k: Any, ahead: int
) -> None:
    operands = data, dy, weight, k[0], k[1], k[2], k[3], k[4]
    _row_gradients((dx, dweight, dbias), 0, n, operands, ahead)


def _four_gradients(
    x0: Values, x1: Values, x2: Values, x3: Values,
    g0: Values, g1: Values, g2: Values, g3: Values, weight: Values, *k: Values,
) -> Sequence[Values]:  # fmt: skip
    rows = zip((x0, x1, x2, x3), (g0, g1, g2, g3), *(k[i::5] for i in range(5)), strict=True)
    dx, dweight, dbias = zip(*(_gradients(x, g, weight, *of) for x, g, *of in rows), strict=True)
    return *dx, *(((a + b) + (c + d)) for a, b, c, d in (dweight, dbias))


_rows_gradients = mapped(_four_gradients, adds=2, streams=8)


@inlined
def _four(
    data: Any, dy: Any, dx: Any, step: int, n: int,
    weight: Any, dweight: Any, dbias: Any, k: Any, ahead: int,
) -> None:  # fmt: skip
    """The same of four rows of n, ``step`` values apart; weight and its sums are read once."""
    _rows_gradients(
        (dx, dx + step, dx + 2 * step, dx + 3 * step, dweight, dbias),
        0,
        n,
        (
            data, data + step, data + 2 * step, data + 3 * step,
            dy, dy + step, dy + 2 * step, dy + 3 * step, weight,
            k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9],
            k[10], k[11], k[12], k[13], k[14], k[15], k[16], k[17], k[18], k[19],
        ),
        ahead,
    )  # fmt: skip


@helper
def _terms(p: Any, of_all: float, k: Any) -> None:
    """From both sums of a row to slope and offset."""
    low, rstd, product, total = k[1], k[2], k[3], k[4]
    slope = -((product - low * total) * rstd) * (rstd * rstd) * of_all
    offset = -total * rstd * of_all if p[t.CENTER] == 1 else 0.0
    k[3], k[4] = slope, offset - low * slope


@helper
def _sum_row(p: Any, data: Any, dy: Any, weight: Any, k: Any) -> None:
    """Both sums of a row, in the place of slope and offset."""
    values, n, i = p[t.TILE], p[t.LENGTH], 0
    fill(k + 3, 0.0, 2)
    if p[t.AGAIN] == 1:
        for again in range(5, 20, 5):
            copy(k + again, k, 5)
        while i + 4 * n <= values:
            _four_sums(data + i, dy + i, n, n, weight, k)
            i += 4 * n
        k[3], k[4] = (k[3] + k[8]) + (k[13] + k[18]), (k[4] + k[9]) + (k[14] + k[19])
    while i < values:
        n = min(n, values - i)
        total, product = _row_sums(0, n, (data + i, dy + i, weight, k[0]))
        k[3], k[4] = k[3] + product, k[4] + total
        i += n


@helper
def _row(
    p: Any, data: Any, dy: Any, dx: Any, weight: Any, dweight: Any, dbias: Any, k: Any
) -> None:
    """The gradient of a row, and its part in those of weight and bias."""
    values, n, i = p[t.TILE], p[t.LENGTH], 0
    if p[t.AGAIN] == 1:
        for again in range(5, 20, 5):
            copy(k + again, k, 5)
        while i + 4 * n <= values:
            _four(data + i, dy + i, dx + i, n, n, weight, dweight, dbias, k, p[t.AHEAD_BACK])
            i += 4 * n
    while i < values:
        n = min(n, values - i)
        _one(data + i, dy + i, dx + i, n, weight, dweight, dbias, k, p[t.AHEAD_BACK])
        i += n


@kernel
def backward(x: Any, args: int, part: int) -> None:
    """The gradient of some rows, and their part in those of weight and bias."""
    a, p = t.tables(args)
    dy, dx = row_at(a[t.DY], x), row_at(a[t.DX], x)
    kept, values = t.numbers(a[t.SMALL], 0), p[t.TILE]
    weights, tiles, length = t.numbers(a[t.SCRATCH], 0), p[t.TILES], p[t.LENGTH]
    both, k = tiles * length + APART, _room()
    dweights = t.numbers(a[t.SCRATCH], p[t.AT_SUMS] + 2 * both * part)
    dbiases = dweights + both
    fill(dweights, 0.0, 2 * both)
    start, end = t.items_of(p, part)
    fours, of_all = fours_of(p, end - start, p[t.FOURS_BACK]), 1.0 / values
    for i in range(fours):
        r = first_of_four(p, start, i)
        w, at, step = r % tiles * length, r * values, tiles * values
        for j in range(4):
            copy(k + 5 * j, kept + 3 * (r + j * tiles), 3)
            fill(k + 5 * j + 3, 0.0, 2)
        _four_sums(x + at, dy + at, step, values, weights + w, k)
        for j in range(4):
            _terms(p, of_all, k + 5 * j)
        ahead = 4 * step if p[t.AHEAD_BACK] >= 0 else -1
        _four(
            x + at, dy + at, dx + at, step, values, weights + w, dweights + w, dbiases + w, k, ahead
        )
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * length, r * values
        copy(k, kept + 3 * r, 3)
        _sum_row(p, x + at, dy + at, weights + w, k)
        _terms(p, of_all, k)
        _row(p, x + at, dy + at, dx + at, weights + w, dweights + w, dbiases + w, k)


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, from those of all parts."""
    a, p = t.tables(args)
    sums, width, channels = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), p[t.WIDTH], p[t.CHANNELS]
    values = p[t.TILES] * p[t.LENGTH]
    parts = (p[t.ITEMS] + p[t.ITEMS_A_PART] - 1) // p[t.ITEMS_A_PART]
    both = 2 * (values + APART)
    for i in range(1, parts):
        add((sums,), 0, both, (sums + both * i,))
    for which, kind in ((t.DWEIGHT, p[t.WEIGHT_KIND]), (t.DBIAS, p[t.BIAS_KIND])):
        once = sums + values + APART if which == t.DBIAS else sums
        for again in range(channels * width, values, channels * width):
            add((once,), 0, channels * width, (once + again,))
        sum_runs(once, channels, width)
        if a[which] != 0:
            narrow(a[which], t.ZERO, kind, once, channels)
