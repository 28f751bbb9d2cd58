"""Norms whose cells are runs of neighbouring values: over the last axis, and over short planes.

Units are such rows, of ``TILE`` values; ``TILES`` rows follow one another until weights repeat, or
within a row they repeat after ``LENGTH`` values, where channels are last. One kernel each way does
everything while a row is in the cache; the forward keeps a mean in two parts and rstd for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import (
    double_of_bits,
    helper,
    inlined,
    kernel,
    row_at,
    small_kernel,
    workspace,
)
from normalform.kernels.cpu.planes import moments_of, run_moments
from normalform.kernels.cpu.values import Values
from normalform.kernels.cpu.vectors import (
    any_beyond,
    copy,
    fill,
    is_double,
    load,
    mapped,
    nearest,
    summed,
    widen,
)

# Values whose sum is taken at once.
PIECE = 1024
_room = workspace(16)


@helper
def _wide(p: Any, address: int, kind: int, default: float, out: Any) -> None:
    """A parameter in float64, one for each value until they repeat."""
    channels, width, values = p[t.CHANNELS], p[t.WIDTH], p[t.TILES] * p[t.LENGTH]
    if address == 0:
        fill(out, default, values)
        return
    widen(out, channels, address, t.ZERO, kind)
    if width > 1:
        for c in range(channels - 1, -1, -1):
            fill(out + c * width, out[c], width)
    once = channels * width  # which is not all where channels are last
    for again in range(once, values, once):
        copy(out + again, out, once)


@small_kernel
def expand(x: Any, args: int, part: int) -> None:
    """Weight and bias in float64, one for each value until they repeat."""
    a, p = t.tables(args)
    wide = t.numbers(a[t.SCRATCH], 0)
    _wide(p, a[t.WEIGHT], p[t.WEIGHT_KIND], 1.0, wide)
    _wide(p, a[t.BIAS], p[t.BIAS_KIND], 0.0, wide + p[t.TILES] * p[t.LENGTH])


@small_kernel
def singles(x: Any, args: int, part: int) -> None:
    """The same in float32, behind them, and how many are not that exactly, or nearly."""
    a, p = t.tables(args)
    both, wide = 2 * p[t.TILES] * p[t.LENGTH], t.numbers(a[t.SCRATCH], 0)
    copy(_single(a, p), wide, both)
    wide[both] = 0.0
    if p[t.WEIGHT_KIND] == 1 or p[t.BIAS_KIND] == 1:
        (wide[both],) = any_beyond(0, both, (wide,))


@helper
def _single(a: Any, p: Any) -> Any:
    return row_at(a[t.SCRATCH] + 8 * (2 * p[t.TILES] * p[t.LENGTH] + 1), np.float32)


@helper
def _row_moments(row: Any, values: int, center: int, k: Any) -> None:
    """A point near the mean, the mean's distance from it, the variance; or 0, 0, mean square."""
    near, rest, square, count = 0.0, 0.0, 0.0, 0
    for start in range(0, values, PIECE):
        stop = min(start + PIECE, values)
        if center == 0:
            square += run_moments(start, stop, (row, 0.0))[1]
            continue
        shift, own, var = moments_of(row, start, stop)
        if count == 0:
            near = shift
        apart = ((shift - near) - rest) + own
        after = count + (stop - start)
        square += (stop - start) * (var + apart * apart * (count / after))
        rest += apart * ((stop - start) / after)
        count = after
    k[0], k[1], k[2] = near, rest, square / values


def _distances(
    x0: Values, x1: Values, x2: Values, x3: Values, s0: Values, s1: Values, s2: Values, s3: Values
) -> Sequence[Values]:
    apart = x0 - s0, x1 - s1, x2 - s2, x3 - s3
    return *apart, *(d * d for d in apart)


_four_distances = summed(_distances, 8, at_once=1)


@inlined
def _four_moments(data: Any, step: int, n: int, of_all: float, k: Any) -> None:
    """In the place of points near the means of four short rows their distance, and variances."""
    rows = data, data + step, data + 2 * step, data + 3 * step
    t0, t1, t2, t3, q0, q1, q2, q3 = _four_distances(0, n, (*rows, k[0], k[4], k[8], k[12]))
    k[1], k[5], k[9], k[13] = t0 * of_all, t1 * of_all, t2 * of_all, t3 * of_all
    k[2], k[6], k[10], k[14] = q0 * of_all, q1 * of_all, q2 * of_all, q3 * of_all


@inlined
def _short_moments(data: Any, step: int, n: int, of_all: float, center: int, k: Any) -> None:
    """As :func:`_row_moments` of four rows of one piece, ``step`` values apart; not of float64."""
    for i in range(4):
        k[4 * i] = load(data, i * step) if center == 1 else 0.0
    _four_moments(data, step, n, of_all, k)
    for i in range(0, 16, 4):
        if center == 1:
            k[i + 2] -= k[i + 1] * k[i + 1]
        else:
            k[i + 1] = 0.0


def _output(
    x: Values, weight: Values, bias: Values, high: Values, low: Values, rstd: Values, more: Values
) -> Values:
    d = x - high
    return (d * rstd + (d * more - low)) * weight + bias


_write_values = mapped(lambda *operands: (_output(*operands),), streams=1, single=True)


@inlined
def _write_one(row: Any, y: Any, n: int, weight: Any, bias: Any, k: Any, ahead: int) -> None:
    _write_values((y,), 0, n, (row, weight, bias, k[0], k[1], k[2], k[3]), ahead)


def _outputs(
    x0: Values, x1: Values, x2: Values, x3: Values, weight: Values, bias: Values, *k: Values
) -> Sequence[Values]:
    rows = zip((x0, x1, x2, x3), *(k[i::4] for i in range(4)), strict=True)
    return [_output(x, weight, bias, *of_row) for x, *of_row in rows]


_write_rows = mapped(_outputs, streams=0, single=True)


@inlined
def _write_four(
    data: Any, out: Any, step: int, n: int, weight: Any, bias: Any, k: Any, ahead: int
) -> None:
    """Four rows of n, ``step`` values apart: weight and bias are read once for all."""
    _write_rows(
        (out, out + step, out + 2 * step, out + 3 * step),
        0,
        n,
        (
            data, data + step, data + 2 * step, data + 3 * step, weight, bias,
            k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7],
            k[8], k[9], k[10], k[11], k[12], k[13], k[14], k[15],
        ),
        ahead,
    )  # fmt: skip


@helper
def fours_of(p: Any, rows: int, several: int) -> int:
    """How many times four rows are worked on at once, which share a weight."""
    return rows // (4 * p[t.TILES]) * p[t.TILES] if several == 1 else 0


@helper
def first_of_four(p: Any, start: int, i: int) -> int:
    """The first row of the fours numbered i; the others follow, ``TILES`` apart."""
    return start + i // p[t.TILES] * 4 * p[t.TILES] + i % p[t.TILES]


@helper
def _coefficients(row: Any, k: Any, eps: float, kept: Any) -> None:
    """From moments to ``d rstd + (d more - low)``, ``d = x - high``; high and rstd are of x's type.

    Kept are a mean in two parts and rstd.
    """
    near, rest, var = k[0], k[1], k[2]
    high, rstd = nearest(row, near + rest), 1.0 / math.sqrt((0.0 if var < 0.0 else var) + eps)
    kept[0], kept[1], kept[2] = high, (near - high) + rest, rstd
    k[0], k[1], k[2] = high, kept[1] * rstd, nearest(row, rstd)
    k[3] = rstd - k[2] if rstd < math.inf else 0.0


@helper
def _write_row(p: Any, data: Any, out: Any, weight: Any, bias: Any, k: Any) -> None:
    """A row; where weights repeat within it, four times as many values at once."""
    values, n, i = p[t.TILE], p[t.LENGTH], 0
    if p[t.AGAIN] == 1:
        for again in range(4, 16, 4):
            copy(k + again, k, 4)
        while i + 4 * n <= values:
            _write_four(data + i, out + i, n, n, weight, bias, k, p[t.AHEAD])
            i += 4 * n
    while i < values:
        n = min(n, values - i)
        _write_one(data + i, out + i, n, weight, bias, k, p[t.AHEAD])
        i += n


@kernel
def forward(x: Any, args: int, part: int) -> None:
    """The output of some rows, and their mean and rstd."""
    a, p = t.tables(args)
    out = row_at(a[t.Y], x)
    kept, values, tiles = t.numbers(a[t.SMALL], 0), p[t.TILE], p[t.TILES]
    wide, all_, single = t.numbers(a[t.SCRATCH], 0), tiles * p[t.LENGTH], _single(a, p)
    exact, eps, k = is_double(x) or wide[2 * all_] > 0.0, double_of_bits(p[t.EPS]), _room()
    start, end = t.items_of(p, part)
    fours, of_all = fours_of(p, end - start, p[t.FOURS]), 1.0 / values
    for i in range(fours):
        r = first_of_four(p, start, i)
        w, at, step = r % tiles * p[t.LENGTH], r * values, tiles * values
        if values <= PIECE and not is_double(x):
            _short_moments(x + at, step, values, of_all, p[t.CENTER], k)
        else:
            for j in range(4):
                _row_moments(x + at + j * step, values, p[t.CENTER], k + 4 * j)
        for j in range(4):
            _coefficients(x, k + 4 * j, eps, kept + 3 * (r + j * tiles))
        if exact:
            _write_four(x + at, out + at, step, values, wide + w, wide + all_ + w, k, p[t.AHEAD])
        else:
            _write_four(
                x + at, out + at, step, values, single + w, single + all_ + w, k, p[t.AHEAD]
            )
    for r in range(start + 4 * fours, end):
        w, at = r % tiles * p[t.LENGTH], r * values
        _row_moments(x + at, values, p[t.CENTER], k)
        _coefficients(x, k, eps, kept + 3 * r)
        if exact:
            _write_row(p, x + at, out + at, wide + w, wide + all_ + w, k)
        else:
            _write_row(p, x + at, out + at, single + w, single + all_ + w, k)
