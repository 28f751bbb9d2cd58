"""How the charts look: one colour and one shape a norm, in every chart.

The colours are Okabe and Ito's, which people with any of the common kinds of colour blindness can
tell apart. Text and grid take ``currentColor``, so that one chart serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLOURS: Mapping[str, str] = {
    "batch": "#0072B2",
    "sgd": "#56B4E9",
    "switch": "#D55E00",
    "group": "#009E73",
    "layer": "#CC79A7",
    "instance": "#E69F00",
    "none": "#7A7F87",
}
_STAR = "M0,-1L.22,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.22,-.31Z"
SHAPES: Mapping[str, str] = {
    "batch": "circle",
    "sgd": _STAR,
    "switch": "square",
    "group": "triangle-up",
    "layer": "diamond",
    "instance": "triangle-down",
    "none": "cross",
}
_SPARE = ("#B5446E", "#999933", "#44AA99", "#AA4499")  # for norms beyond the usual ones
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [1, 4])
FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"

THEME: Mapping[str, Any] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "domainColor": "currentColor",
        "domainOpacity": 0.3,
        "tickColor": "currentColor",
        "tickOpacity": 0.3,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 5,
    },
    "rule": {"color": "currentColor"},
    "text": {"color": "currentColor", "font": FONT, "fontSize": 11},
    "title": {
        "color": "currentColor",
        "subtitleColor": "currentColor",
        "fontSize": 14,
        "subtitleFontSize": 12,
        "anchor": "start",
        "fontWeight": 600,
        "offset": 10,
    },
    "header": {"labelColor": "currentColor", "titleColor": "currentColor"},
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "symbolStrokeWidth": 2,
        "symbolOpacity": 1,
    },
}


def colours(keys: Sequence[str]) -> list[str]:
    """A colour for each key. The first of a norm has the norm's own, others take spare ones.

    >>> colours(["batch", "group:4", "group:8"])
    ['#0072B2', '#009E73', '#B5446E']
    """
    free = iter(_SPARE * (1 + len(keys) // len(_SPARE)))
    found: list[str] = []
    for key in keys:
        own = COLOURS.get(key.partition(":")[0])
        found.append(own if own and own not in found else next(free))
    return found


def shapes(keys: Sequence[str]) -> list[str]:
    """A point shape for each key."""
    return [SHAPES.get(key.partition(":")[0], "wedge") for key in keys]
