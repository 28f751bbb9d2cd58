"""The report: a folder of results becomes plots and one page that needs nothing else."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from normalform.lab.folders import replace
from normalform.lab.report import (
    ending,
    figures,
    histories,
    plots,
    results,
    series,
    style,
    training,
)
from normalform.lab.report.canvas import Canvas, Chart
from normalform.lab.report.findings import Findings, load
from normalform.lab.report.questions import Question, questions
from normalform.lab.report.series import Record

try:
    import vl_convert
except ImportError as missing:
    raise ImportError('the report needs vl-convert: pip install "normalform[lab]"') from missing


def write(folder: Path) -> Path:
    """Write the report of a comparison beside its results, finished or not.

    Makes ``report.html``, which carries its data, its charts and its scripts inside and asks no
    network for anything, and each chart as PNG and SVG.

    Args:
        folder: ``runs/<name>``, as ``normalform compare`` writes it.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: the folder is not one of a comparison, or its table is damaged.
        ImportError: the extra ``lab`` is not installed.
    """
    findings = load(folder)
    asked = questions(findings)
    data = series.tables(findings, asked)
    svgs = plots.save(findings, data, folder)
    page = folder / "report.html"
    replace(page, _html(findings, asked, data, svgs).encode())
    return page


def _html(
    findings: Findings,
    asked: list[Question],
    data: dict[str, list[Record]],
    svgs: dict[str, str],
) -> str:
    canvas = Canvas(findings, data)
    comparisons = sum(c.estimate is not None for q in asked for c in q.comparisons)
    body = [
        results.header(findings, asked),
        results.legend(canvas),
        results.error(findings, svgs["error"]),
        results.answers(findings, asked, svgs.get("differences", "")),
        training.learning(canvas, svgs["learning"]),
        training.blends(findings, svgs.get("switch", "")),
        training.activations(findings, svgs.get("activations", "")),
        ending.numbers(findings),
        ending.limits(findings, comparisons),
        ending.origin(findings),
    ]
    return Template(_template("report.html")).substitute(
        title=f"Normalization and batch size: {results.text(findings.meta['name'])}",
        css=_template("report.css"),
        script=_template("report.js"),
        library=_library(),
        page=_json(_charts(canvas)),
        body="\n".join(body),
    )


def _charts(canvas: Canvas) -> dict[str, Any]:
    """What the page's script draws from: charts by name, the tables each needs, the tables."""
    charts: dict[str, Chart] = {}
    networks = canvas.findings.networks
    for network in networks:
        charts[f"error:{network.name}"] = figures.error(canvas, network)
        charts[f"differences:{network.name}"] = figures.differences(canvas, network)
        if histories.blended(network):
            charts[f"blend:{network.name}"] = figures.blend(canvas, network)
    for quantity in histories.curve_kinds(canvas.findings):
        charts[f"curve:{quantity}"] = figures.curve(canvas, quantity)
    for quantity in histories.activation_kinds(canvas.findings):
        charts[f"activation:{quantity}"] = figures.activation(canvas, quantity)
    specs: dict[str, Any] = {name: chart.to_dict(validate=False) for name, chart in charts.items()}
    return {
        "theme": style.THEME,
        "specs": specs,
        "tables": {
            name: [table for table in canvas.data if f'"name": "{table}"' in json.dumps(spec)]
            for name, spec in specs.items()
        },
        "data": canvas.data,
    }


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _json(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _template(name: str) -> str:
    return (resources.files("normalform.lab.report") / "template" / name).read_text("utf-8")
