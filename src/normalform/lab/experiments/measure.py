"""What a worker does with a trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from normalform.lab.experiments.experiment import Measured, Trial, Value
from normalform.lab.experiments.store import TAKEN
from normalform.lab.models import seeded


class Outcome(NamedTuple):
    """What came of a trial, as it can be kept."""

    values: dict[str, Value]
    steps: dict[str, list[Value]]
    seconds: float


def able() -> Callable[[Trial, Callable[[], None]], Outcome]:
    """Measure trials: with which numbers the global generators start depends on nothing before."""
    return lambda trial, tick: measure(trial)


def measure(trial: Trial) -> Outcome:
    """Measure one trial.

    Raises:
        ValueError: it measured something that cannot stand in a table.

    >>> def halves(seed, steps):
    ...     return Measured({"error": 0.5}, {"step": range(steps)})
    >>> measure(Trial("batch", 0, halves, {"steps": 3})).steps
    {'step': [0, 1, 2]}
    """
    started = time.perf_counter()
    with seeded(trial.seed):
        measured = trial.measure(seed=trial.seed, **trial.settings)
    values, steps = _kept(measured)
    return Outcome(values, steps, time.perf_counter() - started)


def _kept(measured: Measured) -> tuple[dict[str, Value], dict[str, list[Value]]]:
    values = {name: _value(name, value) for name, value in measured.values.items()}
    steps = {name: _column(name, column) for name, column in measured.steps.items()}
    taken = TAKEN & (values.keys() | steps.keys())
    if taken:
        raise ValueError(f"{min(taken)!r} is a column of every table; measure it by another name")
    if len({len(column) for column in steps.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in steps.items())
        raise ValueError(f"the columns of the steps differ in length: {lengths}")
    return values, steps


def _column(name: str, column: Iterable[Any]) -> list[Value]:
    return [_value(name, value) for value in column]


def _value(name: str, value: Any) -> Value:
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, int | float | str):
        raise ValueError(f"{name!r} is a {type(plain).__name__}, not a number or a word")
    return plain
