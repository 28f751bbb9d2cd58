"""Several comparisons as one: which share data, network and settings, and what they give together.

Runs are paired by seed wherever they lie: runs of equal network and seed start with equal weights
and see equal batches. A run that lies in several folders counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normalform.lab.report.findings import Arm, Findings, Network, compare
from normalform.lab.report.questions import Comparison

_SETTINGS = ("epochs", "lr", "choices", "momentum", "sgd_batch", "precision")
_ALIKE = 1e-3  # relative; what machines may differ by before the first step


@dataclass(frozen=True)
class Named:
    """A comparison and what to call it on the page."""

    name: str
    findings: Findings


@dataclass(frozen=True)
class Joined:
    """Comparisons that share data, network and settings.

    Attributes:
        parts: the comparisons.
        findings: all their runs together; that of the one part where there is one.
        repeated: what is said of runs that lie in several of them.
    """

    parts: tuple[Named, ...]
    findings: Findings
    repeated: tuple[str, ...]

    @property
    def name(self) -> str:
        """What to call it."""
        return " + ".join(part.name for part in self.parts)


def join(every: Iterable[Named]) -> list[Joined]:
    """Put together what may be compared arm by arm."""
    together: list[list[Named]] = []
    for one in every:
        for parts in together:
            if _same_place(parts[0], one) and _settings(parts[0]) == _settings(one):
                parts.append(one)
                break
        else:
            together.append([one])
    return [_joined(parts, f"{i}/") for i, parts in enumerate(together)]


def elsewhere(every: Sequence[Joined]) -> Iterator[tuple[Joined, Joined, list[Comparison]]]:
    """Arms that were trained with other settings too, on the same data and network.

    Yields:
        The later comparison, the earlier one it is compared with, and each of their common arms.
    """
    for i, later in enumerate(every):
        first = next((j for j in every[:i] if _same_place(j.parts[0], later.parts[0])), None)
        if first is None:
            continue
        yield (
            later,
            first,
            [
                Comparison(network, arm, other, compare(arm, other))
                for network, known in zip(
                    later.findings.networks, first.findings.networks, strict=True
                )
                for arm in network.arms
                for other in known.arms
                if arm.label == other.label
            ],
        )


def strangers(every: Sequence[Named]) -> Iterator[str]:
    """Comparisons of networks that have one name and are not known to be one."""
    for i, one in enumerate(every):
        for other in every[:i]:
            names = {n.title for n in one.findings.networks} & {
                n.title for n in other.findings.networks
            }
            same = all(map(_same_network, one.findings.networks, other.findings.networks))
            if names and not same:
                yield (
                    f"{names.pop()}: in {other.name} and {one.name} the first norm was given "
                    "other values before the first step, or they share no seed. They are taken "
                    "for two networks."
                )


def _settings(one: Named) -> list[Any]:
    config = one.findings.meta["config"]
    return [config.get(name) or 0 for name in _SETTINGS]


def _same_place(a: Named, b: Named) -> bool:
    """Whether two comparisons have the same data, metric and networks."""
    one, other = a.findings, b.findings
    if one.metric != other.metric or len(one.networks) != len(other.networks):
        return False
    same_data = one.meta["data"]["sha256"] == other.meta["data"]["sha256"]
    return same_data and all(map(_same_network, one.networks, other.networks))


def _same_network(a: Network, b: Network) -> bool:
    """By what is said of them, and of a network of the user's by what it computed before training.

    Its code may have changed under its name; then its first norm was given other values.
    """
    if (a.name, a.title, a.ends, a.own) != (b.name, b.title, b.ends, b.own):
        return False
    if not a.own:
        return True
    first, second = _births(a), _births(b)
    return any(np.isclose(first[s], second[s], rtol=_ALIKE) for s in first.keys() & second.keys())


def _births(network: Network) -> dict[int, float]:
    """The spread before the first norm and the first step, which is that of every arm, by seed."""
    return {
        seed: float(recorded["conv_std"][0, 0])
        for arm in network.arms
        for seed, recorded in arm.details.items()
        if np.size(recorded.get("conv_std", ()))
    }


def _joined(parts: list[Named], mark: str) -> Joined:
    every = [part.findings for part in parts]
    first = every[0]
    networks = tuple(
        replace(network, arms=tuple(_arms([f.networks[i] for f in every])))
        for i, network in enumerate(first.networks)
    )
    config = first.meta["config"]
    seeds = {
        name: sorted({seed for f in every for seed in f.meta["config"].get(name, ())})
        for name in ("seeds", "small_batch_seeds")
        if name in config
    }
    meta = {**first.meta, "config": {**config, **seeds}}
    meta["runs"] = list(dict.fromkeys(run_id for f in every for run_id in f.meta["runs"]))
    nbs = sorted({size for f in every for size in f.nbs}, reverse=True)
    damaged = tuple(line for f in every for line in f.damaged)
    findings = Findings(first.folder, meta, networks, tuple(nbs), damaged, mark)
    marked = [replace(f, mark=f"{mark}{i}/") for i, f in enumerate(every)]
    named = tuple(Named(p.name, f) for p, f in zip(parts, marked, strict=True))
    return Joined(named, findings, tuple(_repeated(named)))


def _arms(networks: Sequence[Network]) -> Iterator[Arm]:
    """Each arm with its runs from all folders."""
    labels = dict.fromkeys(arm.label for network in networks for arm in network.arms)
    for label in labels:
        same = [arm for network in networks for arm in network.arms if arm.label == label]
        seeds = sorted({seed for arm in same for seed in arm.seeds})
        held = {seed: _holder(same, seed) for seed in seeds}
        rows = {seed: arm.rows[seed] for seed, arm in held.items() if arm}
        details = {s: a.details[s] for s, a in held.items() if a and s in a.details}
        yield replace(same[0], rows=rows, details=details, seeds=tuple(seeds))


def _holder(arms: Sequence[Arm], seed: int) -> Arm | None:
    """The first that has the run of a seed, rather one whose details can be read."""
    have = [arm for arm in arms if seed in arm.rows]
    return next((arm for arm in have if seed in arm.details), have[0] if have else None)


def _repeated(parts: Sequence[Named]) -> Iterator[str]:
    """How many runs lie in several folders, and whether they agree."""
    found: dict[tuple[str, str, int], list[Any]] = {}
    for part in parts:
        for row in part.findings.rows:
            found.setdefault((row.network, row.arm, row.seed), []).append(row)
    several = [rows for rows in found.values() if len(rows) > 1]
    if not several:
        return
    yield f"Runs that lie in more than one of these folders and count once: {len(several)}."
    other = _count(several, lambda row: row.run_id)
    if other:
        yield (
            f"Made with other versions in each folder: {other} of these; the first that lies in "
            f"{', '.join(part.name for part in parts)} counts."
        )
    differ = _count(several, lambda row: row.test_error)
    if differ:
        yield f"With another result in each folder: {differ} of these."


def _count(several: Sequence[Sequence[Any]], what: Callable[[Any], object]) -> int:
    return sum(len({what(row) for row in rows}) > 1 for rows in several)
