"""What ``normalform explain NAME`` prints: letters in 80 columns, coloured where colours are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from normalform.drawing import Sets
from normalform.drawing.sets import Element, Most
from normalform.lab.explain.analogy import pile
from normalform.lab.explain.numbers import Array, Numbers, short
from normalform.lab.explain.subject import Subject

try:
    from rich.console import Console
    from rich.text import Text

    from normalform.lab.explain.grid import grid
except ModuleNotFoundError as error:
    raise ImportError('normalform explain needs rich: pip install "normalform[lab]"') from error

COLUMNS = 80
_INDENT = "  "
# Okabe and Ito's, light enough for black letters; neighbouring sets never have the same.
_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00")


def show(subject: Subject, numbers: Numbers | None, console: Console) -> None:
    """Print a norm: in words, its sets, as books, and its numbers where there are any."""
    room = min(console.width, COLUMNS) - len(_INDENT)
    plain = console.color_system is None or console.no_color
    for line in _lines(subject, numbers, room):
        if plain:
            line.rstrip()  # the square round a letter
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def _lines(subject: Subject, numbers: Numbers | None, room: int) -> Iterator[Text]:
    yield from _heading(room, subject.said.norm)
    yield from _prose(room, *subject.said.lines, *subject.notes)
    for sets in (_fitting(each, room) for each in subject.sets):
        yield Text()
        yield from _prose(room, str(sets))
        yield Text()
        yield from _indented(_letters(sets, room))
    yield from _heading(room, "As books: a sample is a book, a channel a page.")
    yield from _prose(room, pile(subject.sets[0]), *subject.books)
    if subject.sets[0].recipe.center:
        yield from _prose(room, "The variance likewise, from the squared differences.")
    if numbers is not None:
        yield Text()
        yield from _numbers(numbers, room)


def _heading(room: int, line: str) -> Iterator[Text]:
    for part in textwrap.wrap(line, room, subsequent_indent=_INDENT):
        yield Text(part, style="bold")


def _prose(room: int, *lines: str) -> Iterator[Text]:
    """Sentences, wrapped."""
    for line in lines:
        for part in textwrap.wrap(line, room, subsequent_indent=_INDENT):
            yield Text(_INDENT + part)


def _indented(lines: Iterator[Text]) -> Iterator[Text]:
    return (Text(_INDENT).append(line) if line else line for line in lines)


def _letters(sets: Sets, room: int) -> Iterator[Text]:
    """The sets, each with a letter and, beside others, a colour."""
    marks = sets.marks()
    colours = {one: _COLOURS[i % len(_COLOURS)] for i, one in enumerate(marks)}

    def letter(element: Element) -> Text:
        one = sets.set_of(element)
        return Text(f" {marks[one]} ", style=f"#000000 on {colours[one]}")

    return grid(sets, letter, room)


def _fitting(sets: Sets, room: int) -> Sets:
    """The same with fewer channels drawn, until they stand beside each other."""
    for most in range(Most().channels, 2, -1):
        sets = Sets.of(sets.recipe, sets.shape, Most(channels=most))
        if max(map(len, _letters(sets, 10**6))) <= room:
            break
    return sets


def _numbers(numbers: Numbers, room: int) -> Iterator[Text]:
    """x, xhat and y as they stand, and one element step by step."""
    sets = numbers.steps[0].sets
    example = sets.example()
    index = ", ".join(map(str, example.at))
    yield from _heading(room, "Numbers, from the float64 reference")
    yield from _prose(room, "x, whole numbers to check by hand:")
    yield from _values(sets, numbers.x, room, 0)
    yield from _prose(room, f"One element, x[{index}] = {short(numbers.x[example.at])}:")
    yield from _prose(room, *(f"{_INDENT}{line}" for line in numbers.by_hand(example)))
    for step in numbers.steps:
        what = "mean and var" if step.sets.recipe.center else "mean square"
        listed = ", ".join(_statistics(step.sets, step.mean, step.var))
        yield from _prose(room, f"Every set of {step.sets.recipe}, its {what}: {listed}")
    yield Text()
    yield from _prose(room, "xhat:")
    yield from _values(sets, numbers.xhat, room, 2)
    bias = " and bias 0, 10, 20, ..." if numbers.bias is not None else ""
    given = f"with weight 1, 2, 1, 2, ...{bias}, a value a channel whatever shares a mean"
    yield from _prose(room, f"y, {given}:")
    yield from _values(sets, numbers.y, room, 2)


def _statistics(sets: Sets, mean: Array, var: Array) -> Iterator[str]:
    """The statistics of each set after its letter."""
    marks = sets.marks()
    first = {sets.set_of(element): element.at for element in reversed(list(sets.elements()))}
    for one, mark in marks.items():
        at = first[one]
        numbers = [mean[at], var[at]] if sets.recipe.center else [var[at]]
        yield f"{mark} {' '.join(map(short, numbers))}"


def _values(sets: Sets, values: Array, room: int, decimals: int) -> Iterator[Text]:
    width = 1 + max(len(f"{value:.{decimals}f}") for value in values.flat)

    def number(element: Element) -> Text:
        return Text(f"{values[element.at]:{width}.{decimals}f}")

    return _indented(grid(sets, number, room))
