"""How time is measured: competitors side by side, in rounds.

A round runs every competitor once, in an order shuffled anew, so that a slow moment of the machine
or a cache that a neighbour left warm meets all of them alike. A competitor's turn repeats its call
until about 200 us have passed, and the clock is read after every call. From this come

- the time: the least mean of a turn, which is what the machine does when nothing disturbs it;
- the paired ratio: the median, over the rounds, of two competitors' ratio in the same round, which
  says whether the ratio of the least times is typical;
- percentiles over single calls, the latency.

Nothing is timed before it has run: what compiles at its first call has compiled. Garbage is not
collected meanwhile, and memory once taken stays with the process (:func:`keep_memory`), because
Linux would else take back every large block after each call and clear it for the next one, which
takes five times as long as writing to it. Every call allocates its results as it does in use.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Work = Callable[[], object]
Clock = Callable[[], float]

TURN = 200e-6  # seconds a competitor's turn takes at least
ROUNDS = 7  # at least, however long a call takes
_MOST_CALLS = 1000  # in a turn
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # as malloc.h numbers them
_NEVER = 2**31 - 1


@dataclass(frozen=True)
class Timing:
    """What one competitor took, in seconds.

    Attributes:
        turns: mean over the calls of each round's turn.
        calls: every single call.
    """

    turns: NDArray[np.float64]
    calls: NDArray[np.float64]

    @property
    def best(self) -> float:
        """The least mean of a turn."""
        return float(self.turns.min())

    @property
    def p50(self) -> float:
        """The median call."""
        return float(np.median(self.calls))

    @property
    def p99(self) -> float | None:
        """The 99th percentile of the calls; None where they are fewer than 100."""
        return float(np.percentile(self.calls, 99)) if len(self.calls) >= 100 else None

    def over(self, other: Timing) -> float:
        """The median over the rounds of this competitor's time divided by the other's."""
        return float(np.median(self.turns / other.turns))


def interleaved(
    works: Mapping[str, Work],
    seconds: float,
    least: int = ROUNDS,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time competitors round by round.

    Args:
        works: what each competitor does in a call.
        seconds: no round begins later than this, once ``least`` are done.
        least: rounds that are run in any case.
        clock: seconds that pass.

    >>> timings = interleaved({"sum": lambda: sum(range(100))}, seconds=0, least=3)
    >>> len(timings["sum"].turns)
    3
    """
    calls = {name: _calls(work, clock) for name, work in works.items()}
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in works}
    order = list(works)
    shuffled = random.Random(0)
    with _garbage_kept():
        start = clock()
        rounds = 0
        while rounds < least or clock() - start < seconds:
            shuffled.shuffle(order)
            for name in order:
                found[name].append(_turn(works[name], calls[name], clock))
            rounds += 1
    return {
        name: Timing(np.array([turn.mean() for turn in turns]), np.concatenate(turns))
        for name, turns in found.items()
    }


def keep_memory() -> bool:
    """Let the process keep all memory it takes from now on; whether the C library can (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_MAX, 0) + mallopt(_TRIM_THRESHOLD, _NEVER) == 2


def _calls(work: Work, clock: Clock) -> int:
    """How many calls a turn has; they are warm after this."""
    work()
    least = min(_turn(work, 3, clock).tolist())
    return min(_MOST_CALLS, max(1, -int(-TURN // max(least, 1e-9))))


def _turn(work: Work, calls: int, clock: Clock) -> NDArray[np.float64]:
    """Seconds of each of some calls."""
    ticks = [clock()]
    for _ in range(calls):
        work()
        ticks.append(clock())
    return np.diff(ticks)


@contextmanager
def _garbage_kept() -> Generator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
