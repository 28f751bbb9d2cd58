"""Views as SVG, with one set lit."""

from __future__ import annotations

import html
from collections.abc import Iterator

from normalform.drawing.sets import Set, Sets
from normalform.drawing.style import css
from normalform.drawing.views import View

MARK = "drawn by normalform"  # which tells our files from others
NAMESPACE = "http://www.w3.org/2000/svg"


def live(view: View, sets: Sets, lit: Set) -> Iterator[str]:
    """The view with each element by itself, so that a page can light any set.

    An element carries its index (``data-at``) and the number of its set (``data-set``); its class
    is ``lit`` in the set ``lit``, else ``even`` or ``odd``.
    """
    marks = sets.marks()
    numbers = {one: number for number, one in enumerate(marks)}
    for face in view.faces:
        one = sets.set_of(face.element)
        at = ",".join(map(str, face.element.at))
        shown = f"{shade_of(one)} lit" if one == lit else shade_of(one)
        yield f'<g class="{shown}" data-set="{numbers[one]}" data-at="{at}">'
        yield f'<path class="edge" d="{face.outline}"/>'
        if face.middle:
            x, y = face.middle
            yield f'<text class="mark" x="{x:g}" y="{y + 4:g}" font-size="12">{marks[one]}</text>'
        yield "</g>"
    yield from _around(view)


def still(view: View, sets: Sets, lit: Set) -> Iterator[str]:
    """The view without marks, in few outlines: a small file."""
    outlines: dict[str, list[str]] = {}
    for face in view.faces:
        one = sets.set_of(face.element)
        shown = "lit" if one == lit else shade_of(one)
        outlines.setdefault(shown, []).append(face.outline)
    for shown, found in outlines.items():
        yield f'<path class="{shown} edge" d="{"".join(found)}"/>'
    yield from _around(view)


def shade_of(one: Set) -> str:
    """The class of a set that is not lit: neighbours differ."""
    return "odd" if sum(one) % 2 else "even"


def text(words: object, x: float, y: float, size: float, kind: str = "ink") -> str:
    """A line of text, made safe."""
    said = html.escape(str(words), quote=False)
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:g}">{said}</text>'


def placed(parts: Iterator[str], x: float, y: float) -> str:
    """Drawn parts, moved to a place."""
    return f'<g transform="translate({x:g} {y:g})">{"".join(parts)}</g>'


def inline(view: View, parts: Iterator[str], label: str, keys: str = "") -> str:
    """A view inside a page. With ``keys``, which says what they do, the keyboard can go to it."""
    size = f'viewBox="0 0 {view.width:g} {view.height:g}" width="{view.width:g}"'
    role = 'role="img"'
    if keys:
        role = 'role="application" tabindex="0" aria-roledescription="picture of a tensor"'
        label = f"{label} {keys}"
    return f'<svg {size} {role} aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def document(parts: Iterator[str], width: float, height: float, label: str) -> str:
    """A whole SVG file, readable on light and dark ground."""
    said = html.escape(label, quote=False)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="{NAMESPACE}" {size} role="img"><title>{said}</title>'
    ground = f'<rect class="ground" width="{width:g}" height="{height:g}"/>'
    rules = f"<!-- {MARK} --><style>{css()}</style>"
    return "\n".join([head, rules, ground, *parts, "</svg>"]) + "\n"


def _around(view: View) -> Iterator[str]:
    for shade in view.shades:
        yield f'<path class="shade" d="{shade}"/>'
    for word in view.words:
        yield text(word.text, word.x, word.y, 12, word.kind)
