"""Arms one below the other, their measures along a line: a dot a seed, a larger one the mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normalform.lab.experiments import classify_charts as charts
from normalform.lab.experiments.experiment import Results
from normalform.lab.report import style

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the pictures need Altair: pip install "normalform[lab]"') from missing

SHAPES = ("circle", "cross", "diamond", "triangle-up")
WIDTH, ROW = 190, 26
SEEDS = "Large: mean of the seeds. Small: each seed."


def strips(
    results: Results,
    arms: Mapping[str, str],
    measures: Mapping[str, str],
    axis: str,
    *,
    legend: str | None = None,
    skip: Iterable[tuple[str, str]] = (),
) -> Any:
    """The chart.

    Args:
        results: of the experiment.
        arms: in the order to show them, each with the norm whose colour it has; those without a
            run are left out.
        measures: the keys of shares of 1, shown in percent, each with its name.
        axis: the title of the axis.
        legend: its title.
        skip: pairs of arm and measure that would say nothing.
    """
    done = {run["arm"] for run in results.runs}
    shown = {arm: norm for arm, norm in arms.items() if arm in done}
    left_out = set(skip)
    rows = [
        {"arm": arm, "norm": norm, "measure": name, "percent": 100 * run[key]}
        for arm, norm in shown.items()
        for run in results.of(arm)
        for key, name in measures.items()
        if (arm, key) not in left_out
    ]
    base = charts.chart(rows).encode(
        y=alt.Y("arm:N", sort=list(shown), axis=alt.Axis(title=None, ticks=False, labelLimit=150)),
        color=_colour(list(dict.fromkeys(shown.values()))),
        shape=_shape(list(measures.values()), legend),
    )
    scale = alt.Scale(zero=False)
    seeds = base.mark_point(size=16, opacity=0.5).encode(
        x=alt.X("percent:Q", scale=scale, axis=charts.axis(axis))
    )
    means = base.mark_point(size=90, filled=True, opacity=1).encode(
        x=alt.X("mean(percent):Q", scale=scale, axis=charts.axis(axis)), detail="measure:N"
    )
    return (seeds + means).properties(width=WIDTH, height=ROW * len(shown))


def _colour(norms: Sequence[str]) -> Any:
    scale = alt.Scale(domain=list(norms), range=style.colours(norms))
    return alt.Color("norm:N", legend=None, scale=scale)


def _shape(names: Sequence[str], title: str | None) -> Any:
    scale = alt.Scale(domain=list(names), range=list(SHAPES[: len(names)]))
    legend = alt.Legend(
        title=title, titleLimit=330, labelLimit=320, orient="top", direction="vertical"
    )
    return alt.Shape("measure:N", scale=scale, legend=legend if len(names) > 1 else None)
