"""What the pictures of the classification experiments have in common: size, colours, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normalform.lab.report import style

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the pictures need Altair: pip install "normalform[lab]"') from missing

Chart = Any  # Altair names a type for each way of combining charts; here one name does
WIDTH = 240  # of a panel: with axis and labels it fits a phone of 360 pixels
NARROW = 190  # where the labels of the axis are words
_OTHERS = ("circle", "square", "triangle-up")  # shapes of what is no norm
SEEDS = "Strong: mean of the seeds. Small: each seed."


def chart(rows: Iterable[Mapping[str, Any]]) -> Chart:
    """A chart that carries its rows."""
    return alt.Chart(alt.Data(values=[dict(row) for row in rows]))


def axis(title: str, **options: Any) -> Any:
    """An axis with its quantity and unit, labels upright."""
    return alt.Axis(title=title, labelAngle=0, **options)


def colour(field: str, keys: Mapping[str, str], columns: int = 1) -> Any:
    """Colour by name.

    Args:
        field: holds the names.
        keys: each name, and the norm whose colour it has; "" for what is no norm.
        columns: of the legend above the chart; 0 for none.
    """
    scale = alt.Scale(domain=list(keys), range=style.colours(list(keys.values())))
    return alt.Color(f"{field}:N", scale=scale, legend=_legend(columns))


def shape(field: str, keys: Mapping[str, str], columns: int = 1) -> Any:
    """Shape by name, to go with the colour."""
    norms = zip(style.shapes(list(keys.values())), keys.values(), strict=True)
    found = [shape if norm else _OTHERS[i] for i, (shape, norm) in enumerate(norms)]
    scale = alt.Scale(domain=list(keys), range=found)
    return alt.Shape(f"{field}:N", scale=scale, legend=_legend(columns))


def _legend(columns: int) -> Any:
    if not columns:
        return None
    return alt.Legend(title=None, orient="top", columns=columns, labelLimit=WIDTH)


def curves(
    rows: Iterable[Mapping[str, Any]],
    x: Any,
    y: Any,
    field: str,
    keys: Mapping[str, str],
    columns: int = 1,
) -> Chart:
    """Lines through the means of the seeds, each seed beside them.

    Args:
        rows: one a seed and place, with the fields of x and y and ``field``.
        x: where.
        y: what, of single seeds.
        field: which line.
        keys: see :func:`colour`; of means that coincide the later is drawn smaller.
        columns: of the legend.
    """
    sizes = [120 - 80 * i / max(len(keys) - 1, 1) for i in range(len(keys))]
    size = alt.Size(f"{field}:N", scale=alt.Scale(domain=list(keys), range=sizes), legend=None)
    base = chart(rows).encode(x=x, y=y, color=colour(field, keys, columns))
    means = base.encode(y=mean_of(y))
    points = means.mark_point(filled=True, opacity=1)
    return alt.layer(
        base.mark_circle(size=12, opacity=0.5),
        means.mark_line(strokeWidth=2),
        points.encode(shape=shape(field, keys, columns), size=size),
    )


def mean_of(place: Any) -> Any:
    """The mean of the seeds in place of each."""
    found = place.copy()
    found.shorthand = f"mean({place.shorthand.partition(':')[0]}):Q"
    return found


def epochs(last: int) -> Any:
    """The place of an epoch."""
    scale = alt.Scale(domain=[0.5, last + 0.5], nice=False)
    return alt.X("epoch:Q", axis=axis("epoch", tickMinStep=1, grid=False), scale=scale)


def span(values: Sequence[float], x: Any) -> Chart:
    """A grey band behind these values and half a step around them."""
    ends = {x.shorthand.partition(":")[0]: min(values) - 0.5, "to": max(values) + 0.5}
    return chart([ends]).mark_rect(opacity=0.12, color=style.COLOURS["none"]).encode(x=x, x2="to:Q")


def levels(values: Mapping[str, float], y: Any) -> Chart:
    """Dashed horizontal lines for what does not depend on x, named at their right end."""
    rows = [{"value": value} for value in values.values()]
    mean = [{"value": sum(values.values()) / len(values), "name": "\n".join(values)}]
    rules = chart(rows).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y=y)
    named = chart(mean).mark_text(align="left", baseline="middle", dx=4, lineBreak="\n")
    return rules + named.encode(y=y, x=alt.value(WIDTH), text="name:N")


def stack(panels: Sequence[Chart], title: str, *subtitle: str) -> Chart:
    """Panels one below the other under a title that says what is to be seen."""
    return alt.vconcat(*panels, spacing=14).properties(
        title=alt.TitleParams(title, subtitle=[*subtitle], fontSize=14)
    )
