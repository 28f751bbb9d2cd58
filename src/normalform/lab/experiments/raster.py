"""Pictures inside charts, in the chart itself, so that a report needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import altair as alt
    from PIL import Image
except ImportError as missing:
    raise ImportError('the pictures need Altair: pip install "normalform[lab]"') from missing

Array = NDArray[Any]


def data_uri(picture: Array, enlarged: int = 1) -> str:
    """A picture that a chart can carry: PNG where it is enlarged, otherwise JPEG.

    Args:
        picture: (H, W) grey or (H, W, 3) colours, from 0 to 1; what lies outside is cut off.
        enlarged: pixels a side that each of its pixels becomes.
    """
    levels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    levels = levels.repeat(enlarged, 0).repeat(enlarged, 1)
    kind = "png" if enlarged > 1 else "jpeg"
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def grid(
    pictures: Sequence[Sequence[Array | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    size: int,
    *,
    title: str | None = None,
    enlarged: int = 1,
) -> Any:
    """Pictures in rows and columns that are named; None leaves a place empty.

    Args:
        pictures: by row, then column.
        rows: a name each.
        columns: a name each.
        size: pixels a side of each in the chart.
        title: above the columns.
        enlarged: see :func:`data_uri`.
    """
    values = [
        {"url": data_uri(picture, enlarged), "row": row, "column": column}
        for row, across in zip(rows, pictures, strict=True)
        for column, picture in zip(columns, across, strict=True)
        if picture is not None
    ]
    side = size + 3  # a little room between them
    names: dict[str, Any] = {"ticks": False, "domain": False, "grid": False, "labelPadding": 4}
    lines = "split(datum.label, ' / ')"
    chart: Any = alt.Chart(alt.Data(values=values))
    return (
        chart.mark_image(width=size, height=size)
        .encode(
            x=alt.X(
                "column:N",
                sort=list(columns),
                axis=alt.Axis(
                    title=title,
                    orient="top",
                    labelAngle=0,
                    labelExpr=lines,
                    labelLimit=side,
                    **names,
                ),
            ),
            y=alt.Y("row:N", sort=list(rows), axis=alt.Axis(title=None, labelExpr=lines, **names)),
            url="url:N",
        )
        .properties(width=side * len(columns), height=side * len(rows))
    )
