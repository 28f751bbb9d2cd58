"""A page in one file: its charts, their data and what draws them lie inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from string import Template

from normalform.drawing.svg import MARK
from normalform.lab.report import style
from normalform.lab.report.canvas import Canvas, Chart, Spec
from normalform.lab.report.markup import text
from normalform.lab.report.series import Record

try:
    import vl_convert
except ImportError as missing:
    raise ImportError('the report needs vl-convert: pip install "normalform[lab]"') from missing


@dataclass(frozen=True)
class Charts:
    """What the page's script draws from.

    Attributes:
        specs: charts by name.
        tables: for each chart the tables it draws, and what they are called in ``data``.
        data: tables by name.
    """

    specs: dict[str, Spec] = field(default_factory=dict[str, Spec])
    tables: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    data: dict[str, list[Record]] = field(default_factory=dict[str, list[Record]])

    def __or__(self, other: Charts) -> Charts:
        """The charts of both."""
        return Charts(self.specs | other.specs, self.tables | other.tables, self.data | other.data)


def collect(canvas: Canvas, charts: Mapping[str, Chart]) -> Charts:
    """Charts of one comparison, under names that begin with its mark."""
    mark = canvas.findings.mark
    found = Charts()
    for name, chart in charts.items():
        spec: Spec = chart.to_dict(validate=False)
        written = json.dumps(spec)
        drawn = [table for table in canvas.data if f'"name": "{table}"' in written]
        found.specs[mark + name] = spec
        found.tables[mark + name] = {table: mark + table for table in drawn}
        found.data.update({mark + table: canvas.data[table] for table in drawn})
    return found


def document(title: str, body: str, charts: Charts) -> bytes:
    """The whole page.

    Args:
        title: of the window.
        body: HTML.
        charts: those that ``body`` has places for, see :func:`~normalform.lab.report.markup.slot`.
    """
    return (
        Template(_template("report.html"))
        .substitute(
            mark=MARK,
            title=text(title),
            css=_template("report.css"),
            script=_template("report.js"),
            library=_library(),
            page=_json({"theme": style.THEME, **asdict(charts)}),
            body=body,
        )
        .encode()
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _json(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _template(name: str) -> str:
    return (resources.files("normalform.lab.report") / "template" / name).read_text("utf-8")
