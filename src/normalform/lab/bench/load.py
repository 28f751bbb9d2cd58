"""What other programs do meanwhile: a time taken on a busy machine says little.

Threads that wait for each other stand still together whenever another program takes one's core:
everything parallel becomes slower a hundredfold, and not by the same factor.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from normalform.lab.environment import cores

QUIET = 0.1  # cores that others may keep busy; the system's own work is some hundredths
_COARSE = 0.05  # seconds: the system counts in hundredths, for each core
_BUSY = (0, 1, 2, 5, 6, 7)  # columns: user, nice, system, irq, softirq, and stolen by other guests


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
