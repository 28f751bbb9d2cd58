"""What an experiment is: a claim, the trials that could refute it, a rule that judges them.

::

    trials(settings)  ->  Trial, Trial, ...      what to measure, one seed of one arm each
    measure(seed=..., **settings)  ->  Measured  in a worker process, one thread, deterministic
    judge(Results)  ->  Verdict                  by the rule that was fixed before the first run
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

Value = float | int | str


class Measured(NamedTuple):
    """What one trial gave.

    Attributes:
        values: one row of the table of runs, without arm and seed.
        steps: columns of equal length, a row a step, an epoch or a layer.
    """

    values: Mapping[str, Value]
    steps: Mapping[str, Sequence[Value]] = MappingProxyType({})


@dataclass(frozen=True)
class Trial:
    """One measurement: everything that decides its result.

    Attributes:
        arm: "batch, NBS 2", what the reader sees.
        seed: of every random number in it.
        measure: a function of a module, called ``measure(seed=seed, **settings)``.
        settings: numbers, words, lists and mappings of these; a part of the run's id.
    """

    arm: str
    seed: int
    measure: Callable[..., Measured]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The finished trials of one experiment.

    Attributes:
        runs: ``arm``, ``seed`` and the values of each.
        steps: ``arm``, ``seed`` and one row of the steps of each.

    >>> results = Results([{"arm": "batch", "seed": seed, "error": 0.5} for seed in (0, 1)], [])
    >>> results.mean("batch", "error"), results.by_seed("batch", "error")
    (0.5, {0: 0.5, 1: 0.5})
    """

    runs: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    def of(self, arm: str) -> list[dict[str, Any]]:
        """The runs of an arm, in the order of the seeds.

        Raises:
            ValueError: no run of it is finished.
        """
        found = [run for run in self.runs if run["arm"] == arm]
        if not found:
            raise ValueError(f"no run of the arm {arm!r} is finished")
        return sorted(found, key=lambda run: run["seed"])

    def steps_of(self, arm: str) -> list[dict[str, Any]]:
        """The steps of an arm's runs, seed by seed, each in its order."""
        return sorted((row for row in self.steps if row["arm"] == arm), key=lambda row: row["seed"])

    def by_seed(self, arm: str, key: str) -> dict[int, Any]:
        """A value of each run of an arm."""
        return {run["seed"]: run[key] for run in self.of(arm)}

    def mean(self, arm: str, key: str) -> float:
        """The mean of a value over the runs of an arm."""
        return statistics.fmean(self.by_seed(arm, key).values())

    def differences(self, arm: str, other: str, key: str) -> list[float]:
        """``arm - other`` for each seed that both have.

        Raises:
            ValueError: they have none in common.
        """
        ours, theirs = self.by_seed(arm, key), self.by_seed(other, key)
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not pairs:
            raise ValueError(f"the arms {arm!r} and {other!r} have no seed in common")
        return pairs


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held here.

    Attributes:
        met: every condition of the rule.
        numbers: a line for each condition, with its numbers, what was needed, and whether it held.
    """

    met: bool
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """A claim that can fail, and everything needed to try it.

    Attributes:
        name: on the command line.
        title: on the page.
        claim: one sentence, with the paper it comes from.
        setup: data, network, steps: what a reader needs to repeat it.
        rule: when the claim counts as met, in words, fixed before the default was first run.
        default: settings, among them ``seeds``, how many; less than two minutes on two cores.
        quick: the same in seconds.
        full: the same for GPUs and whole data sets.
        trials: from the settings to what is measured.
        judge: applies the rule.
        picture: an Altair chart that explains itself.
    """

    name: str
    title: str
    claim: str
    setup: str
    rule: str
    default: Mapping[str, Any]
    quick: Mapping[str, Any]
    full: Mapping[str, Any]
    trials: Callable[[Mapping[str, Any]], list[Trial]]
    judge: Callable[[Results], Verdict]
    picture: Callable[[Results], Any]


def judged(experiment: Experiment, results: Results, missing: int = 0) -> Verdict:
    """The verdict on what is finished; a rule that cannot be applied is not met, and says why.

    Args:
        experiment: whose rule.
        results: its finished runs.
        missing: how many runs of its plan are not among them.
    """
    without = (f"{missing} runs are missing in these numbers",) if missing else ()
    try:
        verdict = experiment.judge(results)
    except Exception as error:
        verdict = Verdict(False, (f"cannot be judged: {type(error).__name__}: {error}",))
    return Verdict(verdict.met, (*verdict.numbers, *without))
