"""A tensor in characters: a row of boxes for each sample, a box for each channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from normalform.drawing import Sets
from normalform.drawing.sets import Drawn, Element

_DOTS, _BETWEEN = " ..", "  "
Show = Callable[[Element], Text]


def grid(sets: Sets, show: Show, room: int) -> Iterator[Text]:
    """The lines of a tensor.

    Args:
        sets: which elements are drawn.
        show: an element in characters, the same number for each.
        room: characters in a line; boxes that have no room stand further down.
    """
    samples = [f"sample {n + 1}" if n is not None else "" for n in sets.samples]
    label = 2 + max(map(len, samples))
    box = _width(sets, show)
    fit = max(1, (room - label) // (box + len(_BETWEEN)))
    for start in range(0, len(sets.channels), fit):
        channels = sets.channels[start : start + fit]
        names = [_DOTS if c is None else f" {c + 1}" for c in channels]
        yield Text("channel".ljust(label) + _BETWEEN.join(n.ljust(box) for n in names).rstrip())
        for name, n in zip(samples, sets.samples, strict=True):
            if n is None:
                yield Text(" ..")
            else:
                yield from _sample(sets, show, n, channels, name.ljust(label), box)
            yield Text()


def _sample(
    sets: Sets, show: Show, n: int, channels: Drawn, label: str, box: int
) -> Iterator[Text]:
    """The lines of a sample, the first with its name."""
    *_, deep, down, across = ((0,), (0,), (0,), *sets.positions)
    for k, sheet in enumerate(deep):
        if k:
            yield Text()
        for line in down if sheet is not None else (None,):
            drawn = Text(label)
            for i, c in enumerate(channels):
                row = Text(_DOTS)
                if c is not None and sheet is not None and line is not None:
                    row = _row(sets, show, (n, c), (sheet, line), across)
                drawn.append(_BETWEEN if i else "").append(row)
                if i + 1 < len(channels):
                    drawn.append(" " * (box - len(row)))
            yield drawn
            label = " " * len(label)


def _row(
    sets: Sets, show: Show, box: tuple[int, int], line: tuple[int, int], across: Drawn
) -> Text:
    """A line of a box."""
    row = Text()
    for w in across:
        if w is None:
            row.append(_DOTS)
        else:
            position = (*line, w)[3 - len(sets.positions) :]
            row.append(show(sets.element(*box, position)))
    return row


def _width(sets: Sets, show: Show) -> int:
    across: Sequence[int | None] = sets.positions[-1] if sets.positions else (0,)
    element = len(show(sets.example()))
    return sum(len(_DOTS) if w is None else element for w in across)
