"""A page of HTML, read as the tests need it."""

import json
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "input", "img", "path", "line", "rect"}


class Page(HTMLParser):
    """A parsed page: its text, its links, the attributes of its elements, and unclosed tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self.scripts: list[str] = []
        self.row_names: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        where = self.scripts if "script" in self.open else self.parts
        if "style" not in self.open:
            where.append(data)
        if self.elements and self.elements[-1] == ("th", {"scope": "row"}) and "th" in self.open:
            self.row_names.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def slots(self) -> list[dict]:
        charts = [a["data-chart"] for a in self.all("div") if "data-chart" in a]
        return [json.loads(chart) for chart in charts]

    @property
    def drawn(self) -> dict:
        return json.loads(self.scripts[0])
