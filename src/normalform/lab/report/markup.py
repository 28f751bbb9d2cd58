"""The page's smallest pieces of HTML."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any


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


def choices(group: str, labels: Mapping[str, str], legend: str) -> str:
    """Radio buttons that choose what a group of charts shows."""
    inputs = "".join(
        f'<label><input type="radio" name="{group}" value="{value}"'
        f"{' checked' if i == 0 else ''}>{text(label)}</label>"
        for i, (value, label) in enumerate(labels.items())
    )
    return f'<fieldset class="controls" aria-label="{text(legend)}">{inputs}</fieldset>'


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
        f"<table><caption>{caption}</caption>"
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )
