"""A norm on a card, and all of them on one sheet (docs/norms.svg)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from normalform.drawing.sets import Sets, sized
from normalform.drawing.svg import document, live, placed, still, text
from normalform.drawing.views import block, flat
from normalform.recipes import NORMS, Norm, named

_MARGIN, _BETWEEN, _LINE = 28, 34, 21
_LETTERS = 0.475  # width of a letter in units of its size, about
_TENSOR = {"n": (4,), "c": (6,), "s": (2, 2)}
_COLUMNS, _WIDTH, _HEIGHT, _SPACE = 3, 318, 252, 14


def card(title: str, notation: str, branches: Sequence[Sets], lines: Sequence[str]) -> str:
    """One norm as SVG: its name, its sets flat and as a block, and what there is to say of it.

    Args:
        title: the name.
        notation: how it is written, on the right.
        branches: the recipes that it blends, one for a norm that blends nothing.
        lines: said below, wrapped to the width.
    """
    views = [(flat(sets), block(sets)) for sets in branches]
    width = max(680.0, *(a.width + b.width + _BETWEEN + 2 * _MARGIN for a, b in views))
    letters = int((width - 2 * _MARGIN) / (15 * _LETTERS))
    parts = [
        text(_cut(title, letters - 10), _MARGIN, 44, 22, "ink name"),
        text(notation, width - _MARGIN, 43, 16, "ink mono end"),
    ]
    y = 66.0
    for sets, (left, right) in zip(branches, views, strict=True):
        for line in textwrap.wrap(str(sets), letters):
            parts.append(text(line, _MARGIN, y + 12, 15))
            y += _LINE
        y += 14
        lit = sets.set_of(sets.example())
        parts.append(placed(live(left, sets, lit), _MARGIN, y))
        parts.append(placed(live(right, sets, lit), _MARGIN + left.width + _BETWEEN, y + 8))
        y += max(left.height, right.height + 8) + 26
    for line in (short for each in lines for short in textwrap.wrap(each, letters)):
        parts.append(text(line, _MARGIN, y + 8, 15))
        y += _LINE
    return document(iter(parts), width, y + 14, f"{title}: which elements share a mean")


def sheet() -> str:
    """Every norm of the table on a tensor of 4 samples, 6 channels and 2x2 positions, as SVG."""
    rows = -(-len(NORMS) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + _SPACE) + _SPACE
    height = rows * (_HEIGHT + _SPACE) + _SPACE + 44
    legend = (
        "Left, rows are samples, columns channels, the four squares of a box positions; right, the "
        "same as a block. Blue shares one mean and variance."
    )
    parts = [text(legend, _SPACE + 2, 34, 13)]
    for i, (name, norm) in enumerate(NORMS.items()):
        x = _SPACE + i % _COLUMNS * (_WIDTH + _SPACE)
        y = 52 + i // _COLUMNS * (_HEIGHT + _SPACE)
        parts.append(placed(_small_card(name, norm), x, y))
    return document(iter(parts), width, height, "Which elements share a mean and a variance")


def _small_card(name: str, norm: Norm) -> Iterator[str]:
    yield f'<rect class="card" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
    yield text(name, 16, 30, 18, "ink name")
    yield text(norm.recipe or "a blend", _WIDTH - 16, 30, 14, "ink mono end")
    recipes = [sized(named(each)) for each in norm.over or (name,)]
    branches = [
        Sets.of(r, [size for axis in r.axes for size in _TENSOR[axis.name]]) for r in recipes
    ]
    if len(branches) == 1:
        views = [flat(branches[0], 9, words=False), block(branches[0], 12, words=False)]
    else:
        views = [block(sets, 11, words=False) for sets in branches]
    drawn = list(zip(branches * (len(views) // len(branches)), views, strict=True))
    space = (_WIDTH - 32 - sum(view.width for view in views)) / (len(views) - 1)
    x = 16.0
    for sets, view in drawn:
        lit = sets.set_of(sets.element(0, 1, (0, 0)))
        yield placed(still(view, sets, lit), x, 48 + (98 - view.height) / 2)
        x += view.width + space
    for i, line in enumerate(textwrap.wrap(norm.summary, 42)):
        yield text(line, 16, 174 + 17 * i, 13)
    running = "; running stats" if norm.running else ""
    same = f"torch.nn.{norm.torch}" if norm.torch else "not in torch.nn"
    yield text(f"weight (C,){running}", 16, _HEIGHT - 30, 12, "quiet")
    yield text(same, 16, _HEIGHT - 13, 12, "quiet")


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
