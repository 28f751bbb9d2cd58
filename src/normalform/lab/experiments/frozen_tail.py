"""Batch norm frozen at the end of training: the network learns with what it will be tested with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normalform.lab import train
from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict

GAIN = 5  # points that freezing has to win at NBS 2
LOSS = 1  # points that it may cost at NBS 32
SHARE = 5  # the last fifth of the epochs


def measure(seed: int, frozen: int, **settings: Any) -> Measured:
    """Train, the norms frozen in so many last epochs; the test error after each epoch."""
    run, images = classify.task(seed, **settings)
    network = train.build(run, images)
    errors = [
        float(train.judge(network, images).mean())
        for _ in train.epochs(run, network, images, frozen=frozen)
    ]
    steps = {
        "epoch": [*range(1, run.epochs + 1)],
        "frozen": [int(epoch >= run.epochs - frozen) for epoch in range(run.epochs)],
        "test": errors,
    }
    return Measured({"test": errors[-1], "nbs": run.arm.nbs or 0, "tail": frozen}, steps)


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Batch norm at each NBS, with the tail frozen and without."""
    tail = max(1, settings["epochs"] // SHARE)
    arms = {
        _arm(nbs, frozen=bool(frozen)): {"norm": "batch", "nbs": nbs, "frozen": frozen}
        for nbs in settings["nbs"]
        for frozen in (0, tail)
    }
    return classify.trials(measure, settings, arms)


def judge(results: Results) -> Verdict:
    """What freezing wins at NBS 2 and costs at NBS 32."""
    large = results.differences(_arm(32, frozen=True), _arm(32, frozen=False), "test")
    means = [100 * results.mean(_arm(32, frozen=frozen), "test") for frozen in (True, False)]
    said = f"frozen tail ({means[0]:.1f} %) less not frozen ({means[1]:.1f} %)"
    small = (_arm(2, frozen=False), _arm(2, frozen=True))
    return classify.verdict(
        classify.above(results, *small, "test", GAIN),
        classify.less_than(LOSS, f"test error at NBS 32, {said}", large),
    )


def _arm(nbs: int, *, frozen: bool) -> str:
    return classify.arm("batch", nbs) + ", frozen tail" * frozen


def picture(results: Results) -> Any:
    """The test error over the epochs, a panel for each NBS."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    names = {False: "not frozen", True: "frozen tail"}
    keys = dict.fromkeys(names.values(), "")
    top = 100 * max(row["test"] for row in results.steps)
    scale = alt.Scale(domain=[0, top], nice=True)
    x = charts.epochs(max(row["epoch"] for row in results.steps))
    y = alt.Y("percent:Q", axis=charts.axis("test error, %"), scale=scale)
    shade = charts.span([row["epoch"] for row in results.steps if row["frozen"]], x)

    def panel(nbs: int) -> Any:
        rows = [
            {"epoch": row["epoch"], "tail": name, "percent": 100 * row["test"]}
            for tail, name in names.items()
            for row in results.steps_of(_arm(nbs, frozen=tail))
        ]
        layers = shade + charts.curves(rows, x, y, "tail", keys)
        return layers.properties(width=charts.WIDTH, height=120, title=f"NBS {nbs}")

    sizes = sorted({run["nbs"] for run in results.runs}, reverse=True)
    return charts.stack(
        [panel(nbs) for nbs in sizes],
        "Batch norm with its statistics frozen late",
        "Grey: epochs in which the frozen arm is frozen.",
        charts.SEEDS,
    )


EXPERIMENT = Experiment(
    name="frozen-tail",
    title="Batch norm frozen for the last fifth of training",
    claim=(
        "With small batches a network trains with statistics that are not those it is tested with; "
        "freezing batch norm for the last part of the training heals much of that (Wu & Johnson, "
        "Rethinking Batch in BatchNorm, 2021)."
    ),
    setup=classify.setup(classify.STRIDE32, "1x1", seeds=5, epochs=10)
    + "Batch norm over NBS = 32, 4, 2 of the 32 images of a step. In the last fifth of the epochs "
    "the norms of the frozen arms use their moving averages and leave them as they are; weight and "
    "bias go on learning, and the learning rate is that of the other arms.",
    rule=(
        f"Test error with running statistics: at NBS 2 the frozen tail wins more than {GAIN} "
        f"points, at NBS 32 it costs less than {LOSS} point. " + classify.RULE
    ),
    default=classify.settings(classify.STRIDE32, 5, 10, nbs=[32, 4, 2]),
    quick=classify.settings(classify.STRIDE32, 1, 2, nbs=[32, 2]),
    full=classify.full(classify.STRIDE32, nbs=[32, 16, 8, 4, 2]),
    trials=trials,
    judge=judge,
    picture=picture,
)
