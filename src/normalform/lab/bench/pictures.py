"""The pictures of a benchmark as files: PNG to paste, SVG to scale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.rows import Result
from normalform.lab.bench.targets import TRAINING
from normalform.lab.cases import NORMS
from normalform.lab.report.style import THEME

try:
    import altair as alt
    import vl_convert
except ImportError as missing:
    raise ImportError(
        'normalform bench needs Altair and vl-convert: pip install "normalform[lab]"'
    ) from missing

Chart = Any  # Altair names a type for each way of combining charts; here one name does

TITLES = {
    "batch": "batch",
    "instance": "instance",
    "group": "group",
    "layer": "layer, over the sample",
    "token": "layer, over the last axis",
    "rms": "RMS",
    "switch": "switch",
    "ghost": "ghost",
}
_COLOURS = ["#0072B2", "#D55E00"]
_LAYOUTS = ["contiguous", "channels_last"]
_DECADES = [1e-3, 0.01, 0.1, 1, 10, 100, 1e3, 1e4]
_TICKS = [step * decade for decade in _DECADES for step in (1, 2, 5)]
_MANY = 200.0  # a scale over more than this has a tick a decade
_FINE_TICKS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2, 3, 5]
_COLUMNS = 4
_ROW = 38  # pixels a network
_POWERS = "'1e' + round(log(datum.value) / LN10)"
_LAYOUT_LABELS = "replace(datum.label, '_', ' ')"
_WHAT_LABELS = f"datum.label == '{STEP}' ? 'forward + backward' : datum.label"
_MODEL_LABELS = f"datum.label == '{TRAINING}' ? 'training step' : 'inference of one sample'"


def save(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the pictures of what was measured into the folder; their paths."""
    written: list[Path] = []
    for kind, draw in (("norm", norms), ("model", models)):
        found = [each for each in results if each.ours.kind == kind and "torch" in each.rows]
        if not found:
            continue
        spec = draw(found).to_dict()
        spec["config"] = {**THEME, "background": "white", "padding": 16}
        svg = vl_convert.vegalite_to_svg(json.dumps(spec))
        paths = [folder / f"{kind}s.svg", folder / f"{kind}s.png"]
        paths[0].write_text(svg, encoding="utf-8")
        paths[1].write_bytes(vl_convert.svg_to_png(svg, scale=2))
        written += paths
    return written


def norms(results: Sequence[Result]) -> Chart:
    """PyTorch's time in units of ours against the size of the input: a panel for each norm."""
    records = [
        {
            "norm": TITLES[each.ours.name],
            "elements": each.ours.elements,
            "layout": each.ours.layout,
            "what": each.ours.what,
            "speedup": each.speedup(),
        }
        for each in results
        if each.ours.what in (FORWARD, STEP)
    ]
    present = {each.ours.name for each in results}
    titles = [TITLES[norm] for norm in NORMS if norm in present]
    x = alt.X("elements:Q", axis=_sizes(), scale=_log(records, "elements", 1.5))
    y_scale = _log([*records, {"speedup": 1.0}], "speedup", 1.2)
    low, high = y_scale.domain
    ticks = _DECADES if high / low > _MANY else _TICKS
    y_axis = alt.Axis(values=ticks, format="~g", title="PyTorch's time / ours", grid=True)
    y = alt.Y("speedup:Q", axis=y_axis, scale=y_scale)
    colour = alt.Color(
        "layout:N",
        title=None,
        scale=alt.Scale(domain=_LAYOUTS, range=_COLOURS),
        legend=alt.Legend(orient="top", symbolType="stroke", labelExpr=_LAYOUT_LABELS),
    )
    dash = alt.StrokeDash(
        "what:N",
        title=None,
        scale=alt.Scale(domain=[STEP, FORWARD], range=[[1, 0], [4, 3]]),
        legend=alt.Legend(orient="top", labelExpr=_WHAT_LABELS),
    )
    base: Chart = alt.Chart()
    panel = alt.layer(
        _one(base).encode(y=alt.Y(datum=1, axis=y_axis, scale=y_scale)),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash),
        base.mark_point(size=22, filled=True, opacity=1).encode(x=x, y=y, color=colour),
    ).properties(width=190, height=170)
    faceted = panel.facet(
        alt.Facet("norm:N", title=None, sort=titles, header=alt.Header(labelFontSize=13)),
        data=alt.Data(values=records),
        columns=min(_COLUMNS, len(titles)),
    )
    title = _title("PyTorch's time divided by ours: above 1 ours is faster", results)
    return faceted.resolve_axis(x="independent").properties(title=title)


def models(results: Sequence[Result]) -> Chart:
    """The time before conversion in units of that after: a row for each network."""
    records = [
        {
            "model": each.ours.name,
            "what": each.ours.what,
            "speedup": each.speedup(),
            "label": f"{each.speedup():.2f}",
        }
        for each in results
    ]
    names = list(dict.fromkeys(str(record["model"]) for record in records))
    whats = [TRAINING, INFERENCE]
    scale = _log([*records, {"speedup": 0.95}, {"speedup": 1.1}], "speedup", 1.05)
    axis = alt.Axis(values=_FINE_TICKS, format="~g", title="time before / time after")
    base: Chart = alt.Chart(alt.Data(values=records))
    x = alt.X("speedup:Q", axis=axis, scale=scale)
    y = alt.Y("model:N", title=None, sort=names, axis=alt.Axis(ticks=False))
    offset = alt.YOffset("what:N", sort=whats)
    colour = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=whats, range=_COLOURS),
        legend=alt.Legend(orient="top", labelExpr=_MODEL_LABELS),
    )
    chart = alt.layer(
        _one(base).encode(x=alt.X(datum=1, axis=axis, scale=scale)),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            x=x, y=y, yOffset=offset, color=colour
        ),
        base.mark_text(align="left", dx=8).encode(x=x, y=y, yOffset=offset, text="label:N"),
    )
    title = _title("Networks before and after nf.convert: above 1 faster after", results)
    return chart.properties(width=420, height=_ROW * len(names), title=title)


def _one(chart: Chart) -> Chart:
    """A rule, drawn once where the chart has many records."""
    return chart.transform_aggregate(n="count()").mark_rule(strokeWidth=1.5, opacity=0.7)


def _sizes() -> alt.Axis:
    powers = [10.0**k for k in range(1, 10)]
    return alt.Axis(values=powers, labelExpr=_POWERS, title="Elements of the input")


def _log(records: Sequence[dict[str, Any]], field: str, room: float) -> alt.Scale:
    """A logarithmic scale with some room around the values."""
    values = [float(record[field]) for record in records]
    return alt.Scale(type="log", domain=[min(values) / room, max(values) * room], nice=False)


def _title(text: str, results: Sequence[Result]) -> dict[str, Any]:
    row = results[-1].ours
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    subtitle = f"{row.machine}, {threads}, {row.dtype}, torch {row.torch}, {row.date[:10]}"
    disturbed = sum(each.disturbed for each in results)
    if disturbed:
        subtitle += f"; the machine was not ours alone during {disturbed} of {len(results)} cases"
    return {"text": text, "subtitle": subtitle, "fontSize": 17, "offset": 14}
