"""Between the passes: from slots to coefficients, and from sums to gradients. Any norm is a blend.

A branch is three numbers: how many units share statistics (``BLOCK``, in ``BLOCKS`` of which the
last may differ), and how many ``GROUPS`` of channels there are. Batch norm is a blend of one branch
with one block and a group for each channel; instance norm has a block for each sample. Its cells
may be the slots themselves. A branch is *own* where a part has cells of its own, else *shared*.
"""

from __future__ import annotations

import math
from typing import Any

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import double_of_bits, helper, kernel, peek, poke


@helper
def _block(p: Any, b: int, unit: int) -> int:
    block, last = unit // p[b + t.BLOCK], p[b + t.BLOCKS] - 1
    return block if block < last else last


@helper
def _pool(p: Any, b: int, small: Any, extent: tuple[int, int, int, int]) -> None:
    """Mean and variance of each cell, from the slots in it [Chan, Golub & LeVeque 1983].

    ``mean(var) + mean((mean - M)^2)``, never ``E[x^2] - M^2``, which cancels.
    """
    u0, u1, c0, c1 = extent
    groups, pieces = p[b + t.GROUPS], p[t.PIECES]
    size = p[t.CHANNELS] // groups
    g0, g1 = c0 // size, c1 // size
    unit_step, piece_step, step = p[t.UNIT_STEP], p[t.PIECE_STEP], p[t.CHANNEL_STEP]
    slots, cells = p[t.SLOTS], p[b + t.CELLS]
    counts, nears, rests, vars = 0, slots, 2 * slots, 3 * slots
    to = small[p[b + t.AT_CELLS] :]
    for block in range(_block(p, b, u0), _block(p, b, u1 - 1) + 1):
        for g in range(g0, g1):
            cell = block * groups + g
            to[cell] = to[2 * cells + cell] = to[3 * cells + cell] = 0.0
            to[cells + cell] = small[nears + block * p[b + t.BLOCK] * unit_step + g * size * step]
    for u in range(u0, u1):
        first = _block(p, b, u) * groups
        for piece in range(pieces):
            for g in range(g0, g1):
                near, count, total = to[cells + first + g], 0.0, 0.0
                slot = u * unit_step + piece * piece_step + g * size * step
                for _ in range(size):
                    n = small[counts + slot]
                    total += n * ((small[nears + slot] - near) + small[rests + slot])
                    count += n
                    slot += step
                to[first + g] += count
                to[2 * cells + first + g] += total
    for block in range(_block(p, b, u0), _block(p, b, u1 - 1) + 1):
        for g in range(g0, g1):
            to[2 * cells + block * groups + g] /= to[block * groups + g]
    for u in range(u0, u1):
        first = _block(p, b, u) * groups
        for piece in range(pieces):
            for g in range(g0, g1):
                near, mean, total = to[cells + first + g], to[2 * cells + first + g], 0.0
                slot = u * unit_step + piece * piece_step + g * size * step
                for _ in range(size):
                    apart = ((small[nears + slot] - near) + small[rests + slot]) - mean
                    total += small[counts + slot] * (small[vars + slot] + apart * apart)
                    slot += step
                to[3 * cells + first + g] += total
    for block in range(_block(p, b, u0), _block(p, b, u1 - 1) + 1):
        for g in range(g0, g1):
            to[3 * cells + block * groups + g] /= to[block * groups + g]


@kernel
def given(x: Any, args: int, part: int) -> None:
    """Running statistics as the cells of the branches they stand for."""
    a, p = t.tables(args)
    small, channels = t.numbers(a[t.SMALL], 0), p[t.CHANNELS]
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.GIVEN:
            to = small[p[b + t.AT_CELLS] :]
            for c in range(channels):
                to[c] = to[2 * channels + c] = 0.0
                to[channels + c] = peek(a[t.RUNNING_MEAN], c, p[t.RUNNING_KIND])
                to[3 * channels + c] = peek(a[t.RUNNING_VAR], c, p[t.RUNNING_KIND])


@kernel
def pool_own(x: Any, args: int, part: int) -> None:
    """The cells that lie within a part."""
    a, p = t.tables(args)
    extent = t.extent_of(p, part)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.OWN:
            _pool(p, b, t.numbers(a[t.SMALL], 0), extent)


@kernel
def pool_shared(x: Any, args: int, part: int) -> None:
    """The cells that parts share."""
    a, p = t.tables(args)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.SHARED:
            _pool(p, b, t.numbers(a[t.SMALL], 0), (0, p[t.UNITS], 0, p[t.CHANNELS]))


@helper
def _softmax(logits: int, k: int, branches: int, kind: int) -> float:
    """The weight of branch k; 1 where nothing is blended."""
    if logits == 0:
        return 1.0
    largest, total = -math.inf, 0.0
    for j in range(branches):
        logit = peek(logits, j, kind)
        largest = largest if largest > logit else logit
    for j in range(branches):
        total += math.exp(peek(logits, j, kind) - largest)
    return math.exp(peek(logits, k, kind) - largest) / total


@helper
def _mix(a: Any, p: Any, small: Any, u: int, c0: int, c1: int) -> None:
    """The blended mean, as a point near it and the distance, and variance of one unit."""
    channels, branches, kind = p[t.CHANNELS], p[t.BRANCHES], p[t.LOGIT_KIND]
    to = small[p[t.AT_SPREAD] + u * t.SPREAD * channels :]
    for k in range(branches):
        b = t.AT_BRANCHES + k * t.BRANCH
        groups, cells = p[b + t.GROUPS], p[b + t.CELLS]
        size, first = channels // groups, _block(p, b, u) * groups
        cell = small[p[b + t.AT_CELLS] :]
        to_mean = _softmax(a[t.MEAN_LOGITS], k, branches, kind)
        to_var = _softmax(a[t.VAR_LOGITS], k, branches, kind)
        for g in range(c0 // size, c1 // size):
            near, rest = cell[cells + first + g], cell[2 * cells + first + g]
            var = to_var * cell[3 * cells + first + g]
            for c in range(g * size, (g + 1) * size):
                if k == 0:
                    to[t.HIGH * channels + c] = to[t.NEAR * channels + c] = near
                    to[t.LOW * channels + c] = to[t.REST * channels + c] = rest
                    to[t.RSTD * channels + c] = var
                else:
                    # Differences of means, not means: a common offset must not be rounded into it.
                    apart = near - to[t.NEAR * channels + c] + (rest - to[t.REST * channels + c])
                    to[t.LOW * channels + c] += to_mean * apart
                    to[t.RSTD * channels + c] += var


@helper
def _coefficients(a: Any, p: Any, small: Any, u: int, c0: int, c1: int) -> None:
    """``y = (x - high) * scale + shift``; the mean is high + low, which one number cannot hold."""
    channels, eps = p[t.CHANNELS], double_of_bits(p[t.EPS])
    weight_kind, bias_kind, first = p[t.WEIGHT_KIND], p[t.BIAS_KIND], u * p[t.PARAM_STEP]
    weight, bias = a[t.WEIGHT], a[t.BIAS]
    to = small[p[t.AT_SPREAD] + u * t.SPREAD * channels :]
    for c in range(c0, c1):
        near, rest = to[t.HIGH * channels + c], to[t.LOW * channels + c]
        high = near + rest
        low = (near - high) + rest
        rstd = 1.0 / math.sqrt(to[t.RSTD * channels + c] + eps)
        scale = rstd * peek(weight, first + c, weight_kind) if weight != 0 else rstd
        shift = peek(bias, first + c, bias_kind) if bias != 0 else 0.0
        to[t.HIGH * channels + c], to[t.LOW * channels + c] = high, low
        to[t.RSTD * channels + c], to[t.SCALE * channels + c] = rstd, scale
        to[t.SHIFT * channels + c] = shift - low * scale


@kernel
def mix(x: Any, args: int, part: int) -> None:
    """From the cells to the coefficients of each channel."""
    a, p = t.tables(args)
    small = t.numbers(a[t.SMALL], 0)
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        _mix(a, p, small, u, c0, c1)
        _coefficients(a, p, small, u, c0, c1)


@helper
def _move(buffer: int, c: int, kind: int, new: float, share: float) -> int:
    """Move a running statistic, unless it would not be finite; 1 then."""
    old = peek(buffer, c, kind)  # exactly new at a share of 1
    moved = old + share * (new - old) if share < 0.5 else new - (new - old) * (1.0 - share)
    largest = 3.4028235677973366e38 if kind != 1 else math.inf  # where float32 rounds to infinity
    if not abs(moved) < largest:
        return 1
    poke(buffer, c, kind, moved)
    return 0


@kernel
def track(x: Any, args: int, part: int) -> None:
    """Move the running statistics towards mean and unbiased variance, averaged over the blocks."""
    a, p = t.tables(args)
    b, share = p[t.TRACKED], double_of_bits(a[t.MOMENTUM])
    cell, cells, groups = t.numbers(a[t.SMALL], p[b + t.AT_CELLS]), p[b + t.CELLS], p[b + t.GROUPS]
    size, kind, blocks = p[t.CHANNELS] // groups, p[t.RUNNING_KIND], p[b + t.BLOCKS]
    for c in range(p[t.CHANNELS]):
        mean, var = 0.0, 0.0
        for block in range(blocks):
            i, units = block * groups + c // size, p[b + t.BLOCK]
            if block == blocks - 1:
                units = p[t.UNITS] - block * units
            n, of_all = cell[i], units / p[t.UNITS]
            mean += of_all * (cell[cells + i] + cell[2 * cells + i])
            var += of_all * (cell[3 * cells + i] * (n / (n - 1.0 if n > 2.0 else 1.0)))
        a[t.NOT_FINITE_MEAN] += _move(a[t.RUNNING_MEAN], c, kind, mean, share)
        a[t.NOT_FINITE_VAR] += _move(a[t.RUNNING_VAR], c, kind, var, share)


@helper
def _add_slots(p: Any, small: Any, scratch: Any, u: int, c0: int, c1: int) -> None:
    """Both sums of each channel, and the gradients of its mean and variance."""
    channels, pieces = p[t.CHANNELS], p[t.PIECES]
    unit_step, piece_step, step = p[t.UNIT_STEP], p[t.PIECE_STEP], p[t.CHANNEL_STEP]
    at, to = (
        small[p[t.AT_SPREAD] + u * t.SPREAD * channels :],
        scratch[p[t.AT_GRADS] + u * t.GRADS * channels :],
    )
    sums = scratch[p[t.AT_SUMS] :]
    u0, u1 = (u, u + 1) if p[t.SPREAD_UNITS] == p[t.UNITS] else (0, p[t.UNITS])
    for c in range(c0, c1):
        to[t.TOTAL * channels + c] = to[t.PRODUCT * channels + c] = 0.0
    for unit in range(u0, u1):
        for piece in range(pieces):
            slot = unit * unit_step + piece * piece_step
            for c in range(c0, c1):
                to[t.TOTAL * channels + c] += sums[2 * (slot + c * step)]
                to[t.PRODUCT * channels + c] += sums[2 * (slot + c * step) + 1]
    for c in range(c0, c1):
        total, low = to[t.TOTAL * channels + c], at[t.LOW * channels + c]
        product = to[t.PRODUCT * channels + c] - low * total
        rstd, scale = at[t.RSTD * channels + c], at[t.SCALE * channels + c]
        to[t.PRODUCT * channels + c] = product
        to[t.DMEAN * channels + c] = -total * scale
        to[t.DVAR * channels + c] = -0.5 * (product * scale) * (rstd * rstd)


@helper
def _gather(p: Any, b: int, scratch: Any, extent: tuple[int, int, int, int]) -> None:
    """The sums over each cell of the gradients of mean and variance."""
    u0, u1, c0, c1 = extent
    channels, groups, cells = p[t.CHANNELS], p[b + t.GROUPS], p[b + t.CELLS]
    size, to = channels // groups, scratch[p[b + t.AT_GATHER] :]
    for block in range(_block(p, b, u0), _block(p, b, u1 - 1) + 1):
        for g in range(c0 // size, c1 // size):
            to[block * groups + g] = to[cells + block * groups + g] = 0.0
    for u in range(u0, u1):
        grads, first = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :], _block(p, b, u) * groups
        for g in range(c0 // size, c1 // size):
            dmean, dvar = 0.0, 0.0
            for c in range(g * size, (g + 1) * size):
                dmean += grads[t.DMEAN * channels + c]
                dvar += grads[t.DVAR * channels + c]
            to[first + g] += dmean
            to[cells + first + g] += dvar


@kernel
def gather_own(x: Any, args: int, part: int) -> None:
    """The gradients of the statistics, and their sums over cells that lie within a part."""
    a, p = t.tables(args)
    small, scratch = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0)
    extent = t.spread_of(p, part)
    u0, u1, c0, c1 = extent
    for u in range(u0, u1):
        _add_slots(p, small, scratch, u, c0, c1)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.OWN or p[b + t.ROLE] == t.SLOT:
            _gather(p, b, scratch, extent)


@kernel
def gather_shared(x: Any, args: int, part: int) -> None:
    """Their sums over cells that parts share."""
    a, p = t.tables(args)
    for k in range(p[t.BRANCHES]):
        b = t.AT_BRANCHES + k * t.BRANCH
        if p[b + t.ROLE] == t.SHARED:
            everything = (0, p[t.SPREAD_UNITS], 0, p[t.CHANNELS])
            _gather(p, b, t.numbers(a[t.SCRATCH], 0), everything)


@kernel
def terms(x: Any, args: int, part: int) -> None:
    """``dx = factor dy + slope (x - high) + offset``, and each unit's part in logit gradients.

    A branch of n values a cell adds ``dmean / n + 2 dvar / n (x - mean)``, with the sums over its
    cell; here all are brought to the blended mean.
    """
    a, p = t.tables(args)
    small, scratch = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0)
    channels, branches, kind = p[t.CHANNELS], p[t.BRANCHES], p[t.LOGIT_KIND]
    u0, u1, c0, c1 = t.spread_of(p, part)
    for u in range(u0, u1):
        at, to = (
            small[p[t.AT_SPREAD] + u * t.SPREAD * channels :],
            scratch[p[t.AT_TERMS] + u * t.TERMS * channels :],
        )
        grads = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
        for c in range(c0, c1):
            to[t.FACTOR * channels + c] = at[t.SCALE * channels + c]
            to[t.CENTRE * channels + c] = at[t.HIGH * channels + c]
            to[t.SLOPE * channels + c] = to[t.OFFSET * channels + c] = 0.0
        for k in range(branches):
            b = t.AT_BRANCHES + k * t.BRANCH
            groups, cells = p[b + t.GROUPS], p[b + t.CELLS]
            size, first = channels // groups, _block(p, b, u) * groups
            cell, sums = small[p[b + t.AT_CELLS] :], scratch[p[b + t.AT_GATHER] :]
            to_mean = _softmax(a[t.MEAN_LOGITS], k, branches, kind)
            to_var = _softmax(a[t.VAR_LOGITS], k, branches, kind)
            logit_mean, logit_var = 0.0, 0.0
            for g in range(c0 // size, c1 // size):
                n, near, rest = (
                    cell[first + g],
                    cell[cells + first + g],
                    cell[2 * cells + first + g],
                )
                level = tilt = 0.0
                if n > 0.0:  # running statistics are constants
                    level = to_mean * sums[first + g] / n
                    tilt = to_var * 2.0 * sums[cells + first + g] / n
                for c in range(g * size, (g + 1) * size):
                    apart = (at[t.HIGH * channels + c] - near) + (at[t.LOW * channels + c] - rest)
                    to[t.SLOPE * channels + c] += tilt
                    to[t.OFFSET * channels + c] += level + tilt * apart
                    logit_mean -= grads[t.DMEAN * channels + c] * apart
                    logit_var += grads[t.DVAR * channels + c] * cell[3 * cells + first + g]
            if a[t.MEAN_LOGITS] != 0:
                scratch[p[t.AT_LOGITS] + 2 * (u * branches + k)] = logit_mean
                scratch[p[t.AT_LOGITS] + 2 * (u * branches + k) + 1] = logit_var
        for c in range(c0, c1):
            to[t.OFFSET * channels + c] -= at[t.LOW * channels + c] * to[t.SLOPE * channels + c]


@helper
def _to_logits(p: Any, scratch: Any, which: int, logits: int, out: int) -> None:
    """Through the softmax: ``w_k (g_k - sum_j w_j g_j)``."""
    branches, kind, common = p[t.BRANCHES], p[t.LOGIT_KIND], 0.0
    sums = scratch[p[t.AT_LOGITS] + which :]
    for u in range(1, p[t.SPREAD_UNITS]):
        for k in range(branches):
            sums[2 * k] += sums[2 * (u * branches + k)]
    for k in range(branches):
        common += _softmax(logits, k, branches, kind) * sums[2 * k]
    for k in range(branches):
        poke(out, k, kind, _softmax(logits, k, branches, kind) * (sums[2 * k] - common))


@kernel
def parameters(x: Any, args: int, part: int) -> None:
    """The gradients of weight, bias and logits."""
    a, p = t.tables(args)
    small, scratch, channels = t.numbers(a[t.SMALL], 0), t.numbers(a[t.SCRATCH], 0), p[t.CHANNELS]
    units = p[t.SPREAD_UNITS]
    for u in range(units):
        at, grads = (
            small[p[t.AT_SPREAD] + u * t.SPREAD * channels :],
            scratch[p[t.AT_GRADS] + u * t.GRADS * channels :],
        )
        to = scratch[p[t.AT_GRADS] + (u if p[t.PARAM_STEP] > 0 else 0) * t.GRADS * channels :]
        for c in range(channels):
            dweight, dbias = (
                grads[t.PRODUCT * channels + c] * at[t.RSTD * channels + c],
                grads[t.TOTAL * channels + c],
            )
            if u > 0 and p[t.PARAM_STEP] == 0:
                dweight += to[t.PRODUCT * channels + c]
                dbias += to[t.TOTAL * channels + c]
            to[t.PRODUCT * channels + c], to[t.TOTAL * channels + c] = dweight, dbias
    for u in range(units if p[t.PARAM_STEP] > 0 else 1):
        grads = scratch[p[t.AT_GRADS] + u * t.GRADS * channels :]
        for c in range(channels):
            if a[t.DWEIGHT] != 0:
                poke(
                    a[t.DWEIGHT],
                    u * channels + c,
                    p[t.WEIGHT_KIND],
                    grads[t.PRODUCT * channels + c],
                )
            if a[t.DBIAS] != 0:
                poke(a[t.DBIAS], u * channels + c, p[t.BIAS_KIND], grads[t.TOTAL * channels + c])
    if a[t.DMEAN_LOGITS] != 0:
        _to_logits(p, scratch, 0, a[t.MEAN_LOGITS], a[t.DMEAN_LOGITS])
        _to_logits(p, scratch, 1, a[t.VAR_LOGITS], a[t.DVAR_LOGITS])
