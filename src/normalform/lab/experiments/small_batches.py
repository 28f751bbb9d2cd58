"""Small batches: batch norm over few samples fails in evaluation, norms of single samples do not.

The normalization batch is cut out of an SGD batch of 32 that never changes, so that learning rate
and gradient noise are the same in every arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import train

LIMIT = 10  # points
BATCH, SMALL, SWITCH = "batch, NBS 32", "batch, NBS 2", "switch, NBS 2"
ERRORS = {
    "train": "training, batch statistics",
    "test": "test, running statistics",
    "recalibrated": "test, recalibrated statistics",
}


def measure(seed: int, **settings: Any) -> Measured:
    """Train once; the errors of the last epoch."""
    run, images = classify.task(seed, **settings)
    return Measured(classify.errors(train(run, images)) | {"nbs": run.arm.nbs or 0})


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Batch and switch norm at each NBS, group and layer norm once."""
    arms = classify.arms(["batch", "switch", "group:4", "layer"], settings["nbs"])
    return classify.trials(measure, settings, arms)


def judge(results: Results) -> Verdict:
    """Batch norm at NBS 2 against itself at 32 and against the norms that last."""
    others = (BATCH, SWITCH, "group", "layer")
    return classify.verdict(
        *(classify.above(results, SMALL, other, "test", LIMIT) for other in others)
    )


def picture(results: Results) -> Any:
    """Three errors against the NBS, for batch and for switch norm; group and layer beside them."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    rows: list[dict[str, Any]] = [
        {"norm": norm, "nbs": run["nbs"], "error": name, "percent": 100 * run[key]}
        for norm in ("batch", "switch")
        for run in results.runs
        if run["arm"].startswith(f"{norm},")
        for key, name in ERRORS.items()
    ]
    keys = dict.fromkeys(ERRORS.values(), "")
    scale = alt.Scale(domain=[0, 1.05 * max(row["percent"] for row in rows)])
    x = alt.X("nbs:O", sort="descending", axis=charts.axis("NBS: images that share statistics"))
    y = alt.Y("percent:Q", axis=charts.axis("error, %"), scale=scale)
    level = alt.Y("value:Q", axis=charts.axis("error, %"), scale=scale)
    others = {name: 100 * results.mean(name, "test") for name in ("group", "layer")}

    def panel(norm: str) -> Any:
        curves = charts.curves((r for r in rows if r["norm"] == norm), x, y, "error", keys)
        layers = charts.levels(others, level) + curves
        return layers.properties(width=charts.WIDTH, height=150, title=f"{norm} norm")

    return charts.stack(
        [panel("batch"), panel("switch")],
        "Error against the normalization batch size",
        charts.SEEDS,
    )


EXPERIMENT = Experiment(
    name="small-batches",
    title="Small batches",
    claim=(
        "The error of batch norm rises rapidly as its batch shrinks, that of group norm does not "
        "(Wu & He, Group Normalization, 2018: ResNet-50 on ImageNet, 34.7 against 24.1 % at 2 "
        "images a GPU); switchable norm learns to do without the batch (Luo et al., 2019)."
    ),
    setup=classify.setup(classify.STRIDE32, "1x1", seeds=5, epochs=8)
    + "Batch and switch norm take their batch statistics over NBS = 32, 8, 4, 2 of the 32 "
    "images of a step; in the last layer a mean is over NBS values, and of two values no more than "
    "a sign is left. Group norm has 4 groups. Recalibrated: running statistics replaced by "
    "averages over one pass of the training set.",
    rule=(
        f"Test error with running statistics: batch norm at NBS 2 is more than {LIMIT} points "
        "above batch norm at NBS 32, switch norm at NBS 2, group norm, and layer norm. "
        + classify.RULE
    ),
    default=classify.settings(classify.STRIDE32, 5, 8, nbs=[32, 8, 4, 2]),
    quick=classify.settings(classify.STRIDE32, 1, 1, nbs=[32, 2]),
    full=classify.full(classify.STRIDE32, nbs=[32, 16, 8, 4, 2]),
    trials=trials,
    judge=judge,
    picture=picture,
)
