"""An exception at every point of a function, one run for each."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import normalform

ROOT = str(Path(normalform.__file__).parent / "surgery")
Case = tuple[Callable[[], Any], Callable[[], None]]
Line = tuple[str, int]


class Planted(Exception):
    """Raised where none is expected."""


def everywhere(cases: Iterator[Case]) -> int:
    """Raise at each line of ours that a call runs, the first time and the last; how often in all.

    ``cases`` gives for each run what to call, and what must hold after it has raised.
    """
    call, _ = next(cases)
    lines = _run(call, None)
    first = {line: k for k, line in reversed([*enumerate(lines)])}
    last = {line: k for k, line in enumerate(lines)}
    points = sorted({*first.values(), *last.values()})
    for point, (call, holds) in zip(points, cases, strict=False):
        try:
            _run(call, point)
        except Planted:
            holds()
        else:
            raise AssertionError(f"{lines[point]} was not reached again")
    return len(points)


def _run(call: Callable[[], Any], at: int | None) -> list[Line]:
    """The lines of our surgery that ``call`` runs; with an exception at one of them."""
    lines: list[Line] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) - 1 == at:
                raise Planted(lines[-1])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines
