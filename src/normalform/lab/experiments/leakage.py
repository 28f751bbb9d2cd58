"""Leakage: images of one class share their statistics, and the network reads the class off them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from normalform.lab import train
from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import Images, Run

LIMIT = 10  # points between training and test error
EQUAL = 2  # points within which group norm stays
BLOCK = 8
SORTED, MIXED = "one class a block", "classes mixed"
GROUP = "group"
BATCH = classify.arm("batch", BLOCK)


def measure(seed: int, block: int, *, one_class: bool, **settings: Any) -> Measured:
    """Train with blocks of one class or mixed ones; training and test error at the end."""
    run, images = classify.task(seed, **settings)
    network = train.build(run, images)
    blocks = orders(run, images, block, one_class=one_class)
    _, error = [*train.epochs(run, network, images, orders=blocks)][-1]
    test = float(train.judge(network, images).mean())
    return Measured({"train": error, "test": test, "gap": test - error})


def orders(run: Run, images: Images, block: int, *, one_class: bool) -> Iterator[torch.Tensor]:
    """The batches of each epoch, as indices (steps, SGD batch), in blocks of one class.

    Mixed, each step has the same images and the same labels, in an order that forgets the blocks:
    what differs is only who shares statistics with whom. What does not fill a block of its class,
    or a step, is left out.
    """
    rng, labels = run.rng(train.ORDER), images.y_train.numpy()
    size = run.arm.sgd_batch // block
    for _ in range(run.epochs):
        blocks: list[np.ndarray[Any, Any]] = []
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            blocks.append(members[: len(members) // block * block].reshape(-1, block))
        drawn = rng.permutation(np.concatenate(blocks))
        steps = drawn[: len(drawn) // size * size].reshape(-1, run.arm.sgd_batch)
        mixed = rng.permuted(steps, axis=1)
        yield torch.as_tensor(steps if one_class else mixed)


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Batch and group norm, blocks of one class and mixed."""
    arms = {
        f"{name}, {kind}": {**own, "block": BLOCK, "one_class": kind == SORTED}
        for name, own in classify.arms(["batch", "group:4"], [BLOCK]).items()
        for kind in (SORTED, MIXED)
    }
    return classify.trials(measure, settings, arms)


def judge(results: Results) -> Verdict:
    """The gap between training and test error, alone and against mixed blocks; group norm's."""
    leaking, mixed = f"{BATCH}, {SORTED}", f"{BATCH}, {MIXED}"
    means = [100 * results.mean(leaking, key) for key in ("test", "train")]
    gaps = [run["gap"] for run in results.of(leaking)]
    said = f"test error ({means[0]:.1f} %) less training error ({means[1]:.1f} %)"
    groups = [f"{GROUP}, {kind}" for kind in (SORTED, MIXED)]
    errors = [100 * results.mean(name, "test") for name in groups]
    same = f"test error, {groups[0]} ({errors[0]:.1f} %) less {groups[1]} ({errors[1]:.1f} %)"
    return classify.verdict(
        classify.more_than(LIMIT, f"{leaking}: {said}", gaps),
        classify.above(results, leaking, mixed, "gap", LIMIT, "this gap"),
        classify.within(EQUAL, same, results.differences(groups[0], groups[1], "test")),
    )


def picture(results: Results) -> Any:
    """Training and test error of each arm, joined."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    kinds = {"train": "training", "test": "test"}
    keys = dict.fromkeys(kinds.values(), "")
    top = 100 * max(run[kind] for run in results.runs for kind in kinds)
    scale = alt.Scale(domain=[0, top], nice=True)
    y = alt.Y("blocks:N", sort=[MIXED, SORTED], axis=charts.axis("", ticks=False, domain=False))

    def panel(norm: str) -> Any:
        arms = {kind: f"{norm}, {kind}" for kind in (MIXED, SORTED)}
        rows = [
            {"blocks": blocks, "error": name, "percent": 100 * run[kind]}
            for blocks, arm in arms.items()
            for run in results.of(arm)
            for kind, name in kinds.items()
        ]
        means = [
            {"blocks": blocks, "low": 100 * results.mean(arm, "train")}
            | {"high": 100 * results.mean(arm, "test")}
            for blocks, arm in arms.items()
        ]
        x = alt.X("mean(percent):Q", axis=charts.axis("error, %"), scale=scale)
        base = charts.chart(rows).encode(y=y, color=charts.colour("error", keys))
        joined = charts.chart(means).mark_rule(strokeWidth=2, opacity=0.4)
        joined = joined.encode(y=y, x=alt.X("low:Q", scale=scale), x2="high:Q")
        seeds = base.mark_circle(size=14, opacity=0.5).encode(x=alt.X("percent:Q", scale=scale))
        points = base.mark_point(filled=True, size=90, opacity=1)
        points = points.encode(x=x, shape=charts.shape("error", keys))
        layers = alt.layer(joined, seeds, points)
        return layers.properties(width=charts.NARROW, height=80, title=f"{norm}")

    return charts.stack(
        [panel(BATCH), panel(GROUP)],
        "Blocks of one class or of mixed ones",
        "Training: batch statistics. Test: running statistics.",
        charts.SEEDS,
    )


EXPERIMENT = Experiment(
    name="leakage",
    title="Leakage inside a batch",
    claim=(
        "Images that share statistics tell each other what they are: where blocks are of one "
        "class, batch norm learns to read the class from the block, and fails on single images "
        "(Wu & Johnson, Rethinking Batch in BatchNorm, 2021, on information leakage)."
    ),
    setup=classify.setup(classify.STRIDE32, "1x1", seeds=5, epochs=8)
    + f"Each step has 4 blocks of {BLOCK} images of one class; batch norm takes its statistics "
    "over a block. In the other arms the same 32 images of a step are mixed before they are "
    "blocked. Group norm has 4 groups. Training error by batch statistics, mean of the last "
    "epoch; test error by running statistics.",
    rule=(
        f"Batch norm with blocks of one class: the test error is more than {LIMIT} points above "
        f"the training error, and this gap is more than {LIMIT} points above that with classes "
        f"mixed. Group norm: the two test errors differ by less than {EQUAL} points. "
        + classify.RULE
    ),
    default=classify.settings(classify.STRIDE32, 5, 8),
    quick=classify.settings(classify.STRIDE32, 1, 1),
    full=classify.full(classify.STRIDE32),
    trials=trials,
    judge=judge,
    picture=picture,
)
