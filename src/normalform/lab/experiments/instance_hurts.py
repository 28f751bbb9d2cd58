"""Instance norm hurts classification: it takes from every channel the mean that tells classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import train

LIMIT = 5  # points
NORMS = ("none", "batch", "layer", "group:4", "instance")
OTHERS = ("no norm", "batch, NBS 32", "layer", "group")


def measure(seed: int, **settings: Any) -> Measured:
    """Train once; the errors of the last epoch."""
    return Measured(classify.errors(train(*classify.task(seed, **settings))))


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Each norm, and none."""
    return classify.trials(measure, settings, classify.arms(NORMS, [32]))


def judge(results: Results) -> Verdict:
    """Instance norm against each other arm."""
    return classify.verdict(
        *(classify.above(results, "instance", other, "test", LIMIT) for other in OTHERS)
    )


def picture(results: Results) -> Any:
    """The test error of each arm, seed by seed and in the mean."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    rows = [{"arm": run["arm"], "percent": 100 * run["test"]} for run in results.runs]
    arms = sorted({row["arm"] for row in rows}, key=lambda arm: results.mean(arm, "test"))
    means = [{"arm": arm, "percent": round(100 * results.mean(arm, "test"), 1)} for arm in arms]
    scale = alt.Scale(zero=False, nice=True, padding=12)
    x = alt.X("percent:Q", axis=charts.axis("test error, %"), scale=scale)
    y = alt.Y("arm:N", sort=arms, axis=charts.axis("", ticks=False, domain=False, grid=True))
    names = {arm: "none" if arm == "no norm" else arm.partition(",")[0] for arm in arms}
    colour = charts.colour("arm", names, columns=0)
    seeds = charts.chart(rows).mark_circle(size=24, opacity=0.5).encode(x=x, y=y, color=colour)
    strong = charts.chart(means).encode(x=x, y=y, color=colour)
    points = strong.mark_point(filled=True, size=110, opacity=1)
    points = points.encode(shape=charts.shape("arm", names, columns=0))
    numbers = (
        charts.chart(means)
        .mark_text(dy=-13)
        .encode(x=x, y=y, text=alt.Text("percent:Q", format=".1f"))
    )
    panel = alt.layer(seeds, points, numbers).properties(width=charts.WIDTH, height=200)
    return charts.stack([panel], "Test error of each norm", charts.SEEDS)


EXPERIMENT = Experiment(
    name="instance-hurts",
    title="Instance norm hurts classification",
    claim=(
        "Instance norm classifies worst of all norms (Wu & He, Group Normalization, 2018: "
        "ResNet-50 on ImageNet, 28.4 % error against 25.3 with layer, 24.1 with group and 23.6 "
        "with batch norm)."
    ),
    setup=classify.setup(classify.STRIDE16, "2x2", seeds=5, epochs=8)
    + "Batch norm over all 32 images, group norm with 4 groups; the network without norms has "
    "biases in its convolutions.",
    rule=(
        f"The test error of instance norm is more than {LIMIT} points above that of each other "
        "arm: no norm, batch, layer and group norm. " + classify.RULE
    ),
    default=classify.settings(classify.STRIDE16, 5, 8),
    quick=classify.settings(classify.STRIDE16, 1, 1),
    full=classify.full(classify.STRIDE16),
    trials=trials,
    judge=judge,
    picture=picture,
)
