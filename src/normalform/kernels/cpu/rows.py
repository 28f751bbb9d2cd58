"""Norms whose cells are runs of neighbouring values: over the last axis, and over short planes.

Units are such rows, of ``TILE`` values; ``TILES`` rows follow one another until weights repeat, or
within a row they repeat after ``LENGTH`` values, where channels are last. One kernel each way does
everything while a row is in the cache; the forward keeps a mean in two parts and rstd for each row.
"""

from __future__ import annotations

import math
from typing import Any

from numba import carray

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    array,
    copy,
    double_of_bits,
    elementwise,
    fill,
    helper,
    kernel,
    load,
    peek,
    reduction,
    small_kernel,
    store,
    workspace,
)
from normalform.kernels.cpu.planes import is_double, moments_of, run_moments
from normalform.kernels.request import WEIGHTS

# Values whose sum is taken at once.
PIECE = 1024
# Four times as many values at once, so far apart, would all want the same places in the cache.
AGAIN = 1024


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
    """Weight and bias in float64, one for each value until they repeat."""
    a, p = t.tables(args)
    wide, channels, width = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS], p[t.WIDTH]
    values = p[t.TILES] * p[t.LENGTH]
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
def fours_of(p: Any, rows: int) -> int:
    """How many times four rows are worked on at once, one of each quarter; they share a weight.

    Never where they come from beyond the cache: four streams were slower than one after the other,
    forward by half (25 MB).
    """
    several = p[t.STAYS] == 1 and p[t.LENGTH] == p[t.TILE] and p[t.TILES] * p[t.TILE] <= WEIGHTS
    return rows // (4 * p[t.TILES]) * p[t.TILES] if several else 0


@helper
def _coefficients(k: Any, at: int, eps: float, kept: Any, row: int) -> None:
    near, rest, var = k[at], k[at + 1], k[at + 2]
    high = near + rest
    low, rstd = (near - high) + rest, 1.0 / math.sqrt((0.0 if var < 0.0 else var) + eps)
    k[at] = kept[3 * row] = high
    k[at + 1] = kept[3 * row + 1] = low
    k[at + 2] = kept[3 * row + 2] = rstd


@helper
def _write_row(p: Any, data: Any, out: Any, values: int, weight: Any, bias: Any, k: Any) -> None:
    """A row; where weights repeat within it, four times as many values at once."""
    n, i = weight.size, 0
    if 4 * n <= values and p[t.STAYS] == 1 and n % AGAIN > 0:
        for again in range(3, 12, 3):
            copy(k[again : again + 3], k)
        while i + 4 * n <= values:
            _write_four(data[i:], out[i:], n, weight, bias, k)
            i += 4 * n
    while i < values:
        n = min(n, values - i)
        _write_one(data[i : i + n], out[i : i + n], weight[:n], bias[:n], k)
        i += n


@kernel
def forward(x: Any, args: int, part: int) -> None:
    """The output of some rows, and their mean and rstd."""
    a, p = t.tables(args)
    data, out = carray(x, (1 << 40,)), array(a[t.Y], x, 1 << 40)
    kept, values, tiles = t.numbers(a[t.SMALL], 0), p[t.TILE], p[t.TILES]
    weights, length = t.numbers(a[t.SCRATCH], 0), p[t.LENGTH]
    biases, eps, k = weights[tiles * length :], double_of_bits(p[t.EPS]), workspace(12)
    start, end = t.items_of(p, part)
    fours = fours_of(p, end - start)
    for r in range(start, start + fours):
        w, at = r % tiles * length, r * values
        if values <= PIECE:
            _short_moments(data[at:], fours * values, values, p[t.CENTER], k)
        else:
            for i in range(4):
                row = at + i * fours * values
                _row_moments(data[row : row + values], p[t.CENTER], k[3 * i :])
        for i in range(4):
            _coefficients(k, 3 * i, eps, kept, r + i * fours)
        weight, bias = weights[w : w + length], biases[w : w + length]
        _write_four(data[at:], out[at:], fours * values, weight, bias, k)
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * length, r * values
        _row_moments(data[at : at + values], p[t.CENTER], k)
        _coefficients(k, 0, eps, kept, r)
        weight, bias = weights[w : w + length], biases[w : w + length]
        _write_row(p, data[at:], out[at:], values, weight, bias, k)
