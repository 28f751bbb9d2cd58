"""A measurement as a row of results.csv, and the rows of a case together."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from normalform.lab.bench.load import Load


@dataclass(frozen=True)
class Row:
    """What one competitor took for one case. Times are microseconds; None is an empty cell.

    Attributes:
        kind: ``norm`` or ``model``.
        name: of the norm or model.
        shape: of the input, ``32x64x56x56``.
        elements: of the input.
        layout: ``contiguous`` or ``channels_last``.
        dtype: of input and parameters.
        what: ``forward``, ``forward+backward`` or ``inference``; of models ``training`` (a step)
            or ``inference``.
        competitor: ``ours``, ``torch``, ``compiled`` or ``copy``.
        us: the least mean of a turn.
        p50_us: the median call.
        p99_us: the 99th percentile of the calls, where there are 100.
        paired: the median over the rounds of this time divided by ours.
        rounds: how many.
        calls: timed one by one.
        floor: copies the norm needs at least.
        difference: the largest difference of a result from ours, in units of the largest value.
        kernel: that our layer was asked for.
        l2: bytes of a core's own second-level cache.
        memory_kept: the process kept its memory; see ``timing.py``.
        others: cores that other programs kept busy meanwhile, where the system says.
        together: how many times as fast all threads computed as one, where there are several: the
            less of just before and just after. Far less than their number means that they shared
            cores.
        threads: that computed.
        python: version.
        torch: version.
        numpy: version.
        numba: version, "unknown" without it.
        normalform: version.
        machine: model of the processor.
        cores: that the process could use.
        platform: operating system.
        commit: of the checkout, "" outside one.
        date: when it was measured, UTC.
    """

    kind: str
    name: str
    shape: str
    elements: int
    layout: str
    dtype: str
    what: str
    competitor: str
    us: float
    p50_us: float
    p99_us: float | None
    paired: float
    rounds: int
    calls: int
    floor: float | None
    difference: float | None
    kernel: str
    l2: int
    memory_kept: int
    others: float | None
    together: float | None
    threads: int
    python: str
    torch: str
    numpy: str
    numba: str
    normalform: str
    machine: str
    cores: int
    platform: str
    commit: str
    date: str


@dataclass(frozen=True)
class Result:
    """A case: its rows by competitor."""

    rows: Mapping[str, Row]

    @property
    def ours(self) -> Row:
        """Our row, which every case has."""
        return self.rows["ours"]

    def speedup(self, against: str = "torch") -> float | None:
        """Least time of a competitor in units of ours; None where it was not measured."""
        return self.rows[against].us / self.ours.us if against in self.rows else None

    def paired(self, against: str = "torch") -> float | None:
        """The same within a round, the median over the rounds."""
        return self.rows[against].paired if against in self.rows else None

    def copies(self, competitor: str = "ours") -> float | None:
        """Least time in units of a copy's."""
        if "copy" not in self.rows or competitor not in self.rows:
            return None
        return self.rows[competitor].us / self.rows["copy"].us

    @property
    def load(self) -> Load:
        """What disturbed it."""
        return Load(self.ours.others, self.ours.together)

    @property
    def disturbed(self) -> bool:
        """Whether something did."""
        return self.load.disturbs(self.ours.threads)

    @property
    def of_floor(self) -> float | None:
        """Our time in units of the least a norm needs."""
        copies = self.copies()
        return None if copies is None or self.ours.floor is None else copies / self.ours.floor


_PARSERS: Mapping[str, Callable[[str], str | int | float]] = {
    "str": str,
    "int": int,
    "float": float,
}
_FIELDS = {field.name: str(field.type) for field in fields(Row)}


def results(rows: Iterable[Row]) -> list[Result]:
    """The cases, in the order in which they were measured."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        case = (row.kind, row.name, row.shape, row.layout, row.dtype, row.what)
        found.setdefault(case, {})[row.competitor] = row
    return [Result(each) for each in found.values() if "ours" in each]


def to_csv(rows: Iterable[Row]) -> str:
    """The table as text, with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """The table's rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a row of ours.
    """
    with path.open(newline="", encoding="utf-8") as file:
        found: list[Row] = []
        try:
            for cells in csv.DictReader(file, strict=True):
                found.append(_row(cells))
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path}: row {len(found) + 1} is not ours ({error!r})") from None
    return found


def _row(cells: Mapping[str, str]) -> Row:
    values: dict[str, Any] = {name: _parse(kind, cells, name) for name, kind in _FIELDS.items()}
    return Row(**values)


def _parse(kind: str, cells: Mapping[str, str], name: str) -> str | int | float | None:
    optional = kind.endswith(" | None")  # also what earlier versions did not measure
    if optional and not cells.get(name):
        return None
    return _PARSERS[kind.removesuffix(" | None")](cells[name])
