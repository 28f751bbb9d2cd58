"""``normalform report``: one page of several folders."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normalform.drawing.svg import MARK
from normalform.lab.explain.files import refuse_other_files
from normalform.lab.folders import replace
from normalform.lab.report import figures, overview, page, plots, results, series, words
from normalform.lab.report.canvas import Canvas
from normalform.lab.report.document import Charts, collect, document
from normalform.lab.report.ending import limits, origin
from normalform.lab.report.findings import Findings, load
from normalform.lab.report.joined import Joined, Named, join
from normalform.lab.report.markup import text
from normalform.lab.report.questions import Question, questions

if TYPE_CHECKING:
    from normalform.lab.experiments.store import Kept


def merge(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page of several comparisons and experiments; of one folder, its own report anew.

    Differences are computed between runs that share data, network and settings, whichever folder
    they lie in. What is not a folder of ours is left out, with a line that says so.

    Args:
        folders: as ``normalform compare`` writes them.
        out: where the page is written; by default ``report.html`` beside the folders where they
            lie side by side, else in the current folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: no folder is one of ours, or another file stands where the page would be.
        FileNotFoundError: there is no folder for ``out``.
        ImportError: the extra ``lab`` is not installed.
    """
    from normalform.lab.experiments import page as experiments_page

    comparisons, kept = _read(folders)
    ours = [*comparisons, *kept]
    if not ours:
        raise ValueError("none of these is a folder of a comparison or of experiments")
    if out is None and len(ours) > 1:
        out = _beside(ours)
    if out is not None:
        refuse_other_files(out, (".html",))
    if out is None or len(ours) == 1:
        return (experiments_page if kept else page).write(ours[0], out)
    names = _names(ours)
    body, charts = _compared(
        [Named(names[folder], findings) for folder, findings in comparisons.items()],
        [names[folder] for folder in kept],
    )
    for folder, one in kept.items():
        part = experiments_page.part(one, f"{names[folder]}/")
        body += f"<section><h2>Experiments: {text(names[folder])}</h2></section>{part.body}"
        charts |= part.charts
    replace(out, document(f"Merged report: {', '.join(names.values())}", body, charts))
    return out


def _read(folders: Iterable[Path]) -> tuple[dict[Path, Findings], dict[Path, Kept]]:
    """Comparisons and experiments, each folder once.

    What is neither gets a line, but for pages of ours, which lie among them.
    """
    from normalform.lab.experiments.store import read

    comparisons: dict[Path, Findings] = {}
    kept: dict[Path, Kept] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():
        if folder.is_file() and MARK.encode() in folder.read_bytes()[:300]:
            continue
        try:
            if _of_experiments(folder):
                kept[folder] = read(folder)
            else:
                comparisons[folder] = load(folder)
        except ValueError as error:
            print(f"Left out: {error}", file=sys.stderr)
    return comparisons, kept


def _of_experiments(folder: Path) -> bool:
    from normalform.lab.experiments.store import is_ours

    try:
        return is_ours(folder)
    except ValueError:  # its run.json is of another kind
        return False


def _beside(folders: Iterable[Path]) -> Path:
    """Where a reader looks for what is said of all of them."""
    places = {folder.resolve().parent: folder.parent for folder in folders}
    return (places.popitem()[1] if len(places) == 1 else Path()) / "report.html"


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """What to call each: the last part of its path where that tells it from the others."""
    last = [folder.resolve().name for folder in folders]
    return {f: n if last.count(n) == 1 else str(f) for f, n in zip(folders, last, strict=True)}


def _compared(every: Sequence[Named], experiments: Sequence[str]) -> tuple[str, Charts]:
    """Head and comparisons of the page."""
    groups = join(every)
    asked = [questions(group.findings) for group in groups]
    parts = [overview.header(groups, asked, experiments)]
    if not groups:
        return "".join(parts), Charts()
    titles: dict[str, str] = {}
    for part in every:
        for key, title in Canvas(part.findings, {}).titles.items():
            titles.setdefault(key, title)
    charts = Charts()
    parts += [overview.arms(groups), overview.differing(every), results.legend(titles, ())]
    for group, its in zip(groups, asked, strict=True):
        said, drawn = _group(group, its, tuple(titles))
        parts.append(said)
        charts |= drawn
    tested = [sum(c.estimate is not None for q in its for c in q.comparisons) for its in asked]
    shown = [words.limits(g.findings, n) for g, n in zip(groups, tested, strict=True)]
    parts += [
        overview.elsewhere(groups),
        limits(overview.of_whom([group.name for group in groups], shown)),
        overview.raw(every),
        origin([(part.name, part.findings) for part in every]),
    ]
    return "\n".join(parts), charts


def _group(group: Joined, asked: list[Question], keys: tuple[str, ...]) -> tuple[str, Charts]:
    """The main figure of each folder, and what they say together."""
    charts, said = Charts(), ""
    tables = [series.tables(part.findings, []) for part in group.parts]
    errors = tuple(dot["error"] for table in tables for dot in table["dots"])
    for part, table in zip(group.parts, tables, strict=True):
        canvas = Canvas(part.findings, table, among=keys, beside=errors)
        said += results.error(part.findings, plots.draw(canvas, "error"), part.name)
        drawn = {f"error:{n.name}": figures.error(canvas, n) for n in part.findings.networks}
        charts |= collect(canvas, drawn)
    findings = group.findings
    canvas = Canvas(findings, series.tables(findings, asked), among=keys)
    if asked:
        svg = plots.draw(canvas, "differences")
        said += results.answers(findings, asked, svg, group.name, group.repeated)
        drawn = {f"differences:{n.name}": figures.differences(canvas, n) for n in findings.networks}
        charts |= collect(canvas, drawn)
    return said, charts
