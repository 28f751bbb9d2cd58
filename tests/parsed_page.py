"""A page of HTML, read as the tests need it."""

import base64
import csv
import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "input", "img", "path", "line", "rect"}


@dataclass
class Table:
    """A table: what stands over it, and its rows of cells, the head first."""

    caption: str
    rows: list[list[str]]


class Page(HTMLParser):
    """A parsed page: its text, its links, the attributes of its elements, and unclosed tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self.row_names: list[str] = []
        self.tables: list[Table] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append(Table("", []))
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("th", "td"):
            self.tables[-1].rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        where = self.scripts if "script" in self.open else self.parts
        if "style" not in self.open:
            where.append(data)
        if "caption" in self.open:
            self.tables[-1].caption += data
        elif "th" in self.open or "td" in self.open:
            self.tables[-1].rows[-1][-1] += data
        if self.elements and self.elements[-1] == ("th", {"scope": "row"}) and "th" in self.open:
            self.row_names.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def outside(self) -> list[str]:
        """What the page would ask a network for."""
        names = ("src", "href", "action", "data", "srcset", "poster")
        given = [a[name] for tag, a in self.elements for name in names if name in a]
        return [target for target in given if not target.startswith(("data:", "#"))]

    def table(self, caption: str) -> "list[dict[str, str]]":
        """The rows of the table of this caption, by what stands over each cell."""
        (found,) = [table for table in self.tables if table.caption == caption]
        head, *rows = found.rows
        return [dict(zip(head, row, strict=True)) for row in rows]

    def csv(self, name: str) -> list[dict[str, str]]:
        """A table that the page offers to save."""
        (link,) = [a["href"] for a in self.all("a") if a.get("download") == name]
        raw = base64.b64decode(link.removeprefix("data:text/csv;base64,"))
        return list(csv.DictReader(io.StringIO(raw.decode())))

    @property
    def slots(self) -> list[dict]:
        charts = [a["data-chart"] for a in self.all("div") if "data-chart" in a]
        return [json.loads(chart) for chart in charts]

    @property
    def drawn(self) -> dict:
        return json.loads(self.scripts[0])
