"""Which experiments, with which settings, and the names under which their runs are kept."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalform.lab.data import load, name_of
from normalform.lab.environment import version
from normalform.lab.experiments.experiment import Experiment, Trial
from normalform.lab.experiments.store import FORMAT
from normalform.lab.folders import inside, plain

DEFAULT_NAME = "experiments"


@dataclass(frozen=True)
class Options:
    """What ``normalform compare --experiment`` can be told.

    Attributes:
        experiment: names, or ``all``; ``list`` says which there are.
        quick: seconds instead of minutes.
        full: for GPUs and whole data sets.
        seeds: how many; every arm of every experiment gets as many.
        workers: processes that measure side by side; by default one a core, eight at most.
        name: of the folder; by default "experiments", with "-quick" or "-full" where it applies,
            and with the name of the data where they are given.
        out: where the folder is made.
        command: what was typed, for the report.
        quiet: print nothing.
        report: write the report.
        data: in the place of the experiment's own, where it has a setting of that name; what
            :func:`normalform.lab.data.load` takes.
    """

    experiment: Sequence[str]
    quick: bool = False
    full: bool = False
    seeds: int | None = None
    workers: int | None = None
    name: str | None = None
    out: Path = Path("runs")
    command: str = ""
    quiet: bool = False
    report: bool = True
    data: str | Path | None = None


@dataclass(frozen=True)
class Plan:
    """One experiment as it is to be run.

    Attributes:
        experiment: what it is.
        settings: of this time.
        trials: by id.
    """

    experiment: Experiment
    settings: Mapping[str, Any]
    trials: Mapping[str, Trial]

    def describe(self) -> dict[str, Any]:
        """What stands in run.json of it."""
        words = ("title", "claim", "setup", "rule")
        said = {word: getattr(self.experiment, word) for word in words}
        return said | {"settings": dict(self.settings), "runs": list(self.trials)}


def planned(options: Options, table: Mapping[str, Experiment]) -> dict[str, Plan]:
    """The experiments that are asked for, in the order of the table.

    Raises:
        ValueError: there is none of a name, a number makes no sense, a trial cannot be kept, or
            the data cannot be used by an experiment.
        FileNotFoundError: there is no such data.
    """
    if options.quick and options.full:
        raise ValueError("--quick and --full: choose one")
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"seeds {options.seeds}: at least 1 is needed")
    names = set(table) if "all" in options.experiment else set(options.experiment)
    for name in sorted(names - set(table)):
        raise ValueError(f"experiment {name!r}: unknown; there are {', '.join(table)}, and all")
    if options.data is None:
        return {name: _plan(table[name], options) for name in table if name in names}
    takes = [name for name, experiment in table.items() if "data" in experiment.default]
    for name in sorted(names - set(takes)):
        raise ValueError(f"--data: experiment {name} has no such setting; {', '.join(takes)} have")
    sha256 = load(options.data).sha256
    return {name: _plan(table[name], options, sha256) for name in table if name in names}


def _plan(experiment: Experiment, options: Options, sha256: str = "") -> Plan:
    """One experiment, on the data of this fingerprint where others than its own are given."""
    size = "quick" if options.quick else "full" if options.full else "default"
    settings = dict(getattr(experiment, size))
    if options.seeds is not None:
        settings["seeds"] = options.seeds
    if options.data is None or options.data == settings["data"]:
        sha256 = ""  # a version of normalform has its data with it
    else:
        settings["data"] = str(options.data)
    trials: dict[str, Trial] = {}
    for trial in experiment.trials(settings):
        run_id = id_of(experiment.name, trial, sha256)
        if run_id in trials:
            raise ValueError(f"{experiment.name}: {trial.arm}, seed {trial.seed} is planned twice")
        trials[run_id] = trial
    return Plan(experiment, settings, trials)


def folder_of(options: Options) -> Path:
    """The folder of the experiments.

    Raises:
        ValueError: the name is not one for a folder.
    """
    name = options.name
    if name is None:
        name = DEFAULT_NAME + "-quick" * options.quick + "-full" * options.full
        name += "" if options.data is None else f"-{name_of(options.data)}"
    return inside(options.out, name)


def id_of(name: str, trial: Trial, sha256: str = "") -> str:
    """A name made of everything that decides the result: equal names, equal results.

    The machine is not in it: experiments may be finished on another one.

    Args:
        name: of the experiment.
        trial: what is measured.
        sha256: of the data where they are not the experiment's own; stands for their name.

    Raises:
        ValueError: a worker could not be sent the trial, or its settings not be written down.
    """
    measure = f"{trial.measure.__module__}.{trial.measure.__qualname__}"
    what = {
        **FORMAT,
        "normalform": version("normalform"),
        "torch": version("torch"),
        "experiment": name,
        "arm": trial.arm,
        "seed": trial.seed,
        "measure": measure,
        "settings": {**trial.settings, "data": sha256} if sha256 else trial.settings,
    }
    try:
        text = json.dumps(what, sort_keys=True)
        pickle.dumps(trial)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"{name}: {trial.arm} cannot be sent to a worker ({error}); measure has to be a "
            "function of a module and its settings numbers, words and lists"
        ) from None
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name}_{plain(trial.arm.lower())}_s{trial.seed}_{digest}"
