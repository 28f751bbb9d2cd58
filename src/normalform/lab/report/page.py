"""The report of a comparison: a folder of results becomes plots and one page."""

from __future__ import annotations

from pathlib import Path

from normalform.lab.folders import replace
from normalform.lab.report import (
    ending,
    figures,
    histories,
    plots,
    results,
    series,
    training,
    words,
)
from normalform.lab.report.canvas import Canvas, Chart
from normalform.lab.report.document import Charts, collect, document
from normalform.lab.report.findings import load
from normalform.lab.report.questions import Question, questions


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a comparison beside its results, finished or not.

    Makes ``report.html``, which carries its data, its charts and its scripts inside and asks no
    network for anything, and each chart as PNG and SVG.

    Args:
        folder: ``runs/<name>``, as ``normalform compare`` writes it.
        out: another place for the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder is not one of a comparison, or its table is damaged.
        ImportError: the extra ``lab`` is not installed.
    """
    findings = load(folder)
    asked = questions(findings)
    canvas = Canvas(findings, series.tables(findings, asked))
    svgs = plots.save(canvas)
    path = out or folder / "report.html"
    title = f"Normalization and batch size: {findings.meta['name']}"
    replace(path, document(title, _body(canvas, asked, svgs), _charts(canvas)))
    return path


def _body(canvas: Canvas, asked: list[Question], svgs: dict[str, str]) -> str:
    findings = canvas.findings
    comparisons = sum(c.estimate is not None for q in asked for c in q.comparisons)
    parts = [
        results.header(findings, asked),
        results.legend(canvas.titles, canvas.sizes),
        results.error(findings, svgs["error"]),
        results.answers(findings, asked, svgs.get("differences", "")),
        training.learning(canvas, svgs["learning"]),
        training.blends(findings, svgs.get("switch", "")),
        training.activations(findings, svgs.get("activations", "")),
        ending.numbers(findings),
        ending.limits(words.limits(findings, comparisons)),
        ending.origin([("", findings)]),
    ]
    return "\n".join(parts)


def _charts(canvas: Canvas) -> Charts:
    charts: dict[str, Chart] = {}
    for network in canvas.findings.networks:
        charts[f"error:{network.name}"] = figures.error(canvas, network)
        charts[f"differences:{network.name}"] = figures.differences(canvas, network)
        if histories.blended(network):
            charts[f"blend:{network.name}"] = figures.blend(canvas, network)
    for quantity in histories.curve_kinds(canvas.findings):
        charts[f"curve:{quantity}"] = figures.curve(canvas, quantity)
    for quantity in histories.activation_kinds(canvas.findings):
        charts[f"activation:{quantity}"] = figures.activation(canvas, quantity)
    return collect(canvas, charts)
