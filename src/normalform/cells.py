"""A recipe laid over a shape: which elements of a tensor share a mean and a variance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple


class Run(NamedTuple):
    """Samples ``start`` to ``stop``, cut into blocks of ``block`` samples that share statistics."""

    start: int
    stop: int
    block: int


@dataclass(frozen=True)
class Cells:
    """A recipe laid over a shape, with the axes brought into the order (n, c, *s).

    Every recipe comes down to three things: how samples are cut into blocks (``runs``, one run of
    equal blocks, or two where the last block differs), how many channel ``groups`` there are, and
    whether positions are averaged (``spatial``). Batch norm is one block and C groups; instance
    norm is blocks of one sample and C groups; layer norm blocks of one sample and one group.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    runs: tuple[Run, ...]
    groups: int
    spatial: bool
    center: bool

    @property
    def positions(self) -> int:
        """Number of positions: the product of the axes in ``s``, 1 if there are none."""
        return math.prod(self.shape[2:])

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of values in a cell, for each of ``runs``."""
        channels = self.shape[1] // self.groups
        positions = self.positions if self.spatial else 1
        return tuple(run.block * channels * positions for run in self.runs)

    def planes(self, spatial: bool) -> Cells:
        """The finest cells that these are made of: one for each sample and channel."""
        runs = (Run(0, self.shape[0], 1),)
        return replace(self, runs=runs, groups=self.shape[1], spatial=spatial)

    def are_planes(self, spatial: bool) -> bool:
        """Whether they are these; asked of sizes one by one, so that it ties no graph to them."""
        (_, _, block), *others = self.runs
        alone = not others and block == 1
        return alone and self.groups == self.shape[1] and self.spatial == spatial
