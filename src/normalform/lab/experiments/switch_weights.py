"""What switchable norm learns: how much of each kind of statistics, layer by layer, by NBS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import train

LARGE, SMALL = "switch, NBS 32", "switch, NBS 2"
STATISTICS = {"mean": "mean_weights", "variance": "var_weights"}


def measure(seed: int, **settings: Any) -> Measured:
    """Train once; the weights of every layer after the last epoch."""
    run, images = classify.task(seed, **settings)
    outcome = train(run, images)
    found = outcome.details
    batch = [str(name) for name in found["branches"]].index("batch")
    learned = {name: found[key][-1] for name, key in STATISTICS.items()}
    rows = [
        (int(layer) + 1, str(found["maps"][layer]), name, str(branch), float(weights[layer, b]))
        for name, weights in learned.items()
        for layer in range(len(weights))
        for b, branch in enumerate(found["branches"])
    ]
    names = ("layer", "map", "statistic", "branch", "weight")
    return Measured(
        classify.errors(outcome)
        | {f"last_{name}": float(weights[-1, batch]) for name, weights in learned.items()}
        | {f"all_{name}": float(np.mean(weights[:, batch])) for name, weights in learned.items()}
        | {"nbs": run.arm.nbs or 0},
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
    )


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Switch norm at each NBS."""
    return classify.trials(measure, settings, classify.arms(["switch"], settings["nbs"]))


def judge(results: Results) -> Verdict:
    """The batch's weight in the last layer at NBS 32 and 2; which of its two weights falls more."""
    falls = [results.differences(LARGE, SMALL, f"all_{name}") for name in ("variance", "mean")]
    said = [f"{100 * np.mean(fall):.1f} points" for fall in falls]
    more = [variance - mean for variance, mean in zip(*falls, strict=True)]
    return classify.verdict(
        *(
            classify.above(
                results, LARGE, SMALL, f"last_{name}", 0, f"batch's share of the {name}, last layer"
            )
            for name in STATISTICS
        ),
        classify.more_than(
            0,
            f"all layers: fall of batch's share of the variance ({said[0]}) less that of the mean "
            f"({said[1]})",
            more,
        ),
    )


def picture(results: Results) -> Any:
    """Stacked shares, a bar for each layer and NBS; mean above variance."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    layers = {row["layer"]: row["map"] for row in results.steps}
    order = ["batch", "layer", "instance"]
    sizes = {run["arm"]: run["nbs"] for run in results.runs}

    def panel(statistic: str) -> Any:
        rows = [
            {
                "nbs": nbs,
                "layer": f"layer {layer}, {layers[layer]}",
                "branch": branch,
                "order": order.index(branch),
                "percent": 100 * float(np.mean([r["weight"] for r in found])),
            }
            for arm, nbs in sizes.items()
            for layer in layers
            for branch in order
            if (found := _rows(results, arm, statistic, layer, branch))
        ]
        axis = charts.axis("NBS")
        chart = charts.chart(rows).mark_bar()
        chart = chart.encode(
            x=alt.X("nbs:O", sort="descending", axis=axis),
            y=alt.Y("percent:Q", axis=charts.axis("share, %"), scale=alt.Scale(domain=[0, 100])),
            color=charts.colour("branch", {name: name for name in order}, columns=3),
            order=alt.Order("order:Q"),
            column=alt.Column("layer:N", title=None, spacing=8),
        )
        return chart.properties(
            width=charts.WIDTH / (1.2 * len(layers)), height=130, title=f"Shares of the {statistic}"
        )

    return charts.stack(
        [panel(name) for name in STATISTICS],
        "Which statistics switchable norm uses",
        "Shares at the end, means of the seeds.",
        "At the start each has a third.",
    )


def _rows(results: Results, arm: str, statistic: str, layer: int, branch: str) -> list[Any]:
    wanted = {"statistic": statistic, "layer": layer, "branch": branch}
    return [row for row in results.steps_of(arm) if wanted.items() <= row.items()]


EXPERIMENT = Experiment(
    name="switch-weights",
    title="What switchable norm learns",
    claim=(
        "The smaller the batch, the less switchable norm uses batch statistics; at 2 images their "
        "share of the variance falls more than that of the mean (Luo et al., Differentiable "
        "Learning-to-Normalize via Switchable Normalization, 2019)."
    ),
    setup=classify.setup(classify.STRIDE8, "4x4", seeds=5, epochs=8)
    + "Switch norm blends instance, layer and batch statistics, the latter over NBS = 32, 8, 2 of "
    "the 32 images of a step. Its shares are softmax weights, one set a layer for the mean and one "
    "for the variance, a third each at the start.",
    rule=(
        "In the last layer the batch's share is larger at NBS 32 than at 2, of the mean and of the "
        "variance; averaged over all layers, its share of the variance falls by more points from "
        "32 to 2 than its share of the mean. " + classify.RULE
    ),
    default=classify.settings(classify.STRIDE8, 5, 8, nbs=[32, 8, 2]),
    quick=classify.settings(classify.STRIDE8, 1, 1, nbs=[32, 2]),
    full=classify.full(classify.STRIDE8, nbs=[32, 16, 8, 4, 2]),
    trials=trials,
    judge=judge,
    picture=picture,
)
