"""From what the user asked for to the list of runs, and the names under which they are kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalform.lab.arms import FAMILIES, SGD_BATCH, Arm, plan_arms
from normalform.lab.data import Dataset
from normalform.lab.devices import check_precision, device_named, kind_of
from normalform.lab.environment import version
from normalform.lab.fit import look
from normalform.lab.folders import inside, plain
from normalform.lab.models import OwnNetwork, own_network
from normalform.lab.networks import NETWORKS, STRIDE8, Network
from normalform.lab.records import FORMAT
from normalform.lab.train import HELD_OUT, MOMENTUM, Run

Networks = Network | OwnNetwork


@dataclass(frozen=True)
class Options:
    """What ``normalform compare`` can be told. None means the default, which ``quick`` changes.

    Attributes:
        data: see :func:`normalform.lab.data.load`, and for a model of the user's
            :func:`normalform.lab.samples.take`.
        model: the user's own network, see :mod:`normalform.lab.models`; None for the two here.
        metric: ``error``, ``miou`` or ``mse``, see :mod:`normalform.lab.metrics`.
        quick: a look in half a minute: fewer seeds, epochs and batch sizes.
        seeds: how many; every arm is trained once with each.
        epochs: passes over the training set.
        nbs: normalization batch sizes.
        norms: what to compare: none, batch, layer, instance, group[:g], switch.
        lr: learning rate at an SGD batch of 32, or several, of which each run takes the best on a
            part of the training samples.
        name: of the folder; by default the data's, with "-quick" where it applies.
        out: where the folder is made.
        workers: processes that train side by side; by default one a core, eight at most, and one
            on a GPU.
        command: what was typed, for the report.
        here: train in this process, one run after the other.
        quiet: print nothing.
        report: write the report.
        processes: that share each SGD batch, see :mod:`normalform.lab.distributed`.
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or
            ``mps``, see :mod:`normalform.lab.devices`.
        precision: ``float32``, or ``bfloat16`` or ``float16`` by :class:`torch.autocast`.
    """

    data: Any = "fashion"
    model: Any = None
    metric: str = "error"
    quick: bool = False
    seeds: int | None = None
    epochs: int | None = None
    nbs: Sequence[int] | None = None
    norms: Sequence[str] | None = None
    lr: float | Sequence[float] = 0.05
    name: str | None = None
    out: Path = Path("runs")
    workers: int | None = None
    command: str = ""
    here: bool = False
    quiet: bool = False
    report: bool = True
    processes: int = 1
    device: str = "auto"
    precision: str = "float32"


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
        choices: several of them, of which each run takes the best.
        processes: that share each SGD batch.
        device: where the runs train.
        precision: in which they do.
    """

    seeds: int
    small_batch_seeds: int
    epochs: int
    nbs: tuple[int, ...]
    norms: tuple[str, ...]
    lr: float
    choices: tuple[float, ...] = ()
    processes: int = 1
    device: str = "cpu"
    precision: str = "float32"


DEFAULT = Settings(4, 2, 5, (32, 8, 2), FAMILIES, 0.05)
QUICK = Settings(1, 0, 2, (32, 2), FAMILIES, 0.05)


def settle(options: Options) -> Settings:
    """Fill in the defaults and check the numbers.

    An explicit number of seeds holds for every arm there is.

    Raises:
        ValueError: a number makes no sense, or the device is not to be had.

    >>> settle(Options(seeds=3)).small_batch_seeds
    3
    """
    default = QUICK if options.quick else DEFAULT
    for name, number in (("seeds", options.seeds), ("epochs", options.epochs)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number}: at least 1 is needed")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers {options.workers}: at least 1 is needed")
    rates = tuple(options.lr) if isinstance(options.lr, Sequence) else (options.lr,)
    for lr in rates or (math.nan,):
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr {lr}: the learning rate is a positive number")
    device = device_named(options.device)
    check_precision(options.precision, device)
    small = default.small_batch_seeds if options.processes == 1 else 0
    return Settings(
        options.seeds or default.seeds,
        (options.seeds or small) if small else 0,
        options.epochs or default.epochs,
        default.nbs if options.nbs is None else tuple(options.nbs),
        default.norms if options.norms is None else tuple(options.norms),
        rates[0],
        rates if len(rates) > 1 else (),
        options.processes,
        device,
        options.precision,
    )


def folder_of(options: Options, data: Dataset) -> Path:
    """The comparison's folder.

    Raises:
        ValueError: the name is not one for a folder.
    """
    name = options.name
    if name is None:
        name = data.name + "-quick" * options.quick
        name += f"-{options.processes}-processes" * (options.processes > 1)
        if options.model is not None:
            name = f"{plain(own_network(options.model, 1).name)}-{name}"
    return inside(options.out, name)


def plan_runs(settings: Settings, arms: Sequence[Arm], networks: Sequence[Networks]) -> list[Run]:
    """All runs, seeds outermost: an interrupted comparison has whole pairs.

    Within a seed the long runs come first, so that no worker is left with one at the end.
    """
    runs: list[Run] = []
    where = (settings.device, settings.precision)
    same = (settings.epochs, settings.lr, settings.choices, settings.processes, *where)
    for seed in range(max(settings.seeds, settings.small_batch_seeds)):
        arms_now = [arm for arm in arms if seed < seeds_of(arm, settings)]
        pairs = [Run(network, arm, seed, *same) for network in networks for arm in arms_now]
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
    trainings = 1 + len(run.choices)
    return trainings * per_step * small * (1.0 if run.network == STRIDE8 else 1.5)


def run_id(run: Run, data: Dataset) -> str:
    """A name made of everything that decides the result: equal names, equal results.

    The machine is not in it: a comparison may be finished on another one.
    """
    what = {
        **FORMAT,
        "normalform": version("normalform"),
        "torch": version("torch"),
        "data": data.sha256,
        "network": _identity(run.network),
        "arm": (run.arm.norm, run.arm.nbs, run.arm.sgd_batch),
        "seed": run.seed,
        "epochs": run.epochs,
        "lr": run.lr,
        "momentum": MOMENTUM,
        **({"choices": run.choices} if run.choices else {}),
        **({"processes": run.processes} if run.processes > 1 else {}),
        **({"device": kind_of(run.device)} if run.device != "cpu" else {}),
        **({"precision": run.precision} if run.precision != "float32" else {}),
        **({"metric": data.metric} if data.metric != "error" else {}),
        **({} if data.scaled else {"scaled": False}),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    arm = plain(run.arm.label.lower())
    return f"{plain(run.network.name)}_{arm}_s{run.seed}_{digest}"


def _identity(network: Networks) -> object:
    """What a network is, apart from how it is called."""
    if isinstance(network, OwnNetwork):
        return network.fingerprint, network.source if isinstance(network.source, str) else ""
    return network.widths


def describe(
    settings: Settings, arms: Sequence[Arm], runs: Mapping[str, Run], data: Dataset, name: str
) -> dict[str, Any]:
    """The content of run.json, dates apart."""
    own = [run.network for run in runs.values() if isinstance(run.network, OwnNetwork)][:1]
    size = data.shape[1:]
    return {
        "name": name,
        "metric": data.metric,
        "data": {
            "name": data.name,
            "title": data.title,
            "sha256": data.sha256,
            "train": len(data.x_train),
            "test": len(data.x_test),
            "shape": list(data.shape),
            "classes": list(data.classes),
        },
        "config": {
            "seeds": list(range(settings.seeds)),
            "small_batch_seeds": list(range(settings.small_batch_seeds)),
            "epochs": settings.epochs,
            "nbs": list(settings.nbs),
            "norms": list(settings.norms),
            "lr": settings.lr,
            "choices": list(settings.choices),
            "processes": settings.processes,
            **({"precision": settings.precision} if settings.precision != "float32" else {}),
            "momentum": MOMENTUM,
            "sgd_batch": SGD_BATCH,
        },
        "networks": [
            {
                "name": network.name,
                "title": network.title(*size),
                "widths": [shape[0] for shape in network.maps(*size)],
                "last_map": network.last_map(*size),
                "own": isinstance(network, OwnNetwork),
            }
            for network in own or NETWORKS
        ],
        "arms": [
            {"label": arm.label, "norm": arm.norm, "nbs": arm.nbs, "sgd_batch": arm.sgd_batch}
            for arm in arms
        ],
        "runs": list(runs),
    }


def planned(
    settings: Settings, data: Dataset, model: Any = None
) -> tuple[tuple[Arm, ...], dict[str, Run]]:
    """The arms and the runs by id.

    Args:
        settings: what to do.
        data: on what.
        model: the user's own network; None for the two probe networks.

    Raises:
        ValueError: a norm or batch size is not one to compare, or does not fit the networks, or the
            data do not.
        ImportError: the model cannot be imported.
    """
    arms = plan_arms(settings.norms, settings.nbs)
    arms = tuple(arm for arm in arms if seeds_of(arm, settings))
    fewest = SGD_BATCH * HELD_OUT // (HELD_OUT - 1)
    if settings.choices and len(data.x_train) < fewest:
        raise ValueError(
            f"data {data.name} has {len(data.x_train)} samples to train on; to choose a learning "
            f"rate on a part of them at least {fewest} are needed"
        )
    networks = NETWORKS if model is None else (look(model, arms, data),)
    for arm in arms:
        for network in networks:
            try:
                arm.values(network, *data.shape[1:])
            except ValueError as error:
                widths = "-".join(str(shape[0]) for shape in network.maps(*data.shape[1:]))
                raise ValueError(
                    f"norm {arm.norm} does not fit {widths} channels: {error}"
                ) from None
    return arms, {run_id(run, data): run for run in plan_runs(settings, arms, networks)}
