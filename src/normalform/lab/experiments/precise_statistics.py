"""Moving average against precise statistics, while the weights still move fast.

With large batches and a high learning rate there are few steps, and the weights change much in the
time over which the moving average looks back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from normalform.lab import train
from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict

LARGE, SMALL = "SGD batch 256", "SGD batch 32"
SIZES = {LARGE: 256, SMALL: 32}


def measure(seed: int, **settings: Any) -> Measured:
    """Train; after each epoch the test error by the moving average and by precise statistics."""
    run, images = classify.task(seed, **settings)
    network = train.build(run, images)
    moving, precise = list[float](), list[float]()
    for _ in train.epochs(run, network, images):
        moving.append(float(train.judge(network, images).mean()))
        twin = copy.deepcopy(network)
        train.recalibrate(run, twin, images)
        precise.append(float(train.judge(twin, images).mean()))
    half = middle(run.epochs)
    values = {"moving": float(np.mean(moving[half])), "precise": float(np.mean(precise[half]))}
    return Measured(
        values | {"excess": values["moving"] - values["precise"]},
        {"epoch": [*range(1, run.epochs + 1)], "moving": moving, "precise": precise},
    )


def middle(epochs: int) -> slice:
    """The middle third of the epochs.

    >>> list(range(1, 13))[middle(12)]
    [5, 6, 7, 8]
    """
    return slice(epochs // 3, max(epochs // 3 + 1, 2 * epochs // 3))


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Batch norm over the whole of a large SGD batch, and of a small one."""
    arms = {name: {"norm": "batch", "nbs": size, "sgd_batch": size} for name, size in SIZES.items()}
    return classify.trials(measure, settings, arms)


def judge(results: Results) -> Verdict:
    """The moving average's excess at the large batch, alone and against that at the small one."""
    means = [100 * results.mean(LARGE, key) for key in ("moving", "precise")]
    excess = [run["excess"] for run in results.of(LARGE)]
    said = f"moving average ({means[0]:.1f} %) less precise statistics ({means[1]:.1f} %)"
    return classify.verdict(
        classify.more_than(0, f"{LARGE}, test error in mid-training, {said}", excess),
        classify.above(results, LARGE, SMALL, "excess", 0, "this excess of the moving average"),
    )


def picture(results: Results) -> Any:
    """Both test errors over the epochs, for each SGD batch."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    kinds = {"moving": "moving average", "precise": "precise statistics"}
    keys = dict.fromkeys(kinds.values(), "")
    top = 100 * max(row[kind] for row in results.steps for kind in kinds)
    scale = alt.Scale(domain=[0, top], nice=True)
    last = max(row["epoch"] for row in results.steps)

    x = charts.epochs(last)
    y = alt.Y("percent:Q", axis=charts.axis("test error, %"), scale=scale)
    judged = charts.span(range(1, last + 1)[middle(last)], x)

    def panel(arm: str) -> Any:
        rows = [
            {"epoch": row["epoch"], "by": name, "percent": 100 * row[kind]}
            for row in results.steps_of(arm)
            for kind, name in kinds.items()
        ]
        layers = judged + charts.curves(rows, x, y, "by", keys)
        steps = "few steps, fast" if arm == LARGE else "many steps, slow"
        return layers.properties(width=charts.WIDTH, height=140, title=f"{arm}: {steps}")

    return charts.stack(
        [panel(LARGE), panel(SMALL)],
        "Batch norm tested while it trains",
        "Grey: where the claim is judged.",
        charts.SEEDS,
    )


EXPERIMENT = Experiment(
    name="precise-statistics",
    title="Moving average or precise statistics",
    claim=(
        "The moving average of batch norm lags behind the weights, most with large batches and few "
        "steps; statistics averaged over the training set with the weights at rest test better "
        "(Wu & Johnson, Rethinking Batch in BatchNorm, 2021)."
    ),
    setup=classify.setup(
        classify.STRIDE32,
        "1x1",
        seeds=8,
        epochs=12,
        steps="SGD batch 256 with learning rate 0.4 or 32 with 0.05",
    )
    + "Batch norm over the whole SGD batch, momentum 0.1. After each epoch the same weights are "
    "tested by the moving average and by plain averages over one pass of the training set.",
    rule=(
        "Mean test error of the middle third of the epochs: at an SGD batch of 256 that by the "
        "moving average is above that by precise statistics, and by more than at an SGD batch of "
        "32. " + classify.RULE
    ),
    default=classify.settings(classify.STRIDE32, 8, 12),
    quick=classify.settings(classify.STRIDE32, 1, 3),
    full=classify.full(classify.STRIDE32),
    trials=trials,
    judge=judge,
    picture=picture,
)
