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
    add,
    array,
    copy,
    double_of_bits,
    elementwise,
    fill,
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
from normalform.kernels.cpu.planes import is_double, moments_of, run_moments
from normalform.kernels.request import WEIGHTS

# Values whose sum is taken at once.
PIECE = 1024
# Between the sums for weight and those for bias, so that they are no multiple of 4 KiB apart: a
# load would have to wait for a store to the other array.
APART = 168


@elementwise
def _wide(address: int, kind: int, default: float, channels: int, width: int, out: Any) -> None:
    """A parameter in float64, ``width`` times each, and again until ``out`` is full."""
    if address == 0:
        fill(out, default)
    elif width == 1:
        for c in range(channels):
            out[c] = peek(address, c, kind)
    else:
        for c in range(channels):
            fill(out[c * width : (c + 1) * width], peek(address, c, kind))
    once = out[: channels * width]  # which is not all where channels are last
    for again in range(once.size, out.size if address != 0 else 0, once.size):
        copy(out[again : again + once.size], once)


@small_kernel
def expand(x: Any, args: int, part: int) -> None:
    """Weight and bias in float64, one for each value of ``TILES`` rows."""
    a, p = t.tables(args)
    wide, channels, width = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS], p[t.WIDTH]
    values = p[t.TILES] * p[t.TILE]
    _wide(a[t.WEIGHT], p[t.WEIGHT_KIND], 1.0, channels, width, wide[:values])
    _wide(a[t.BIAS], p[t.BIAS_KIND], 0.0, channels, width, wide[values : 2 * values])


@helper
def _row_moments(row: Any, center: int, k: Any) -> None:
    """A point near the mean, the mean's distance from it, the variance; or 0, 0, mean square."""
    near, rest, square, count = 0.0, 0.0, 0.0, 0
    for start in range(0, row.size, PIECE):
        piece = row[start : start + PIECE]
        if center == 0:
            square += run_moments(piece, 0.0)[1]
            continue
        shift, own, var = moments_of(piece)
        if count == 0:
            near = shift
        apart = ((shift - near) - rest) + own
        after = count + piece.size
        square += piece.size * (var + apart * apart * (count / after))
        rest += apart * (piece.size / after)
        count = after
    k[0], k[1], k[2] = near, rest, square / row.size


@reduction
def _four_moments(data: Any, step: int, n: int, k: Any) -> None:
    """In the place of points near the means of four short rows their distance, and variances."""
    x0, x1, x2 = data[:n], data[step : step + n], data[2 * step : 2 * step + n]
    x3 = data[3 * step : 3 * step + n]
    s0, s1, s2, s3 = k[0], k[3], k[6], k[9]
    t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
    q0, q1, q2, q3 = 0.0, 0.0, 0.0, 0.0
    for j in range(n):
        d0, d1, d2, d3 = load(x0, j), load(x1, j), load(x2, j), load(x3, j)
        d0, d1, d2, d3 = d0 - s0, d1 - s1, d2 - s2, d3 - s3
        t0, t1, t2, t3 = t0 + d0, t1 + d1, t2 + d2, t3 + d3
        q0, q1, q2, q3 = q0 + d0 * d0, q1 + d1 * d1, q2 + d2 * d2, q3 + d3 * d3
    k[1], k[4], k[7], k[10] = t0 / n, t1 / n, t2 / n, t3 / n
    k[2], k[5], k[8], k[11] = q0 / n, q1 / n, q2 / n, q3 / n


@helper
def _short_moments(data: Any, step: int, n: int, center: int, k: Any) -> None:
    """As :func:`_row_moments` of four rows of one piece, ``step`` values apart."""
    for i in range(4):
        k[3 * i] = load(data, i * step) if center == 1 else 0.0
    _four_moments(data, step, n, k)
    if is_double(data) and center == 1:
        for i in range(0, 12, 3):
            k[i] += k[i + 1]
        _four_moments(data, step, n, k)
    for i in range(0, 12, 3):
        if center == 1:
            k[i + 2] -= k[i + 1] * k[i + 1]
        else:
            k[i + 1] = 0.0


@elementwise
def _write_one(row: Any, y: Any, weight: Any, bias: Any, k: Any) -> None:
    high, low, rstd = k[0], k[1] * k[2], k[2]
    for j in range(row.size):
        y_j = ((load(row, j) - high) * rstd - low) * load(weight, j) + load(bias, j)
        store(y, j, y_j)


@elementwise
def _write_four(data: Any, out: Any, step: int, weight: Any, bias: Any, k: Any) -> None:
    n = weight.size
    x0, x1, x2 = data[:n], data[step : step + n], data[2 * step : 2 * step + n]
    y0, y1, y2 = out[:n], out[step : step + n], out[2 * step : 2 * step + n]
    x3, y3 = data[3 * step : 3 * step + n], out[3 * step : 3 * step + n]
    high0, low0, rstd0 = k[0], k[1] * k[2], k[2]
    high1, low1, rstd1 = k[3], k[4] * k[5], k[5]
    high2, low2, rstd2 = k[6], k[7] * k[8], k[8]
    high3, low3, rstd3 = k[9], k[10] * k[11], k[11]
    for j in range(n):
        w, b = load(weight, j), load(bias, j)
        store(y0, j, ((load(x0, j) - high0) * rstd0 - low0) * w + b)
        store(y1, j, ((load(x1, j) - high1) * rstd1 - low1) * w + b)
        store(y2, j, ((load(x2, j) - high2) * rstd2 - low2) * w + b)
        store(y3, j, ((load(x3, j) - high3) * rstd3 - low3) * w + b)


@helper
def _fours(p: Any, rows: int) -> int:
    """How many times four rows are worked on at once, one of each quarter; they share a weight.

    Never where they come from beyond the cache: four streams were slower than one after the other,
    forward by half (25 MB).
    """
    several = p[t.STAYS] == 1 and p[t.TILES] * p[t.TILE] <= WEIGHTS
    return rows // (4 * p[t.TILES]) * p[t.TILES] if several else 0


@helper
def _coefficients(k: Any, at: int, eps: float, kept: Any, row: int) -> None:
    near, rest, var = k[at], k[at + 1], k[at + 2]
    high = near + rest
    low, rstd = (near - high) + rest, 1.0 / math.sqrt((0.0 if var < 0.0 else var) + eps)
    k[at] = kept[3 * row] = high
    k[at + 1] = kept[3 * row + 1] = low
    k[at + 2] = kept[3 * row + 2] = rstd


@kernel
def forward(x: Any, args: int, part: int) -> None:
    """The output of some rows, and their mean and rstd."""
    a, p = t.tables(args)
    data, out = carray(x, (1 << 40,)), array(a[t.Y], x, 1 << 40)
    kept, values, tiles = t.numbers(a[t.SMALL], 0), p[t.TILE], p[t.TILES]
    weights = t.numbers(a[t.SCRATCH], 0)
    biases, eps, k = weights[tiles * values :], double_of_bits(p[t.EPS]), workspace(12)
    start, end = t.items_of(p, part)
    fours = _fours(p, end - start)
    for r in range(start, start + fours):
        w, at = r % tiles * values, r * values
        if values <= PIECE:
            _short_moments(data[at:], fours * values, values, p[t.CENTER], k)
        else:
            for i in range(4):
                row = at + i * fours * values
                _row_moments(data[row : row + values], p[t.CENTER], k[3 * i :])
        for i in range(4):
            _coefficients(k, 3 * i, eps, kept, r + i * fours)
        weight, bias = weights[w : w + values], biases[w : w + values]
        _write_four(data[at:], out[at:], fours * values, weight, bias, k)
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * values, r * values
        row = data[at : at + values]
        _row_moments(row, p[t.CENTER], k)
        _coefficients(k, 0, eps, kept, r)
        _write_one(row, out[at : at + values], weights[w : w + values], biases[w : w + values], k)


@reduction
def _row_sums(row: Any, dy: Any, weight: Any, high: float) -> tuple[float, float]:
    """``sum weight dy`` and ``sum weight dy (x - high)``."""
    total, product = 0.0, 0.0
    for j in range(row.size):
        g = load(dy, j) * load(weight, j)
        total += g
        product += g * (load(row, j) - high)
    return total, product


@reduction
def _four_sums(data: Any, dy: Any, step: int, weight: Any, k: Any) -> None:
    """The same of four rows, ``step`` values apart, in the place of slope and offset."""
    n = weight.size
    x0, x1, x2 = data[:n], data[step : step + n], data[2 * step : 2 * step + n]
    g0, g1, g2 = dy[:n], dy[step : step + n], dy[2 * step : 2 * step + n]
    x3, g3 = data[3 * step : 3 * step + n], dy[3 * step : 3 * step + n]
    high0, high1, high2, high3 = k[0], k[5], k[10], k[15]
    t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
    q0, q1, q2, q3 = 0.0, 0.0, 0.0, 0.0
    for j in range(n):
        w = load(weight, j)
        a, b, c, d = load(g0, j) * w, load(g1, j) * w, load(g2, j) * w, load(g3, j) * w
        t0, t1, t2, t3 = t0 + a, t1 + b, t2 + c, t3 + d
        q0, q1 = q0 + a * (load(x0, j) - high0), q1 + b * (load(x1, j) - high1)
        q2, q3 = q2 + c * (load(x2, j) - high2), q3 + d * (load(x3, j) - high3)
    k[3], k[4], k[8], k[9], k[13], k[14], k[18], k[19] = q0, t0, q1, t1, q2, t2, q3, t3


@elementwise
def _one(data: Any, dy: Any, dx: Any, weight: Any, dweight: Any, dbias: Any, k: Any) -> None:
    """The gradient of a row, and its part in those of weight and bias."""
    high, low, rstd, slope, offset = k[0], k[1], k[2], k[3], k[4]
    for j in range(data.size):
        u, g = load(data, j) - high, load(dy, j)
        add(dbias, j, g)
        g *= rstd
        add(dweight, j, g * (u - low))
        store(dx, j, g * load(weight, j) + (u * slope + offset))


@elementwise
def _four(
    data: Any, dy: Any, dx: Any, step: int, weight: Any, dweight: Any, dbias: Any, k: Any
) -> None:
    """The same of four rows, ``step`` values apart: weight and its sums are read once for all."""
    n = weight.size
    x0, x1, x2 = data[:n], data[step : step + n], data[2 * step : 2 * step + n]
    g0, g1, g2 = dy[:n], dy[step : step + n], dy[2 * step : 2 * step + n]
    d0, d1, d2 = dx[:n], dx[step : step + n], dx[2 * step : 2 * step + n]
    x3, g3 = data[3 * step : 3 * step + n], dy[3 * step : 3 * step + n]
    d3 = dx[3 * step : 3 * step + n]
    high0, low0, rstd0, slope0, offset0 = k[0], k[1], k[2], k[3], k[4]
    high1, low1, rstd1, slope1, offset1 = k[5], k[6], k[7], k[8], k[9]
    high2, low2, rstd2, slope2, offset2 = k[10], k[11], k[12], k[13], k[14]
    high3, low3, rstd3, slope3, offset3 = k[15], k[16], k[17], k[18], k[19]
    for j in range(n):
        w, a, b, c, d = load(weight, j), load(g0, j), load(g1, j), load(g2, j), load(g3, j)
        add(dbias, j, (a + b) + (c + d))
        a, b, c, d = a * rstd0, b * rstd1, c * rstd2, d * rstd3
        u0, u1, u2, u3 = load(x0, j), load(x1, j), load(x2, j), load(x3, j)
        u0, u1, u2, u3 = u0 - high0, u1 - high1, u2 - high2, u3 - high3
        first, second = a * (u0 - low0) + b * (u1 - low1), c * (u2 - low2) + d * (u3 - low3)
        add(dweight, j, first + second)
        store(d0, j, a * w + (u0 * slope0 + offset0))
        store(d1, j, b * w + (u1 * slope1 + offset1))
        store(d2, j, c * w + (u2 * slope2 + offset2))
        store(d3, j, d * w + (u3 * slope3 + offset3))


@helper
def _terms(p: Any, k: Any, at: int) -> None:
    """From both sums of a row to slope and offset."""
    low, rstd, product, total = k[at + 1], k[at + 2], k[at + 3], k[at + 4]
    slope = -((product - low * total) * rstd) * (rstd * rstd) / p[t.TILE]
    offset = -total * rstd / p[t.TILE] if p[t.CENTER] == 1 else 0.0
    k[at + 3], k[at + 4] = slope, offset - low * slope


@kernel
def backward(x: Any, args: int, part: int) -> None:
    """The gradient of some rows, and their part in those of weight and bias."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, kept, values = array(a[t.DX], x, 1 << 40), t.numbers(a[t.SMALL], 0), p[t.TILE]
    weights, tiles, k = t.numbers(a[t.SCRATCH], 0), p[t.TILES], workspace(20)
    both = tiles * values + APART
    dweights = t.numbers(a[t.SCRATCH], p[t.AT_SUMS] + 2 * both * part)
    dbiases = dweights[both:]
    fill(dweights[: 2 * both], 0.0)
    start, end = t.items_of(p, part)
    fours = _fours(p, end - start)
    for r in range(start, start + fours):
        w, at = r % tiles * values, r * values
        weight, dweight = weights[w : w + values], dweights[w : w + values]
        for i in range(4):
            copy(k[5 * i : 5 * i + 3], kept[3 * (r + i * fours) :])
        _four_sums(data[at:], dy[at:], fours * values, weight, k)
        for i in range(4):
            _terms(p, k, 5 * i)
        dbias = dbiases[w : w + values]
        _four(data[at:], dy[at:], dx[at:], fours * values, weight, dweight, dbias, k)
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * values, r * values
        weight, dweight = weights[w : w + values], dweights[w : w + values]
        row, g, out = data[at : at + values], dy[at : at + values], dx[at : at + values]
        copy(k[:3], kept[3 * r :])
        k[4], k[3] = _row_sums(row, g, weight, k[0])
        _terms(p, k, 0)
        _one(row, g, out, weight, dweight, dbiases[w : w + values], k)


@elementwise
def _sum(source: Any, to: Any) -> None:
    for j in range(source.size):
        add(to, j, load(source, j))


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, from those of all parts."""
    a, p = t.tables(args)
    sums, width, channels = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), p[t.WIDTH], p[t.CHANNELS]
    values = p[t.TILES] * p[t.TILE]
    parts = (p[t.ITEMS] + p[t.ITEMS_A_PART] - 1) // p[t.ITEMS_A_PART]
    both = 2 * (values + APART)
    for i in range(1, parts):
        _sum(sums[both * i : both * (i + 1)], sums)
    for c in range(channels):
        dweight, dbias = 0.0, 0.0
        for again in range(c * width, values, channels * width):
            for j in range(again, again + width):
                dweight += sums[j]
                dbias += sums[values + APART + j]
        if a[t.DWEIGHT] != 0:
            poke(a[t.DWEIGHT], c, p[t.WEIGHT_KIND], dweight)
        if a[t.DBIAS] != 0:
            poke(a[t.DBIAS], c, p[t.BIAS_KIND], dbias)
