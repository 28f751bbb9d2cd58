"""The bracket notation of norms, read: ``n (g [c]) [s]`` is three axes, two of them averaged.

What it means is in :mod:`normalform.recipes`; here is only how it is spelled, and misspelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

AxisName = Literal["n", "c", "s"]

MEANING: Mapping[str, str] = {"n": "samples", "c": "channels", "s": "all remaining axes"}
BLOCKS: Mapping[str, str] = {"n": "b", "c": "g"}  # the letter that counts the blocks of a split


@dataclass(frozen=True)
class Axis:
    """One axis as a recipe reads it.

    A split axis, ``(g [c])``, is averaged inside each of its contiguous blocks: ``blocks`` is how
    many there are (``g``), ``size`` how long each is (``c``). One of the two is enough.
    """

    name: AxisName
    averaged: bool = False
    split: bool = False
    blocks: int | None = None
    size: int | None = None

    def __str__(self) -> str:
        inside = f"[{self.name}]" if self.averaged else self.name
        return f"({BLOCKS[self.name]} {inside})" if self.split else inside


def parse(text: str) -> tuple[Axis, ...]:
    """The axes that a notation names, in its order.

    Raises:
        TypeError: it is not text.
        ValueError: it cannot be read; a caret points at the fault.

    >>> [str(axis) for axis in parse("n (g[c]) [s]")]
    ['n', '(g [c])', '[s]']
    """
    return _Parser(text).axes()


class _Parser:
    def __init__(self, text: str) -> None:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f'a recipe is text such as "[n] c [s]", not {type(text).__name__}')
        self.text = text
        self.at = 0

    def axes(self) -> tuple[Axis, ...]:
        axes: list[Axis] = []
        while (mark := self._peek()) != "":
            if mark == "(":
                axes.append(self._split())
            elif mark == "[":
                self._take()
                if self._peek() == "]":
                    self._fail("empty brackets: name the axes to average over")
                while self._peek() != "]":
                    axes.append(Axis(self._letter(axes), averaged=True))
                self._take()
            else:
                axes.append(Axis(self._letter(axes)))
            self._refuse_repeats(axes)
        missing = [f"{x} ({MEANING[x]})" for x in "nc" if x not in {axis.name for axis in axes}]
        if missing:
            self._fail(f"the recipe does not name {' or '.join(missing)}")
        return tuple(axes)

    def _split(self) -> Axis:
        self._take()
        outer = self._peek()
        owners = {blocks: name for name, blocks in BLOCKS.items()}
        if outer not in owners:
            self._fail("a split axis is (g [c]), groups of channels, or (b [n]), blocks of samples")
        self._take()
        if self._peek() != "[":
            self._fail(f"({outer} [{owners[outer]}]): bracket the inner letter")
        self._take()
        if self._peek() != owners[outer]:
            self._fail(f"{outer} counts blocks of {owners[outer]}: ({outer} [{owners[outer]}])")
        self._take()
        if self._peek() != "]":
            self._fail("the bracket is not closed")
        self._take()
        if self._peek() != ")":
            self._fail('a split axis ends with ")"')
        self._take()
        return Axis("n" if outer == "b" else "c", averaged=True, split=True)

    def _letter(self, axes: list[Axis]) -> AxisName:
        mark = self._peek()
        if mark == "":
            self._fail("the bracket is not closed")
        for name in ("n", "c", "s"):
            if mark == name:
                self._take()
                return name
        if mark in "[(":
            self._fail("brackets do not nest")
        if mark in ")]":
            self._fail(f'nothing open for "{mark}" to close')
        known = ", ".join(f"{letter} ({what})" for letter, what in MEANING.items())
        return self._fail(f"unknown axis {mark!r}; the axes are {known}")

    def _refuse_repeats(self, axes: list[Axis]) -> None:
        names = [axis.name for axis in axes]
        for name in set(names):
            if names.count(name) > 1:
                self.at = self.text.rindex(name)
                self._fail(f"axis {name} stands twice")

    def _peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _take(self) -> None:
        self.at += 1

    def _fail(self, message: str) -> NoReturn:
        raise ValueError(f"recipe: {message}\n  {self.text}\n  {' ' * self.at}^")
