"""The charts, one function a kind: for the interactive page and for PNG and SVG files alike."""

from __future__ import annotations

import json
from typing import Any

from normalform.lab.metrics import capital
from normalform.lab.report import histories, series, style
from normalform.lab.report.canvas import Canvas, Chart, filtered, log, matches, span
from normalform.lab.report.findings import Findings, Network
from normalform.lab.report.series import Column

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the report needs Altair: pip install "normalform[lab]"') from missing

_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100]
_POINTS = [-60, -30, -10, -3, -1, 0, 1, 3, 10, 30, 60]
_HIGH, _MIDDLE, _LOW = 380, 190, 150  # pixels


def error(canvas: Canvas, network: Network) -> Chart:
    """Test error against NBS: lines for batch statistics, rules for norms that ignore the batch."""
    places = series.columns(canvas.findings, network)
    axis, scale = _places_axis(places, canvas.width), span(-0.5, len(places) - 0.5)
    x = alt.X("x:Q", axis=axis, scale=scale)
    y = alt.Y(
        "error:Q",
        scale=log(canvas.beside or [r["error"] for r in canvas.data["dots"]]),
        axis=alt.Axis(
            title=f"{capital(canvas.findings.metric.axis)} (log scale)",
            ticks=False,
            **_ticks(canvas.findings),
        ),
    )
    means = canvas.base("means", network=network.name)
    points = means.transform_filter("isValid(datum.error)")
    chart = alt.layer(
        *_shade(canvas, network, alt.X("a:Q", axis=axis, scale=scale)),
        points.transform_filter("datum.inside")
        .mark_rule(strokeWidth=1.5, opacity=0.4)
        .encode(y=y, color=canvas.colour()),
        points.transform_filter("!datum.inside && datum.key !== 'sgd'")
        .mark_line(strokeWidth=2.5)
        .encode(x=x, y=y, color=canvas.colour()),
        canvas.base("dots", network=network.name)
        .mark_circle(size=26, opacity=0.6)
        .encode(x=x, y=y, color=canvas.colour(), tooltip="what:N"),
        points.mark_point(size=110, filled=True, opacity=1).encode(
            x=x, y=y, color=canvas.colour(), shape=canvas.shape(), tooltip="what:N"
        ),
        means.transform_filter("isValid(datum.note)")
        .mark_text(angle=270, fontStyle="italic", opacity=0.8)
        .encode(x=x, y=alt.value(_HIGH / 2), text="note:N"),
    )
    return canvas.finish(chart, _HIGH, f"{network.heading}")


def _places_axis(places: list[Column], width: int | None) -> alt.Axis:
    """Two lines under each place: its name, and the values behind each mean there."""
    long = json.dumps([[p.label, p.values] for p in places])
    short = json.dumps([[p.short, p.values] for p in places])
    narrow = "false" if width else "width < 400"
    return alt.Axis(
        title=[
            "NBS, or the norm where NBS has no meaning;",
            "below: values behind each mean of the last layer",
        ],
        values=list(range(len(places))),
        labelExpr=f"({narrow} ? {short} : {long})[datum.value]",
        titlePadding=8,
        labelOverlap=False,
        labelLineHeight=15,
        labelFontSize=alt.expr(f"{narrow} ? 10 : 12"),
        grid=False,
        ticks=False,
    )


def _shade(canvas: Canvas, network: Network, left: alt.X) -> list[Chart]:
    """A shade behind the norms that take no batch statistics, and a word on each side."""
    sides = canvas.base("sides", network=network.name)
    return [
        sides.transform_filter("datum.inside")
        .mark_rect(opacity=0.06, color="currentColor")
        .encode(x=left, x2="b:Q", y=alt.value(0), y2=alt.value(_HIGH)),
        sides.mark_text(align="left", dx=6, opacity=0.75, fontSize=11).encode(
            x=left, y=alt.value(11), text="what:N"
        ),
    ]


def differences(canvas: Canvas, network: Network) -> Chart:
    """Each paired difference with its interval, over the band this run could not see into."""
    own = [r for r in canvas.data["differences"] if r["network"] == network.name]
    answered = [r for r in canvas.data["differences"] if "mean" in r]
    ends = [abs(record[end]) for record in answered for end in ("low", "high", "seen")]
    reach = 1.15 * max(ends, default=1)
    metric = canvas.findings.metric
    scale = alt.Scale(type="symlog", constant=1, domain=[-reach, reach], nice=False)
    title = f"Points of {metric.quantity}: left fewer, right more"
    ticks: dict[str, Any] = {"values": [p for p in _POINTS if abs(p) <= reach]}
    if not metric.percent:
        scale, ticks = span(-reach, reach), {"tickCount": 5}
        title = f"Difference of {metric.quantity}: left less, right more"
    axis = alt.Axis(title=title, ticks=False, grid=True, **ticks)
    x = alt.X("mean:Q", scale=scale, axis=axis)
    y = alt.Y(
        "contrast:N",
        sort=list(dict.fromkeys(r["contrast"] for r in own)),
        axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=200, labelPadding=8),
    )
    every = canvas.base("differences", network=network.name)
    rows = every.transform_filter("isValid(datum.mean)")
    chart = alt.layer(
        rows.mark_bar(height=16, opacity=0.1, color="currentColor").encode(
            x=alt.X("unseen:Q", scale=scale, axis=axis), x2="seen:Q", y=y, tooltip="what:N"
        ),
        rows.mark_rule(strokeWidth=2.5).encode(
            x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q", y=y, color=canvas.colour()
        ),
        rows.mark_point(size=80, filled=True, opacity=1).encode(
            x=x, y=y, color=canvas.colour(), shape=canvas.shape(), tooltip="what:N"
        ),
        every.transform_filter("isValid(datum.note)")
        .mark_text(fontStyle="italic", opacity=0.8)
        .encode(x=alt.X(datum=0, scale=scale, axis=axis), y=y, text="note:N"),
    )
    height = 26 * max(len(own), 1)
    return canvas.finish(chart, height, f"{network.heading}")


def curve(canvas: Canvas, quantity: str) -> Chart:
    """Learning curves of the norm ``@key`` in ``@network``, all others faint behind it."""
    epochs = canvas.findings.meta["config"]["epochs"]
    x = alt.X("epoch:Q", scale=span(1, max(epochs, 2)), axis=_epochs(epochs))
    y = alt.Y(
        f"{quantity}:Q",
        scale=log([r[quantity] for r in canvas.data["curves"]]),
        axis=alt.Axis(title=None, ticks=False, labelOverlap=True, **_ticks(canvas.findings)),
    )
    shown = canvas.base("curves", network="@network").transform_filter(
        f"isValid(datum.{quantity}) && datum.{quantity} > 0"
    )
    mean = shown.transform_filter("datum.seed === null").transform_calculate(
        what=f"datum.arm + ', epoch ' + datum.epoch + ': ' + format(datum.{quantity}, '.3~')"
    )
    own = matches(key="@key")
    chart = alt.layer(
        mean.transform_filter(f"!({own})")
        .mark_line(color="currentColor", opacity=0.13, strokeWidth=1)
        .encode(x=x, y=y, detail="arm:N"),
        shown.transform_filter(f"{own} && datum.seed !== null")
        .mark_line(opacity=0.25, strokeWidth=1)
        .encode(x=x, y=y, color=canvas.colour(), detail=["arm:N", "seed:N"]),
        mean.transform_filter(own)
        .mark_line(strokeWidth=2.2, point=epochs == 1)
        .encode(x=x, y=y, color=canvas.colour(), strokeDash=canvas.dash()),
        *_hover(canvas, mean.transform_filter(own), x, y),
    )
    return canvas.finish(chart, _LOW, "@title")


def blend(canvas: Canvas, network: Network) -> Chart:
    """The learned weights of switchable norm for the ``@kind``, by layer and NBS."""
    names = histories.blended(network)
    layers = len(network.layers)
    epochs = canvas.findings.meta["config"]["epochs"]
    shown = matches(network=network.name, kind="@kind")
    epoch = epochs if canvas.width else "epoch"
    chart = filtered("weights", f"{shown} && datum.epoch === {epoch}")
    axis = alt.Axis(
        title="layer", values=list(range(1, layers + 1)), grid=False, ticks=False, format="d"
    )
    x = alt.X("x:Q", axis=axis, scale=span(0.5, layers + 0.5))
    y_axis = alt.Axis(title=None, values=[0, 0.25, 0.5, 0.75, 1], format=".0%", ticks=False)
    y = alt.Y("below:Q", axis=y_axis, scale=alt.Scale(domain=[0, 1], nice=False))
    keys = [name.partition(":")[0] for name in names]
    colour = alt.Color(
        "branch:N",
        scale=alt.Scale(domain=names, range=style.colours(keys)),
        legend=alt.Legend(title=None) if canvas.width else None,
    )
    bars = (
        chart.transform_calculate(
            above="datum.below + datum.weight",
            what="datum.branch + ' ' + format(datum.weight, '.0%') + ', layer ' + datum.layer "
            "+ ', NBS ' + datum.nbs",
        )
        .mark_rect()
        .encode(x=x, x2="x2:Q", y=y, y2="above:Q", color=colour, tooltip="what:N")
    )
    sizes = (
        chart.transform_filter(f"datum.branch === {json.dumps(names[-1] if names else '')}")
        .transform_calculate(middle="(datum.x + datum.x2) / 2")
        .mark_text(baseline="bottom", dy=-4, color="white", fontSize=10)
        .encode(
            x=alt.X("middle:Q", axis=axis, scale=span(0.5, layers + 0.5)),
            y=alt.value(_MIDDLE),
            text="nbs:N",
        )
    )
    layered = alt.layer(bars, sizes)
    title = f"{network.heading}: weights of the @kind"
    return canvas.finish(layered, _MIDDLE, title, epoch=epochs)


def activation(canvas: Canvas, quantity: str) -> Chart:
    """A property of the activations of ``@layer`` of ``@network`` over training, a line an arm."""
    epochs = canvas.findings.meta["config"]["epochs"]
    percent = quantity in histories.percent_kinds(canvas.findings)
    values = [r.get(quantity) for r in canvas.data["activations"]]
    scale = alt.Scale(domain=[0, 100], nice=False) if percent else log(values)
    ticks = [0, 25, 50, 75, 100] if percent else _TICKS
    x = alt.X("epoch:Q", scale=span(0, epochs), axis=_epochs(epochs))
    y = alt.Y(
        f"{quantity}:Q",
        scale=scale,
        axis=alt.Axis(title=None, ticks=False, values=ticks, labelOverlap=True),
    )
    every = canvas.base("activations", network="@network", layer="@layer")
    drawn = "" if percent else f" && datum.{quantity} > 0"
    lines = every.transform_filter(f"isValid(datum.{quantity}){drawn}").transform_calculate(
        what=f"datum.arm + ', epoch ' + datum.epoch + ': ' + format(datum.{quantity}, '.3~')"
    )
    chart = alt.layer(
        lines.mark_line(strokeWidth=2).encode(
            x=x, y=y, color=canvas.colour(), strokeDash=canvas.dash(), detail="arm:N"
        ),
        *_hover(canvas, lines, x, y),
    )
    return canvas.finish(chart, _LOW, "layer @layer")


def _ticks(findings: Findings) -> dict[str, Any]:
    """Where a logarithmic axis of the metric has its labels: chosen for percent, else by Vega."""
    return {"values": _TICKS} if findings.metric.percent else {"tickCount": 5, "format": "~g"}


def _hover(canvas: Canvas, chart: Chart, x: alt.X, y: alt.Y) -> list[Chart]:
    """Places to point at; a file has no use for them."""
    if canvas.width:
        return []
    return [chart.mark_point(size=60, opacity=0).encode(x=x, y=y, tooltip="what:N")]


def _epochs(epochs: int) -> alt.Axis:
    step = max(1, round(epochs / 4))
    return alt.Axis(
        title="epoch", values=list(range(0, epochs + 1, step)), format="d", grid=False, ticks=False
    )
