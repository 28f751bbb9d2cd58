"""Norms whose cells are runs of neighbouring values: over the last axis, and over short planes.

Units are such rows, of ``TILE`` values; ``TILES`` rows follow one another until weights repeat. One
kernel each way does everything while a row is in the cache; the forward keeps a mean in two parts
and rstd for each row.
"""

from __future__ import annotations

import math
from typing import Any

from numba import carray

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    array,
    double_of_bits,
    elementwise,
    helper,
    kernel,
    load,
    peek,
    poke,
    reduction,
    small_kernel,
    store,
    workspace,
)
from normalform.kernels.cpu.planes import centred, run_moments

PIECE = 32768
# Up to this many values in a row, gradients of weight and bias are summed over four rows at a time,
# in two arrays a fixed distance apart, so that the compiler sees that they do not overlap. No
# multiple of 4 KiB, or a load has to wait for a store to the other array.
LONG = 16384
STEP = LONG + 168


@small_kernel
def expand(x: Any, args: int, part: int) -> None:
    """Weight and bias in float64, one for each value of ``TILES`` rows."""
    a, p = t.tables(args)
    wide, channels, width = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS], p[t.WIDTH]
    values = p[t.TILES] * p[t.TILE]
    for c in range(channels):
        weight, bias = 1.0, 0.0
        if a[t.WEIGHT] != 0:
            weight = peek(a[t.WEIGHT], c, p[t.WEIGHT_KIND])
        if a[t.BIAS] != 0:
            bias = peek(a[t.BIAS], c, p[t.BIAS_KIND])
        for j in range(c * width, (c + 1) * width):
            wide[j], wide[values + j] = weight, bias
    for j in range(channels * width, values):  # channels last: they come again
        wide[j] = wide[j - channels]
        wide[values + j] = wide[values + j - channels]


@helper
def _row_moments(row: Any) -> tuple[float, float, float]:
    """A point near the mean, the mean's distance from it, and the variance."""
    near, count, rest, square = load(row, 0), 0, 0.0, 0.0
    for start in range(0, row.size, PIECE):
        piece = row[start : start + PIECE]
        shift = load(piece, 0)
        total, squares = run_moments(piece, shift)
        own = total / piece.size
        squares = centred(piece, shift, own, squares)
        apart = ((shift - near) - rest) + own
        after = count + piece.size
        square += squares + apart * apart * (count / after * piece.size)
        rest += apart * (piece.size / after)
        count = after
    var = square / count
    return near, rest, 0.0 if var < 0.0 else var


@reduction
def _sum_squares(row: Any) -> float:
    total = 0.0
    for j in range(row.size):
        total += load(row, j) * load(row, j)
    return total


@helper
def _mean_square(row: Any) -> float:
    total = 0.0
    for start in range(0, row.size, PIECE):
        total += _sum_squares(row[start : start + PIECE])
    return total / row.size


@elementwise
def _write(
    row: Any, y: Any, weight: Any, bias: Any, high: float, low_rstd: float, rstd: float
) -> None:
    for j in range(row.size):
        store(y, j, ((load(row, j) - high) * rstd - low_rstd) * weight[j] + bias[j])


@kernel
def forward(x: Any, args: int, part: int) -> None:
    """The output of some rows, and their mean and rstd."""
    a, p = t.tables(args)
    data, out = carray(x, (1 << 40,)), array(a[t.Y], x, 1 << 40)
    kept, values, tiles = t.numbers(a[t.SMALL], 0), p[t.TILE], p[t.TILES]
    weights = t.numbers(a[t.SCRATCH], 0)
    biases = weights[tiles * values :]
    first, last = t.items_of(p, part)
    for r in range(first, last):
        row, y = data[r * values : (r + 1) * values], out[r * values : (r + 1) * values]
        if p[t.CENTER] == 1:
            near, rest, var = _row_moments(row)
        else:
            near, rest, var = 0.0, 0.0, _mean_square(row)
        high = near + rest
        low = (near - high) + rest
        rstd = 1.0 / math.sqrt(var + double_of_bits(p[t.EPS]))
        kept[3 * r], kept[3 * r + 1], kept[3 * r + 2] = high, low, rstd
        w = r % tiles * values
        _write(row, y, weights[w : w + values], biases[w : w + values], high, low * rstd, rstd)


@reduction
def _row_sums(row: Any, dy: Any, weight: Any, high: float) -> tuple[float, float]:
    """``sum weight dy`` and ``sum weight dy (x - high)``."""
    total, product = 0.0, 0.0
    for j in range(row.size):
        g = load(dy, j) * weight[j]
        total += g
        product += g * (load(row, j) - high)
    return total, product


@elementwise
def _row_input(
    row: Any, dy: Any, dx: Any, weight: Any, high: float, rstd: float, slope: float, offset: float
) -> None:
    for j in range(row.size):
        statistics = (load(row, j) - high) * slope + offset
        store(dx, j, (load(dy, j) * weight[j]) * rstd + statistics)


@elementwise
def _row_parameters(row: Any, dy: Any, dweight: Any, high: float, low: float, rstd: float) -> None:
    for j in range(row.size):
        dweight[j] += (load(dy, j) * rstd) * ((load(row, j) - high) - low)


@elementwise
def _add(row: Any, to: Any) -> None:
    for j in range(row.size):
        to[j] += load(row, j)


@elementwise
def _four_parameters(data: Any, dy: Any, first: int, n: int, kept: Any, s: Any) -> None:
    """The part of four rows in ``dweight`` and ``dbias``."""
    x0, x1 = data[first : first + n], data[first + n : first + 2 * n]
    x2, x3 = data[first + 2 * n : first + 3 * n], data[first + 3 * n : first + 4 * n]
    g0, g1 = dy[first : first + n], dy[first + n : first + 2 * n]
    g2, g3 = dy[first + 2 * n : first + 3 * n], dy[first + 3 * n : first + 4 * n]
    high0, low0, rstd0, high1, low1, rstd1 = kept[0], kept[1], kept[2], kept[3], kept[4], kept[5]
    high2, low2, rstd2, high3, low3, rstd3 = kept[6], kept[7], kept[8], kept[9], kept[10], kept[11]
    for j in range(n):
        a, b, c, d = load(g0, j), load(g1, j), load(g2, j), load(g3, j)
        s[STEP + j] += (a + b) + (c + d)
        a = a * rstd0 * ((load(x0, j) - high0) - low0) + b * rstd1 * ((load(x1, j) - high1) - low1)
        c = c * rstd2 * ((load(x2, j) - high2) - low2) + d * rstd3 * ((load(x3, j) - high3) - low3)
        s[j] += a + c


@kernel
def backward(x: Any, args: int, part: int) -> None:
    """The gradient of some rows, and their part in those of weight and bias."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, kept, values = array(a[t.DX], x, 1 << 40), t.numbers(a[t.SMALL], 0), p[t.TILE]
    weights, tiles = t.numbers(a[t.SCRATCH], 0), p[t.TILES]
    sums = t.numbers(a[t.SCRATCH], p[t.AT_SUMS] + 2 * tiles * values * part)
    learns = a[t.DWEIGHT] != 0 or a[t.DBIAS] != 0
    fours = learns and tiles == 1 and values <= LONG
    s = workspace(2 * STEP if fours else 1)
    for j in range(2 * tiles * values if learns else 0):
        sums[j] = 0.0
    for j in range(values if fours else 0):
        s[j] = s[STEP + j] = 0.0
    start, end = t.items_of(p, part)
    # As many rows at a time as stay in the cache.
    for first in range(start, end, 4):
        last = first + 4 if first + 4 < end else end
        for r in range(first, last if a[t.DX] != 0 else first):
            row, g = data[r * values : (r + 1) * values], dy[r * values : (r + 1) * values]
            high, low, rstd = kept[3 * r], kept[3 * r + 1], kept[3 * r + 2]
            w = r % tiles * values
            weight, out = weights[w : w + values], dx[r * values : (r + 1) * values]
            total, product = _row_sums(row, g, weight, high)
            slope = -((product - low * total) * rstd) * (rstd * rstd) / values
            offset = -total * rstd / values if p[t.CENTER] == 1 else 0.0
            _row_input(row, g, out, weight, high, rstd, slope, offset - low * slope)
        if fours and first + 4 <= end:
            _four_parameters(data, dy, first * values, values, kept[3 * first :], s)
            continue
        for r in range(first, last if learns else first):
            row, g = data[r * values : (r + 1) * values], dy[r * values : (r + 1) * values]
            dweight = sums[r % tiles * values : (r % tiles + 1) * values]
            dbias = sums[(tiles + r % tiles) * values : (tiles + r % tiles + 1) * values]
            _row_parameters(row, g, dweight, kept[3 * r], kept[3 * r + 1], kept[3 * r + 2])
            _add(g, dbias)
    for j in range(values if fours else 0):
        sums[j] += s[j]
        sums[values + j] += s[STEP + j]


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, from those of all parts."""
    a, p = t.tables(args)
    sums, width, channels = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), p[t.WIDTH], p[t.CHANNELS]
    values = p[t.TILES] * p[t.TILE]
    parts = (p[t.ITEMS] + p[t.ITEMS_A_PART] - 1) // p[t.ITEMS_A_PART]
    for i in range(1, parts):
        _add(sums[2 * values * i : 2 * values * (i + 1)], sums)
    for c in range(channels):
        dweight, dbias = 0.0, 0.0
        for again in range(c * width, values, channels * width):
            for j in range(again, again + width):
                dweight += sums[j]
                dbias += sums[values + j]
        if a[t.DWEIGHT] != 0:
            poke(a[t.DWEIGHT], c, p[t.WEIGHT_KIND], dweight)
        if a[t.DBIAS] != 0:
            poke(a[t.DBIAS], c, p[t.BIAS_KIND], dbias)
