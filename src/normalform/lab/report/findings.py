"""A finished comparison arranged for reading: networks, their arms, and what each arm did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalform.lab.metrics import METRICS, Metric, metric_named
from normalform.lab.records import Row, RunFolder, read
from normalform.lab.statistics import Estimate, crossed_mean, paired_difference

Details = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Arm:
    """One norm at one normalization batch size, in one network.

    Attributes:
        label: what the records call it, unique in its network.
        norm: the norm's name, ``"group:4"``.
        nbs: samples that share batch statistics; None where statistics ignore the batch.
        sgd_batch: samples in a training step.
        usual_batch: the training step of the other arms.
        rows: its finished runs, by seed.
        details: what the runs recorded, by seed.
        seeds: those of the plan.
        metric: what is measured.
        samples: what to call the data, see :attr:`Findings.samples`.
    """

    label: str
    norm: str
    nbs: int | None
    sgd_batch: int
    usual_batch: int
    rows: Mapping[int, Row]
    details: Mapping[int, Details]
    seeds: tuple[int, ...]
    metric: Metric = METRICS["error"]
    samples: str = "images"

    @property
    def key(self) -> str:
        """What is drawn in one colour: the norm, or ``"sgd"`` for another SGD batch."""
        return "sgd" if self.sgd_batch != self.usual_batch else self.norm

    @property
    def stem(self) -> str:
        """The norm without its number: ``"group"`` for ``"group:4"``."""
        return self.norm.partition(":")[0]

    @property
    def planned(self) -> int:
        """How many runs the plan has."""
        return len(self.seeds)

    @cached_property
    def errors(self) -> dict[int, float]:
        """The test error, or what else is measured, by seed, of the runs that have one."""
        return {s: r.test_error for s, r in self.rows.items() if r.test_error is not None}

    @property
    def mean_error(self) -> float:
        """Mean test error over the seeds; NaN without any."""
        return float(np.mean(list(self.errors.values()))) if self.errors else float("nan")

    @property
    def impossible(self) -> str:
        """Why the arm cannot be trained here; empty where it can."""
        reasons = [r.reason for r in self.rows.values() if r.status == "impossible"]
        return reasons[0] if reasons and not self.errors else ""

    @property
    def diverged(self) -> int:
        """How many runs ended in a loss that is not finite."""
        return sum(r.status == "diverged" for r in self.rows.values())

    @property
    def values(self) -> NDArray[Any] | None:
        """Values behind each mean, shape (layers, branches); None where nothing was recorded."""
        return next((d["values"] for d in self.details.values() if "values" in d), None)

    def wrong(self, seeds: Sequence[int]) -> NDArray[Any]:
        """What each test image counts, 1 where it is misclassified, shape (seeds, images)."""
        found = (self.details[s] for s in seeds)
        return np.stack([d["scores"] if "scores" in d else 1.0 - d["correct"] for d in found])

    @cached_property
    def judged(self) -> list[int]:
        """The seeds whose verdict on every test image is recorded."""
        verdicts = {"correct", "scores"}
        return sorted(s for s in self.errors if verdicts & set(self.details.get(s, {})))

    @cached_property
    def estimate(self) -> Estimate | None:
        """Its test error with an interval for new seeds and images."""
        return crossed_mean(self.wrong(self.judged)) if self.judged else None

    def mean(self, quantity: str) -> NDArray[Any] | None:
        """A recorded curve averaged over the seeds, None where none has it."""
        curves = [d[quantity] for _, d in sorted(self.details.items()) if quantity in d]
        longest = max((c.shape for c in curves), default=None)
        same = [c for c in curves if c.shape == longest]
        return np.mean(same, axis=0) if same else None


@dataclass(frozen=True)
class Network:
    """A network and the arms trained in it.

    Attributes:
        name: what the records call it.
        title: widths, stride and last map.
        ends: what to call it: its last map, with its widths where two end alike.
        arms: in the order to show them.
        own: it is the user's, not one of the two probe networks.
    """

    name: str
    title: str
    ends: str
    arms: tuple[Arm, ...]
    own: bool = False

    @property
    def heading(self) -> str:
        """What to call it above its part of the page."""
        return self.name if self.own else f"Ends at {self.ends}"

    @property
    def called(self) -> str:
        """What to call it inside a sentence."""
        return f"network {self.name}" if self.own else f"network that ends at {self.ends}"

    def select(self, stem: str, nbs: int | None = None) -> list[Arm]:
        """The arms of a norm, whatever its number, at a normalization batch size."""
        return [a for a in self.arms if (a.stem, a.nbs) == (stem, nbs) and a.key != "sgd"]

    @property
    def layers(self) -> list[str]:
        """What to call each layer: its channels and its map."""
        for arm in self.arms:
            for recorded in arm.details.values():
                maps = ["x".join(map(str, np.atleast_1d(m))) for m in recorded["maps"]]
                found = [
                    f"{c} channels, {m}" for c, m in zip(recorded["channels"], maps, strict=True)
                ]
                if not self.own:
                    return found
                return [f"{p}: {text}" for p, text in zip(recorded["places"], found, strict=True)]
        return []


@dataclass(frozen=True)
class Findings:
    """Everything a report is made from.

    Attributes:
        folder: where it was read.
        meta: ``run.json``.
        networks: the probe networks.
        nbs: the normalization batch sizes, largest first.
        damaged: what could not be read, in words.
        mark: what the names of its charts begin with, on a page of several comparisons.
    """

    folder: Path
    meta: Mapping[str, Any]
    networks: tuple[Network, ...]
    nbs: tuple[int, ...]
    damaged: tuple[str, ...]
    mark: str = ""

    @property
    def metric(self) -> Metric:
        """What is measured."""
        return metric_named(self.meta.get("metric", "error"))

    @property
    def samples(self) -> str:
        """What to call the data: images, or samples where they have another shape."""
        return _samples(self.meta)

    @property
    def own(self) -> bool:
        """Whether the network is the user's."""
        return any(network.own for network in self.networks)

    @property
    def rows(self) -> list[Row]:
        """All finished runs."""
        return [r for n in self.networks for a in n.arms for r in a.rows.values()]

    @property
    def seeds(self) -> int:
        """How many seeds the plan has."""
        return len(self.meta["config"]["seeds"])


def load(folder: Path) -> Findings:
    """Read a run folder.

    Raises:
        ValueError: the folder holds no comparison.
    """
    run = read(folder)
    damaged: list[str] = []
    details = _details(run, damaged)
    networks = tuple(_network(run, entry, details) for entry in run.meta["networks"])
    sizes = {a.nbs for n in networks for a in n.arms if a.nbs is not None and a.key != "sgd"}
    return Findings(folder, run.meta, networks, tuple(sorted(sizes, reverse=True)), tuple(damaged))


def compare(a: Arm, b: Arm) -> Estimate | None:
    """Error of arm a minus error of arm b over the seeds both have; None if they share none."""
    seeds = sorted(set(a.judged) & set(b.judged))
    return paired_difference(a.wrong(seeds), b.wrong(seeds)) if seeds else None


def _samples(meta: Mapping[str, Any]) -> str:
    return "images" if len(meta["data"]["shape"]) == 3 else "samples"


def _details(run: RunFolder, damaged: list[str]) -> dict[str, Details]:
    found: dict[str, Details] = {}
    for row in run.rows:
        if row.status == "impossible":
            continue
        try:
            found[row.run_id] = run.details(row)
        except ValueError as error:
            damaged.append(str(error))
    return found


def _network(run: RunFolder, entry: Mapping[str, Any], details: Mapping[str, Details]) -> Network:
    rows = [row for row in run.rows if row.network == entry["name"]]
    arms = (_arm(run, shown, rows, details) for shown in run.meta["arms"])
    ends = entry["last_map"]
    if [other["last_map"] for other in run.meta["networks"]].count(ends) > 1:
        ends += f" ({'-'.join(map(str, entry['widths']))})"
    own = bool(entry.get("own"))
    return Network(entry["name"], entry["title"], ends, tuple(a for a in arms if a.planned), own)


def _arm(
    run: RunFolder, shown: Mapping[str, Any], rows: Iterable[Row], details: Mapping[str, Details]
) -> Arm:
    own = {row.seed: row for row in rows if row.arm == shown["label"]}
    config = run.meta["config"]
    usual = shown["sgd_batch"] == config["sgd_batch"]
    seeds = config["seeds"] if usual else config.get("small_batch_seeds", config["seeds"])
    return Arm(
        label=shown["label"],
        norm=shown["norm"],
        nbs=shown["nbs"],
        sgd_batch=shown["sgd_batch"],
        usual_batch=config["sgd_batch"],
        rows=dict(sorted(own.items())),
        details={s: details[r.run_id] for s, r in own.items() if r.run_id in details},
        seeds=tuple(seeds),
        metric=metric_named(run.meta.get("metric", "error")),
        samples=_samples(run.meta),
    )
