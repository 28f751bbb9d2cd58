"""Remedies, tried on a copy of the model before anybody is told of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from normalform.diagnose.finding import Tried
from normalform.diagnose.measure import Data, Result, distance, run
from normalform.surgery.recalibrate import recalibrate


def on_copy(model: nn.Module, data: Data, mend: Callable[[nn.Module], object]) -> Result | None:
    """What a mended copy of the model gives in evaluation; None where there can be none."""
    try:
        mended = copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError):  # it holds a lock, a graph, a handle
        return None
    try:
        mend(mended)
        return run(mended.eval(), data)
    except (ValueError, RuntimeError):  # not with these batches
        return None


def compared(before: Result, after: Result) -> Tried:
    """The loss before and after, and by how much the outputs changed."""
    return Tried(before.loss, after.loss, distance(after, before))


def recalibrated(data: Data, model: nn.Module) -> None:
    """The remedy that is tried most: population statistics of the batches."""
    recalibrate(model, data.batches)
