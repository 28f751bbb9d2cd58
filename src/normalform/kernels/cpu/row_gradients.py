"""The gradients of norms whose cells are rows, see :mod:`~normalform.kernels.cpu.rows`."""

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
    poke,
    reduction,
    small_kernel,
    store,
    workspace,
)
from normalform.kernels.cpu.rows import AGAIN, fours_of

# Between the sums for weight and those for bias, so that they are no multiple of 4 KiB apart: a
# load would have to wait for a store to the other array.
APART = 168


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
    """Add those of four rows, ``step`` values apart, in the place of slope and offset."""
    n = weight.size
    x0, x1, x2 = data[:n], data[step : step + n], data[2 * step : 2 * step + n]
    g0, g1, g2 = dy[:n], dy[step : step + n], dy[2 * step : 2 * step + n]
    x3, g3 = data[3 * step : 3 * step + n], dy[3 * step : 3 * step + n]
    high0, high1, high2, high3 = k[0], k[5], k[10], k[15]
    q0, t0, q1, t1, q2, t2, q3, t3 = k[3], k[4], k[8], k[9], k[13], k[14], k[18], k[19]
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


@helper
def _sum_row(p: Any, data: Any, dy: Any, values: int, weight: Any, k: Any) -> None:
    """Both sums of a row, in the place of slope and offset."""
    n, i = weight.size, 0
    fill(k[3:5], 0.0)
    if 4 * n <= values and p[t.STAYS] == 1 and n % AGAIN > 0:
        for again in range(5, 20, 5):
            copy(k[again : again + 5], k)
        while i + 4 * n <= values:
            _four_sums(data[i:], dy[i:], n, weight, k)
            i += 4 * n
        k[3], k[4] = (k[3] + k[8]) + (k[13] + k[18]), (k[4] + k[9]) + (k[14] + k[19])
    while i < values:
        n = min(n, values - i)
        total, product = _row_sums(data[i : i + n], dy[i : i + n], weight[:n], k[0])
        k[3], k[4] = k[3] + product, k[4] + total
        i += n


@helper
def _row(
    p: Any, data: Any, dy: Any, dx: Any,
    values: int, weight: Any, dweight: Any, dbias: Any, k: Any,
) -> None:  # fmt: skip
    """The gradient of a row, and its part in those of weight and bias."""
    n, i = weight.size, 0
    if 4 * n <= values and p[t.STAYS] == 1 and n % AGAIN > 0:
        for again in range(5, 20, 5):
            copy(k[again : again + 5], k)
        while i + 4 * n <= values:
            _four(data[i:], dy[i:], dx[i:], n, weight, dweight, dbias, k)
            i += 4 * n
    while i < values:
        n = min(n, values - i)
        row, g, out = data[i : i + n], dy[i : i + n], dx[i : i + n]
        _one(row, g, out, weight[:n], dweight[:n], dbias[:n], k)
        i += n


@kernel
def backward(x: Any, args: int, part: int) -> None:
    """The gradient of some rows, and their part in those of weight and bias."""
    a, p = t.tables(args)
    data, dy = carray(x, (1 << 40,)), array(a[t.DY], x, 1 << 40)
    dx, kept, values = array(a[t.DX], x, 1 << 40), t.numbers(a[t.SMALL], 0), p[t.TILE]
    weights, tiles, length = t.numbers(a[t.SCRATCH], 0), p[t.TILES], p[t.LENGTH]
    both, k = tiles * length + APART, workspace(20)
    dweights = t.numbers(a[t.SCRATCH], p[t.AT_SUMS] + 2 * both * part)
    dbiases = dweights[both:]
    fill(dweights[: 2 * both], 0.0)
    start, end = t.items_of(p, part)
    fours = fours_of(p, end - start)
    for r in range(start, start + fours):
        w, at, step = r % tiles * length, r * values, fours * values
        weight, dweight = weights[w : w + length], dweights[w : w + length]
        for i in range(4):
            copy(k[5 * i : 5 * i + 3], kept[3 * (r + i * fours) :])
            fill(k[5 * i + 3 : 5 * i + 5], 0.0)
        _four_sums(data[at:], dy[at:], step, weight, k)
        for i in range(4):
            _terms(p, k, 5 * i)
        _four(data[at:], dy[at:], dx[at:], step, weight, dweight, dbiases[w : w + length], k)
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * length, r * values
        weight, dweight = weights[w : w + length], dweights[w : w + length]
        copy(k[:3], kept[3 * r :])
        _sum_row(p, data[at:], dy[at:], values, weight, k)
        _terms(p, k, 0)
        dbias = dbiases[w : w + length]
        _row(p, data[at:], dy[at:], dx[at:], values, weight, dweight, dbias, k)


@elementwise
def _sum(source: Any, to: Any) -> None:
    for j in range(source.size):
        add(to, j, load(source, j))


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias, from those of all parts."""
    a, p = t.tables(args)
    sums, width, channels = t.numbers(a[t.SCRATCH], p[t.AT_SUMS]), p[t.WIDTH], p[t.CHANNELS]
    values = p[t.TILES] * p[t.LENGTH]
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
