"""What ``normalform compare`` shows in the terminal: the bar while it trains, the table after."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from normalform.lab.metrics import capital, metric_named
from normalform.lab.records import RunFolder
from normalform.lab.rows import Row


class Work(NamedTuple):
    """What there is to do in a run: so many epochs, and about how long each takes, in any unit."""

    epochs: int
    cost: float


class Progress:
    """A bar over all the work, which moves with every epoch and shows the time that is left.

    Where the output is not a terminal it is a line whenever another tenth of the runs is finished.

    Args:
        console: where to show it.
        work: the runs to do, by id.
    """

    def __init__(self, console: Console, work: Mapping[str, Work]) -> None:
        self._console = console
        self._costs = {run_id: run.cost for run_id, run in work.items()}
        self._left = {run_id: run.epochs * run.cost for run_id, run in work.items()}
        self._done = 0
        self._bar = Bar(
            TextColumn("{task.fields[done]} of {task.fields[runs]} runs"),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            disable=not console.is_terminal,
            speed_estimate_period=300,  # a run may take half a minute
        )
        self._task = self._bar.add_task("", total=sum(self._left.values()), done=0, runs=len(work))

    def epoch(self, run_id: str) -> None:
        """An epoch of a run is finished."""
        self._left[run_id] -= self._costs[run_id]
        self._bar.advance(self._task, self._costs[run_id])

    def done(self, run_id: str) -> None:
        """A run is finished, perhaps before its last epoch."""
        before, runs = self._done, len(self._costs)
        self._done += 1
        self._bar.advance(self._task, self._left[run_id])
        self._bar.update(self._task, done=self._done)
        if not self._console.is_terminal and 10 * self._done // runs > 10 * before // runs:
            self._console.print(f"{self._done} of {runs} runs finished")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def results_table(run: RunFolder) -> Table:
    """Test error of every arm on both networks, side by side."""
    config, networks = run.meta["config"], run.meta["networks"]
    metric = metric_named(run.meta.get("metric", "error"))
    said = capital(metric.axis.replace(", %", " in %"))
    table = Table(title=f"{said} on {run.meta['data']['title']}", caption_justify="left")
    table.add_column("norm, NBS", no_wrap=True)
    for network in networks:
        head = network["name"] if network.get("own") else "-".join(map(str, network["widths"]))
        table.add_column(f"{head}\nlast map {network['last_map']}", justify="right", no_wrap=True)
        table.add_column("n", justify="right")
    table.add_column("seeds", justify="right")
    for arm in run.meta["arms"]:
        cells: list[str] = []
        counts: list[int] = []
        for network in networks:
            rows = _rows_of(run, network, arm)
            cells += [error_cell(rows), _values(rows)]
            counts.append(len(rows))
        table.add_row(arm["label"], *cells, "/".join(map(str, dict.fromkeys(counts))))
    said = (
        f"Mean ± standard deviation over seeds, {config['epochs']} epochs. NBS: samples that share "
        "statistics. n: the fewest values behind a mean in any layer (switch: in its batch branch)."
    )
    if config.get("choices"):
        rates = ", ".join(f"{lr:g}" for lr in config["choices"])
        said += f" Learning rate: of {rates} each run took the best on training data held out."
    reasons = dict.fromkeys(
        f"{row.arm}, last map {row.last_map}: {row.status}, {row.reason}."
        for row in run.rows
        if row.reason
    )
    table.caption = "\n".join([said, *reasons])
    return table


def error_cell(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over the runs that ended, and what became of the others."""
    if not rows:
        return "not run"
    if rows[0].status == "impossible":
        return "impossible"
    metric = metric_named(rows[0].metric)
    errors = [
        metric.scale * row.test_error
        for row in rows
        if row.status == "ok" and row.test_error is not None
    ]
    diverged = (
        f"{len(rows) - len(errors)} of {len(rows)} diverged" if len(errors) < len(rows) else ""
    )
    if not errors:
        return diverged
    form = ".1f" if metric.percent else ".3g"
    spread = f" ± {statistics.stdev(errors):{form}}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):{form}}{spread}" + (f" ({diverged})" if diverged else "")


def _rows_of(run: RunFolder, network: Mapping[str, Any], arm: Mapping[str, Any]) -> list[Row]:
    return [row for row in run.rows if row.network == network["name"] and row.arm == arm["label"]]


def _values(rows: Sequence[Row]) -> str:
    values = rows[0].values_per_statistic_min if rows else None
    return "-" if values is None else f"{values:,}"
