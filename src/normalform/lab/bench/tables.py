"""What ``normalform bench`` prints: tables that fit 80 columns, and the sentences around them."""

from __future__ import annotations

from collections.abc import Sequence

from normalform.lab.bench.floors import INFERENCE
from normalform.lab.bench.load import QUIET
from normalform.lab.bench.norms import OVER_TOKENS
from normalform.lab.bench.rows import Result, Row
from normalform.lab.bench.targets import Outcome, Target

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    raise ImportError('normalform bench needs rich: pip install "normalform[lab]"') from error

DISAGREE = 1e-3  # a result this far from ours, in units of the largest value, is not the same one
_GOOD, _SLOW, _BAD = "green", "yellow", "bold red"
_SHORT = {"forward+backward": "fwd+bwd"}
_ORDERS = {4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}
_FIGURES = {
    "floor": "Our time / the least a norm needs, at most",
    "torch": "PyTorch's time / ours, at least",
    "compiled": "PyTorch's layer compiled by Inductor / ours, at least",
    "model": "Networks: time before nf.convert / after, at least",
}


def where(row: Row) -> Text:
    """What everything was measured on."""
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return Text(
        f"{row.machine}, {threads}, {row.cores} cores with {row.l2 // 1024:,} KiB of L2 each; "
        f"{row.dtype}, torch {row.torch}, normalform {row.normalform}, kernel {row.kernel}; "
        f"{row.date[:10]}."
    )


def disturbed(results: Sequence[Result]) -> Text:
    """A warning where the machine did something else meanwhile."""
    marked = [each for each in results if each.disturbed]
    if not marked:
        return Text("No other program was busy meanwhile, and threads shared no core.")
    busy = [cores for each in marked if (cores := each.ours.others or 0.0) > QUIET]
    shared = [each for each in marked if each.load.shares_cores(each.ours.threads)]
    said: list[str] = []
    if busy:
        said.append(
            f"other programs kept {min(busy):.1f} to {max(busy):.1f} cores busy during {len(busy)} "
            f"of {len(results)} cases"
        )
    if shared:
        said.append(f"threads shared cores during {len(shared)} of {len(results)} cases")
    return Text(
        f"Disturbed: {', and '.join(said)}, marked !. Measure again on an idle machine.", style=_BAD
    )


def of_norms(results: Sequence[Result]) -> RenderableType:
    """A table for each norm, and what its columns are."""
    found = [each for each in results if each.ours.kind == "norm"]
    if not found:
        return Group()
    parts: list[RenderableType] = [
        _heading("Single layers"),
        Text(
            "Microseconds, the least of all rounds. ratio: torch / ours, above 1 ours is faster; "
            "median: of that ratio over the rounds. copies: our time in copies of the input; "
            "/floor: in units of the copies the norm needs at least. forward: by the input's own "
            "statistics, no graph; fwd+bwd: and the gradients of input and parameters; inference: "
            "evaluation mode, of the norms where that differs. NHWC: channels_last; compiled: "
            "PyTorch's layer by Inductor. results.csv has more, as percentiles of single calls."
        ),
    ]
    for norm in dict.fromkeys(each.ours.name for each in found):
        parts += [_heading(norm), _norm_table([r for r in found if r.ours.name == norm])]
    if {each.ours.name for each in found} & {"switch", "ghost"}:
        parts.append(
            Text("PyTorch has no switch and no ghost norm: torch is a layer of its operators.")
        )
    if any(_differing(each) for each in found):
        said = f"differs: a result is further from ours than {DISAGREE:g} of its largest value."
        parts.append(Text(said, style=_BAD))
    return Group(*parts)


def of_models(results: Sequence[Result]) -> RenderableType:
    """Networks before and after conversion."""
    found = [each for each in results if each.ours.kind == "model"]
    if not found:
        return Group()
    table = _table("network", "what", "input", numbers=("ours ms", "torch ms", "ratio", "median"))
    table.add_column("differs", justify="right")
    before = ""
    for each in found:
        row = each.ours
        table.add_row(
            row.name if row.name != before else "",
            row.what + _mark(each),
            row.shape,
            number(row.us / 1000),
            number(each.rows["torch"].us / 1000),
            _ratio(each.speedup()),
            _ratio(each.paired()),
            _difference(each),
        )
        before = row.name
    return Group(
        _heading("Networks, before and after nf.convert"),
        Text(
            "A training step, and inference of one sample. differs: the largest difference of the "
            "two outputs, in units of the largest value."
        ),
        table,
        latencies([each for each in found if each.ours.what == INFERENCE]),
    )


def latencies(results: Sequence[Result]) -> RenderableType:
    """Percentiles of single calls."""
    if not results:
        return Group()
    columns = ("ours p50", "p99", "torch p50", "p99", "calls")
    table = _table("inference, ms", "input", numbers=columns)
    for each in results:
        cells = [
            "" if us is None else number(us / 1000)
            for row in (each.ours, each.rows["torch"])
            for us in (row.p50_us, row.p99_us)
        ]
        table.add_row(each.ours.name, each.ours.shape, *cells, f"{each.ours.calls:,}")
    return table


def of_targets(outcomes: Sequence[Outcome]) -> RenderableType:
    """Each figure to reach, the worst that was measured, and whether it was reached."""
    parts: list[RenderableType] = [_heading("Figures to reach")]
    for kind, title in _FIGURES.items():
        own = [each for each in outcomes if kind in (each.target.kind, _figure(each.target))]
        if any(each.cases for each in own):
            parts += [Text(title), _target_table(own)]
        else:
            parts.append(Text(f"{title}: not measured\n"))
    met = sum(each.met for each in outcomes)
    measured = sum(each.cases > 0 for each in outcomes)
    parts.append(Text(f"{met} of {measured} measured figures are reached, {len(outcomes)} asked."))
    return Group(*parts)


def number(value: float) -> str:
    """A time in few characters.

    >>> [number(value) for value in (0.123, 1.234, 12.34, 123.4, 12345.6)]
    ['0.12', '1.23', '12.3', '123', '12,346']
    """
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def _norm_table(results: Sequence[Result]) -> Table:
    compiled = any("compiled" in each.rows for each in results)
    middle = ("compiled", "ratio") if compiled else ("median", "copies")
    table = _table("input", "", "what", numbers=("ours us", "torch us", "ratio", *middle, "/floor"))
    before = ("", "")
    for each in results:
        place = (each.ours.shape, _order(each.ours))
        them = each.rows.get("compiled")
        if compiled:
            more = [number(them.us) if them else "", _ratio(each.speedup("compiled"))]
        else:
            more = [_ratio(each.paired()), number(each.copies() or 0.0)]
        table.add_row(
            *(place if place != before else ("", "")),
            _what(each),
            number(each.ours.us),
            number(each.rows["torch"].us),
            _ratio(each.speedup()),
            *more,
            number(each.of_floor or 0.0),
        )
        before = place
    return table


def _target_table(outcomes: Sequence[Outcome]) -> Table:
    sized = any(each.target.kind == "norm" for each in outcomes)
    more = ("layout", "elements") if sized else ()
    table = _table("", "what", *more, numbers=("limit", "worst", "missed"))
    table.add_column("worst at", min_width=12)
    for each in outcomes:
        target = each.target
        cells = [target.title or ", ".join(target.names), _whats(target)]
        cells += [_layouts(target), _elements(target)] if sized else []
        cells.append(f"{target.limit:g}")
        if each.where is None or each.worst is None:
            table.add_row(*cells, "", "", Text("not measured", style="dim"))
            continue
        style = _GOOD if each.met else _BAD
        missed = "none" if each.met else f"{each.missed} of {each.cases}"
        place = "" if each.met else _place(each.where, target)
        table.add_row(*cells, Text(number(each.worst), style), Text(missed, style), place)
    return table


def _what(result: Result) -> Text:
    text = Text(_SHORT.get(result.ours.what, result.ours.what) + _mark(result))
    for name in _differing(result):
        text.append(f"\n{name} differs", style=_BAD)
    return text


def _mark(result: Result) -> str:
    return "!" if result.disturbed else ""


def _differing(result: Result) -> list[str]:
    known = {name: row.difference for name, row in result.rows.items()}
    return [name for name, found in known.items() if found is not None and not found <= DISAGREE]


def _difference(result: Result) -> Text:
    found = result.rows["torch"].difference or 0.0
    return Text(f"{found:.0e}", style=_BAD if _differing(result) else "")


def _ratio(value: float | None) -> Text:
    if value is None:
        return Text("")
    return Text(number(value), style=_GOOD if value >= 1 else _SLOW if value >= 0.95 else _BAD)


def _order(row: Row) -> str:
    axes = 0 if row.name in OVER_TOKENS else len(row.shape.split("x"))
    return _ORDERS.get(axes, ("", ""))[row.layout == "channels_last"]


def _figure(target: Target) -> str:
    return target.against if target.kind == "norm" else ""


def _whats(target: Target) -> str:
    if len(target.whats) > 2:
        return "all"
    return ", ".join(_SHORT.get(what, what) for what in target.whats)


def _layouts(target: Target) -> str:
    if len(target.layouts) > 1:
        return ""
    return _ORDERS[4][target.layouts[0] == "channels_last"]


def _elements(target: Target) -> str:
    least = f"{target.least:.0e}".replace("e+0", "e") if target.least else ""
    if target.below == float("inf"):
        return least and f">= {least}"
    return f"{least} to {target.below:.0e}".replace("e+0", "e")


def _place(result: Result, target: Target) -> str:
    row = result.ours
    parts = [row.name if len(target.names) > 1 else "", row.shape]
    parts.append(_SHORT.get(row.what, row.what) if len(target.whats) > 1 else "")
    parts.append(_order(row) if row.kind == "norm" and len(target.layouts) > 1 else "")
    return " ".join(filter(None, parts))


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")
