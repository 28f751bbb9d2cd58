"""The folder of a comparison: what is written, and how it survives being interrupted.

::

    runs/fashion/run.json             what is compared; marks the folder as ours
    runs/fashion/results.csv          one row a run
    runs/fashion/details/RUN_ID.npz   curves, activations, switch weights, images got right

Every file is written beside its place, flushed to the disk and moved there in one step, so a reader
or a power cut finds the old file or the new one, never half of one. A run's details hold its row
too and come first: whatever moment a process is killed at, no finished run is lost.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalform.lab.folders import claim, read_mark, replace
from normalform.lab.rows import ADDED, read_rows, to_csv
from normalform.lab.rows import Row as Row

FORMAT = {"format": "normalform compare", "version": 1}


@dataclass(frozen=True, repr=False)
class RunFolder:
    """A comparison as it lies on the disk; see :func:`read`.

    Attributes:
        folder: where.
        meta: run.json.
        all_rows: every row of results.csv, those of other settings too.
    """

    folder: Path
    meta: dict[str, Any]
    all_rows: list[Row]

    def __repr__(self) -> str:
        return f"RunFolder({str(self.folder)!r}, {len(self.rows)} of {len(self.meta['runs'])} runs)"

    @property
    def rows(self) -> list[Row]:
        """The finished runs of the present plan, in its order."""
        known = {row.run_id: row for row in self.all_rows}
        return [known[run_id] for run_id in self.meta["runs"] if run_id in known]

    def details(self, row: Row) -> dict[str, NDArray[Any]]:
        """The arrays of a run; empty for one that was impossible.

        Raises:
            ValueError: the file is missing or damaged.
        """
        return {} if row.status == "impossible" else _read_details(self.folder, row.run_id)[1]


def read(folder: Path) -> RunFolder:
    """Read a comparison's folder.

    Raises:
        ValueError: the folder is not one, or its table cannot be read.
    """
    return RunFolder(folder, _read_meta(folder), list(read_rows(folder / "results.csv").values()))


class Writer:
    """Writes a comparison's folder, alone: a second one is refused while the first is open.

    Args:
        folder: is made where it does not exist; one that holds anything else is refused.
        meta: what goes into run.json; ``meta["runs"]`` are the ids of the plan.

    Attributes:
        finished: ids in the plan that need not be run: their row is there, their details sound.
        damaged: ids in the plan whose details cannot be read; they are run again.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lock = claim(folder, "comparison", "run.json", _is_ours)
        try:
            rows = read_rows(folder / "results.csv")
            self._rows = rows | self._recovered(rows)
            self.finished, self.damaged = self._inspect(meta["runs"])
            replace(folder / "run.json", json.dumps({**FORMAT, **meta}, indent=1).encode())
            (folder / "details").mkdir(exist_ok=True)
            self._write_rows()
        except BaseException:
            self._lock.close()
            raise

    @property
    def rows(self) -> list[Row]:
        """The rows of the finished runs of the plan."""
        return [row for run_id, row in self._rows.items() if run_id in self.finished]

    def add(self, row: Row, details: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished run: its details first, then its row."""
        if row.status != "impossible":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **details, row=np.array(json.dumps(asdict(row))))  # pyright: ignore[reportArgumentType]
            replace(_details_path(self.folder, row.run_id), buffer.getvalue())
        self._rows[row.run_id] = row
        self._write_rows()
        self.finished.add(row.run_id)

    def close(self) -> None:
        """Let others write into the folder."""
        self._lock.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _recovered(self, known: Mapping[str, Row]) -> dict[str, Row]:
        """Rows of runs that were killed between their details and their row."""
        found: dict[str, Row] = {}
        for path in sorted((self.folder / "details").glob("*.npz")):
            if path.stem not in known:
                try:
                    found[path.stem] = _read_details(self.folder, path.stem)[0]
                except ValueError:
                    continue  # torn: the run is not finished and will be repeated
        return found

    def _inspect(self, plan: list[str]) -> tuple[set[str], list[str]]:
        finished: set[str] = set()
        damaged: list[str] = []
        for run_id in plan:
            if run_id not in self._rows:
                continue
            try:
                if self._rows[run_id].status != "impossible":
                    _read_details(self.folder, run_id)
                finished.add(run_id)
            except ValueError:
                damaged.append(run_id)
        return finished, damaged

    def _write_rows(self) -> None:
        replace(self.folder / "results.csv", to_csv(self._rows.values()).encode())


def _is_ours(folder: Path) -> bool:
    """Whether there is a comparison; a run.json of another kind or version raises."""
    return (folder / "run.json").exists() and bool(_read_meta(folder))


def _read_meta(folder: Path) -> dict[str, Any]:
    return read_mark(folder / "run.json", FORMAT, "comparison")


def _details_path(folder: Path, run_id: str) -> Path:
    return folder / "details" / f"{run_id}.npz"


def _read_details(folder: Path, run_id: str) -> tuple[Row, dict[str, NDArray[Any]]]:
    """A run's row and arrays; every byte is read, so that the archive's checksums are tried."""
    path = _details_path(folder, run_id)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        known: dict[str, Any] = dict(ADDED)
        row = Row(**(known | json.loads(str(arrays.pop("row")))))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{path} is missing or damaged; run again to repeat the run") from None
    if row.run_id != run_id:
        raise ValueError(f"{path} belongs to {row.run_id}")
    return row, arrays
