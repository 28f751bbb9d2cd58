"""What ``normalform check`` prints: tables that fit 80 columns, and the sentences around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from normalform.lab.accuracy import QUANTITIES, Measured, Row
from normalform.lab.articles import SUM_LIMIT, TENSOR_LIMIT, Report
from normalform.lab.own import Own

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    raise ImportError('normalform check needs rich: pip install "normalform[lab]"') from error

_RIGHT, _WRONG = "green", "bold red"


def on_random_input(table: Sequence[Row], by_ratio: Sequence[Row]) -> RenderableType:
    """The table of accuracy, what its numbers are, and how they change with mean/std."""
    cases = sum(row.cases for row in table)
    parts: list[RenderableType] = [
        _heading("Every norm and type, on random input"),
        Text(
            f"The largest error of {cases:,} cases against float64, in units of the promise: 1.00 "
            "is the whole promise, above is outside. Left of the bar ours, right of it PyTorch's "
            "own layer. Each number is the worst of all shapes, layouts, modes and mean/std from 0 "
            "to 1e6."
        ),
        accuracy_table(table),
        Text(
            "Rounding the result to bfloat16 or float16 takes up to 1.00 by itself. float64 has a "
            "promise of its own, which grows with mean/std."
        ),
    ]
    if {row.label[0] for row in table} & {"switch", "ghost"}:
        parts.append(
            Text(
                "PyTorch has no switch and no ghost norm: right of the bar is the same formula, "
                "composed of its operators in float32."
            )
        )
    parts.append(Text(f"\nBy mean/std in {by_ratio[0].label[2]}, the worst of all columns above:"))
    parts.append(ratio_table(by_ratio))
    return Group(*parts)


def on_kernels(table: Sequence[Row]) -> RenderableType:
    """How exact each way to run our layers is; the rows are labelled by the kernel."""
    columns = [name for name in QUANTITIES if any(name in row.ours for row in table)]
    rows = _table("kernel", numbers=("cases", *columns))
    for row in table:
        errors = (row.ours.get(name) for name in columns)
        rows.add_row(*row.label, f"{row.cases:,}", *map(_ours, errors))
    return Group(
        _heading("By what ran"),
        Text(
            'The largest error of ours by the kernel that ran, with "auto" by what it chose: cpu '
            "is machine code by Numba, eager plain PyTorch in float64. Asked for by name, and "
            "under torch.compile as one graph, on fewer cases."
        ),
        rows,
    )


def on_own_input(own: Own, table: Sequence[Row], left_out: Sequence[str]) -> RenderableType:
    """The table of accuracy on the user's data."""
    x = own.x.double()
    parts: list[RenderableType] = [
        _heading(f"Every norm on {own.name}"),
        Text(
            f"{'; '.join(own.notes)}. Values {float(x.min()):.4g} to {float(x.max()):.4g}, "
            f"mean {float(x.mean()):.4g}, standard deviation {float(x.std(correction=0)):.4g}."
        ),
    ]
    if table:
        parts.append(accuracy_table(table))
    parts += [Text(f"Not run: {reason}.") for reason in left_out]
    return Group(*parts)


def on_articles(report: Report) -> RenderableType:
    """What the source articles print, computed again."""
    smallest = min(report.sums, key=lambda each: each.values)
    wrong, signed = report.mislabelled, report.signed
    return Group(
        _heading("The source articles' numbers, computed again"),
        Text(
            "Largest difference from each tensor they print. They print four decimals, input and "
            f"output, which explains differences up to {TENSOR_LIMIT:.2g}."
        ),
        _examples(report),
        Text(
            "The tensor that the overview calls layer norm, GroupNorm(4, 4), is instance norm: it "
            f"is {wrong.from_instance:.1e} away from InstanceNorm2d(4), and {wrong.from_layer:.3f} "
            "from layer norm, GroupNorm(1, 4).",
            style="" if wrong.ok else _WRONG,
        ),
        Text(),
        Text(
            "The notebook's sums of absolute differences between a layer and the formula, to be "
            f"met within {SUM_LIMIT:.0%}:"
        ),
        _sums(report),
        Text(
            "These are no errors of a layer: the notebook's torch.var divides by n - 1, the layers "
            f"by n. {smallest.norm.capitalize()} norm's sum is the largest because its cells are "
            f"the smallest, n = {smallest.values:,}."
        ),
        Text(
            "\nThe book analogy adds up signed differences, which cancel. Its sum for group norm "
            f"is {signed.total:.0e}, although elements are off by up to {signed.largest:.1e}, from "
            "n - 1 again."
        ),
    )


def verdict(
    found: Sequence[Measured], others: Sequence[Measured], articles: bool
) -> RenderableType:
    """One line for all, and the cases in which ours is outside."""
    outside = [each for each in [*found, *others] if not each.ok]
    theirs = sum(_largest(each.torch) > 1 for each in found)
    parts: list[RenderableType] = [
        Text(
            f"\nPyTorch's layers are outside in {theirs:,} of {len(found):,} cases; that is shown, "
            "and no failure."
        )
    ]
    if not outside and articles:
        parts.append(Text("Everything of ours is inside the promise.", style="bold green"))
    if outside:
        cases = "1 case" if len(outside) == 1 else f"{len(outside):,} cases"
        parts.append(Text(f"Ours is outside the promise in {cases}:", style=_WRONG))
        parts += [Text(f"  {_described(each)}") for each in outside[:10]]
    if not articles:
        parts.append(Text("Not every number of the source articles came out.", style=_WRONG))
    return Group(*parts)


def accuracy_table(rows: Sequence[Row]) -> Table:
    """A row for each norm and type, from rows labelled so."""
    columns = [name for name in QUANTITIES if any(name in row.ours for row in rows)]
    table = _table("norm", "type", paired=columns)
    before = ""
    for row in rows:
        norm, dtype = row.label
        table.add_row(
            norm if norm != before else "",
            dtype,
            *(_pair(row.ours.get(name), row.torch.get(name)) for name in columns),
        )
        before = norm
    return table


def ratio_table(rows: Sequence[Row]) -> Table:
    """A row for each norm and a column for each mean/std, from rows labelled so."""
    found = {row.label[:2]: row for row in rows}
    ratios = list(dict.fromkeys(row.label[1] for row in rows))
    table = _table("norm", paired=ratios)
    for norm in dict.fromkeys(row.label[0] for row in rows):
        sides = [found[norm, each] for each in ratios]
        table.add_row(norm, *(_pair(_largest(s.ours), _largest(s.torch)) for s in sides))
    return table


def ratio(value: float) -> str:
    """A mean/std in few characters.

    >>> [ratio(value) for value in (0.0, 1.0, 100.0, 1e4, 1e6)]
    ['0', '1', '100', '1e4', '1e6']
    """
    return f"{value:g}" if value < 1000 else f"{value:.0e}".replace("e+0", "e")


def number(error: float) -> str:
    """An error in four characters or fewer; what is outside never reads 1.00.

    >>> [number(error) for error in (0.254, 1.0, 1.001, 37.2, 940.0, 123456.0, 1e30, math.inf)]
    ['0.25', '1.00', '1.01', '37.2', '940', '1e5', '>1e9', 'inf']
    """
    if not math.isfinite(error):
        return "inf"
    if error <= 9.99:
        return f"{math.ceil(100 * error) / 100 if error > 1 else error:.2f}"
    if error < 99.95:
        return f"{error:.1f}"
    if error < 9999.5:
        return f"{error:.0f}"
    return ">1e9" if error > 1e9 else f"{error:.0e}".replace("e+0", "e")


def _examples(report: Report) -> Table:
    table = _table("article", "layer", numbers=("ours", "reference"))
    before = ""
    for each in report.examples:
        article = each.example.article
        code = each.example.code
        if each.example.called:
            code += f', called "{each.example.called}"'
        if each.example.running:
            code += "\n  with running 0.3 0.6 0.9 and 0.7 0.7 0.7"
        cells = (_within(found, TENSOR_LIMIT) for found in (each.ours, each.reference))
        table.add_row(article if article != before else "", Text(code), *cells)
        before = article
    return table


def _sums(report: Report) -> Table:
    table = _table("norm", numbers=("n", "printed", "again", "in closed form"))
    for each in report.sums:
        sums = (f"{value:.2f}" for value in (each.printed, each.measured, each.expected))
        table.add_row(each.norm, f"{each.values:,}", *sums, style="" if each.ok else _WRONG)
    return table


def _pair(ours: float | None, theirs: float | None) -> Text:
    if ours is None or theirs is None:
        return Text("")
    text = Text(f"{number(ours):>4}", style=_RIGHT if ours <= 1 else _WRONG)
    text.append("|", style="dim")
    return text.append(f"{number(theirs):<4}", style="default" if theirs <= 1 else "yellow")


def _ours(error: float | None) -> Text:
    if error is None:
        return Text("")
    return Text(number(error), style=_RIGHT if error <= 1 else _WRONG)


def _within(difference: float, limit: float) -> Text:
    return Text(f"{difference:.1e}", style=_RIGHT if difference <= limit else _WRONG)


def _described(found: Measured) -> str:
    case = found.case
    name, error = max(found.ours.items(), key=lambda item: item[1])
    ways = [
        f"mean/std {ratio(case.ratio)}" if case.ratio is not None else "",
        "channels last" if case.channels_last else "",
        "" if case.training else "evaluation",
        "one weight an element" if case.elementwise else "",
        "" if found.kernel.startswith("auto") else found.kernel,
    ]
    where = ", ".join(filter(None, [case.norm, case.dtype, case.source, str(case.shape), *ways]))
    return f"{where}: {name} {number(error)}"


def _largest(errors: Mapping[str, float]) -> float:
    return max(errors.values())


def _table(*columns: str, paired: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in columns:
        table.add_column(column)
    for column in paired:
        table.add_column(column, justify="center", min_width=9)
    for column in numbers:
        table.add_column(column, justify="right", min_width=8)
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")
