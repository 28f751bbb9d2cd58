"""Plots with a mark for each norm, in the order they run, as SVG inside a page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from normalform.diagnose.finding import Row, said
from normalform.drawing.svg import text

WIDTH, HEIGHT = 720, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 12, 26
MOST_TICKS = 16  # numbers along the norms


@dataclass(frozen=True)
class Plot:
    """One quantity of every norm.

    Attributes:
        title: what it is.
        note: how to read it.
        values: in the order of the norms; None where there is none.
        low: the least of the axis.
        limit: where trouble begins, None without such a line.
        bad_above: whether trouble is above that line, not below.
        log: a logarithmic axis.
        unit: said after a value.
    """

    title: str
    note: str
    values: tuple[float | None, ...]
    low: float
    limit: float | None = None
    bad_above: bool = True
    log: bool = False
    unit: str = ""

    def is_bad(self, value: float) -> bool:
        """Whether a value is on the wrong side of the line."""
        if self.limit is None:
            return False
        return value > self.limit if self.bad_above else value < self.limit


def drawn(plot: Plot, rows: Sequence[Row]) -> str:
    """The plot as an SVG element; a mark says what it is when pointed at."""
    label = f"{plot.title}, one mark for each of {len(rows)} norms in the order they run"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = "".join([*_frame(plot, len(rows)), *_marks(plot, rows)])
    return f'<svg {size} role="img" aria-label="{html.escape(label)}">{parts}</svg>'


def _marks(plot: Plot, rows: Sequence[Row]) -> Iterator[str]:
    width = (WIDTH - LEFT - RIGHT) / len(rows)
    bar = max(1.5, min(26.0, 0.7 * width))
    floor = HEIGHT - BOTTOM
    for i, (row, value) in enumerate(zip(rows, plot.values, strict=True)):
        if value is None:
            continue
        x, y = LEFT + (i + 0.5) * width - bar / 2, _height(plot, value)
        kind = "bad" if plot.is_bad(value) else "bar"
        said_of = html.escape(f"{i + 1}: {row.name}, {said(value)}{plot.unit}")
        yield (
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" '
            f'height="{max(1.0, floor - y):.1f}"><title>{said_of}</title></rect>'
        )


def _frame(plot: Plot, count: int) -> Iterator[str]:
    for tick in _ticks(plot):
        y = _height(plot, tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield text(f"{tick:g}{plot.unit}", LEFT - 6, y + 4, 11, "quiet end")
    if plot.limit is not None and plot.low <= plot.limit <= _top(plot):
        y = _height(plot, plot.limit)
        yield f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    width = (WIDTH - LEFT - RIGHT) / max(1, count)
    for i in range(0, count, math.ceil(count / MOST_TICKS)):
        yield text(i + 1, LEFT + (i + 0.5) * width, HEIGHT - 8, 11, "quiet middle")


def _top(plot: Plot) -> float:
    """The largest of the axis: a decade, or a round number."""
    finite = [v for v in plot.values if v is not None and math.isfinite(v)]
    most = max([*finite, (plot.limit or plot.low) * 1.2, plot.low * 1.2, 1e-12])
    decade = 10 ** math.ceil(math.log10(most) - 1e-9)
    if plot.log:
        return decade
    return next(step * decade for step in (0.1, 0.2, 0.3, 0.5, 0.75, 1) if step * decade >= most)


def _ticks(plot: Plot) -> list[float]:
    top = _top(plot)
    if not plot.log:
        return [top * i / 4 for i in range(5)]
    first, last = round(math.log10(plot.low)), round(math.log10(top))
    return [10.0**i for i in range(first, last + 1, max(1, (last - first) // 5))]


def _height(plot: Plot, value: float) -> float:
    top = _top(plot)
    value = min(max(value, plot.low), top) if not math.isnan(value) else top
    if plot.log:
        low, value, top = (math.log10(v) for v in (plot.low, value, top))
    else:
        low = plot.low
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (top - low)
