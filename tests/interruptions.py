"""An exception at every point of the code under test, one after the other."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import normalform

PACKAGE = str(Path(normalform.__file__).parent)

Point = tuple[str, str, int]  # file, function, line


class Interruption(BaseException):
    """As a KeyboardInterrupt, which no code may swallow."""


def interrupted_everywhere(
    run: Callable[[], object], folders: tuple[str, ...] = ("surgery",), last: bool = True
) -> Iterator[Point]:
    """Run once for every line that ``run`` reaches, the first and the ``last`` time, and raise.

    Yields where, after the exception came out. What prepares and what checks are the caller's,
    between two runs.
    """
    with _traced(folders) as seen:
        run()
    assert seen, "nothing of the folders ran"
    for point, times in seen.items():
        for time in dict.fromkeys((1, times if last else 1)):
            try:
                with _traced(folders, point, time):
                    run()
            except Interruption:
                yield point
            else:
                raise AssertionError(f"{point}, time {time}, was not reached or was swallowed")


@contextmanager
def _traced(folders: tuple[str, ...], at: Point | None = None, time: int = 0) -> Iterator[Any]:
    roots = tuple(f"{PACKAGE}/{folder}" for folder in folders)
    seen: dict[Point, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(roots):
            return None
        if event == "line":
            point = code.co_filename[len(PACKAGE) :], code.co_name, frame.f_lineno
            seen[point] = seen.get(point, 0) + 1
            if point == at and seen[point] == time:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
