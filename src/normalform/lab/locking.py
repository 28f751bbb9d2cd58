"""One writer a folder: a lock that the system releases when its holder dies, however it dies."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _acquire(file: TextIOWrapper) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _acquire(file: TextIOWrapper) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(path: Path) -> TextIOWrapper:
    """Take the lock; closing the file that is returned gives it back.

    Raises:
        ValueError: another process has it.
    """
    file = path.open("a", encoding="utf-8")
    try:
        _acquire(file)
    except OSError:
        file.close()
        raise ValueError(
            f"another comparison is writing into {path.parent}; wait or choose another name"
        ) from None
    return file
