"""What disturbs meanwhile: a time taken on a machine that does something else says little.

Threads that wait for each other stand still together whenever another program takes one's core:
everything parallel becomes slower a hundredfold, and not by the same factor. And what a virtual
machine calls two cores may be one core's two threads for seconds at a time, as its host likes: all
that computes becomes up to twice as slow, what waits for memory does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from normalform.lab.environment import cores

QUIET = 0.1  # cores that others may keep busy; the system's own work is some hundredths
_COARSE = 0.05  # seconds: the system counts in hundredths, for each core
_BUSY = (0, 1, 2, 5, 6, 7)  # columns: user, nice, system, irq, softirq, and stolen by other guests
APART = 0.6  # of the number of threads: as many times as fast as one all are with a core each
_PAUSE = 0.25  # seconds between two looks
_VALUES = 1 << 15  # a thread computes, which stay in its own cache


class Load(NamedTuple):
    """What disturbed a case.

    Attributes:
        others: cores that other programs kept busy; None where the system does not say.
        together: how many times as fast all threads computed as one; None where there is one.
    """

    others: float | None = None
    together: float | None = None

    def shares_cores(self, threads: int) -> bool:
        """Whether so many threads had fewer cores."""
        return self.together is not None and self.together < APART * threads

    def disturbs(self, threads: int) -> bool:
        """Whether times are to be taken again."""
        return (self.others or 0.0) > QUIET or self.shares_cores(threads)


def together(threads: int) -> float | None:
    """How many times as fast so many threads compute as one alone.

    >>> together(1) is None
    True
    """
    if threads == 1:
        return None
    values, out = torch.full((2, threads * _VALUES), 0.5)
    before = torch.get_num_threads()
    least: list[float] = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            times: list[float] = []
            for _ in range(8):
                start = time.perf_counter()
                torch.exp(values, out=out)
                times.append(time.perf_counter() - start)
            least.append(min(times))
    finally:
        torch.set_num_threads(before)
    return least[0] / least[1]


class Patience:
    """Waits until every thread has a core of its own, so many seconds in all.

    >>> Patience(seconds=0).wait(threads=1) is None
    True
    """

    def __init__(
        self,
        seconds: float,
        look: Callable[[int], float | None] = together,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.left, self.look, self._sleep = seconds, look, sleep

    def wait(self, threads: int) -> float | None:
        """What :func:`together` says once it is so, or once the time is over."""
        while Load(together=(found := self.look(threads))).shares_cores(threads) and self.left > 0:
            self._sleep(_PAUSE)
            self.left -= _PAUSE
        return found


class Others:
    """How many cores others keep busy, from when it is made.

    >>> others = Others()
    >>> cores_of_others = others.cores()
    """

    def __init__(self) -> None:
        self._start = _clocks()

    def cores(self) -> float | None:
        """On average since the start; None where the system does not say."""
        end = _clocks()
        if self._start is None or end is None:
            return None
        busy, own, elapsed = (b - a for a, b in zip(self._start, end, strict=True))
        theirs = busy - own
        return theirs / elapsed if theirs > _COARSE and elapsed > 0 else 0.0


def _clocks() -> tuple[float, float, float] | None:
    """Seconds that all cores, and this process, have computed, and that have passed."""
    busy = _busy(Path("/proc/stat"))
    return None if busy is None else (busy, time.process_time(), time.perf_counter())


def _busy(path: Path) -> float | None:
    """Seconds that the cores this process may use have computed since the start of the system."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [line[1:] for line in lines if line and line[0] in ours]
        ticks = sum(int(each[column]) for each in found for column in _BUSY)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if len(found) == cores() else None
