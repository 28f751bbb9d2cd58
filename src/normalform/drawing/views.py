"""A tensor in two views: flat, with every element in sight, and as the block of the papers.

Flat, a row is a sample, a box a channel, and the squares of a box are its positions. The block has
channels to the right, samples to the back and positions downwards; its inside is hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from normalform.drawing.sets import Drawn, Element, Sets, kept

_HEAD, _TOP = 66, 20  # pixels for the names of samples and the numbers of channels
_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}  # what the papers call the positions
_ACROSS, _DOWN = "\N{HORIZONTAL ELLIPSIS}", "\N{VERTICAL ELLIPSIS}"


class Face(NamedTuple):
    """A face of an element that is in sight: its outline, and its middle where a mark has room."""

    element: Element
    outline: str
    middle: tuple[float, float] | None = None


class Word(NamedTuple):
    """A word beside the elements; ``kind`` is the class it is drawn with."""

    text: str
    x: float
    y: float
    kind: str = "quiet middle"


@dataclass(frozen=True)
class View:
    """What is in sight of a tensor.

    Attributes:
        faces: of its elements.
        words: names of samples and channels, and dots where some are left out.
        width: of all of it, in pixels.
        height: of all of it.
        shades: outlines to darken, which give a block its form.
    """

    faces: tuple[Face, ...]
    words: tuple[Word, ...]
    width: float
    height: float
    shades: tuple[str, ...] = ()


class _Track:
    """Where the elements of an axis lie along a line, and where some are left out."""

    def __init__(self, drawn: Drawn, start: float, step: float, between: float, gap: float) -> None:
        self.at: dict[int, float] = {}
        self.gaps: list[float] = []
        self.step, x = step, start
        for index in drawn:
            if index is None:
                self.gaps.append(x + gap / 2)
            else:
                self.at[index] = x
            x += between + (gap if index is None else step)
        self.end = x - between

    @property
    def middles(self) -> list[float]:
        return [x + self.step / 2 for x in self.at.values()]


def flat(sets: Sets, unit: float = 20, *, words: bool = True) -> View:
    """Every element that is drawn, as a square with sides of ``unit`` pixels."""
    *_, deep, down, across = ((0,), (0,), (0,), *sets.positions)
    characters = _Track(across, 0, unit, 0, unit)
    lines = _Track(down, 0, unit, 0, unit)
    sheets = _Track(deep, 0, lines.end, unit / 3, unit)
    channels = _Track(sets.channels, _HEAD if words else 0, characters.end, unit / 2, unit)
    samples = _Track(sets.samples, _TOP if words else 0, sheets.end, unit / 2, unit)
    side = unit - max(1, unit // 10)
    faces: list[Face] = []
    for element in sets.elements():
        *_, d, h, w = (0, 0, 0, *element.position)
        x = channels.at[element.channel] + characters.at[w]
        y = samples.at[element.sample] + sheets.at[d] + lines.at[h]
        outline = f"M{x:g} {y:g}h{side:g}v{side:g}h-{side:g}z"
        faces.append(Face(element, outline, (x + side / 2, y + side / 2)))
    said = list(_dots(channels, samples, characters, lines, sheets))
    if words:
        said += _names(channels, samples)
    return View(tuple(faces), tuple(said), channels.end, samples.end)


def block(sets: Sets, unit: float = 16, *, words: bool = True) -> View:
    """The tensor as a block; of a block that is abbreviated the drawn elements stand together."""
    samples, channels = kept(sets.samples), kept(sets.channels)
    positions = list(itertools.product(*map(kept, sets.positions)))
    back = unit / 2  # a step to the back goes this far to the right, and up
    top, width, height = (
        step * len(axis) for step, axis in ((back, samples), (unit, channels), (unit, positions))
    )
    ahead, behind = f"{back:g} {-back:g}", f"{-back:g} {back:g}"
    faces: list[Face] = []
    for (i, c), (k, p) in itertools.product(enumerate(channels), enumerate(positions)):
        outline = f"M{unit * i:g} {top + unit * k:g}h{unit:g}v{unit:g}h-{unit:g}z"
        faces.append(Face(sets.element(samples[0], c, p), outline))
    for (j, n), (i, c) in itertools.product(enumerate(samples), enumerate(channels)):
        outline = f"M{unit * i + back * j:g} {top - back * j:g}h{unit:g}l{ahead}h-{unit:g}z"
        faces.append(Face(sets.element(n, c, positions[0]), outline))
    for (j, n), (k, p) in itertools.product(enumerate(samples), enumerate(positions)):
        start = f"M{width + back * j:g} {top + unit * k - back * j:g}"
        outline = f"{start}l{ahead}v{unit:g}l{behind}z"
        faces.append(Face(sets.element(n, channels[-1], p), outline))
    shade = f"M{width:g} {top:g}l{top:g} {-top:g}v{height:g}l{-top:g} {top:g}z"
    right, bottom = width + top, top + height
    if not words:
        return View(tuple(faces), (), right, bottom, (shade,))
    said = [
        Word("C", width / 2, bottom + 15),
        Word("N", right - top / 2 + 14, bottom - top / 2 + 10),
    ]
    if sets.positions:
        said.append(Word(_AXES[len(sets.positions)], right + 8, height / 2, "quiet"))
    return View(tuple(faces), tuple(said), right + 52, bottom + 20, (shade,))


def _names(channels: _Track, samples: _Track) -> Iterator[Word]:
    yield Word("channel", 0, _TOP - 7, "quiet")
    for c, x in zip(channels.at, channels.middles, strict=True):
        yield Word(str(c + 1), x, _TOP - 7)
    for n, y in zip(samples.at, samples.middles, strict=True):
        yield Word(f"sample {n + 1}", 0, y + 4, "quiet")


def _dots(
    channels: _Track, samples: _Track, characters: _Track, lines: _Track, sheets: _Track
) -> Iterator[Word]:
    """Dots in every gap: between channels and samples, and inside each box."""
    yield from _at(channels.gaps, samples.middles, _ACROSS)
    yield from _at(channels.middles, samples.gaps, _DOWN)
    for x, y in itertools.product(channels.at.values(), samples.at.values()):
        left = x + characters.middles[0]
        yield from _at([left], [y + gap for gap in sheets.gaps], _DOWN)
        for sheet in sheets.at.values():
            first = y + sheet + lines.middles[0]
            yield from _at([x + gap for gap in characters.gaps], [first], _ACROSS)
            yield from _at([left], [y + sheet + gap for gap in lines.gaps], _DOWN)


def _at(across: Iterable[float], down: Iterable[float], dots: str) -> Iterator[Word]:
    return (Word(dots, x, y + 4) for x, y in itertools.product(across, down))
