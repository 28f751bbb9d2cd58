"""The page's smallest pieces of HTML."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

_PATHS = {
    "circle": "M-1,0A1,1 0 1,0 1,0A1,1 0 1,0 -1,0Z",
    "square": "M-.9,-.9H.9V.9H-.9Z",
    "triangle-up": "M0,-1L1,.8H-1Z",
    "triangle-down": "M0,1L1,-.8H-1Z",
    "diamond": "M0,-1.1L1,0L0,1.1L-1,0Z",
    "cross": "M-1,-.35H-.35V-1H.35V-.35H1V.35H.35V1H-.35V.35H-1Z",
    "wedge": "M0,-1L.5,.8H-.5Z",
}


def text(raw: object) -> str:
    """Text made safe for HTML; no line breaks before a percent sign."""
    return html.escape(str(raw)).replace(" %", "\N{NO-BREAK SPACE}%")


def slot(spec: str, label: str, values: Mapping[str, Any], group: str = "") -> str:
    """A place for a chart: which one, with which parameters, and what to read out for it."""
    data = text(json.dumps({"spec": spec, "group": group, "values": values}))
    return (
        f'<div class="chart" role="img" aria-label="{text(label)}" data-chart="{data}" '
        f'data-group="{group}"></div>'
    )


def still(svg: str, label: str) -> str:
    """The chart as a picture, for readers without JavaScript."""
    data = base64.b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<noscript><img alt="{text(label)}" src="{source}"></noscript>'


def download(name: str, raw: bytes) -> str:
    """A link that saves a table, which lies inside the page."""
    link = f"data:text/csv;base64,{base64.b64encode(raw).decode()}"
    return f'<a download="{text(name)}" href="{link}">Download {text(name)}</a>'


def symbol(shape: str, colour: str) -> str:
    """A point as a small picture, for a legend."""
    path = _PATHS.get(shape, shape)
    return (
        f'<svg viewBox="-1.3 -1.3 2.6 2.6" aria-hidden="true"><path d="{path}" '
        f'fill="{colour}"/></svg>'
    )


def choices(group: str, labels: Mapping[str, str], legend: str) -> str:
    """Radio buttons that choose what a group of charts shows."""
    inputs = "".join(
        f'<label><input type="radio" name="{group}" value="{value}"'
        f"{' checked' if i == 0 else ''}>{text(label)}</label>"
        for i, (value, label) in enumerate(labels.items())
    )
    return f'<fieldset class="controls" aria-label="{text(legend)}">{inputs}</fieldset>'


def keys(chart: str, found: Sequence[tuple[str, str, str, str]]) -> str:
    """Buttons that show and hide what one colour of a chart stands for.

    Args:
        chart: its name.
        found: field, value, colour and point shape of each.
    """
    if not found:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-field="{text(field)}" '
        f'data-value="{html.escape(value)}">{symbol(shape or "square", colour)}{text(value)}'
        "</button>"
        for field, value, colour, shape in found
    )
    return (
        f'<div class="keys" role="group" aria-label="Show or hide in this chart" '
        f'data-of="{text(chart)}">{buttons}</div>'
    )


def facts(found: Mapping[str, Any]) -> str:
    """What is known of something, by name; empty values are left out."""
    return (
        "<dl>"
        + "".join(
            f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in found.items() if value
        )
        + "</dl>"
    )


def mini(title: str, content: str) -> str:
    """A small chart under its title."""
    return f'<div class="mini"><h4>{text(title)}</h4>{content}</div>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls inside itself; cells are HTML, the first of a row is its heading."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="table {kind}" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><caption><span>{caption}</span></caption>"
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )
