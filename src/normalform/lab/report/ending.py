"""The page's end: every number, what the run does not show, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean

from normalform.lab.records import Row
from normalform.lab.report import markup, words
from normalform.lab.report.findings import Arm, Findings
from normalform.lab.report.markup import download, table, text


def numbers(findings: Findings) -> str:
    """The table of all arms, and the raw file to keep."""
    raw = (findings.folder / "results.csv").read_bytes()
    tables = "".join(_table(n.called, [cells(a) for a in n.arms]) for n in findings.networks)
    caption = (
        f"The interval is each arm's own, for other seeds and test {findings.samples}. Two arms "
        f"may differ although these intervals overlap: they met the same seeds and "
        f"{findings.samples}. Recalibrated: with running statistics averaged anew over the "
        f"training {findings.samples}."
    )
    return (
        f'<section><h2>All numbers</h2><p class="soft">{text(caption)}</p>{tables}'
        f"<p>{download('results.csv', raw)}, one row a run.</p></section>"
    )


def _table(caption: str, rows: list[dict[str, str]]) -> str:
    head = list(rows[0]) if rows else []
    return table(text(words.capital(caption)), head, [list(r.values()) for r in rows], "noted")


def cells(arm: Arm) -> dict[str, str]:
    """All numbers of an arm, as HTML by what stands over them."""
    found, errors, metric = arm.estimate, list(arm.errors.values()), arm.metric
    fewest = next((r.values_per_statistic_min for r in arm.rows.values()), None)
    number = _percent if metric.percent else _plain
    rates = dict.fromkeys(f"{r.lr:g}" for r in arm.rows.values() if r.status != "impossible")
    return {
        "arm": text(arm.label),
        "seeds": f"{len(arm.rows)} of {arm.planned}",
        metric.axis: number(arm.mean_error) if errors else "",
        "95 % interval": f"{number(found.low)} to {number(found.high)}" if found else "",
        "seeds from, to": f"{number(min(errors))} to {number(max(errors))}" if errors else "",
        f"recalibrated{', %' * metric.percent}": _average(
            arm, "test_error_recalibrated", percent=metric.percent
        ),
        metric.training_axis: _average(arm, "train_error", percent=metric.percent),
        "training loss": _average(arm, "train_loss", percent=False),
        "learning rate": ", ".join(rates),
        "fewest values a mean": "" if fewest is None else f"{fewest:,}",
        "seconds a run": f"{mean(r.seconds for r in arm.rows.values()):.1f}" if errors else "",
        "note": text(_note(arm)),
    }


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


def limits(said: Iterable[str]) -> str:
    """What the runs do not show."""
    items = "".join(f"<li>{text(line)}</li>" for line in said)
    return f'<section><h2>What this does not show</h2><ul class="limits">{items}</ul></section>'


def origin(every: Iterable[tuple[str, Findings]]) -> str:
    """Machine, versions, dates and settings of each comparison, under its name."""
    parts = "".join(
        (f"<h3>{text(name)}</h3>" if name else "") + markup.facts(facts(findings))
        for name, findings in every
    )
    return f"<section><h2>How it was made</h2>{parts}</section>"


def facts(findings: Findings) -> dict[str, str]:
    """How a comparison was made, in words, by what each is about."""
    meta, rows, config = findings.meta, findings.rows, findings.meta["config"]
    settings = f"SGD with momentum {config['momentum']:g}, learning rate {config['lr']:g}"
    if config.get("choices"):
        settings = (
            f"SGD with momentum {config['momentum']:g}, learning rate of each run the best of "
            f"{words.listed(config['choices'])}, found on a fifth of the training samples"
        )
    steps = f"{config['epochs']} epochs, steps of {config['sgd_batch']} {findings.samples}"
    return {
        "command": str(meta.get("command", "")),
        "data": f"{meta['data']['title']} (sha256 {meta['data']['sha256'][:12]})",
        "networks": "; ".join(network.title for network in findings.networks),
        "training": f"{settings}, {steps}",
        "seeds": ", ".join(map(str, config["seeds"])),
        **{name: _values(rows, name) for name in ("device", "precision", "machine")},
        "cores": _values(rows, "cores"),
        "system": _values(rows, "platform"),
        **{name: _values(rows, name) for name in ("normalform", "torch", "numpy", "python")},
        "commit": _values(rows, "commit"),
        "begun": str(meta.get("created", "")),
        "finished": max((row.date for row in rows), default=""),
        "training time": f"{sum(row.seconds for row in rows):.0f} s, all runs together",
    }


def _values(rows: list[Row], field: str) -> str:
    """All values a field has, each once."""
    return ", ".join(dict.fromkeys(str(getattr(row, field)) for row in rows))
