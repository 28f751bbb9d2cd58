"""Draw docs/norms.svg, the picture-table of the README, from the table the code runs on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from normalform.cells import Cells
from normalform.recipes import NORMS, Norm, named

SAMPLES, CHANNELS, POSITIONS = 4, 6, 4
EXAMPLE_SIZE = {"group": ":2", "ghost": ":2"}
TARGET = Path(__file__).parent.parent / "docs" / "norms.svg"

SQUARE, GAP = 9, 6  # one position; the space between samples and channels
BOX = 2 * SQUARE
CARD_WIDTH, CARD_HEIGHT, COLUMNS, MARGIN = 290, 244, 3, 14
INK, PALE, PALER, LIT = "#1f2933", "#d9dee4", "#eceff2", "#2563eb"
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
STYLE = (
    ".name{font-size:18px;font-weight:600}"
    ".recipe{font-size:14px;font-family:ui-monospace,Menlo,Consolas,monospace;text-anchor:end}"
    ".words{font-size:13px}.small{font-size:12px;fill:#52606d}"
)
Element = tuple[int, int, int]


def cell_of(cells: Cells, element: Element) -> tuple[int, ...]:
    """Which cell an element (n, c, s) lies in."""
    n, c, s = element
    blocks = 0
    for run in cells.runs:
        if n < run.stop:
            blocks += (n - run.start) // run.block
            break
        blocks += (run.stop - run.start) // run.block
    group = c // (CHANNELS // cells.groups)
    return (blocks, group) if cells.spatial else (blocks, group, s)


def layouts(name: str, norm: Norm) -> list[Cells]:
    """The cells of a norm on the example tensor; several where it blends."""
    recipes = [named(branch) for branch in norm.over] or [named(name + EXAMPLE_SIZE.get(name, ""))]
    sizes = {"n": SAMPLES, "c": CHANNELS, "s": POSITIONS}
    return [r.cells([sizes[axis.name] for axis in r.axes]) for r in recipes]


def squares(cells: Cells, x: float, y: float, *, lit: str | None, opacity: float) -> Iterator[str]:
    """The tensor, samples down and channels across; ``lit`` colours the cell of one element."""
    chosen = cell_of(cells, (1, 1, 0))
    drawn: dict[str, list[str]] = {}
    for n in range(SAMPLES):
        for c in range(CHANNELS):
            for s in range(POSITIONS):
                cell = cell_of(cells, (n, c, s))
                left = x + c * (BOX + GAP) + s % 2 * SQUARE
                top = y + n * (BOX + GAP) + s // 2 * SQUARE
                fill = lit if lit and cell == chosen else (PALE if sum(cell) % 2 else PALER)
                side = SQUARE - 1
                drawn.setdefault(fill, []).append(f"M{left} {top}h{side}v{side}h-{side}z")
    for fill, squares_of_it in drawn.items():
        if fill == lit or opacity == 1:
            yield f'<path fill="{fill}" fill-opacity="{opacity}" d="{"".join(squares_of_it)}"/>'


def card(name: str, norm: Norm, x: float, y: float) -> Iterator[str]:
    """One norm: name, recipe, picture, what shares a mean, the shape of its weight."""
    yield f'<rect x="{x}" y="{y}" width="{CARD_WIDTH}" height="{CARD_HEIGHT}" rx="8" fill="#fff" '
    yield 'stroke="#cbd2d9"/>'
    yield f'<text x="{x + 16}" y="{y + 30}" class="name">{name}</text>'
    recipe = norm.recipe or "a blend"
    yield f'<text x="{x + CARD_WIDTH - 16}" y="{y + 30}" class="recipe">{recipe}</text>'
    left, top = x + (CARD_WIDTH - CHANNELS * (BOX + GAP) + GAP) / 2, y + 48
    drawn = layouts(name, norm)
    if len(drawn) == 1:
        yield from squares(drawn[0], left, top, lit=LIT, opacity=1)
    else:  # the element's cells over one another: the more share it, the darker
        yield from squares(drawn[0], left, top, lit=None, opacity=1)
        for cells in drawn:
            yield from squares(cells, left, top, lit=LIT, opacity=0.34)
    for i, line in enumerate(textwrap.wrap(norm.summary, 37)):
        yield f'<text x="{x + 16}" y="{y + 164 + 17 * i}" class="words">{line}</text>'
    running = "; running stats" if norm.running else ""
    yield f'<text x="{x + 16}" y="{y + CARD_HEIGHT - 30}" class="small">'
    yield f"weight (C,){running}</text>"
    same = f"torch.nn.{norm.torch}" if norm.torch else "not in torch.nn"
    yield f'<text x="{x + 16}" y="{y + CARD_HEIGHT - 13}" class="small">{same}</text>'


def draw() -> str:
    """The whole picture."""
    rows = -(-len(NORMS) // COLUMNS)
    width = COLUMNS * (CARD_WIDTH + MARGIN) + MARGIN
    height = rows * (CARD_HEIGHT + MARGIN) + MARGIN + 44
    title = "Which elements share a mean and a variance"
    legend = (
        "Rows are samples n, columns channels c, the four squares of a box positions s. "
        "Blue: the elements that share one mean and variance."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"',
        f' font-family="{FONT}" fill="{INK}" role="img"><title>{title}</title>',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#f7f9fb"/>',
        f'<text x="{MARGIN + 2}" y="34" class="words">{legend}</text>',
    ]
    for i, (name, norm) in enumerate(NORMS.items()):
        x = MARGIN + i % COLUMNS * (CARD_WIDTH + MARGIN)
        y = 52 + i // COLUMNS * (CARD_HEIGHT + MARGIN)
        parts.extend(card(name, norm, x, y))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")
