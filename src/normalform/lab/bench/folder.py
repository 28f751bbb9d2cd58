"""The folder of a benchmark: ``bench.json`` marks it as ours, ``results.csv`` has the rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from normalform.lab.bench.rows import Row, to_csv
from normalform.lab.locking import lock

RESULTS = "results.csv"
_MARK, _FORMAT = "bench.json", {"format": "normalform bench", "version": 1}
_EARLY = {".lock", f".{_MARK}.tmp"}  # all that lies there before bench.json does
_PICTURES = ("norms.svg", "norms.png", "models.svg", "models.png")


class Folder:
    """Replaces a benchmark by a new one, row by row; a second writer is refused meanwhile.

    Args:
        path: is made where it does not exist; one that holds anything else is refused.
        meta: goes into ``bench.json``.

    Attributes:
        path: where.
        rows: what was measured.

    Raises:
        ValueError: the folder is somebody else's, or another benchmark is writing into it.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[Row] = []
        _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock(path / ".lock")
        except ValueError:
            raise ValueError(
                f"another benchmark is writing into {path}; wait or choose another name"
            ) from None
        try:
            _write(path / _MARK, json.dumps({**_FORMAT, **meta}, indent=1) + "\n")
            for name in _PICTURES:
                (path / name).unlink(missing_ok=True)
            self.add([])
        except BaseException:
            self._lock.close()
            raise

    def add(self, rows: Iterable[Row]) -> None:
        """Keep the rows of a case."""
        self.rows += rows
        _write(self.path / RESULTS, to_csv(self.rows))

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()


def is_ours(path: Path) -> bool:
    """Whether a folder is a benchmark's."""
    try:
        found: Any = json.loads((path / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == _FORMAT["format"]


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a benchmark needs a folder of its own")
    if not path.exists() or is_ours(path):
        return
    foreign = sorted(each.name for each in path.iterdir() if each.name not in _EARLY)
    if foreign:
        raise ValueError(
            f"{path} holds {foreign[0]} and no {_MARK} of ours: it is not a benchmark's folder; "
            "choose another name"
        )


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: a reader finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
