"""From what the user asked for to the list of runs, and the names under which they are kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalform.lab.arms import FAMILIES, SGD_BATCH, Arm, plan_arms
from normalform.lab.data import Dataset
from normalform.lab.environment import version
from normalform.lab.networks import NETWORKS, STRIDE8
from normalform.lab.records import FORMAT
from normalform.lab.train import MOMENTUM, Run


@dataclass(frozen=True)
class Options:
    """What ``normalform compare`` can be told. None means the default, which ``quick`` changes.

    Attributes:
        data: see :func:`normalform.lab.data.load`.
        quick: a look in half a minute: fewer seeds, epochs and batch sizes.
        seeds: how many; every arm is trained once with each.
        epochs: passes over the training set.
        nbs: normalization batch sizes.
        norms: what to compare: none, batch, layer, instance, group[:g], switch.
        lr: learning rate at an SGD batch of 32.
        name: of the folder; by default the data's, with "-quick" where it applies.
        out: where the folder is made.
        workers: processes that train side by side; by default one a core, eight at most.
        command: what was typed, for the report.
    """

    data: str = "fashion"
    quick: bool = False
    seeds: int | None = None
    epochs: int | None = None
    nbs: Sequence[int] | None = None
    norms: Sequence[str] | None = None
    lr: float = 0.05
    name: str | None = None
    out: Path = Path("runs")
    workers: int | None = None
    command: str = ""


@dataclass(frozen=True)
class Settings:
    """What is really done: the options with every default filled in.

    Attributes:
        seeds: of every arm but the one below.
        small_batch_seeds: of the arm whose SGD batch is 2: it takes 16 times the steps, so that by
            default it gets fewer, and 0, no such arm, where it has to be quick.
        epochs: passes over the training set.
        nbs: normalization batch sizes.
        norms: norms as in the arms.
        lr: learning rate at an SGD batch of 32.
    """

    seeds: int
    small_batch_seeds: int
    epochs: int
    nbs: tuple[int, ...]
    norms: tuple[str, ...]
    lr: float


DEFAULT = Settings(4, 2, 5, (32, 8, 2), FAMILIES, 0.05)
QUICK = Settings(1, 0, 2, (32, 2), FAMILIES, 0.05)


def settle(options: Options) -> Settings:
    """Fill in the defaults and check the numbers.

    An explicit number of seeds holds for every arm there is.

    Raises:
        ValueError: a number makes no sense.

    >>> settle(Options(seeds=3)).small_batch_seeds
    3
    """
    default = QUICK if options.quick else DEFAULT
    for name, number in (("seeds", options.seeds), ("epochs", options.epochs)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number}: at least 1 is needed")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers {options.workers}: at least 1 is needed")
    if not (math.isfinite(options.lr) and options.lr > 0):
        raise ValueError(f"lr {options.lr}: the learning rate is a positive number")
    return Settings(
        options.seeds or default.seeds,
        (options.seeds or default.small_batch_seeds) if default.small_batch_seeds else 0,
        options.epochs or default.epochs,
        default.nbs if options.nbs is None else tuple(options.nbs),
        default.norms if options.norms is None else tuple(options.norms),
        options.lr,
    )


def folder_of(options: Options, data: Dataset) -> Path:
    """The comparison's folder.

    Raises:
        ValueError: the name is not one for a folder.
    """
    name = options.name if options.name is not None else data.name + "-quick" * options.quick
    if not name or name != Path(name).name or name in (".", ".."):
        raise ValueError(f"name {name!r} is not a folder's name; --out says where it is made")
    return options.out / name


def plan_runs(settings: Settings, arms: Sequence[Arm]) -> list[Run]:
    """All runs, seeds outermost: an interrupted comparison has whole pairs.

    Within a seed the long runs come first, so that no worker is left with one at the end.
    """
    runs: list[Run] = []
    for seed in range(max(settings.seeds, settings.small_batch_seeds)):
        arms_now = [arm for arm in arms if seed < seeds_of(arm, settings)]
        pairs = [
            Run(network, arm, seed, settings.epochs, settings.lr)
            for network in NETWORKS
            for arm in arms_now
        ]
        runs += sorted(pairs, key=cost, reverse=True)
    return runs


def seeds_of(arm: Arm, settings: Settings) -> int:
    """How many seeds an arm is trained with."""
    return settings.seeds if arm.sgd_batch == SGD_BATCH else settings.small_batch_seeds


def cost(run: Run) -> float:
    """About how long an epoch takes, in those of the smaller network without norms.

    For the order of the runs and the remaining time shown; measured once, roughly.
    """
    per_step = {"none": 1.0, "switch": 4.5}.get(run.arm.norm, 3.0)
    small = 1 if run.arm.sgd_batch == SGD_BATCH else 0.5 * SGD_BATCH / run.arm.sgd_batch
    return per_step * small * (1.0 if run.network == STRIDE8 else 1.5)


def run_id(run: Run, data: Dataset) -> str:
    """A name made of everything that decides the result: equal names, equal results.

    The machine is not in it: a comparison may be finished on another one.
    """
    what = {
        **FORMAT,
        "normalform": version("normalform"),
        "torch": version("torch"),
        "data": data.sha256,
        "network": run.network.widths,
        "arm": (run.arm.norm, run.arm.nbs, run.arm.sgd_batch),
        "seed": run.seed,
        "epochs": run.epochs,
        "lr": run.lr,
        "momentum": MOMENTUM,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    arm = re.sub(r"[^a-z0-9]+", "-", run.arm.label.lower())
    return f"{run.network.name}_{arm}_s{run.seed}_{digest}"


def describe(
    settings: Settings, arms: Sequence[Arm], runs: Mapping[str, Run], data: Dataset, name: str
) -> dict[str, Any]:
    """The content of run.json, dates apart."""
    channels, height, width = data.shape
    return {
        "name": name,
        "data": {
            "name": data.name,
            "title": data.title,
            "sha256": data.sha256,
            "train": len(data.x_train),
            "test": len(data.x_test),
            "shape": [channels, height, width],
            "classes": list(data.classes),
        },
        "config": {
            "seeds": list(range(settings.seeds)),
            "small_batch_seeds": list(range(settings.small_batch_seeds)),
            "epochs": settings.epochs,
            "nbs": list(settings.nbs),
            "norms": list(settings.norms),
            "lr": settings.lr,
            "momentum": MOMENTUM,
            "sgd_batch": SGD_BATCH,
        },
        "networks": [
            {
                "name": network.name,
                "title": network.title(height, width),
                "widths": list(network.widths),
                "last_map": network.last_map(height, width),
            }
            for network in NETWORKS
        ],
        "arms": [
            {"label": arm.label, "norm": arm.norm, "nbs": arm.nbs, "sgd_batch": arm.sgd_batch}
            for arm in arms
        ],
        "runs": list(runs),
    }


def planned(settings: Settings, data: Dataset) -> tuple[tuple[Arm, ...], dict[str, Run]]:
    """The arms and the runs by id.

    Raises:
        ValueError: a norm or batch size is not one to compare, or does not fit the networks.
    """
    arms = plan_arms(settings.norms, settings.nbs)
    arms = tuple(arm for arm in arms if seeds_of(arm, settings))
    _, height, width = data.shape
    for arm in arms:
        for network in NETWORKS:
            try:
                arm.values(network, height, width)
            except ValueError as error:
                widths = "-".join(map(str, network.widths))
                raise ValueError(
                    f"norm {arm.norm} does not fit {widths} channels: {error}"
                ) from None
    return arms, {run_id(run, data): run for run in plan_runs(settings, arms)}
