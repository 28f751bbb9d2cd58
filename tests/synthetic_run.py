"""A run folder as ``normalform compare`` writes it, with errors that are planted, not trained."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from normalform.lab.records import Row

FIELDS = [field.name for field in fields(Row)]

NETWORKS = {
    "stride8": ("16-32-32, stride 8, last map 4x4", [16, 32, 32], [14, 7, 4]),
    "stride32": ("16-32-64-64-64, stride 32, last map 1x1", [16, 32, 64, 64, 64], [14, 7, 4, 2, 1]),
}
ARMS = {  # label: norm, nbs, sgd_batch, error of stride8 and of stride32 (None: impossible)
    "none": ("none", None, 32, 0.264, 0.219),
    "layer": ("layer", None, 32, 0.261, 0.193),
    "instance": ("instance", None, 32, 0.265, None),
    "group:4": ("group:4", None, 32, 0.247, 0.193),
    "batch 32": ("batch", 32, 32, 0.197, 0.175),
    "batch 8": ("batch", 8, 32, 0.200, 0.180),
    "batch 2": ("batch", 2, 32, 0.245, 0.495),
    "switch 32": ("switch", 32, 32, 0.205, 0.172),
    "switch 8": ("switch", 8, 32, 0.209, 0.174),
    "switch 2": ("switch", 2, 32, 0.230, 0.180),
    "batch 2, SGD batch 2": ("batch", 2, 2, 0.262, 0.520),
}
IMPOSSIBLE = "instance norm in layer 5: a map of 1x1 has one value behind each statistic"


def write_run(
    folder: Path,
    *,
    errors: Mapping[tuple[str, str], float] | None = None,
    seeds: Iterable[int] = range(5),
    images: int = 400,
    epochs: int = 4,
    arms: Iterable[str] = tuple(ARMS),
    networks: Iterable[str] = tuple(NETWORKS),
    skip: Iterable[tuple[str, str, int]] = (),
    diverged: Iterable[tuple[str, str, int]] = (),
) -> Path:
    """Write a run folder.

    Args:
        folder: where.
        errors: planted test errors by (network, arm), over those of ``ARMS``.
        seeds: the seeds of the plan.
        images: test images.
        epochs: epochs of the curves.
        arms: labels of the plan.
        networks: names of the plan.
        skip: (network, arm, seed) planned but not finished.
        diverged: (network, arm, seed) whose loss became NaN after two epochs.
    """
    seeds, arms, networks = list(seeds), list(arms), list(networks)
    skip, diverged = set(skip), set(diverged)
    (folder / "details").mkdir(parents=True)
    rng = np.random.default_rng(7)
    hard = rng.normal(size=images)
    rows: list[dict[str, Any]] = []
    planned: list[str] = []
    for seed in seeds:
        for network in networks:
            for label in arms:
                planned.append(f"{network}_{label.replace(' ', '-')}_s{seed}_0000")
                if (network, label, seed) in skip:
                    continue
                error = ARMS[label][3 + list(NETWORKS).index(network)]
                error = (errors or {}).get((network, label), error)
                row = _row(planned[-1], network, label, seed, images, epochs)
                if error is None:
                    row |= {"status": "impossible", "reason": IMPOSSIBLE}
                else:
                    broken = (network, label, seed) in diverged
                    details = _details(rng, row, network, error, hard, broken)
                    row |= _outcome(details, broken)
                    np.savez(folder / "details" / f"{row['run_id']}.npz", **details)
                rows.append(row)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    meta = _meta(folder.name, seeds, arms, networks, images, epochs, planned)
    (folder / "run.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def _row(
    run_id: str, network: str, label: str, seed: int, images: int, epochs: int
) -> dict[str, Any]:
    norm, nbs, sgd_batch = ARMS[label][:3]
    side = NETWORKS[network][2][-1]
    return dict.fromkeys(FIELDS, "") | {
        "run_id": run_id,
        "data": "fashion",
        "metric": "error",
        "network": network,
        "last_map": f"{side}x{side}",
        "arm": label,
        "norm": norm,
        "nbs": nbs,
        "sgd_batch": sgd_batch,
        "seed": seed,
        "epochs": epochs,
        "lr": 0.05 * sgd_batch / 32,
        "status": "ok",
        "seconds": 1.5,
        "train_images": 2000,
        "test_images": images,
        "parameters": 14_000,
        "values_per_statistic_min": _values(network, norm, nbs).min() if norm != "none" else None,
        "python": "3.11.7",
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "normalform": "0.1.0",
        "machine": "A machine <with> & marks",
        "cores": 2,
        "platform": "Linux",
        "commit": "0123abcd",
        "date": "2026-11-21T20:03:00Z",
    }


def _values(network: str, norm: str, nbs: int | None) -> np.ndarray:
    _, widths, sides = NETWORKS[network]
    kinds = ("instance", "layer", "batch") if norm == "switch" else (norm,)
    table = {
        "instance": lambda c, p: p,
        "layer": lambda c, p: c * p,
        "group:4": lambda c, p: c * p // 4,
        "batch": lambda c, p: (nbs or 1) * p,
    }
    return np.array(
        [
            [table[k](c, s * s) for k in kinds if k in table]
            for c, s in zip(widths, sides, strict=True)
        ],
        dtype=int,
    )


def _details(
    rng: np.random.Generator,
    row: dict[str, Any],
    network: str,
    error: float,
    hard: np.ndarray,
    broken: bool,
) -> dict[str, Any]:
    """Wrong where difficulty + seed + chance is above the threshold that gives ``error``."""
    images, epochs = hard.size, row["epochs"]
    _, widths, sides = NETWORKS[network]
    layers = len(widths)
    spread = math.sqrt(1.5**2 + 0.05**2 + 1)
    threshold = -spread * NormalDist().inv_cdf(error)
    wrong = 1.5 * hard + 0.05 * rng.normal() + rng.normal(size=images) > threshold
    decay = np.exp(-np.arange(1, epochs + 1) / 1.5)
    curve = wrong.mean() + (0.9 - wrong.mean()) * (decay - decay[-1])
    values = _values(network, row["norm"], row["nbs"])
    normed = row["norm"] != "none"
    steps = np.arange(epochs + 1)[:, None]
    shape = (epochs + 1, layers)
    conv = 0.3 * (1 + 0.2 * steps) * np.ones(shape) * (1 if normed else 0.6 ** np.arange(layers))
    pre = np.ones(shape) if normed else conv
    details: dict[str, Any] = {
        "train_loss": 2.3 * curve,
        "train_error": 0.8 * curve,
        "test_error": curve,
        "correct": ~wrong,
        "channels": np.array(widths),
        "maps": np.array([[s, s] for s in sides]),
        "branches": np.array(["instance", "layer", "batch"]),
        "values": values,
        "conv_std": conv,
        "pre_mean": np.zeros(shape),
        "pre_std": pre,
        "pre_quantiles": np.zeros((*shape, 5)),
        "act_mean": 0.4 * pre,
        "act_std": 0.6 * pre * (1 + 0.03 * rng.normal(size=shape)),
        "act_zero": 0.5 + 0.04 * rng.normal(size=shape),
        "row": np.array(json.dumps(row, default=int)),
    }
    if row["norm"] == "switch":
        details["mean_weights"] = _weights(values, row["nbs"], epochs, 1.0)
        details["var_weights"] = _weights(values, row["nbs"], epochs, 0.6)
    else:
        details["branches"] = np.array([row["norm"]] if normed else [], dtype=str)
    if broken:
        for key in ("train_loss", "train_error", "test_error"):
            details[key][2:] = np.nan
    return details


def _weights(values: np.ndarray, nbs: int, epochs: int, size: float) -> np.ndarray:
    """Softmax weights that move from even to batch (large NBS) or layer (small)."""
    layers = len(values)
    goal = np.array([-1.0, 2.0, 0.5 * math.log2(nbs)]) * size
    depth = (np.arange(1, layers + 1) / layers)[:, None]
    logits = np.linspace(0, 1, epochs + 1)[:, None, None] * depth * goal
    weights = np.where(values > 1, np.exp(logits), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _outcome(details: Mapping[str, Any], broken: bool) -> dict[str, Any]:
    error = 1 - details["correct"].mean()
    return {
        "status": "diverged" if broken else "ok",
        "reason": "the loss became NaN in epoch 3" if broken else "",
        "test_error": error,
        "test_error_recalibrated": error,
        "train_error": None if broken else details["train_error"][-1],
        "train_loss": None if broken else details["train_loss"][-1],
    }


def _meta(
    name: str,
    seeds: list[int],
    arms: list[str],
    networks: list[str],
    images: int,
    epochs: int,
    planned: list[str],
) -> dict[str, Any]:
    titles = [
        {
            "name": n,
            "title": NETWORKS[n][0],
            "widths": NETWORKS[n][1],
            "last_map": f"{NETWORKS[n][2][-1]}x{NETWORKS[n][2][-1]}",
        }
        for n in networks
    ]
    shown = [
        dict(zip(("label", "norm", "nbs", "sgd_batch"), (a, *ARMS[a][:3]), strict=True))
        for a in arms
    ]
    return {
        "format": "normalform compare",
        "version": 1,
        "name": name,
        "command": "normalform compare --seeds 5",
        "data": {
            "name": "fashion",
            "title": "Fashion-MNIST cut, 2,000 + 2,000",
            "sha256": "0" * 64,
            "train": 2000,
            "test": images,
            "shape": [1, 28, 28],
            "classes": ["T-shirt/top", "Trouser"],
        },
        "config": {
            "seeds": seeds,
            "epochs": epochs,
            "nbs": [32, 8, 2],
            "norms": ["none", "batch", "layer", "instance", "group:4", "switch"],
            "lr": 0.05,
            "momentum": 0.9,
            "sgd_batch": 32,
            "quick": False,
        },
        "networks": titles,
        "arms": shown,
        "runs": planned,
        "created": "2026-11-21T20:00:00Z",
        "updated": "2026-11-21T20:04:00Z",
    }


def results(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "results.csv").read_text("utf-8"))))


def details(folder: Path, run_id: str) -> dict[str, np.ndarray]:
    with np.load(folder / "details" / f"{run_id}.npz") as archive:
        return dict(archive)


def wrong(folder: Path, network: str, arm: str, images: int = 400) -> np.ndarray:
    ids = [r["run_id"] for r in results(folder) if (r["network"], r["arm"]) == (network, arm)]
    tables = [details(folder, i)["correct"] for i in ids]
    assert all(t.shape == (images,) for t in tables)
    return 1 - np.array(tables, dtype=float)


def take_part(
    whole: Path,
    folder: Path,
    *,
    arms: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    **changed: str,
) -> Path:
    """A run folder with a part of another's runs, as if they had been made on their own.

    Args:
        whole: the other folder.
        folder: where.
        arms: labels; None for all.
        seeds: None for all.
        changed: columns that are different here, ``machine="Another"``.
    """
    meta = json.loads((whole / "run.json").read_text("utf-8"))
    labels = [a["label"] for a in meta["arms"] if arms is None or a["label"] in set(arms)]
    numbers = [s for s in meta["config"]["seeds"] if seeds is None or s in set(seeds)]
    rows = [r for r in results(whole) if r["arm"] in labels and int(r["seed"]) in numbers]
    (folder / "details").mkdir(parents=True)
    for row in rows:
        path = Path("details") / f"{row['run_id']}.npz"
        if (whole / path).exists():
            (folder / path).write_bytes((whole / path).read_bytes())
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | changed for row in rows)
    meta["name"] = folder.name
    meta["arms"] = [a for a in meta["arms"] if a["label"] in labels]
    for name in ("seeds", "small_batch_seeds"):
        kept = [s for s in meta["config"].get(name, []) if s in numbers]
        meta["config"] |= {name: kept} if name in meta["config"] else {}
    ids = {row["run_id"] for row in rows}
    meta["runs"] = [run_id for run_id in meta["runs"] if run_id in ids]
    (folder / "run.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder
