"""The tidy tables of the results, for the charts to draw: lists of small records, one a mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from normalform.lab.report.findings import Arm, Findings, Network
from normalform.lab.report.histories import Record, activations, curves, weights
from normalform.lab.report.questions import Comparison, Question
from normalform.lab.report.words import MINUS, points, title, unit, verdict


@dataclass(frozen=True)
class Column:
    """A place on the main figure's axis: what stands under it and which arms stand over it.

    Attributes:
        label: the first line of its label.
        short: the same where there is little room.
        values: the values behind each mean of the last layer, the second line.
        arms: the arms.
        inside: statistics come from inside one sample, so NBS has no meaning there.
    """

    label: str
    short: str
    values: str
    arms: tuple[Arm, ...]
    inside: bool


def tables(findings: Findings, asked: Sequence[Question]) -> dict[str, list[Record]]:
    """All tables by name."""
    return {
        "sides": sides(findings),
        "dots": dots(findings),
        "means": means(findings),
        "differences": differences(asked),
        "curves": curves(findings),
        "weights": weights(findings),
        "activations": activations(findings),
    }


def columns(findings: Findings, network: Network) -> list[Column]:
    """The places on the main figure's axis: NBS from large to small, then the batch-free norms."""
    found: list[Column] = []
    for nbs in findings.nbs:
        arms = tuple(a for a in network.arms if a.nbs == nbs and a.key != "sgd")
        batch = (network.select("batch", nbs) or arms)[0]
        found.append(Column(str(nbs), str(nbs), last_values(batch), arms, inside=False))
    for arm in network.arms:
        if arm.key == "sgd":
            label = f"SGD {arm.sgd_batch}"
            found.append(Column(label, label, last_values(arm), (arm,), inside=False))
    for arm in network.arms:
        if arm.nbs is None:
            short = {"instance": "inst."}.get(arm.stem, arm.stem)
            found.append(Column(arm.norm, short, last_values(arm), (arm,), inside=True))
    return found


def last_values(arm: Arm) -> str:
    """The number of values behind each mean of the last layer, as text."""
    table = arm.values
    if table is not None and table.size:
        return str(int(table[-1, -1]))
    fewest = [r.values_per_statistic_min for r in arm.rows.values()]
    return str(fewest[0]) if fewest and fewest[0] is not None else "\N{EN DASH}"


def sides(findings: Findings) -> list[Record]:
    """Where the main figure's norms with batch statistics stand, and those without."""
    found: list[Record] = []
    for network in findings.networks:
        places = columns(findings, network)
        for inside, what in ((False, "batch statistics"), (True, "no batch statistics")):
            here = [i for i, place in enumerate(places) if place.inside is inside]
            if here:
                ends = {"a": here[0] - 0.5, "b": here[-1] + 0.5}
                found.append({"network": network.name, "inside": inside, "what": what, **ends})
    return found


def dots(findings: Findings) -> list[Record]:
    """One record a run: its test error, spread sideways so that no dot hides another."""
    return [
        {
            "network": network.name,
            "arm": arm.label,
            "key": arm.key,
            "x": round(place + beside * (0.22 + 0.05 * i), 3),
            "error": floored(error, findings),
            "what": f"{title(arm)}, seed {seed}: {findings.metric.shown(error)}",
        }
        for network, arm, place, beside in _places(findings)
        for i, (seed, error) in enumerate(arm.errors.items())
    ]


def means(findings: Findings) -> list[Record]:
    """One record an arm: its mean test error; a note where it has none."""
    found: list[Record] = []
    for network, arm, place, beside in _places(findings):
        record: Record = {
            "network": network.name,
            "arm": arm.label,
            "key": arm.key,
            "inside": arm.nbs is None,
            "x": round(place + 0.1 * beside, 3),
        }
        if arm.errors:
            record |= {"error": floored(arm.mean_error, findings), "what": _mean_text(arm)}
        else:
            record["note"] = (
                f"{arm.key}: impossible, one value a mean" if arm.impossible else "not run yet"
            )
        found.append(record)
    return found


def floored(error: float, findings: Findings) -> float:
    """A value as a logarithmic axis can show it: an error in percent is at least half an image."""
    if not findings.metric.percent:
        return float(f"{max(error, 1e-12):.5g}")
    return round(max(100 * error, 50 / findings.meta["data"]["test"]), 4)


def _places(findings: Findings) -> Iterator[tuple[Network, Arm, int, int]]:
    """Each arm with its column and the side it stands on, -1 left or 1 right."""
    for network in findings.networks:
        for place, column in enumerate(columns(findings, network)):
            for i, arm in enumerate(column.arms):
                yield network, arm, place, -1 if i == 0 and len(column.arms) > 1 else 1


def _mean_text(arm: Arm) -> str:
    found = arm.estimate
    shown = arm.metric.shown
    text = f"{title(arm)}: {shown(arm.mean_error)}, mean of {len(arm.errors)}"
    if found is not None:
        low, high = max(found.low, 0), min(found.high, 1) if arm.metric.percent else found.high
        text += f"; 95 % interval {shown(low).removesuffix(' %')} to {shown(high)}"
    if arm.values is not None and arm.values.size:
        text += f"; {last_values(arm)} values behind each mean of the last layer"
    return text


def differences(asked: Sequence[Question]) -> list[Record]:
    """One record a comparison, in points; a note where it has no answer."""
    return [_difference(c) for q in asked for c in q.comparisons]


def contrast(comparison: Comparison, word: str = MINUS) -> str:
    """What is compared, shortly: batch 2 minus batch 32."""
    return f"{_short(comparison.a)} {word} {_short(comparison.b)}"


def _short(arm: Arm) -> str:
    if arm.key == "sgd":
        return f"SGD {arm.sgd_batch}"
    return arm.norm if arm.nbs is None else f"{arm.norm} {arm.nbs}"


def _difference(comparison: Comparison) -> Record:
    found = comparison.estimate
    record: Record = {
        "network": comparison.network.name,
        "contrast": contrast(comparison),
        "key": comparison.a.key,
    }
    if found is None:
        return record | {"note": verdict(comparison)}
    metric = comparison.a.metric
    low, mean, high = (
        points(value, sign=True, metric=metric) for value in (found.low, found.mean, found.high)
    )
    ends = {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "seen": found.detectable,
        "unseen": -found.detectable,
    }
    scaled = {
        name: round(100 * v, 3) if metric.percent else float(f"{v:.5g}") for name, v in ends.items()
    }
    return record | {
        **scaled,
        "what": f"{contrast(comparison)}: {mean}{unit(metric)}, 95 % interval {low} to {high}; "
        f"detectable {points(found.detectable, metric=metric)}",
    }
