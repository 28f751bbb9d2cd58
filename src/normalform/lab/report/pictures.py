"""A chart that somebody else drew: as a file, and on a page where each colour can be hidden."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from normalform.lab.report import style
from normalform.lab.report.canvas import Chart, Spec

try:
    import vl_convert
except ImportError as missing:
    raise ImportError('the report needs vl-convert: pip install "normalform[lab]"') from missing

_LEGENDS = ("color", "fill", "stroke", "shape", "strokeDash")  # channels that have one


@dataclass(frozen=True)
class Key:
    """What one colour of a chart stands for.

    Attributes:
        field: of its records.
        value: of that field.
        colour: its colour.
        shape: of its points; empty where it has none.
    """

    field: str
    value: str
    colour: str
    shape: str = ""


@dataclass(frozen=True)
class Picture:
    """A chart in both forms.

    Attributes:
        svg: for a file.
        spec: for the page, without the legends that its keys replace.
        keys: what its colours stand for.
    """

    svg: str
    spec: Spec
    keys: tuple[Key, ...]

    @property
    def width(self) -> float:
        """Of the file, in pixels."""
        found = re.search(r'<svg[^>]*? width="([\d.]+)"', self.svg)
        return float(found[1]) if found else 0.0

    def png(self) -> bytes:
        """The file as PNG, two dots a pixel."""
        return vl_convert.svg_to_png(self.svg, scale=2)


def picture(chart: Chart) -> Picture:
    """Both forms of an Altair chart.

    A colour that has a legend becomes a key where the chart says itself which value has which: a
    nominal ``field`` of its records with ``scale=alt.Scale(domain=[...], range=[...])``. A legend
    that also tells dashes apart, or has words of its own, stays. On the page every mark shows its
    numbers when it is pointed at.
    """
    spec: Spec = _named(_finite(chart.to_dict()))
    own = spec.get("config", {})
    still = {**spec, "config": {**style.THEME, **own, "background": "white", "padding": 16}}
    found = _keys(spec)
    live = _without_legends(spec, {key.field for key in found})
    live["config"] = {**own, "mark": {"tooltip": True, **own.get("mark", {})}}
    return Picture(vl_convert.vegalite_to_svg(json.dumps(still)), live, found)


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(spec: Spec) -> Spec:
    """The specification with all its records in one place, each table under a name."""
    tables = dict(spec.get("datasets", {}))
    for node in _nodes(spec):
        data = node.get("data")
        if isinstance(data, dict) and "values" in data:
            name = f"records {len(tables)}"
            tables[name] = cast(dict[str, Any], data)["values"]
            node["data"] = {"name": name}
    return {**spec, "datasets": tables}


def _keys(spec: Spec) -> tuple[Key, ...]:
    rows = [row for rows in spec["datasets"].values() for row in rows]
    colours: dict[tuple[str, str], Any] = {}
    shapes: dict[tuple[str, str], Any] = {}
    kept: set[str] = set()  # fields whose legend says what a button would not
    for channel, encoding in _named_encodings(spec):
        field, scale = encoding["field"], encoding.get("scale") or {}
        domain, to = scale.get("domain"), scale.get("range")
        legend = encoding.get("legend", {})
        if channel == "strokeDash" or (legend and "labelExpr" in legend):
            kept.add(field)
        elif legend is not None and isinstance(domain, list) and isinstance(to, list):
            drawn = {row.get(field) for row in rows}
            told = shapes if channel == "shape" else colours
            pairs = zip(cast(list[Any], domain), cast(list[Any], to), strict=False)
            told |= {(field, str(value)): other for value, other in pairs if value in drawn}
    return tuple(
        Key(*place, colour, shapes.get(place, ""))
        for place, colour in colours.items()
        if place[0] not in kept
    )


def _named_encodings(spec: Spec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each channel that may have a legend and encodes a field of names."""
    for node in _nodes(spec):
        for channel, encoding in cast(dict[str, Any], node.get("encoding", {})).items():
            if channel in _LEGENDS and isinstance(encoding, dict):
                found = cast(dict[str, Any], encoding)
                if "field" in found and found.get("type") in ("nominal", "ordinal"):
                    yield channel, found


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a specification but its records."""
    if isinstance(value, dict):
        node = cast(dict[str, Any], value)
        yield node
        for name, inner in node.items():
            if name not in ("datasets", "data"):
                yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in cast(list[Any], value):
            yield from _nodes(inner)


def _without_legends(spec: Spec, fields: set[str]) -> Spec:
    live = copy.deepcopy(spec)
    for _, encoding in _named_encodings(live):
        if encoding["field"] in fields:
            encoding["legend"] = None
    return live
