"""All that the checks may look at, gathered once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from normalform.diagnose.finding import Losses, Tried
from normalform.diagnose.gap import Part, attributed, fall
from normalform.diagnose.measure import Data, Result, batch_statistics, distance, run
from normalform.diagnose.norms import Norm
from normalform.diagnose.trial import compared, on_copy, recalibrated
from normalform.diagnose.watch import Seen, watched
from normalform.surgery.keeping import kept

# A gap is one where evaluation loses more than a tenth of what it has, and more than a hundredth of
# what knowing nothing costs: a loss of 0.002 instead of 0.001 is twice as much and nothing.
GAP, OF_CHANCE = 0.1, 0.01
# Without a loss: outputs are off by a quarter of their size, and at most half of that is left after
# the statistics are made anew, so that it is not the noise of the batch's own statistics.
APART, LEFT = 0.25, 0.5


@dataclass(frozen=True)
class Measured:
    """What came out of the passes over a few batches.

    Attributes:
        data: the batches, and the loss.
        evaluation: the model in evaluation.
        losses: of the passes.
        seen: what each norm got in evaluation, by name; those never called are missing.
        fed: the same with the statistics of the batch in all norms.
        parts: of the gap, by norm; empty where there is none.
        idle: norms that are never called, in training neither.
        recalibrated: what recalibration did to a copy.
    """

    data: Data
    evaluation: Result
    losses: Losses
    seen: Mapping[str, Seen]
    fed: Mapping[str, Seen]
    parts: Mapping[str, Part] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    recalibrated: Tried | None = None


@dataclass(frozen=True)
class Facts:
    """A model, and what was measured of it.

    Attributes:
        model: the model, without wrappers.
        norms: in the order they run where that is known.
        optimizer: that trains it.
        ranks: processes in which a wrapper trains it, 0 without one.
        held: norms in evaluation mode while the model is in training.
        tail: samples in the loader's last batch where that is smaller, else 0.
        measured: None without batches.
        refused: the norm that could not take its input, of one value, so that nothing is measured.
    """

    model: nn.Module
    norms: tuple[Norm, ...]
    optimizer: torch.optim.Optimizer | None = None
    ranks: int = 0
    held: frozenset[str] = frozenset()
    tail: int = 0
    measured: Measured | None = None
    refused: Norm | None = None


def is_gap(losses: Losses, chance: float | None) -> bool:
    """Whether the difference is one to speak of."""
    gap = fall(losses.evaluation, losses.batch)
    if losses.unit == "distance":
        after = losses.recalibrated
        return gap > APART and (after is None or after < LEFT * gap)
    floor = OF_CHANCE * abs(chance) if chance is not None and math.isfinite(chance) else 0.0
    own = abs(losses.evaluation) if math.isfinite(losses.evaluation) else 0.0
    return gap > max(GAP * own, floor)


def measure(model: nn.Module, norms: tuple[Norm, ...], data: Data) -> Measured | Norm:
    """Run the passes; the model is in evaluation, and whoever lent it puts it back.

    Where a norm refuses its input because of a single value in a cell, it is returned instead.
    """
    seen: dict[str, Seen] = {}
    try:
        with watched(model, norms, seen):
            evaluation = run(model, data)
    except ValueError:
        refusing = [n for n in norms if n.name in seen and seen[n.name].values == 1]
        if not refusing:
            raise
        return max(refusing, key=lambda norm: seen[norm.name].order)
    called = sorted((n for n in norms if n.name in seen), key=lambda n: seen[n.name].order)
    switched = [n for n in called if n.switchable and seen[n.name].values > 1 and n.eps != 0]
    fed: dict[str, Seen] = {}
    with watched(model, norms, fed), batch_statistics(switched):
        training = run(model, data)
    mended = on_copy(model, data, partial(recalibrated, data)) if switched else None
    losses = _losses(evaluation, training, mended)
    gap = bool(switched) and is_gap(losses, evaluation.chance)
    parts = attributed(model, data, switched) if gap else {}
    idle = _idle(model, data, [norm for norm in norms if norm.name not in seen])
    tried = None if mended is None else compared(evaluation, mended)
    return Measured(data, evaluation, losses, seen, fed, parts, idle, tried)


def _losses(evaluation: Result, training: Result, mended: Result | None) -> Losses:
    if evaluation.loss is None or training.loss is None:
        after = None if mended is None else distance(mended, training)
        return Losses(distance(evaluation, training), 0.0, after, "distance")
    return Losses(evaluation.loss, training.loss, None if mended is None else mended.loss)


def _idle(model: nn.Module, data: Data, norms: list[Norm]) -> frozenset[str]:
    """Those of ``norms`` that are not called in training either, as an auxiliary head is."""
    if not norms:
        return frozenset()
    seen: dict[str, Seen] = {}
    try:
        with kept(model), watched(model, norms, seen):
            run(model.train(), Data(data.batches[:1]))
    except (ValueError, RuntimeError):  # too few values to train on: nobody knows
        return frozenset()
    return frozenset(norm.name for norm in norms if norm.name not in seen)
