"""The charts as files: PNG to paste, SVG to scale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from normalform.lab.report import figures, histories, style, words
from normalform.lab.report.canvas import Canvas, Chart, Spec, fill
from normalform.lab.report.findings import Findings

try:
    import vl_convert
except ImportError as missing:
    raise ImportError('the report needs vl-convert: pip install "normalform[lab]"') from missing


def save(canvas: Canvas) -> dict[str, str]:
    """Write every chart as NAME.png and NAME.svg beside the results; return the SVGs by name."""
    written: dict[str, str] = {}
    for name, spec in posters(canvas):
        written[name] = vl_convert.vegalite_to_svg(json.dumps(spec))
        (canvas.findings.folder / f"{name}.svg").write_text(written[name], encoding="utf-8")
        png = vl_convert.svg_to_png(written[name], scale=2)
        (canvas.findings.folder / f"{name}.png").write_bytes(png)
    return written


def draw(canvas: Canvas, name: str) -> str:
    """One of the charts as SVG."""
    spec = next(spec for other, spec in posters(canvas) if other == name)
    return vl_convert.vegalite_to_svg(json.dumps(spec))


def posters(canvas: Canvas) -> Iterator[tuple[str, Spec]]:
    """Name and specification of each file."""
    for name, title, rows in _rows(canvas):
        yield (
            name,
            {
                "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
                "title": _title(canvas.findings, title),
                "vconcat": rows,
                "datasets": canvas.data,
                "config": {**style.THEME, "background": "white", "padding": 16},
            },
        )


def _rows(canvas: Canvas) -> Iterator[tuple[str, str, list[Spec]]]:
    """Name, title and rows of charts of each file."""
    findings, data = canvas.findings, canvas.data
    networks = findings.networks
    wide, half, small = (canvas.sized(width) for width in (470, 330, 150))
    title = f"Test {findings.metric.quantity} against normalization batch size"
    yield "error", title, [_row(_part(figures.error(wide, n)) for n in networks)]
    if data["differences"]:
        title = "Differences with 95 % intervals; grey: too small for this run to see"
        yield "differences", title, [_row(_part(figures.differences(half, n)) for n in networks)]
    yield "learning", f"{words.capital(findings.metric.axis)}, while training", _curves(small)
    if data["weights"]:
        rows = [
            _row(fill(_part(figures.blend(half, n)), kind=kind) for kind in ("mean", "variance"))
            for n in networks
            if histories.blended(n)
        ]
        yield "switch", "Learned weights of switchable norm, by layer and NBS", rows
    if data["activations"]:
        yield "activations", "Activations over training", list(_activations(small))


def _curves(canvas: Canvas) -> list[Spec]:
    titles = canvas.titles
    chart = _part(figures.curve(canvas, "test_error"))
    return [
        _row(
            (fill(chart, network=n.name, key=key, title=titles[key]) for key in titles),
            f"{n.heading}",
        )
        for n in canvas.findings.networks
    ]


def _activations(canvas: Canvas) -> Iterator[Spec]:
    kinds = histories.activation_kinds(canvas.findings)
    charts = {what: _part(figures.activation(canvas, what)) for what in kinds}
    for network in canvas.findings.networks:
        layers = range(1, 1 + len(network.layers))
        for what, name in kinds.items():
            parts = (fill(charts[what], network=network.name, layer=layer) for layer in layers)
            yield _row(parts, f"{name}, {network.called}")


def _row(parts: Iterable[Spec], title: str = "") -> Spec:
    """Charts side by side. Joining their specifications is much faster than Altair's ``|``."""
    row: Spec = {"hconcat": list(parts)}
    return {**row, "title": title} if title else row


def _part(chart: Chart) -> Spec:
    """A chart as part of a larger one: what only a whole may have goes."""
    spec: Spec = chart.to_dict(validate=False)
    return {k: v for k, v in spec.items() if k not in ("$schema", "config")}


def _title(findings: Findings, text: str) -> Spec:
    seeds = words.count(findings.seeds, "seed")
    epochs = words.count(findings.meta["config"]["epochs"], "epoch")
    subtitle = f"{findings.meta['data']['title']}; {seeds}, {epochs}"
    return {"text": text, "subtitle": subtitle, "fontSize": 17, "offset": 18}
