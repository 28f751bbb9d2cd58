"""The page of a folder of experiments: what was claimed, and whether it held here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalform.lab.experiments import EXPERIMENTS
from normalform.lab.experiments.experiment import Experiment
from normalform.lab.experiments.section import Section
from normalform.lab.experiments.store import Finished, Kept, read
from normalform.lab.folders import replace
from normalform.lab.report.document import Charts, document
from normalform.lab.report.markup import download, facts, table, text
from normalform.lab.report.words import count

MOST = 1_500_000  # bytes of a table that lies inside the page


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of the experiments beside their results, finished or not.

    Makes ``report.html``, which asks no network for anything, and ``plots/NAME.png`` and ``.svg``.

    Args:
        folder: ``runs/experiments``, as ``normalform compare --experiment`` writes it.
        out: another place for the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder is not one of experiments.
        ImportError: the extra ``lab`` is not installed.
    """
    found = part(read(folder))
    path = out or folder / "report.html"
    title = "Published claims about norms, tried here"
    body = f"<h1>{title}</h1>{found.body}"
    replace(path, document(f"{title}: {folder.name}", body, found.charts))
    return path


@dataclass(frozen=True)
class Part:
    """The experiments of a folder, as they stand on a page.

    Attributes:
        body: HTML, beginning with the table of all of them.
        charts: what it has places for.
    """

    body: str
    charts: Charts


def part(kept: Kept, mark: str = "", table: Mapping[str, Experiment] | None = None) -> Part:
    """Judge and draw the experiments of a folder, and write their plots beside them.

    Args:
        kept: the folder.
        mark: what the names of its charts and sections begin with, on a page of several folders.
        table: the experiments there are, by default those that ship.
    """
    table = EXPERIMENTS if table is None else table
    folder = kept.folder
    (folder / "plots").mkdir(exist_ok=True)
    sections = [Section.of(kept, name, table.get(name), mark) for name in kept.names]
    charts = Charts()
    for section in sections:
        section.save(folder / "plots")
        charts.specs.update(section.specs)
    charts.tables.update({name: {} for name in charts.specs})
    body = [_lead(kept, sections, table), _claims(sections)]
    body += [section.html() for section in sections]
    body += [_files(folder), _origin(kept)]
    return Part("\n".join(body), charts)


def _lead(kept: Kept, sections: list[Section], table: Mapping[str, Experiment]) -> str:
    met = sum(s.verdict.met and not s.missing for s in sections)
    open_ = sum(bool(s.missing) for s in sections)
    said = (
        f"{count(len(sections), 'claim')}, each with a rule that was fixed before its first run: "
    )
    said += f"{met} met, {len(sections) - met - open_} not met"
    said += f", {open_} not finished." if open_ else "."
    parts = [f'<p class="lead">{text(said)}</p>']
    runs = sum(s.missing for s in sections)
    warnings = [f"{count(runs, 'run')} not finished. This page is partial."] if runs else []
    quick = [s.title for s in sections if s.size == "quick"]
    if quick:
        which = "All of them" if len(quick) == len(sections) else ", ".join(quick)
        warnings.append(
            f"{which}: quick settings, which show that the experiment runs. They are too small to "
            "judge a claim by."
        )
    left = [table[name].title for name in table if name not in kept.names]
    if left:
        warnings.append(f"Not tried in this folder: {', '.join(left)}.")
    parts += [f'<div class="short warning">{text(line)}</div>' for line in warnings]
    return "".join(parts)


def _claims(sections: list[Section]) -> str:
    rows = [
        [
            f'<a href="#{s.id}">{text(s.title)}</a>',
            f'<strong class="{s.kind}">{text(s.said)}</strong>',
            text(s.claim),
            f"{len(s.runs)} of {s.planned}",
            f"{sum(run.seconds for run in s.runs):.0f}",
        ]
        for s in sections
    ]
    head = ["experiment", "verdict", "claim", "runs", "seconds, all runs"]
    shown = table("Claims and verdicts", head, rows, "claims")
    return f"<section><h2>All claims</h2>{shown}</section>"


def _files(folder: Path) -> str:
    said: list[str] = []
    for name, what in (("runs.csv", "one row a run"), ("steps.csv", "one row a step")):
        raw = (folder / name).read_bytes()
        if not raw.strip():
            continue
        inside = len(raw) <= MOST
        link = download(name, raw) if inside else f"{text(folder / name)}, too large for this page"
        said.append(f"<p>{link}; {what}.</p>")
    pictures = f"The figures lie in {folder / 'plots'} as PNG and SVG."
    return f"<section><h2>Raw numbers</h2>{''.join(said)}<p>{text(pictures)}</p></section>"


def _origin(kept: Kept) -> str:
    runs = [run for name in kept.names for run in kept.runs(name)]
    found: dict[str, Any] = {"command": kept.meta.get("command", "")}
    for name in (
        "machine",
        "cores",
        "platform",
        "normalform",
        "torch",
        "numpy",
        "python",
        "commit",
    ):
        found[name] = _each(runs, name)
    found["begun"] = kept.meta.get("created", "")
    found["finished"] = max((str(run.where["date"]) for run in runs), default="")
    found["time"] = f"{sum(run.seconds for run in runs):.0f} s, all runs together"
    return f"<section><h2>How it was made</h2>{facts(found)}</section>"


def _each(runs: list[Finished], name: str) -> str:
    """All values of an entry, each once."""
    return ", ".join(dict.fromkeys(str(run.where.get(name, "")) for run in runs))
