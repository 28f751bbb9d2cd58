"""The tidy tables of what happened while the networks trained: curves, weights, activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from normalform.lab.metrics import capital
from normalform.lab.report.findings import Arm, Findings, Network

Record = dict[str, Any]

_ACTIVATIONS = {
    "conv_std": "Spread before the norm",
    "act_std": "Spread after the ReLU",
    "act_zero": "Zeros after the ReLU, %",
}
_OWN_ACTIVATIONS = {
    "conv_std": "Spread before the norm",
    "pre_std": "Spread after the norm",
}
_MOST_SINGLE = 4000  # epochs of all runs together


def curve_kinds(findings: Findings) -> dict[str, str]:
    """What the learning curves show: each quantity and what to call it."""
    return {
        "test_error": capital(findings.metric.axis),
        "train_error": capital(findings.metric.training_axis),
        "train_loss": "Training loss",
    }


def activation_kinds(findings: Findings) -> dict[str, str]:
    """What the charts of the activations show; what follows a norm of the user's is not known."""
    return _OWN_ACTIVATIONS if findings.own else _ACTIVATIONS


def percent_kinds(findings: Findings) -> set[str]:
    """The quantities that are shown as percent."""
    return {"act_zero", *(["test_error", "train_error"] if findings.metric.percent else [])}


def curves(findings: Findings) -> list[Record]:
    """Learning curves: one record an arm and epoch for the mean (seed null), and one a seed.

    Single seeds are left out where they would be many: a page must stay small enough to mail.
    """
    runs = findings.rows
    single = sum(row.epochs for row in runs) <= _MOST_SINGLE
    return [
        record
        for network in findings.networks
        for arm in network.arms
        for record in _curves(findings, network, arm, single=single)
    ]


def _curves(findings: Findings, network: Network, arm: Arm, *, single: bool) -> Iterator[Record]:
    kinds, percent = curve_kinds(findings), percent_kinds(findings)
    sources: list[tuple[int | None, Mapping[str, Any]]] = []
    if arm.details:
        sources.append((None, {name: arm.mean(name) for name in kinds}))
    if single:
        sources += arm.details.items()
    for seed, recorded in sources:
        for epoch in range(len(recorded["test_error"])):
            yield {
                "network": network.name,
                "arm": arm.label,
                "key": arm.key,
                "nbs": str(arm.nbs or ""),
                "seed": seed,
                "epoch": epoch + 1,
            } | {name: _shown(name in percent, float(recorded[name][epoch])) for name in kinds}


def weights(findings: Findings) -> list[Record]:
    """Learned weights of switchable norm, mean over the seeds: one a layer, branch and epoch.

    ``x`` to ``x2`` is where the bar stands: bars of one layer side by side, one for each NBS.
    """
    return [
        {
            "network": network.name,
            "kind": kind,
            "nbs": str(arm.nbs),
            "layer": layer + 1,
            "x": round(layer + 0.58 + place * 0.84 / len(arms), 3),
            "x2": round(layer + 0.56 + (place + 1) * 0.84 / len(arms), 3),
            "branch": str(branch),
            "epoch": epoch,
            "weight": round(float(values[epoch, layer, b]), 4),
            "below": round(float(values[epoch, layer, b + 1 :].sum()), 4),
        }
        for network in findings.networks
        if (arms := [arm for arm in network.arms if branches(arm)])
        for place, arm in enumerate(arms)
        for kind, name in (("mean", "mean_weights"), ("variance", "var_weights"))
        if (values := arm.mean(name)) is not None
        for layer in range(values.shape[1])
        for b, branch in enumerate(branches(arm))
        for epoch in range(len(values))
    ]


def branches(arm: Arm) -> list[str]:
    """The names of what a switchable norm blends; empty for other norms."""
    for recorded in arm.details.values():
        if "mean_weights" in recorded:
            return [str(name) for name in recorded["branches"]]
    return []


def blended(network: Network) -> list[str]:
    """The names of what the network's switchable norms blend; empty where it has none."""
    return next((names for arm in network.arms if (names := branches(arm))), list[str]())


def activations(findings: Findings) -> list[Record]:
    """Activations on the probe batch, mean over the seeds: one record an arm, layer and epoch."""
    return [
        record
        for network in findings.networks
        for arm in network.arms
        for record in _activations(findings, network, arm)
    ]


def _activations(findings: Findings, network: Network, arm: Arm) -> Iterator[Record]:
    means = ((name, arm.mean(name)) for name in activation_kinds(findings))
    percent = percent_kinds(findings)
    recorded = {name: values for name, values in means if values is not None}
    epochs, layers = recorded["conv_std"].shape if "conv_std" in recorded else (0, 0)
    for epoch, layer in product(range(epochs), range(layers)):
        yield {
            "network": network.name,
            "arm": arm.label,
            "key": arm.key,
            "nbs": str(arm.nbs or ""),
            "layer": layer + 1,
            "epoch": epoch,
        } | {name: _shown(name in percent, float(v[epoch, layer])) for name, v in recorded.items()}


def _shown(percent: bool, value: float) -> float | None:
    """A number as the charts have it: in percent where they say so, null where not finite."""
    if not np.isfinite(value):
        return None
    return float(f"{value * (100 if percent else 1):.4g}")
