"""Between the passes of the backward: from sums to gradients, and to the coefficients of dx."""

from __future__ import annotations

from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.blend import first_cell
from normalform.kernels.cpu.compiled import (
    add,
    copy,
    elementwise,
    fill,
    load,
    poke,
    small_kernel,
    workspace,
)


@elementwise
def _gradients(
    low: Any, rstd: Any, scale: Any, total: Any, product: Any, dmean: Any, dvar: Any
) -> None:
    """``sum dy (x - mean)`` in the place of ``sum dy (x - high)``; of mean, then of variance."""
    for j in range(low.size):
        product[j] -= low[j] * total[j]
    for j in range(low.size):
        dmean[j] = -total[j] * scale[j]
    for j in range(low.size):
        dvar[j] = -0.5 * (product[j] * scale[j]) * (rstd[j] * rstd[j])


@small_kernel
def collect(x: Any, args: int, part: int) -> None:
    """Both sums of each channel from those of its slots, and the gradients of mean and variance."""
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    alike = p[t.UNITS] if p[t.SPREAD_UNITS] < p[t.UNITS] else 1
    step = 2 * p[t.CHANNEL_STEP]
    for u in range(u0, u1):
        at = small[p[t.AT_SPREAD] + u * t.SPREAD * channels :]
        to = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
        total = to[t.TOTAL * channels + c0 : t.TOTAL * channels + c1]
        product = to[t.PRODUCT * channels + c0 : t.PRODUCT * channels + c1]
        fill(total, 0.0)
        fill(product, 0.0)
        for unit in range(u, u + alike):
            for piece in range(p[t.PIECES]):
                slot = p[t.AT_SUMS] + 2 * t.slot_of(p, unit, piece, c0)
                for j in range(c1 - c0):
                    total[j] += scratch[slot]
                    product[j] += scratch[slot + 1]
                    slot += step
        _gradients(
            at[t.LOW * channels + c0 : t.LOW * channels + c1],
            at[t.RSTD * channels + c0 : t.RSTD * channels + c1],
            at[t.SCALE * channels + c0 : t.SCALE * channels + c1],
            total, product,
            to[t.DMEAN * channels + c0 : t.DMEAN * channels + c1],
            to[t.DVAR * channels + c0 : t.DVAR * channels + c1],
        )  # fmt: skip


@small_kernel
def gather(x: Any, args: int, part: int) -> None:
    """Sums of these gradients over the cells of a part; with part -1, over those parts share."""
    a, p = t.tables(args)
    scratch, channels = t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN or (p[b + t.ROLE] == t.SHARED) != (part < 0):
            continue
        size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
        for u in range(u0, u1):
            grads = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
            opens = u == 0 or first_cell(p, b, u) != first_cell(p, b, u - 1)
            if size == 1 and opens:
                to = scratch[p[b + t.AT_GATHER] + first_cell(p, b, u) + c0 :]
                copy(to[: c1 - c0], grads[t.DMEAN * channels + c0 :])
                copy(to[cells : cells + c1 - c0], grads[t.DVAR * channels + c0 :])
                continue
            for g in range(c0 // size, c1 // size):
                at, dmean, dvar = p[b + t.AT_GATHER] + first_cell(p, b, u) + g, 0.0, 0.0
                for c in range(g * size, (g + 1) * size):
                    dmean += grads[t.DMEAN * channels + c]
                    dvar += grads[t.DVAR * channels + c]
                scratch[at] = dmean if opens else scratch[at] + dmean
                scratch[cells + at] = dvar if opens else scratch[cells + at] + dvar


@elementwise
def _add_terms(
    n: Any,
    near: Any,
    rest: Any,
    dmean: Any,
    dvar: Any,
    high: Any,
    low: Any,
    slope: Any,
    offset: Any,
) -> None:
    """As the inner loop of :func:`terms`, of cells of one channel that are not blended."""
    for j in range(slope.size):
        of_all = 1.0 / load(n, j) if load(n, j) > 0.0 else 0.0  # running statistics are constants
        tilt = 2.0 * load(dvar, j) * of_all
        apart = (load(high, j) - load(near, j)) + (load(low, j) - load(rest, j))
        add(slope, j, tilt)
        add(offset, j, load(dmean, j) * of_all + tilt * apart)


@small_kernel
def terms(x: Any, args: int, part: int) -> None:
    """``dx = factor dy + slope (x - high) + offset``, and each unit's part in logit gradients.

    A branch of n values a cell adds ``dmean / n + 2 dvar / n (x - mean)``, with the sums over its
    cell; here all are brought to the blended mean.
    """
    a, p = t.tables(args)
    small, scratch = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0)
    channels, branches = p[t.CHANNELS], p[t.BRANCHES]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        at = small[p[t.AT_SPREAD] + u * t.SPREAD * channels :]
        to = scratch[p[t.AT_TERMS] + u * t.TERMS * channels :]
        grads = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
        for which, source in ((t.FACTOR, t.SCALE), (t.CENTRE, t.HIGH)):
            first, last = source * channels + c0, source * channels + c1
            copy(to[which * channels + c0 : which * channels + c1], at[first:last])
        fill(to[t.SLOPE * channels + c0 : t.SLOPE * channels + c1], 0.0)
        fill(to[t.OFFSET * channels + c0 : t.OFFSET * channels + c1], 0.0)
        for k in range(branches):
            b = t.AT_BRANCHES + k * t.BRANCH
            size, cells = channels // p[b + t.GROUPS], p[b + t.CELLS]
            cell = small[p[b + t.AT_CELLS] + first_cell(p, b, u) :]
            sums = scratch[p[b + t.AT_GATHER] + first_cell(p, b, u) :]
            to_mean, to_var, logit_mean, logit_var = 1.0, 1.0, 0.0, 0.0
            if branches > 1:
                to_mean = small[p[t.AT_WEIGHTS] + 2 * k]
                to_var = small[p[t.AT_WEIGHTS] + 2 * k + 1]
            if size == 1 and branches == 1:
                _add_terms(
                    cell[c0:], cell[cells + c0 :], cell[2 * cells + c0 :],
                    sums[c0:], sums[cells + c0 :],
                    at[t.HIGH * channels + c0 :], at[t.LOW * channels + c0 :],
                    to[t.SLOPE * channels + c0 : t.SLOPE * channels + c1],
                    to[t.OFFSET * channels + c0 : t.OFFSET * channels + c1],
                )  # fmt: skip
                continue
            for g in range(c0 // size, c1 // size):
                n, level, tilt = cell[g], 0.0, 0.0
                if n > 0.0:  # running statistics are constants
                    level, tilt = to_mean * sums[g] / n, to_var * 2.0 * sums[cells + g] / n
                near, rest, var = cell[cells + g], cell[2 * cells + g], cell[3 * cells + g]
                for c in range(g * size, (g + 1) * size):
                    apart = (at[t.HIGH * channels + c] - near) + (at[t.LOW * channels + c] - rest)
                    to[t.SLOPE * channels + c] += tilt
                    to[t.OFFSET * channels + c] += level + tilt * apart
                    if branches > 1:
                        logit_mean -= grads[t.DMEAN * channels + c] * apart
                        logit_var += grads[t.DVAR * channels + c] * var
            scratch[p[t.AT_LOGITS] + 2 * (u * branches + k)] = logit_mean
            scratch[p[t.AT_LOGITS] + 2 * (u * branches + k) + 1] = logit_var
        for c in range(c0, c1):
            to[t.OFFSET * channels + c] -= at[t.LOW * channels + c] * to[t.SLOPE * channels + c]


@elementwise
def _add_unit(total: Any, product: Any, rstd: Any, dbias: Any, dweight: Any) -> None:
    for j in range(rstd.size):
        add(dbias, j, load(total, j))
        add(dweight, j, load(product, j) * load(rstd, j))


@small_kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight and bias."""
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    sets = p[t.SPREAD_UNITS] if p[t.PARAM_STEP] > 0 else 1
    units, sums = p[t.SPREAD_UNITS] // sets, workspace(2 * channels)
    dweight, dbias = sums[:channels], sums[channels : 2 * channels]
    for first in range(sets):
        fill(dweight, 0.0)
        fill(dbias, 0.0)
        for u in range(first, first + units):
            grads = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
            rstd = small[p[t.AT_SPREAD] + (u * t.SPREAD + t.RSTD) * channels :]
            total, product = grads[t.TOTAL * channels :], grads[t.PRODUCT * channels :]
            _add_unit(total, product, rstd[:channels], dbias, dweight)
        for c in range(channels):
            if a[t.DWEIGHT] != 0:
                poke(a[t.DWEIGHT], first * channels + c, p[t.WEIGHT_KIND], dweight[c])
            if a[t.DBIAS] != 0:
                poke(a[t.DBIAS], first * channels + c, p[t.BIAS_KIND], dbias[c])


@small_kernel
def logits(x: Any, args: int, part: int) -> None:
    """The gradients of the logits, through the softmax: ``w_k (g_k - sum_j w_j g_j)``."""
    a, p = t.tables(args)
    weights, sums = t.numbers(a[t.SMALL], p[t.AT_WEIGHTS]), t.numbers(a[t.SCRATCH], p[t.AT_LOGITS])
    both = 2 * p[t.BRANCHES]
    for u in range(1, p[t.SPREAD_UNITS]):
        for i in range(both):
            sums[i] += sums[u * both + i]
    for which in range(2 if a[t.DMEAN_LOGITS] != 0 else 0):  # both are learned, or neither
        common = 0.0
        for i in range(which, both, 2):
            common += weights[i] * sums[i]
        for i in range(which, both, 2):
            gradient = weights[i] * (sums[i] - common)
            if a[t.DMEAN_LOGITS + which] != 0:
                poke(a[t.DMEAN_LOGITS + which], i // 2, p[t.LOGIT_KIND], gradient)
