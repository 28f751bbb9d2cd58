"""The diagnosis as a page that opens without network and carries all it needs."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from normalform.diagnose.finding import Finding, Row, said
from normalform.diagnose.measured import FEWEST
from normalform.diagnose.plots import Plot, drawn
from normalform.diagnose.statistics import MEAN_OFF, VAR_OFF
from normalform.drawing.style import DARK, FONT, LIGHT, MONO
from normalform.drawing.svg import MARK

if TYPE_CHECKING:
    from normalform.diagnose.diagnosis import Diagnosis

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_COLOURS = ("ground", "card", "line", "ink", "quiet", "lit")


def page(diagnosis: Diagnosis) -> str:
    """The page: the sentence, the losses, what was found, plots over the norms, and the numbers."""
    parts = [
        f"<h1>{text(_title(diagnosis))}</h1>",
        f'<p class="lead">{text(diagnosis.summary)}</p>',
        *_losses(diagnosis),
        *_findings(diagnosis.findings),
        *_plots(diagnosis.rows),
        *_numbers(diagnosis.rows),
        f'<p class="soft">{text(diagnosis.measured)}</p>' if diagnosis.measured else "",
    ]
    template = resources.files("normalform.diagnose").joinpath("page.html").read_text("utf-8")
    return Template(template).substitute(
        mark=MARK,
        policy=POLICY,
        title=text(_title(diagnosis)),
        light=_variables(LIGHT),
        dark=_variables(DARK),
        font=FONT,
        mono=MONO,
        body="\n".join(part for part in parts if part),
    )


def text(raw: object) -> str:
    """Text made safe for HTML."""
    return html.escape(str(raw))


def _title(diagnosis: Diagnosis) -> str:
    worst = diagnosis.findings[0] if diagnosis.status else None
    return (
        f"{worst.check.capitalize()}: {worst.where[0]}" if worst else "Norms: nothing wrong found"
    )


def _variables(colours: object) -> str:
    assert isinstance(colours, dict)
    return " ".join(f"--{name}: {colours[name]};" for name in _COLOURS)


def _losses(diagnosis: Diagnosis) -> Iterator[str]:
    losses = diagnosis.losses
    if losses is None or losses.unit != "loss":
        return
    rows = [
        ("in evaluation", losses.evaluation),
        ("with the statistics of the batch", losses.batch),
        ("in evaluation, a copy recalibrated", losses.recalibrated),
    ]
    shown = [(what, value) for what, value in rows if value is not None]
    most = max([abs(value) for _, value in shown if value == value and abs(value) < 1e300] or [1.0])
    yield '<section><h2>The loss</h2><div class="losses">'
    for what, value in shown:
        share = 100 * min(1.0, abs(value) / most) if value == value and most else 100
        yield (
            f"<div><span>{text(what)}</span><b>{text(said(value))}</b>"
            f'<i style="width:{share:.1f}%"></i></div>'
        )
    yield "</div></section>"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    yield "<section><h2>What was found</h2>"
    if not findings:
        yield "<p>Nothing.</p>"
    for finding in findings:
        yield f'<article class="{finding.severity}">'
        yield (
            f'<h3><span class="severity">{finding.severity}</span> {text(finding.check)}: '
            f"<code>{text(finding.where[0])}</code></h3><p>{text(finding.what)}</p>"
        )
        if len(finding.where) > 1:
            names = ", ".join(f"<code>{text(name)}</code>" for name in finding.where)
            yield f"<details><summary>{len(finding.where)} norms</summary>{names}</details>"
        rows = [f"{text(name)}: {text(said(value))}" for name, value in finding.evidence.items()]
        if finding.effect is not None:
            rows.append(f"costs {text(said(finding.effect))} of the loss in evaluation")
        yield f'<p class="soft">{"; ".join(rows)}</p>'
        if finding.remedy:
            yield f"<pre><code>{text(finding.remedy)}</code></pre>"
        if finding.tried is not None:
            yield f"<p>Tried on a copy: {text(finding.tried)}.</p>"
        yield "</article>"
    yield "</section>"


def _plots(rows: Sequence[Row]) -> Iterator[str]:
    found = [plot for plot in _quantities(rows) if any(v is not None for v in plot.values)]
    if not found:
        return
    yield "<section><h2>Norm by norm, in the order they run</h2>"
    for plot in found:
        yield (
            f"<figure><figcaption><b>{text(plot.title)}</b> {text(plot.note)}</figcaption>"
            f'<div class="plot" tabindex="0">{drawn(plot, rows)}</div></figure>'
        )
    yield "</section>"


def _quantities(rows: Sequence[Row]) -> list[Plot]:
    shares = tuple(None if row.share is None else 100 * row.share for row in rows)
    values = tuple(None if row.values is None else float(row.values) for row in rows)
    return [
        Plot(
            "Share of the gap.", "Of what running statistics cost in evaluation.", shares, 0.0,
            unit=" %",
        ),
        Plot(
            "Distance of the running mean.", "From the batch's, in standard deviations of the "
            f"batch, over the channels; above the line, {MEAN_OFF:g}, it is another.",
            tuple(row.mean_off for row in rows), 0.0, MEAN_OFF,
        ),
        Plot(
            "Running variance.", "By what factor it is too large or too small, in the median "
            f"channel; the line is at {VAR_OFF:g}.",
            tuple(row.var_off for row in rows), 1.0, VAR_OFF, log=True, unit="x",
        ),
        Plot(
            "Values behind each statistic.", "In a batch. Below the line, "
            f"{FEWEST}, the statistics of a batch are mostly noise.",
            values, 1.0, float(FEWEST), bad_above=False, log=True,
        ),
    ]  # fmt: skip


def _numbers(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    head = ("", "norm", "kind", "values", "mean off", "variance off", "share of the gap", "effect")
    yield '<section><h2>In numbers</h2><div class="table" tabindex="0"><table><thead><tr>'
    yield "".join(f'<th scope="col">{name}</th>' for name in head) + "</tr></thead><tbody>"
    for i, row in enumerate(rows, 1):
        share = None if row.share is None else f"{100 * row.share:.1f} %"
        cells = (row.kind, row.values, row.mean_off, row.var_off, share, row.effect)
        yield (
            f'<tr><td>{i}</td><th scope="row">{text(row.name)}</th>'
            + "".join(f"<td>{'' if c is None else text(said(c))}</td>" for c in cells)
            + "</tr>"
        )
    yield "</tbody></table></div></section>"
