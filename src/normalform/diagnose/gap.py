"""The gap between training and evaluation, and which norms it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from normalform.diagnose.measure import Data, batch_statistics, distance, run
from normalform.diagnose.norms import Norm
from normalform.surgery.feeding import batches as passes

PASSES = 32  # at most, over BATCHES batches: every norm of a model of 31 by itself
BATCHES = 2
SMALL = 1e-3  # of the gap: a stretch of norms that makes less of it is not divided further


@dataclass(frozen=True)
class Part:
    """What a norm adds to the gap.

    Attributes:
        effect: in units of the loss, or of the distance without one; all add up to the gap. A
            negative one means that the norm hides some of what others do.
        share: of the effects that are positive, 1 for all of them.
        among: the neighbours it was not told from; each has the same part.
    """

    effect: float
    share: float
    among: int


def attributed(model: nn.Module, data: Data, norms: Sequence[Norm]) -> dict[str, Part]:
    """How much of the gap each norm makes, by name.

    The norms go over to the statistics of the batch one after the other, in the order they run; a
    norm's part is what the loss falls by when it does. So each is judged on inputs as they are
    where all norms before it are right, its effect on those after it is its own, and the parts add
    up to the gap. Where there are more norms than :data:`PASSES`, stretches of them go over
    together, and those that matter are halved again and again.

    Args:
        model: in evaluation.
        data: the first :data:`BATCHES` batches are used.
        norms: those with running statistics, in the order they run.
    """
    few = Data(data.batches[:BATCHES], data.loss)
    with batch_statistics(norms):
        target = run(model, few)

    def loss(count: int) -> float:
        with batch_statistics(norms[:count]):
            result = run(model, few)
        return distance(result, target) if result.loss is None else result.loss

    ends = {0: loss(0), len(norms): 0.0 if target.loss is None else target.loss}
    total = fall(ends[0], ends[len(norms)])
    _refine(ends, loss, SMALL * abs(total))
    falls = {(a, b): fall(ends[a], ends[b]) for a, b in _stretches(ends)}
    worse = sum(max(0.0, part) for part in falls.values())
    parts: dict[str, Part] = {}
    for (a, b), part in falls.items():
        share = 0.0 if part <= 0 else 1.0 if math.isinf(part) else part / worse
        each = Part(part / (b - a), share / (b - a), b - a)
        parts.update({norm.name: each for norm in norms[a:b]})
    return parts


def fall(before: float, after: float) -> float:
    """By how much a loss falls; infinitely from one that is not finite to one that is."""
    if math.isfinite(before):
        return before - after if math.isfinite(after) else -math.inf
    return math.inf if math.isfinite(after) else 0.0


def _refine(ends: dict[int, float], loss: Callable[[int], float], small: float) -> None:
    """Add losses between the ends, where they differ most."""
    small = small if math.isfinite(small) else 0.0
    for _ in passes(range(PASSES - 2), doing="diagnose: where the gap comes from"):
        falls = {(a, b): abs(fall(ends[a], ends[b])) for a, b in _stretches(ends) if b - a > 1}
        a, b = max(falls, key=falls.__getitem__, default=(0, 0))
        if a == b or falls[a, b] <= small:
            return
        ends[(a + b) // 2] = loss((a + b) // 2)


def _stretches(ends: Iterable[int]) -> list[tuple[int, int]]:
    return list(pairwise(sorted(ends)))
