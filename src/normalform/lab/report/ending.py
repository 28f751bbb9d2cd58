"""The page's end: every number, what the run does not show, and how it was made."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from statistics import mean

from normalform.lab.metrics import Metric
from normalform.lab.records import Row
from normalform.lab.report import words
from normalform.lab.report.findings import Arm, Findings
from normalform.lab.report.markup import table, text


def _head(metric: Metric) -> tuple[str, ...]:
    return (
        "arm",
        "seeds",
        metric.axis,
        "95 % interval",
        "seeds from, to",
        f"recalibrated{', %' * metric.percent}",
        metric.training_axis,
        "training loss",
        "learning rate",
        "fewest values a mean",
        "seconds a run",
        "note",
    )


def numbers(findings: Findings) -> str:
    """The table of all arms, and the raw file to keep."""
    raw = (findings.folder / "results.csv").read_bytes()
    link = f"data:text/csv;base64,{base64.b64encode(raw).decode()}"
    tables = "".join(
        table(
            f"{words.capital(n.called)}",
            _head(findings.metric),
            [_cells(a) for a in n.arms],
            "noted",
        )
        for n in findings.networks
    )
    caption = (
        "The interval is each arm's own, for other seeds and test images. Two arms may differ "
        "although these intervals overlap: they met the same seeds and images. Recalibrated: "
        "with running statistics averaged anew over the training images."
    )
    return (
        f'<section><h2>All numbers</h2><p class="soft">{text(caption)}</p>{tables}'
        f'<p><a download="results.csv" href="{link}">Download results.csv</a>, '
        "one row a run.</p></section>"
    )


def _cells(arm: Arm) -> list[str]:
    found, errors = arm.estimate, list(arm.errors.values())
    fewest = next((r.values_per_statistic_min for r in arm.rows.values()), None)
    number = _percent if arm.metric.percent else _plain
    interval = f"{number(found.low)} to {number(found.high)}" if found else ""
    rates = dict.fromkeys(f"{r.lr:g}" for r in arm.rows.values() if r.status != "impossible")
    return [
        text(arm.label),
        f"{len(arm.rows)} of {arm.planned}",
        number(arm.mean_error) if errors else "",
        interval,
        f"{number(min(errors))} to {number(max(errors))}" if errors else "",
        _average(arm, "test_error_recalibrated", percent=arm.metric.percent),
        _average(arm, "train_error", percent=arm.metric.percent),
        _average(arm, "train_loss", percent=False),
        ", ".join(rates),
        "" if fewest is None else f"{fewest:,}",
        f"{mean(r.seconds for r in arm.rows.values()):.1f}" if errors else "",
        text(_note(arm)),
    ]


def _percent(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0), 1):.1f}"


def _plain(value: float) -> str:
    return f"{max(value, 0):.3g}"


def _average(arm: Arm, field: str, *, percent: bool) -> str:
    known = [v for r in arm.rows.values() if (v := getattr(r, field)) is not None]
    if not known:
        return ""
    return _percent(mean(known)) if percent else f"{mean(known):.3f}"


def _note(arm: Arm) -> str:
    if arm.impossible:
        return f"cannot run: {arm.impossible}"
    if not arm.rows:
        return "not run yet"
    return f"{arm.diverged} diverged" if arm.diverged else ""


def limits(findings: Findings, comparisons: int) -> str:
    """What the run does not show."""
    items = "".join(f"<li>{text(said)}</li>" for said in words.limits(findings, comparisons))
    return f'<section><h2>What this does not show</h2><ul class="limits">{items}</ul></section>'


def origin(findings: Findings) -> str:
    """Machine, versions, dates and settings."""
    items = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in _facts(findings) if value
    )
    return f"<section><h2>How it was made</h2><dl>{items}</dl></section>"


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    meta, rows = findings.meta, findings.rows
    config = meta["config"]
    yield "command", str(meta.get("command", ""))
    yield "data", f"{meta['data']['title']} (sha256 {meta['data']['sha256'][:12]})"
    yield "networks", "; ".join(network.title for network in findings.networks)
    settings = f"SGD with momentum {config['momentum']:g}, learning rate {config['lr']:g}"
    if config.get("choices"):
        settings = (
            f"SGD with momentum {config['momentum']:g}, learning rate of each run the best of "
            f"{words.listed(config['choices'])}, found on a fifth of the training samples"
        )
    steps = f"{config['epochs']} epochs, steps of {config['sgd_batch']} images"
    yield "training", f"{settings}, {steps}"
    yield "seeds", ", ".join(map(str, config["seeds"]))
    yield "machine", _values(rows, "machine")
    yield "cores", _values(rows, "cores")
    yield "system", _values(rows, "platform")
    for package in ("normalform", "torch", "numpy", "python"):
        yield package, _values(rows, package)
    yield "commit", _values(rows, "commit")
    yield "begun", str(meta.get("created", ""))
    yield "finished", max((row.date for row in rows), default="")
    yield "training time", f"{sum(row.seconds for row in rows):.0f} s, all runs together"


def _values(rows: list[Row], field: str) -> str:
    """All values a field has, each once."""
    return ", ".join(dict.fromkeys(str(getattr(row, field)) for row in rows))
