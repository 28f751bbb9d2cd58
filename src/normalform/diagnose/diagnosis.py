"""All that was found, as a value: it prints as a table, and goes into JSON or a page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from normalform.diagnose.finding import SEVERITIES, Finding, Losses, Row, joined, said

WIDTH = 98
MOST_ROWS, MOST_LINES = 12, 4


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What is wrong with the norms of a model; prints as a table.

    Attributes:
        summary: the diagnosis in one sentence.
        findings: the worst first.
        rows: every norm in numbers, in the order they run where that is known.
        losses: in evaluation and otherwise; None without batches.
        measured: what was measured on, in words; empty without batches.
    """

    summary: str
    findings: tuple[Finding, ...] = ()
    rows: tuple[Row, ...] = ()
    losses: Losses | None = None
    measured: str = ""

    @property
    def status(self) -> int:
        """The exit status of the command: 1 where anything is worse than a note."""
        return int(any(finding.severity != "note" for finding in self.findings))

    def worse_than(self, severity: str = "note") -> tuple[Finding, ...]:
        """The findings above a severity."""
        level = SEVERITIES.index(severity)
        return tuple(f for f in self.findings if SEVERITIES.index(f.severity) > level)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it; what is not finite becomes a word."""
        return _plain(asdict(self) | {"status": self.status})

    def html(self) -> str:
        """All of it as a page that needs nothing else."""
        from normalform.diagnose.page import page

        return page(self)

    def __str__(self) -> str:
        parts = [*_wrapped(self.summary, "")]
        for finding in self.findings:
            parts += ["", *_finding(finding)]
        if self.rows:
            parts += ["", *_table(self)]
        if self.measured:
            parts += ["", *_wrapped(self.measured, "")]
        return "\n".join(parts)

    __repr__ = __str__


def _finding(finding: Finding) -> Iterator[str]:
    head, *more = _wrapped(f"{finding.check}: {joined(finding.where)}")
    yield f"{finding.severity:8} {head.lstrip()}"
    yield from more
    yield from _wrapped(finding.what)
    told = set(finding.what.replace(":", " ").replace(",", " ").split())
    numbers = [f"{name} {said(v)}" for name, v in finding.evidence.items() if said(v) not in told]
    if numbers:
        yield from _wrapped(", ".join(numbers))
    if finding.effect is not None:
        costs = f"{said(finding.effect)} of" if math.isfinite(finding.effect) else "all of"
        yield from _wrapped(f"it costs {costs} the loss in evaluation")
    if finding.remedy:
        lines = [w for line in f"mend: {finding.remedy}".splitlines() for w in _wrapped(line)]
        more = [f"{' ' * 9}... (all of it in --json)"] if len(lines) > MOST_LINES else []
        yield from [*lines[:MOST_LINES], *more]
    if finding.tried is not None:
        yield from _wrapped(f"tried on a copy: {finding.tried}")


def _table(diagnosis: Diagnosis) -> Iterator[str]:
    """The norms that make most of the gap, or the first ones; numbers where they were measured."""
    rows = diagnosis.rows
    most = sorted(range(len(rows)), key=lambda i: -abs(rows[i].share or 0.0))[:MOST_ROWS]
    shown = [rows[i] for i in sorted(most)]
    names, kinds = max(len(row.name) for row in shown), max(len(row.kind) for row in shown)
    numbers = diagnosis.losses is not None
    if numbers:
        head = " values   mean off  variance off  share of the gap"
        yield f"{'norm':{names}}  {'kind':{kinds}}  {head}"
    for row in shown:
        told = f"{row.name:{names}}  {row.kind:{kinds}}"
        yield (f"{told}  {_numbers(row)}" if numbers else told).rstrip()
    if len(rows) > len(shown):
        yield f"and {len(rows) - len(shown)} more norms"


def _numbers(row: Row) -> str:
    values = "-" if row.values is None else f"{row.values:,}"
    off = "-" if row.mean_off is None else f"{row.mean_off:.2f} std"
    times = "-" if row.var_off is None else f"{row.var_off:.2f}x"
    share = "-" if row.share is None else f"{100 * row.share:.1f} %"
    shared = f" (1 of {row.among} alike)" if row.among > 1 else ""
    return f"{values:>7}  {off:>9}  {times:>12}  {share:>7}{shared}"


def _wrapped(text: str, indent: str = " " * 9) -> Iterator[str]:
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
