"""The folder of the experiments: what is written, and how it survives being interrupted.

::

    runs/experiments/run.json             which experiments, with which settings and runs
    runs/experiments/runs.csv             a row a run
    runs/experiments/steps.csv            a row a step of a run
    runs/experiments/details/RUN_ID.json  both, of one run, exactly

A run's details are written first and in one step, and everything else can be made from them: a
process may be killed at any moment. A folder takes further experiments, and further seeds of one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from normalform.lab.experiments.experiment import Results, Value
from normalform.lab.folders import claim, read_mark, replace

FORMAT = {"format": "normalform experiments", "version": 1}
_WHAT = "set of experiments"
LAST = (  # columns of runs.csv, behind what was measured
    "seconds",
    *("python", "torch", "numpy", "normalform", "machine", "cores", "platform", "commit"),
    "date",
    "run",
)
TAKEN = {"experiment", "arm", "seed", *LAST}
Order = tuple[str, str, int, str]


@dataclass(frozen=True)
class Finished:
    """A finished run, as it is kept in its details.

    Attributes:
        run_id: made of everything that decides the result.
        experiment: its name.
        arm: what the reader sees.
        seed: of every random number in it.
        values: what was measured.
        steps: columns of what was measured at each step.
        seconds: that it took.
        where: date, versions, machine, commit.
    """

    run_id: str
    experiment: str
    arm: str
    seed: int
    values: dict[str, Value]
    steps: dict[str, list[Value]]
    seconds: float
    where: Mapping[str, Value]

    def row(self) -> dict[str, Value]:
        """In runs.csv."""
        named = {"experiment": self.experiment, "arm": self.arm, "seed": self.seed}
        return named | self.values | {"seconds": self.seconds, **self.where, "run": self.run_id}

    def step_rows(self) -> list[dict[str, Value]]:
        """In steps.csv."""
        named = {"experiment": self.experiment, "arm": self.arm, "seed": self.seed}
        columns = self.steps.values()
        rows = (dict(zip(self.steps, row, strict=True)) for row in zip(*columns, strict=True))
        return [named | row for row in rows]


@dataclass(frozen=True)
class Kept:
    """Experiments as they lie on the disk; see :func:`read`.

    Attributes:
        folder: where.
        meta: run.json: for each name in ``experiments`` the ``title``, ``claim``, ``setup``,
            ``rule``, ``settings``, ``runs`` (ids) and ``failed`` (why, by id).
        finished: every finished run by id, those of other settings too.
    """

    folder: Path
    meta: dict[str, Any]
    finished: dict[str, Finished]

    @property
    def names(self) -> list[str]:
        """The experiments, in the order they are shown."""
        return list(self.meta["experiments"])

    def runs(self, name: str) -> list[Finished]:
        """The finished runs of an experiment's present plan, in its order."""
        plan = self.meta["experiments"][name]["runs"]
        return [self.finished[run_id] for run_id in plan if run_id in self.finished]

    def missing(self, name: str) -> int:
        """How many runs of an experiment's plan are not finished."""
        return len(self.meta["experiments"][name]["runs"]) - len(self.runs(name))

    def results(self, name: str) -> Results:
        """What an experiment's rule and picture are given."""
        return results_of(self.runs(name))


def results_of(runs: Iterable[Finished]) -> Results:
    """The results of one experiment's runs."""
    chosen = list(runs)
    return Results(
        [{"arm": run.arm, "seed": run.seed} | run.values for run in chosen],
        [_without_experiment(row) for run in chosen for row in run.step_rows()],
    )


def _without_experiment(row: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in row.items() if name != "experiment"}


def read(folder: Path) -> Kept:
    """Read a folder of experiments.

    Raises:
        ValueError: the folder is not one.
    """
    meta = read_mark(folder / "run.json", FORMAT, _WHAT)
    return Kept(folder, meta, _read_details(folder)[0])


class Writer:
    """Writes the folder, alone: a second one is refused while the first is open.

    Args:
        folder: is made where it does not exist; one that holds anything else is refused.
        meta: dates and the command, for run.json.
        plans: by name of experiment, what stands in run.json of it; its ``runs`` are ids.

    Attributes:
        finished: the sound finished runs, by id; they need not be run.
        damaged: ids in the plans whose details cannot be read; they are run again.
    """

    def __init__(
        self, folder: Path, meta: Mapping[str, Any], plans: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        self._lock = claim(folder, _WHAT, "run.json", is_ours)
        try:
            known = read(folder).meta["experiments"] if is_ours(folder) else {}
            chosen = {name: {**plan, "failed": {}} for name, plan in plans.items()}
            self._meta: dict[str, Any] = {**FORMAT, **meta, "experiments": {**known, **chosen}}
            self.finished, torn = _read_details(folder)
            self.damaged = [i for plan in plans.values() for i in plan["runs"] if i in torn]
            self._tables = (_Table(LAST), _Table())
            for run in self.finished.values():
                self._tabulate(run)
            (folder / "details").mkdir(exist_ok=True)
            self._write_meta()
            self._write_tables()
        except BaseException:
            self._lock.close()
            raise

    def add(self, run: Finished) -> None:
        """Keep a finished run: its details first, then its rows."""
        replace(_path(self.folder, run.run_id), json.dumps(asdict(run)).encode())
        self.finished[run.run_id] = run
        self._tabulate(run)
        self._write_tables()

    def fail(self, name: str, run_id: str, why: str) -> None:
        """Note why a run of an experiment could not be finished."""
        self._meta["experiments"][name]["failed"][run_id] = why
        self._write_meta()

    def kept(self) -> Kept:
        """What is in the folder now."""
        return Kept(self.folder, self._meta, self.finished)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()

    def _tabulate(self, run: Finished) -> None:
        runs, steps = self._tables
        order = (run.experiment, run.arm, run.seed, run.run_id)
        runs.add(order, [run.row()])
        steps.add(order, run.step_rows())

    def _write_meta(self) -> None:
        replace(self.folder / "run.json", json.dumps(self._meta, indent=1).encode())

    def _write_tables(self) -> None:
        for name, table in zip(("runs.csv", "steps.csv"), self._tables, strict=True):
            replace(self.folder / name, table.text().encode())


class _Table:
    """Rows of many kinds in one table with the columns of all; a row without one leaves it empty.

    With every finished run the whole table is written, in an order that does not depend on which
    was first; only what is new is formatted.

    Args:
        last: the columns that stand behind all others.
    """

    def __init__(self, last: Sequence[str] = ()) -> None:
        self._last = last
        self._columns: list[str] = []
        self._rows: dict[Order, list[dict[str, Value]]] = {}
        self._formatted: dict[Order, str] = {}

    def add(self, order: Order, rows: list[dict[str, Value]]) -> None:
        self._rows[order] = rows
        if not {column for row in rows for column in row} <= set(self._columns):
            every = (row for key in sorted(self._rows) for row in self._rows[key])
            known = dict.fromkeys(column for row in every for column in row)
            self._columns = sorted(known, key=lambda column: column in self._last)
            self._formatted.clear()
        for key in self._rows.keys() - self._formatted.keys() | {order}:
            self._formatted[key] = self._format(self._rows[key])

    def text(self) -> str:
        lines = [self._formatted[key] for key in sorted(self._formatted)]
        return "".join([",".join(self._columns), "\n", *lines])

    def _format(self, rows: Iterable[Mapping[str, Value]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def is_ours(folder: Path) -> bool:
    """Whether there are experiments; a run.json of another kind or version raises."""
    path = folder / "run.json"
    return path.exists() and bool(read_mark(path, FORMAT, _WHAT))


def _path(folder: Path, run_id: str) -> Path:
    return folder / "details" / f"{run_id}.json"


def _read_details(folder: Path) -> tuple[dict[str, Finished], set[str]]:
    """The finished runs, and the ids of torn files."""
    found: dict[str, Finished] = {}
    torn: set[str] = set()
    for path in sorted((folder / "details").glob("*.json")):
        try:
            run = Finished(**json.loads(path.read_text(encoding="utf-8")))
            if run.run_id != path.stem:
                raise ValueError(f"{path} belongs to {run.run_id}")
            found[run.run_id] = run
        except (TypeError, ValueError):
            torn.add(path.stem)
    return found, torn
