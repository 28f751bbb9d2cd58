"""The folder of a benchmark: ``bench.json`` marks it as ours, ``results.csv`` has the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from normalform.lab.bench.rows import Row, to_csv
from normalform.lab.folders import claim, replace

RESULTS = "results.csv"
_MARK, _FORMAT = "bench.json", {"format": "normalform bench", "version": 1}
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
        self._lock = claim(path, "benchmark", _MARK, is_ours)
        try:
            text = json.dumps({**_FORMAT, **meta}, indent=1) + "\n"
            replace(path / _MARK, text.encode())
            for name in _PICTURES:
                (path / name).unlink(missing_ok=True)
            self.add([])
        except BaseException:
            self._lock.close()
            raise

    def add(self, rows: Iterable[Row]) -> None:
        """Keep the rows of a case."""
        self.rows += rows
        replace(self.path / RESULTS, to_csv(self.rows).encode())

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
