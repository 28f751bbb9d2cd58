"""A folder of ours: told from other people's by a file in it, written by one process at a time."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

if sys.platform == "win32":
    import msvcrt

    def _acquire(file: TextIOWrapper) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _acquire(file: TextIOWrapper) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def claim(folder: Path, what: str, mark: str, is_ours: Callable[[Path], bool]) -> TextIOWrapper:
    """Lock a folder for writing a ``what`` into it; closing what is returned lets others.

    The system releases the lock when its holder dies, however it dies.

    Args:
        folder: is made where it does not exist; one that holds anything else is refused.
        what: a "benchmark", for errors.
        mark: the name of the file that is written first.
        is_ours: whether ``mark`` is there and ours.

    Raises:
        ValueError: the folder is somebody else's, another process is writing into it, or it cannot
            be made or written to.
    """
    _refuse_foreign(folder, what, mark, is_ours)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ValueError(
            f"no {what} can be written into {folder}: {why}; --out says where it is made"
        ) from None
    try:
        _acquire(file)
    except OSError:
        file.close()
        raise ValueError(
            f"another {what} is writing into {folder}; wait or choose another name"
        ) from None
    return file


def _refuse_foreign(folder: Path, what: str, mark: str, is_ours: Callable[[Path], bool]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a {what} needs a folder of its own")
    if not folder.exists() or is_ours(folder):
        return
    early = {".lock", _beside(folder / mark).name}  # all that lies there before the mark does
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in early)
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]} and no {mark} of ours: it is not a {what}'s folder; "
            "choose another name"
        )


def inside(out: Path, name: str) -> Path:
    """The folder ``name`` in ``out``.

    Raises:
        ValueError: the name is not one for a folder.
    """
    if not name or name != Path(name).name or name in (".", ".."):
        raise ValueError(f"name {name!r} is not a folder's name; --out says where it is made")
    return out / name


def plain(name: str) -> str:
    """A name as it may stand in that of a file.

    >>> plain("batch 2, SGD batch 2")
    'batch-2-SGD-batch-2'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def read_mark(path: Path, form: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What stands in the file that marks a folder as ours.

    Args:
        path: the file, of JSON.
        form: its ``format`` and ``version``.
        what: a "comparison", for errors.

    Raises:
        ValueError: it is not there, or of another kind or version.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        meta = cast(dict[str, Any], found if isinstance(found, dict) else {})
    except (OSError, ValueError):
        meta = {}
    if meta.get("format") != form["format"]:
        raise ValueError(
            f"{path.parent} is not the folder of a {what}: no {path.name} of ours in it"
        )
    if meta.get("version") != form["version"]:
        raise ValueError(
            f"{path.parent} was written in format {meta.get('version')}, this normalform reads "
            f"{form['version']}; choose another name"
        )
    return meta


def replace(path: Path, content: bytes) -> None:
    """Replace a file in one step, on the disk when this returns.

    A reader or a power cut finds the old file or the new one, never half of one.
    """
    beside = _beside(path)
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name == "posix":  # the move itself is on the disk when its folder is
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
