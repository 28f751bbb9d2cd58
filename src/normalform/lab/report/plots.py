"""The charts as files: PNG to paste, SVG to scale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from normalform.lab.report import figures, histories, style, words
from normalform.lab.report.canvas import Canvas, Chart, Spec, fill
from normalform.lab.report.findings import Findings
from normalform.lab.report.series import Record

try:
    import vl_convert
except ImportError as missing:
    raise ImportError('the report needs vl-convert: pip install "normalform[lab]"') from missing


def save(findings: Findings, data: Mapping[str, list[Record]], folder: Path) -> dict[str, str]:
    """Write every chart as NAME.png and NAME.svg into the folder; return the SVG texts by name."""
    written: dict[str, str] = {}
    for name, title, rows in _posters(findings, dict(data)):
        spec: Spec = {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "title": _title(findings, title),
            "vconcat": rows,
            "datasets": data,
            "config": {**style.THEME, "background": "white", "padding": 16},
        }
        svg = vl_convert.vegalite_to_svg(json.dumps(spec))
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
        written[name] = svg
    return written


def _posters(
    findings: Findings, data: dict[str, list[Record]]
) -> Iterator[tuple[str, str, list[Spec]]]:
    """Name, title and rows of charts of each file."""
    networks = findings.networks
    wide, half, small = (Canvas(findings, data, width) for width in (470, 330, 150))
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
    titles = {key: words.key_title(canvas.findings, key) for key in canvas.keys}
    chart = _part(figures.curve(canvas, "test_error"))
    return [
        _row(
            (fill(chart, network=n.name, key=key, title=titles[key]) for key in canvas.keys),
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
