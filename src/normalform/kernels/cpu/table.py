"""The two tables of int64 that kernels read: one for each call, one for each layout.

A tensor is seen as *units* (samples, or the whole batch) of ``ROWS`` rows of ``CHANNELS`` channels
of ``WIDTH`` neighbouring values: a contiguous (n, c, *s) has one row a unit, a channels-last one
has a row for each position and a width of 1. Units are cut into *pieces* of at most ``LENGTH``,
which depend on the shape alone, so that sums are taken in the same order by any number of threads.
A *slot* holds what was summed for one unit, piece and channel, or for ``RUN`` neighbouring channels
of a cell; a *cell*, what slots were pooled to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normalform.kernels.cpu.compiled import helper, row_at
from normalform.kernels.cpu.compiled import numbers as numbers

# Of each call: addresses, 0 for what is not there. Those of the forward come first.
(
    PROGRAM, PLAN, X, Y, SMALL, SCRATCH, WEIGHT, BIAS, MEAN_LOGITS, VAR_LOGITS,
    RUNNING_MEAN, RUNNING_VAR, MOMENTUM, NOT_FINITE_MEAN, NOT_FINITE_VAR,
    DY, DX, DWEIGHT, DBIAS, DMEAN_LOGITS, DVAR_LOGITS,
) = range(21)  # fmt: skip
ARGS = 21

# Of each layout. Offsets are into the arrays at SMALL and SCRATCH, which hold float64.
(
    UNITS, ROWS, CHANNELS, WIDTH, PIECES, LENGTH, EXTENT, SLOTS,
    UNIT_STEP, PIECE_STEP, CHANNEL_STEP, TILES, TILE, FOLD, RUN, AHEAD, AHEAD_BACK,
    AGAIN, FOURS, FOURS_BACK,
    ITEMS, ITEMS_A_PART, PLANES_A_PART, SPREAD_UNITS, PARAM_STEP,
    WEIGHT_KIND, BIAS_KIND, LOGIT_KIND, RUNNING_KIND, EPS, CENTER, DOUBLE,
    TRACKED, BRANCHES, AT_WEIGHTS, AT_SPREAD, AT_SUMS, AT_GRADS, AT_TERMS, AT_LOGITS, AT_BRANCHES,
) = range(41)  # fmt: skip
# Of each branch, from AT_BRANCHES on: its cells, and where their sums are in the backward.
BLOCK, BLOCKS, GROUPS, ROLE, CELLS, AT_CELLS, AT_GATHER = range(7)
BRANCH = 7
# What a branch is: running statistics, the slots as they are, pooled within a part or across parts.
GIVEN, SLOT, OWN, SHARED = range(4)

# Slots, which lie at the start of SMALL, and cells are four arrays: number of values, a point near
# the mean, the mean's distance from it, variance.
CELL = 4
# Arrays over channels, for each unit that statistics differ for. The mean is HIGH + LOW.
HIGH, LOW, RSTD, SCALE, SHIFT, NEAR, REST = range(7)
SPREAD = 7
# In the backward: sums over dy, gradients of mean and variance, and
# dx = SCALE dy + SLOPE (x - POINT) + OFFSET.
TOTAL, PRODUCT, DMEAN, DVAR = range(4)
GRADS = 4
SLOPE, OFFSET, POINT = range(3)
TERMS = 3


# A number 0 of the type that others have: to Numba a constant is of a type of its own, for which
# it compiles a helper again.
ZERO: Any = np.int64(0)


@helper
def tables(args: int) -> tuple[Any, Any]:
    """Both tables."""
    a = row_at(args, np.int64)
    return a, row_at(a[PLAN], np.int64)


@helper
def items_of(p: Any, part: int) -> tuple[int, int]:
    """The items of a part of the passes over the tensor."""
    first = part * p[ITEMS_A_PART]
    last = first + p[ITEMS_A_PART]
    return first, last if last < p[ITEMS] else p[ITEMS]


@helper
def extent_of(p: Any, part: int) -> tuple[int, int, int, int]:
    """Units and channels of a part: some units, or some channels of one; all of part -1."""
    channels = p[CHANNELS]
    if part < 0:
        return 0, p[UNITS], 0, channels
    first = part * p[PLANES_A_PART]
    last = first + p[PLANES_A_PART]
    last = last if last < p[UNITS] * channels else p[UNITS] * channels
    u0, u1 = first // channels, (last + channels - 1) // channels
    if u1 - u0 > 1:
        return u0, u1, 0, channels
    return u0, u1, first - u0 * channels, last - u0 * channels


@helper
def spread_of(p: Any, part: int) -> tuple[int, int, int, int]:
    """The same of coefficients: one unit stands for all where they are alike."""
    if p[SPREAD_UNITS] < p[UNITS]:
        return 0, p[SPREAD_UNITS], 0, p[CHANNELS]
    return extent_of(p, part)


@helper
def slot_of(p: Any, unit: int, piece: int, channel: int) -> int:
    """Where a slot lies."""
    return unit * p[UNIT_STEP] + piece * p[PIECE_STEP] + channel * p[CHANNEL_STEP]


@helper
def spread_at(p: Any, unit: int) -> int:
    """Where a unit's coefficients begin, of an array over channels."""
    return unit * p[CHANNELS] if p[SPREAD_UNITS] > 1 else 0
