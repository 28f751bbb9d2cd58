"""The picture of depth: what passes through each layer, and what training reached with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from normalform.lab.experiments import classify_charts as charts
from normalform.lab.experiments.experiment import Results
from normalform.lab.experiments.strips import SEEDS, strips
from normalform.lab.report import style

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the pictures need Altair: pip install "normalform[lab]"') from missing

KINDS = {"activation": "activations", "gradient": "gradients of the loss"}
QUANTITIES = {"deviation": "standard deviation", "share": "share of the deviation"}
HEIGHT = 95


def chart(results: Results, arms: Mapping[str, str]) -> Any:
    """The picture.

    Args:
        results: of the experiment.
        arms: in the order to show them, each with its norm.
    """
    done = {run["arm"] for run in results.runs}
    shown = {arm: norm for arm, norm in arms.items() if arm in done}
    last = max(row["epoch"] for row in results.steps)
    moments = {0: "before training", last: f"after {last} epoch{'s' * (last != 1)}"}
    panels = [
        _lines(_means(results, shown, kind, epoch), shown, f"{title}, {when}", "deviation")
        for kind, title in KINDS.items()
        for epoch, when in moments.items()
    ]
    between = _means(results, shown, "apart", 0)
    panels.append(_lines(between, shown, "differences between images, before training", "share"))
    error = strips(results, shown, {"train": "training error"}, "training error, % (chance: 90)")
    return charts.stack(
        [alt.vconcat(*panels, spacing=14), error.properties(title="what training reached")],
        "How far values vary in a deep network",
        "Lines: geometric means of the seeds, log scale;",
        "none where all values have become zero.",
        f"Dots: {SEEDS[0].lower()}{SEEDS[1:]}",
    ).resolve_scale(color="independent")


def _means(
    results: Results, arms: Iterable[str], kind: str, epoch: int
) -> list[dict[str, float | str]]:
    """The geometric mean over the seeds, by arm and layer; spreads of zero have no logarithm."""
    logs: dict[tuple[str, int], list[float]] = {}
    for arm in arms:
        for row in results.steps_of(arm):
            if row["epoch"] == epoch and 0 < row[kind] < math.inf:
                logs.setdefault((arm, row["layer"]), []).append(math.log(row[kind]))
    return [
        {"arm": arm, "layer": layer, "value": math.exp(sum(values) / len(values))}
        for (arm, layer), values in logs.items()
    ]


def _lines(
    rows: list[dict[str, float | str]], arms: Mapping[str, str], title: str, quantity: str
) -> Any:
    dashed = alt.condition("indexof(datum.arm, 'start') > 0", alt.value([5, 3]), alt.value([1, 0]))
    axis = charts.axis(QUANTITIES[quantity], tickCount=4, labelOverlap=True)
    axis.format = "~%" if quantity == "share" else "~e"
    colours = [style.colours([norm])[0] for norm in arms.values()]
    named = "indexof(datum.label, 'start') > 0 ? datum.label + ' (dashed)' : datum.label"
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=200, labelExpr=named)
    return (
        charts.chart(rows)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("layer:Q", axis=charts.axis("layer, 1 next to the picture", grid=False)),
            y=alt.Y("value:Q", scale=alt.Scale(type="log"), axis=axis),
            color=alt.Color(
                "arm:N", legend=legend, scale=alt.Scale(domain=list(arms), range=colours)
            ),
            strokeDash=dashed,
        )
        .properties(width=charts.WIDTH, height=HEIGHT, title=title)
    )
