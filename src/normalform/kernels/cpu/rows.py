"""Norms over the last axis: a cell is one row of neighbouring values, each with its own weight.

Units are rows and channels the values in a row. One kernel each way does everything, while the row
is in the cache; the forward keeps a mean in two parts and rstd for each row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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
    store,
)
from normalform.kernels.cpu.planes import centred, run_moments

PIECE = 32768


@helper
def _wide(address: int, size: int, kind: int, absent: float) -> Any:
    """A parameter in float64."""
    wide = np.empty(size)
    for j in range(size):
        wide[j] = peek(address, j, kind) if address != 0 else absent
    return wide


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
    kept, values = t.numbers(a[t.SMALL], 0), p[t.CHANNELS]
    weight = _wide(a[t.WEIGHT], values, p[t.WEIGHT_KIND], 1.0)
    bias = _wide(a[t.BIAS], values, p[t.BIAS_KIND], 0.0)
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
        _write(row, y, weight, bias, high, low * rstd, rstd)


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
def _row_parameters(
    row: Any, dy: Any, dweight: Any, dbias: Any, high: float, low_rstd: float, rstd: float
) -> None:
    for j in range(row.size):
        g = load(dy, j)
        dbias[j] += g
        dweight[j] += g * ((load(row, j) - high) * rstd - low_rstd)


@kernel
def backward(x: Any, args: int, part: int) -> None:
    """The gradient of some rows, and their part in those of weight and bias."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, kept, values = array(a[t.DX], x, 1 << 40), t.numbers(a[t.SMALL], 0), p[t.CHANNELS]
    weight = _wide(a[t.WEIGHT], values, p[t.WEIGHT_KIND], 1.0)
    sums = t.numbers(a[t.SCRATCH], 2 * values * part)
    dweight, dbias = sums[:values], sums[values : 2 * values]
    learns = a[t.DWEIGHT] != 0 or a[t.DBIAS] != 0
    for j in range(2 * values if learns else 0):
        sums[j] = 0.0
    first, last = t.items_of(p, part)
    for r in range(first, last):
        row, g = data[r * values : (r + 1) * values], dy[r * values : (r + 1) * values]
        high, low, rstd = kept[3 * r], kept[3 * r + 1], kept[3 * r + 2]
        if a[t.DX] != 0:
            total, product = _row_sums(row, g, weight, high)
            slope = -((product - low * total) * rstd) * (rstd * rstd) / values
            offset = -total * rstd / values if p[t.CENTER] == 1 else 0.0
            out, offset = dx[r * values : (r + 1) * values], offset - low * slope
            _row_input(row, g, out, weight, high, rstd, slope, offset)
        if learns:
            _row_parameters(row, g, dweight, dbias, high, low * rstd, rstd)


@kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, from those of all parts."""
    a, p = t.tables(args)
    sums, values = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    parts = (p[t.ITEMS] + p[t.ITEMS_A_PART] - 1) // p[t.ITEMS_A_PART]
    for i in range(1, parts):
        for j in range(2 * values):
            sums[j] += sums[2 * values * i + j]
    for j in range(values):
        if a[t.DWEIGHT] != 0:
            poke(a[t.DWEIGHT], j, p[t.WEIGHT_KIND], sums[j])
        if a[t.DBIAS] != 0:
            poke(a[t.DBIAS], j, p[t.BIAS_KIND], sums[values + j])
