"""What every chart has in common: its data, its size, its scales and its legend.

On the page a chart names its data (``series.py`` makes it) instead of carrying it, is as wide as
its place, and hides a norm by the parameter ``off``. In a file it has a width and a legend.
Charts that come in dozens, one a norm or layer, are made once, with ``@key`` or ``@layer`` where
its name is to be filled in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from normalform.lab.report import style, words
from normalform.lab.report.findings import Findings
from normalform.lab.report.series import Record

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the report needs Altair: pip install "normalform[lab]"') from missing

Spec = dict[str, Any]  # a chart as Vega-Lite reads it
Chart = Any  # Altair names a type for each way of combining charts; here one name does


@dataclass(frozen=True)
class Canvas:
    """What every chart needs: the findings, the tables, and where it is drawn.

    Attributes:
        findings: what to draw.
        data: tables by name.
        width: pixels in a file; None on a page.
        among: keys of all comparisons on the page, where there are several.
        beside: the results of those whose main figure has the same scale.
    """

    findings: Findings
    data: dict[str, list[Record]]
    width: int | None = None
    among: tuple[str, ...] = ()
    beside: tuple[float, ...] = ()

    def sized(self, width: int) -> Canvas:
        """The same in a file."""
        return replace(self, width=width)

    @property
    def keys(self) -> list[str]:
        """What has a colour of its own, in the order of the plan."""
        own = (arm.key for n in self.findings.networks for arm in n.arms)
        return list(dict.fromkeys(self.among or own))

    @property
    def titles(self) -> dict[str, str]:
        """What a legend calls each key of its own."""
        own = {arm.key for n in self.findings.networks for arm in n.arms}
        return {k: words.key_title(self.findings, k) for k in self.keys if k in own}

    @property
    def sizes(self) -> list[str]:
        """The normalization batch sizes as text, largest first."""
        return [str(nbs) for nbs in self.findings.nbs]

    def base(self, table: str, **where: str) -> Chart:
        """A chart of the records of a table that have these values and are not hidden."""
        shown = matches(**where)
        return filtered(table, shown if self.width else f"{shown} && indexof(off, datum.key) < 0")

    def finish(self, chart: Chart, height: int, title: str, **values: str | int) -> Chart:
        """Give a chart its size; in a file its title, on the page its parameters."""
        if self.width:
            return chart.properties(width=self.width, height=height, title=title)
        params = [alt.param(name=name, value=value) for name, value in values.items()]
        chart = chart.add_params(alt.param(name="off", value=[]), *params)
        return chart.properties(width="container", height=height)

    def colour(self) -> alt.Color:
        """The norm's colour; a legend only in a file."""
        scale = alt.Scale(domain=self.keys, range=style.colours(self.keys))
        return alt.Color("key:N", scale=scale, legend=self._legend())

    def shape(self) -> alt.Shape:
        """The norm's shape."""
        scale = alt.Scale(domain=self.keys, range=style.shapes(self.keys))
        return alt.Shape("key:N", scale=scale, legend=self._legend())

    def dash(self) -> alt.StrokeDash:
        """Solid for the largest NBS and for norms that have none, dashed for smaller ones."""
        names = ["", *self.sizes]
        dashes = [style.DASHES[0], *(style.DASHES[i % 5] for i in range(len(self.sizes)))]
        legend = None
        if self.width:
            legend = alt.Legend(title="NBS", values=self.sizes)
        return alt.StrokeDash("nbs:N", scale=alt.Scale(domain=names, range=dashes), legend=legend)

    def _legend(self) -> alt.Legend | None:
        if not self.width:
            return None
        titles = json.dumps(self.titles)
        return alt.Legend(title=None, labelExpr=f"{titles}[datum.label]", values=list(self.titles))


def matches(**where: str) -> str:
    """The condition that a record has these values. ``@name`` is one to be filled in."""
    return " && ".join(f"datum.{field} == {json.dumps(value)}" for field, value in where.items())


def filtered(table: str, test: str) -> Chart:
    """A chart of the records of a table that pass a test."""
    chart: Any = alt.Chart(alt.NamedData(name=table))
    return chart.transform_filter(test)


def fill(spec: Spec, **values: str | int) -> Spec:
    """A specification with values in place of ``@name``: one chart serves every norm and layer.

    >>> fill({"filter": "datum.layer == '@layer'"}, layer=3)
    {'filter': "datum.layer == '3'"}
    """
    text = json.dumps(spec)
    for name, value in values.items():
        text = text.replace(f"@{name}", json.dumps(str(value))[1:-1])
    return json.loads(text)


def span(low: float, high: float) -> alt.Scale:
    """A linear scale from here to there."""
    return alt.Scale(domain=[low, high], nice=False, zero=False)


def log(values: Iterable[Any]) -> alt.Scale:
    """A logarithmic scale that holds all positive values with a little room."""
    positive = [v for v in values if v is not None and v > 0] or [1, 100]
    low, high = min(positive), max(positive)
    return alt.Scale(type="log", domain=[low / 1.12, high * 1.12], nice=False)
