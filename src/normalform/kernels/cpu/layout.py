"""From a plan and a tensor's strides to programs: which kernels run, on what parts, in what order.

Everything here depends on shapes, strides and types only, and is made once for each.
"""

from __future__ import annotations

import math
import struct
from types import ModuleType

import numpy as np
import torch

from normalform.cells import Cells
from normalform.kernels.cpu import blend, columns, gradients, planes, row_gradients, rows, team
from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.columns import LONG
from normalform.kernels.cpu.compiled import KINDS, Kernel
from normalform.kernels.cpu.memory import ALIKE, WIDE
from normalform.kernels.request import SHORT, WEIGHTS, Request

# Values in a piece: sums are of float64, so this limits what an outlying first value can do to
# them, and is short enough to share out among threads. Sums of float64 have no digits to spare.
PIECE, PIECE_DOUBLE = 32768, 1024
# Values in a part where cells are small: enough to hide the cost of starting on it (0.1 us).
PART = 8192
# From this many values on, threads; below, waking them costs more than they save. One thread's time
# in units of two threads', forward and backward of batch norm, group norm and over the last axis
# (two cores of an AMD EPYC, idle, least of many, 2026-11):
#
#     values   8,192  16,384  32,768  65,536  131,072  262,144  524,288  1,048,576
#     batch     0.75    0.78    1.05    1.31     1.51     1.66     1.84       1.85
#     group     0.75    0.80    1.17    1.42     1.67     1.63     1.78       1.79
#     token     0.78    0.79    1.11    1.30     1.46     1.52     1.65       1.76
PARALLEL = 32768
# The fewest rows in a part, where there are few.
ROWS_A_PART = 8
# Values: so much later is memory asked for where nothing better is known.
SOON = 2048
# Values of a row up to which weight and bias do not fill the nearest cache.
LONG_ROW = 1024
# The longest rows that are worked on by fours, forward and backward, where registers are few: rows
# of 384 took 1.15 times as long backward as one by one, of 32 forward half as long.
FOURS, FOURS_BACK = 512, 127
# Bytes of a tensor up to which what the forward, or the backward, writes is still in the last cache
# when it is read: the backward of a step finds it full of what the forward left.
STAYS, STAYS_BACK = 8 << 20, 8 << 18
# Bytes that a core keeps in a cache of its own, about.
CORE = 1 << 20
# In place of the number of parts: the one part that is everything, see blend.pool.
SHARED = -1


class Layout:
    """Programs for one request, and the tables they read."""

    def __init__(self, request: Request, kind: str) -> None:
        self.request, self.kind = request, kind
        self.values = math.prod(request.shape)
        # Numbers that the forward keeps, that it needs for itself, and that the backward needs.
        self.small = self.temporary = self.scratch = 0
        self.table = np.zeros(t.AT_BRANCHES + t.BRANCH * len(request.plan.branches), np.int64)
        self.given = request.plan.base is None
        self.blends = len(request.plan.branches) > 1
        p = self.table
        for at, dtype in (
            (t.WEIGHT_KIND, request.weight),
            (t.BIAS_KIND, request.bias),
            (t.LOGIT_KIND, request.logits),
            (t.RUNNING_KIND, request.running),
        ):
            p[at] = 0 if dtype is None else KINDS[dtype]
        self.stays = self.values * request.dtype.itemsize <= STAYS
        (p[t.EPS],) = struct.unpack("q", struct.pack("d", request.plan.eps))
        p[t.BRANCHES], p[t.DOUBLE] = len(request.plan.branches), request.dtype == torch.float64
        if kind == "rows":
            self._lay_rows()
        else:
            self._lay_units()
            self._lay_branches()
        self.tiled, self.staged = self._tiled(), self._staged()

    def _lay_rows(self) -> None:
        p, (only,) = self.table, self.request.plan.branches
        channels = self.request.shape[1]
        spatial, groups = (only.spatial, only.groups) if only is not None else (False, 1)
        values = channels * (self.request.positions if spatial else 1)
        p[t.CHANNELS], p[t.TILES], p[t.TILE] = channels, groups, values // groups
        p[t.WIDTH] = values // channels if self.request.order == "planes" else 1
        if self.request.order == "columns":  # as often as fits, whole rows of channels
            values = min(values, max(1, (LONG - 1) // channels) * channels)
        p[t.LENGTH] = values // groups
        # Weights repeat within a row, so that four times as many values are worked on at once.
        p[t.AGAIN] = (
            WIDE and self.stays and 4 * p[t.LENGTH] <= p[t.TILE] and p[t.LENGTH] % ALIKE > 0
        )
        p[t.UNITS] = p[t.ITEMS] = self.values // p[t.TILE]
        p[t.CENTER] = only is not None and only.center
        p[t.AT_BRANCHES + t.ROLE] = t.OWN
        # Each part has sums of its own for weight and bias, which cost as much as a row or two.
        again = self.values // int(p[t.TILES] * p[t.TILE])  # rows, or what weights repeat after
        most = max(1, min(64, self.values // (values * ROWS_A_PART), self.values // PART))
        p[t.ITEMS_A_PART] = max(-(-again // most), min(again // 16, 8 * ROWS_A_PART)) * groups
        self.parts = -(-p[t.UNITS] // p[t.ITEMS_A_PART])
        p[t.AT_SUMS], self.temporary = 2 * values, 3 * values + 1  # see rows.singles
        self.small = 3 * int(p[t.UNITS])
        self.scratch = 2 * values + 2 * int(self.parts) * (values + row_gradients.APART)

    def _lay_units(self) -> None:
        p, r = self.table, self.request
        (samples, channels, *_), positions = r.shape, r.positions
        whole = self.kind == "columns" and r.whole
        p[t.UNITS], p[t.CHANNELS] = 1 if whole else samples, channels
        if self.kind == "planes":
            p[t.ROWS], p[t.WIDTH], p[t.EXTENT] = 1, positions, positions
            p[t.TILES], p[t.TILE], p[t.FOLD] = 1, channels, 1
            p[t.PIECES] = -(-positions // self._longest())
        else:
            last = r.order == "columns"
            p[t.WIDTH] = 1 if last else positions
            p[t.ROWS] = p[t.EXTENT] = (samples if whole else 1) * (positions if last else 1)
            # Alike as they can be, so that no tile is left with a few channels.
            p[t.TILES] = (
                -(-channels * p[t.WIDTH] // (LONG // 2)) if p[t.WIDTH] * channels > LONG else 1
            )
            p[t.TILE] = -(-channels // p[t.TILES])
            p[t.TILES] = -(-channels // p[t.TILE])
            row = p[t.TILE] * p[t.WIDTH]
            long = LONG // 8 if self.stays else LONG // 4
            p[t.FOLD] = max(1, min(long // row, p[t.ROWS])) if p[t.TILES] == 1 else 1
            p[t.PIECES] = -(-p[t.ROWS] * row // PIECE)
        p[t.LENGTH] = -(-p[t.EXTENT] // p[t.PIECES])
        p[t.PIECES] = -(-p[t.EXTENT] // p[t.LENGTH])
        p[t.UNIT_STEP] = p[t.PIECES] * channels
        steps = (1, p[t.PIECES]) if self.kind == "planes" else (channels, 1)
        p[t.PIECE_STEP], p[t.CHANNEL_STEP] = steps
        p[t.ITEMS] = p[t.UNITS] * p[t.PIECES] * (channels if self.kind == "planes" else p[t.TILES])
        p[t.PARAM_STEP] = channels if r.per_sample else 0

    def _lay_branches(self) -> None:
        p, r = self.table, self.request
        units, channels = int(p[t.UNITS]), int(p[t.CHANNELS])
        sums = units * int(p[t.PIECES]) * channels
        p[t.RUN] = self._run()
        p[t.SLOTS] = slots = sums // int(p[t.RUN])
        small, scratch, alike = 0 if self.given else t.CELL * slots, 2 * sums, not r.per_sample
        for k, cells in enumerate(r.plan.branches):
            b = t.AT_BRANCHES + t.BRANCH * k
            block, blocks = _blocks(cells, units)
            groups = channels if cells is None else cells.groups
            p[b + t.BLOCK], p[b + t.BLOCKS], p[b + t.GROUPS] = block, blocks, groups
            role = t.GIVEN if cells is None else t.SHARED if block > 1 else t.OWN
            if role == t.OWN and groups * p[t.RUN] == channels and p[t.PIECES] == 1:
                role = t.SLOT
            p[b + t.ROLE], p[b + t.CELLS], p[b + t.AT_GATHER] = role, blocks * groups, scratch
            if role != t.SLOT:
                p[b + t.AT_CELLS] = small
                small += t.CELL * blocks * groups
            scratch += 2 * blocks * groups
            alike &= blocks == 1
            if k == r.tracked:
                p[t.TRACKED] = b
        spread = 1 if alike else units
        p[t.SPREAD_UNITS], p[t.AT_WEIGHTS] = spread, small
        p[t.AT_SPREAD] = small + 2 * len(r.plan.branches)
        self.small = int(p[t.AT_SPREAD]) + t.SPREAD * channels * spread
        for at, size in (
            (t.AT_GRADS, t.GRADS * channels * spread),
            (t.AT_TERMS, t.TERMS * channels * spread),
            (t.AT_LOGITS, 2 * len(r.plan.branches) * spread),
        ):
            p[at], scratch = scratch, scratch + size
        self.scratch = scratch
        self.temporary = 6 * channels if r.tracked is not None else 0  # see blend.track

    def _run(self) -> int:
        """How many channels of a cell, one after the other in memory, are summed at once."""
        p, (cells, *others) = self.table, self.request.plan.branches
        if others or cells is None or _blocks(cells, int(p[t.UNITS]))[0] > 1:
            return 1
        if self.kind == "columns":  # a piece is one run where a cell has all channels
            whole = cells.groups == 1 and p[t.TILES] == 1 and self.request.dtype != torch.float64
            return int(p[t.CHANNELS]) if whole else 1
        if p[t.PIECES] > 1:
            return 1
        size = int(p[t.CHANNELS]) // cells.groups
        most = self._longest() // int(p[t.EXTENT])
        return max(run for run in range(1, min(size, most) + 1) if size % run == 0)

    def _longest(self) -> int:
        return PIECE if self.request.dtype != torch.float64 else PIECE_DOUBLE

    def roles(self) -> list[int]:
        """What each branch is."""
        return [
            int(self.table[t.AT_BRANCHES + t.BRANCH * k + t.ROLE])
            for k in range(len(self.request.plan.branches))
        ]

    def _tiled(self) -> Programs | None:
        """As much as possible for a few cells at a time, while they are in the cache."""
        p = self.table
        if self.kind == "rows":
            return Programs(self, self.parts, int(p[t.ITEMS_A_PART]), 0, tiled=True)
        roles, units, channels = self.roles(), int(p[t.UNITS]), int(p[t.CHANNELS])
        if p[t.SPREAD_UNITS] < units or (t.SHARED in roles and units == 1):
            return None
        groups = 1
        if self.kind == "planes" and len(roles) == 1:
            groups = channels if self.given else int(p[t.AT_BRANCHES + t.GROUPS])
        wanted = max(1, PART * units * groups // self.values)  # cells a part
        if wanted < groups:
            wanted = max(k for k in range(1, wanted + 1) if groups % k == 0)
        else:
            wanted = min(wanted // groups, units) * groups
        planes_a_part = wanted * channels // groups
        items_a_part = planes_a_part * int(p[t.ITEMS]) // (units * channels)
        parts = -(-units * groups // wanted)
        return Programs(self, parts, items_a_part, planes_a_part, tiled=True)

    def _staged(self) -> Programs:
        """One pass over the whole tensor after the other."""
        items = int(self.table[t.ITEMS])
        run = int(self.table[t.RUN]) if self.kind == "planes" else 1  # items that share a slot
        items_a_part = -(-items // max(1, min(items, self.values // PART, 256)))
        items_a_part = -(-items_a_part // run) * run
        planes = int(self.table[t.UNITS] * self.table[t.CHANNELS])
        return Programs(self, -(-items // items_a_part), items_a_part, planes, tiled=False)

    def programs(self, threads: int) -> Programs:
        """The better ones for this number of threads. The results have the same bits."""
        tiled = self.tiled
        few = threads > 1 and tiled is not None and tiled.parts < 2 * threads
        return self.staged if tiled is None or (few and self.kind != "rows") else tiled


class Programs:
    """The tables of a layout for one way to cut it into parts, forward and backward."""

    def __init__(
        self, layout: Layout, parts: int, items_a_part: int, planes_a_part: int, *, tiled: bool
    ) -> None:
        self.layout, self.parts, self.tiled = layout, parts, tiled
        self.table = layout.table.copy()
        self.table[t.ITEMS_A_PART], self.table[t.PLANES_A_PART] = items_a_part, planes_a_part
        self.table[t.AHEAD] = self._ahead(items_a_part, forward=True)
        self.table[t.AHEAD_BACK] = self._ahead(items_a_part, forward=False)
        self.table[t.FOURS] = self._by_fours(t.AHEAD, FOURS)
        self.table[t.FOURS_BACK] = self._by_fours(t.AHEAD_BACK, FOURS_BACK)
        self.address = self.table.ctypes.data
        # Where the programs are that most calls run, once they are made.
        self.forward_at = self.backward_at = 0
        self._made: dict[tuple[bool, bool] | None, int] = {}
        self._programs: list[np.ndarray] = []  # none in use must be freed

    def _ahead(self, items_a_part: int, *, forward: bool) -> int:
        """How many values later the memory is asked for that a pass will come to.

        The last pass over a part finds it in the cache. Where the next part, too, fits into the
        nearest caches, that is asked for while the memory is idle: forward, and where planes are
        short. Of rows cut into tiles the next row of a tile is another stream; any other the
        processor sees. -1 where the cache holds the tensors, with the output and its gradient.
        """
        layout, p = self.layout, self.table
        size = layout.values * layout.request.dtype.itemsize
        stays = size <= (STAYS if forward else STAYS_BACK)
        if layout.kind == "rows":
            return -1 if stays or p[t.TILE] < SHORT else SOON
        if layout.kind == "columns":
            return -1 if stays else int(p[t.CHANNELS] * p[t.WIDTH]) if p[t.TILES] > 1 else SOON
        part = int(layout.values // p[t.ITEMS] * items_a_part)
        fits = part * layout.request.dtype.itemsize <= CORE // 8
        if self.tiled and p[t.EXTENT] < SHORT and size > CORE:
            return part if fits else SOON
        if stays:
            return -1
        if not self.tiled:
            return SOON
        return part if forward and fits else 0

    def _by_fours(self, ahead: int, longest: int) -> bool:
        """Whether four rows that share a weight are worked on at once.

        Of tensors beyond the cache only where rows are long: one stream is faster than four
        (forward by a fifth, 16x512x768), unless weight and bias fill the nearest cache
        (8x1024x3072: forward in 0.7 of the time).
        """
        p = self.table
        values = p[t.TILE]
        if p[t.LENGTH] != values or p[t.TILES] * values > WEIGHTS:
            return False
        return bool((WIDE or values <= longest) and (p[ahead] < 0 or values > LONG_ROW))

    def forward(self) -> int:
        """Where the program is."""
        self.forward_at = self._made.get(None) or self._make(None, self._forward_phases())
        return self.forward_at

    def backward(self, dx: bool, small: bool) -> int:
        """For the gradients that are needed: x's, those of the small arrays."""
        key = dx, small
        at = self._made.get(key) or self._make(key, self._backward_phases(dx, small))
        if dx and small:
            self.backward_at = at
        return at

    def _make(self, key: tuple[bool, bool] | None, phases: list[tuple[int, list[Kernel]]]) -> int:
        # Where two threads make one, the first stays for both. A lock, as in
        # functools.cached_property, would stay taken in a child after fork.
        return self._made.setdefault(key, self._program(phases))

    def _forward_phases(self) -> list[tuple[int, list[Kernel]]]:
        layout, passes, roles = self.layout, self._passes(), self.layout.roles()
        if layout.kind == "rows":
            single = [] if layout.table[t.DOUBLE] == 1 else [rows.singles]
            return [(1, [rows.expand, *single]), (self.parts, [rows.forward])]
        track = [(1, [blend.track])] if layout.request.tracked is not None else []
        before = [(1, [blend.given])] if t.GIVEN in roles else []
        if layout.blends:
            before.append((1, [blend.weigh]))
        own = [] if layout.given else [passes.moments]
        pool = blend.pool_double if layout.table[t.DOUBLE] == 1 else blend.pool
        pools = [pool] if t.OWN in roles else []
        shared = [(SHARED, [pool])] if t.SHARED in roles else []
        last = [blend.mix_several if layout.blends else blend.mix, passes.apply]
        if not self.tiled:
            phases = [(self.parts, own), (1, pools), *shared, *track]
            return [*before, *phases, (1, last[:1]), (self.parts, last[1:])]
        if not shared:
            return [*before, (self.parts, [*own, *pools, *last]), *track]
        return [*before, (self.parts, [*own, *pools]), *shared, *track, (self.parts, last)]

    def _backward_phases(self, dx: bool, small: bool) -> list[tuple[int, list[Kernel]]]:
        layout, passes, roles = self.layout, self._passes(), self.layout.roles()
        if layout.kind == "rows":
            phases = [(1, [rows.expand]), (self.parts, [row_gradients.backward])]
            return [*phases, (1, [row_gradients.parameters] if small else [])]
        shares = -(-int(self.table[t.CHANNELS]) // gradients.SHARE)
        params = [(shares, [gradients.parameters])] if small else []
        if small and layout.blends:
            params.append((1, [gradients.logits]))
        sums = [] if layout.given and not small else [passes.sums]
        own = [gradients.collect] if sums else []
        terms = [gradients.terms_several] if layout.blends else []
        if not layout.given:  # running statistics are constants
            own.append(gradients.gather)
            terms = terms or [gradients.terms]
        shared = [(SHARED, [gradients.gather])] if t.SHARED in roles else []
        last = [passes.scale if layout.given else passes.grad_input] if dx else []
        if not self.tiled:
            phases = [(self.parts, sums), (1, own), *shared, (1, terms), *params]
            return [*phases, (self.parts, last)]
        if not shared:
            return [(self.parts, [*sums, *own, *terms, *last]), *params]
        return [(self.parts, [*sums, *own]), *shared, (self.parts, [*terms, *last]), *params]

    def _passes(self) -> ModuleType:
        return columns if self.layout.kind == "columns" else planes

    def _program(self, phases: list[tuple[int, list[Kernel]]]) -> int:
        dtype = self.layout.request.dtype
        table = team.program(
            [
                (
                    parts,
                    [k.address(dtype if k.reads_x else torch.float32) for k in kernels],
                )
                for parts, kernels in phases
                if kernels
            ]
        )
        self._programs.append(table)
        return table.ctypes.data


def _blocks(cells: Cells | None, units: int) -> tuple[int, int]:
    """Units in a block, and how many blocks there are."""
    if cells is None or units == 1:
        return 1, 1
    return cells.runs[0].block, sum((run.stop - run.start) // run.block for run in cells.runs)
