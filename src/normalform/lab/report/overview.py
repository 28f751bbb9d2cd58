"""What a page of several comparisons says of all of them: their arms, and how they differ."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from normalform.lab.report import joined, words
from normalform.lab.report.ending import cells, facts
from normalform.lab.report.findings import Arm, Network
from normalform.lab.report.joined import Joined, Named
from normalform.lab.report.markup import download, table, text
from normalform.lab.report.questions import Comparison, Question
from normalform.lab.report.words import count
from normalform.lab.rows import to_csv

_OWN = ("command", "begun", "finished", "training time")  # of each folder, compared or not
_SHORT = ("seeds", "95 % interval", "seeds from, to", "learning rate", "note")


def header(
    groups: Sequence[Joined], asked: Sequence[list[Question]], experiments: Sequence[str]
) -> str:
    """Title, what is on the page, and the shortest answers of each group."""
    every = [part for group in groups for part in group.parts]
    runs = sum(len(part.findings.rows) for part in every)
    said: list[str] = []
    if every:
        names = ", ".join(part.name for part in every)
        said.append(f"{count(len(every), 'comparison')} ({names}), {count(runs, 'run')}")
    if experiments:
        said.append(
            f"{count(len(experiments), 'folder')} of experiments ({', '.join(experiments)})"
        )
    parts = ["<h1>Merged report</h1>", f'<p class="lead">{text("; ".join(said))}.</p>']
    for part in every:
        parts += [f'<div class="short warning">{text(line)}</div>' for line in _warnings(part)]
    short = "".join(
        f"<h3>{text(group.name)}: {text(group.findings.meta['data']['title'])}</h3><ul>{lines}</ul>"
        for group, its in zip(groups, asked, strict=True)
        if (lines := "".join(f"<li>{text(s)}</li>" for s in words.summary(group.findings, its)))
    )
    if short:
        parts.append(f'<div class="short"><h2>In short</h2>{short}</div>')
    return "\n".join(parts)


def _warnings(part: Named) -> Iterator[str]:
    done, planned = len(part.findings.rows), len(part.findings.meta["runs"])
    if done < planned:
        yield f"{part.name}: {planned - done} of {planned} runs are not finished."
    if part.findings.seeds == 1:
        yield f"{part.name}: {words.about_seeds(1, part.findings.samples)}"
    yield from part.findings.damaged


def arms(groups: Sequence[Joined]) -> str:
    """All arms of all folders: a table for each data and network, equal arms together."""
    rows: dict[tuple[str, ...], list[tuple[Named, Arm]]] = {}
    for group in groups:
        for part in group.parts:
            for network in part.findings.networks:
                place = rows.setdefault(_place(part, network), [])
                place += [(part, arm) for arm in network.arms]
    tables = "".join(_arms(place, found) for place, found in rows.items())
    said = (
        "Each row is an arm of one folder, with an interval of its own. Two arms may differ "
        "although these intervals overlap; the paired differences stand below."
    )
    return f'<section><h2>All arms</h2><p class="soft">{text(said)}</p>{tables}</section>'


def _place(part: Named, network: Network) -> tuple[str, ...]:
    data = part.findings.meta["data"]
    metric = part.findings.metric.axis
    return data["title"], f"{network.called} ({network.title})", metric, data["sha256"]


def _arms(place: tuple[str, ...], found: Sequence[tuple[Named, Arm]]) -> str:
    labels = list(dict.fromkeys(arm.label for _, arm in found))
    head = ["arm", "folder", place[2], *_SHORT]
    rows: list[list[str]] = []
    for part, arm in sorted(found, key=lambda pair: labels.index(pair[1].label)):
        its = cells(arm)
        rows.append([its["arm"], text(part.name), its[place[2]], *(its[name] for name in _SHORT)])
    return table(text(f"{place[0]}, {place[1]}"), head, rows, "noted folders")


def differing(every: Sequence[Named]) -> str:
    """What is not the same in all folders, and what is."""
    known = [facts(part.findings) for part in every]
    same: list[str] = []
    rows: list[list[str]] = []
    for name in known[0]:
        values = [each[name] for each in known]
        if name in _OWN or not any(values):
            continue
        if len(set(values)) == 1:
            same.append(name)
        else:
            rows.append([text(name), *map(text, values)])
    if len(every) == 1:
        return ""
    parts = ["<section><h2>What differs between the folders</h2>"]
    if rows:
        head = ["", *(text(part.name) for part in every)]
        parts.append(table("Only what is not the same in all", head, rows, "facts"))
    said = f"The same in all: {', '.join(same)}." if same else "Nothing is the same in all."
    parts.append(f'<p class="soft">{text(said)}</p>')
    parts += [f"<p>{text(line)}</p>" for line in joined.strangers(every)]
    return "".join([*parts, "</section>"])


def elsewhere(groups: Sequence[Joined]) -> str:
    """Equal arms with other settings, paired."""
    tables = "".join(_elsewhere(*found) for found in joined.elsewhere(groups))
    if not tables:
        return ""
    said = (
        "The same data and network, but not the same settings: each arm against itself, with the "
        "seeds that both have. What the settings are stands above."
    )
    return (
        f'<section><h2>The same arm, other settings</h2><p class="soft">{text(said)}</p>'
        f"{tables}</section>"
    )


def _elsewhere(later: Joined, first: Joined, found: Sequence[Comparison]) -> str:
    parts: list[str] = []
    names = (text(later.name), text(first.name))
    head = ["arm", "seeds", *names, "difference", "95 % interval", "in words"]
    for network, its in groupby(found, key=lambda c: c.network):
        rows = [_row(comparison) for comparison in its]
        title = f"{later.name} against {first.name}, {network.called}"
        parts.append(table(text(title), head, rows, "noted"))
    return "".join(parts)


def _row(comparison: Comparison) -> list[str]:
    a, b, found = comparison.a, comparison.b, comparison.estimate
    metric = a.metric
    if found is None:
        return [text(cell) for cell in (a.label, "0", "", "", "", "", words.verdict(comparison))]
    seeds = sorted(set(a.judged) & set(b.judged))
    shown = [metric.shown(float(arm.wrong(seeds).mean())) for arm in (a, b)]
    mean, low, high = (
        words.points(v, sign=True, metric=metric) for v in (found.mean, found.low, found.high)
    )
    row = (a.label, len(seeds), *shown, mean, f"{low} to {high}", words.verdict(comparison))
    return [text(cell) for cell in row]


def of_whom(names: Sequence[str], said: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each line once, with the names of whom it is said where it is not said of all.

    >>> list(of_whom(["a", "b"], [["One seed."], ["One seed.", "One rate."]]))
    ['One seed.', 'b: One rate.']
    """
    for line in dict.fromkeys(line for lines in said for line in lines):
        whom = [name for name, lines in zip(names, said, strict=True) if line in lines]
        yield line if len(whom) == len(names) else f"{', '.join(whom)}: {line}"


def raw(every: Sequence[Named]) -> str:
    """All rows of all folders, to keep."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    for i, part in enumerate(every):
        header, *rows = csv.reader(io.StringIO(to_csv(part.findings.rows)))
        if i == 0:
            writer.writerow(["folder", *header])
        writer.writerows([part.name, *row] for row in rows)
    link = download("results.csv", written.getvalue().encode())
    return f"<section><h2>All rows</h2><p>{link}: one row a run of each folder.</p></section>"
