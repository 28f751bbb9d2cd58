"""The command: plan, measure, keep every row, show, draw."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from normalform.lab.bench import models, norms, tables
from normalform.lab.bench.folder import RESULTS, Folder, is_ours
from normalform.lab.bench.load import Patience
from normalform.lab.bench.measure import How, measured
from normalform.lab.bench.norms import MOST_ELEMENTS
from normalform.lab.bench.rows import Row, read_rows, results
from normalform.lab.bench.targets import outcomes
from normalform.lab.bench.timing import keep_memory
from normalform.lab.environment import environment
from normalform.lab.folders import inside

try:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
except ModuleNotFoundError as error:
    raise ImportError('normalform bench needs rich: pip install "normalform[lab]"') from error

Case = norms.Case | models.Case

_PATIENCE = 60.0  # seconds in all to wait for a core for each thread


@dataclass(frozen=True)
class Options:
    """What to measure, and how.

    Attributes:
        norms: some of :data:`normalform.lab.cases.NORMS`, or ``("none",)``; None for the usual.
        models: some of :data:`normalform.lab.bench.models.MODELS`, or ``("none",)``; None for all,
            and with ``shape`` for none.
        shape: of the one input for all norms; None for the sweep.
        layout: one of :data:`normalform.lab.bench.norms.LAYOUTS`; None for both.
        max_elements: the largest tensor of the sweep.
        dtype: of the norms' input and parameters.
        kernel: that our layers run.
        threads: that compute; None for as many as PyTorch takes.
        compile: let ``torch.compile`` of PyTorch's layer compete.
        quick: few sizes, short.
        seconds: that the rounds of a case go on for.
        name: of the folder.
        out: where the folder is made.
        show: the folder of an earlier benchmark to show again, instead of measuring.
        command: how this was asked for.
    """

    norms: Sequence[str] | None = None
    models: Sequence[str] | None = None
    shape: Sequence[int] | None = None
    layout: str | None = None
    max_elements: int = MOST_ELEMENTS
    dtype: str = "float32"
    kernel: str = "auto"
    threads: int | None = None
    compile: bool = False
    quick: bool = False
    seconds: float | None = None
    name: str | None = None
    out: Path = Path("runs")
    show: Path | None = None
    command: str = ""


def bench(options: Options, console: Console | None = None) -> Path:
    """Measure, print tables, draw; rows are written as they come.

    Args:
        options: what to measure; the defaults are the whole benchmark.
        console: where to print; None for standard output.

    Returns:
        The folder.

    Raises:
        ValueError: an option or the folder cannot be used.
        FileNotFoundError: ``show`` is not there.
        KeyboardInterrupt: after what was measured is shown.
    """
    console = console or Console(highlight=False)
    if options.show is not None:
        return _show_again(options.show, console)
    cases = planned(options)
    meta = {
        "command": options.command,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cases": len(cases),
        "environment": environment(),
    }
    patience = Patience(0.0 if options.quick else _PATIENCE)
    with _threads(options.threads), Folder(folder_of(options), meta) as folder:
        try:
            for case in _progress(cases, options, console):
                folder.add(measured(case, replace(_how(case, options), patience=patience)))
        except KeyboardInterrupt:
            _show(folder.path, folder.rows, console)
            done = len(results(folder.rows))
            console.print(f"Interrupted: {done} of {len(cases)} cases are measured and kept.")
            raise
        _show(folder.path, folder.rows, console)
    return folder.path


def planned(options: Options) -> list[Case]:
    """The cases: networks first, which run with the memory as everybody has it.

    Raises:
        ValueError: an option cannot be used, or nothing is left to measure.
    """
    for name in ("threads", "max_elements"):
        value: int | None = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')} {value}: at least 1 is needed")
    if options.seconds is not None and not 0 <= options.seconds < float("inf"):
        raise ValueError(f"seconds {options.seconds}: a time, 0 or longer")
    usual = norms.DEFAULT if options.norms is None else tuple(options.norms)
    layouts = norms.LAYOUTS if options.layout is None else (options.layout,)
    networks = models.QUICK if options.quick else tuple(models.MODELS)
    if options.models is not None:
        networks = tuple(options.models)
    elif options.shape is not None:
        networks = ("none",)
    cases: list[Case] = []
    if networks != ("none",):
        cases += models.plan(networks)
    if usual != ("none",):
        cases += norms.plan(
            usual,
            options.shape,
            layouts,
            options.max_elements,
            options.dtype,
            quick=options.quick,
        )
    if not cases:
        raise ValueError("nothing is left to measure; ask for norms or models")
    return cases


def folder_of(options: Options) -> Path:
    """The benchmark's folder: a part of it does not replace the whole.

    Raises:
        ValueError: the name is not one for a folder.
    """
    whole = Options(compile=options.compile, seconds=options.seconds, quick=options.quick)
    asked = ("norms", "models", "shape", "layout", "max_elements", "dtype", "kernel", "threads")
    part = any(getattr(options, each) != getattr(whole, each) for each in asked)
    usual = "bench-part" if part else "bench-quick" if options.quick else "bench"
    name = usual if options.name is None else options.name
    return inside(options.out, name)


def _how(case: Case, options: Options) -> How:
    how = How(
        kernel=options.kernel,
        compiled=options.compile,
        memory_kept=isinstance(case, norms.Case) and keep_memory(),
    )
    if options.quick:
        how = replace(how, seconds=0.05, steps=5, latencies=20, tries=1)
    return how if options.seconds is None else replace(how, seconds=options.seconds)


def _show(path: Path, rows: Sequence[Row], console: Console) -> None:
    """Everything that was measured, as tables and pictures."""
    found = results(rows)
    if not found:
        return
    from normalform.lab.bench import pictures  # takes a second to import

    console.print(tables.of_models(found))
    console.print(tables.of_norms(found))
    console.print(tables.of_targets(outcomes(found)))
    console.print(tables.disturbed(found))
    console.print(tables.where(found[-1].ours))
    drawn = pictures.save(found, path)
    files = [path / RESULTS, *drawn]
    console.print(f"Written: {', '.join(map(str, files))}", soft_wrap=True, markup=False)


def _show_again(path: Path, console: Console) -> Path:
    if not is_ours(path):
        raise FileNotFoundError(f"show {path}: not the folder of a benchmark")
    rows = read_rows(path / RESULTS)
    if not results(rows):
        raise ValueError(f"show {path}: nothing was measured there")
    _show(path, rows, console)
    return path


def _progress(cases: Sequence[Case], options: Options, console: Console) -> Iterator[Case]:
    """The cases one by one, under a bar with the time that is left.

    Where the output is no terminal it is a line whenever another tenth is done.
    """
    costs = [_cost(case, options) for case in cases]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=sum(costs))
        for done, (case, cost) in enumerate(zip(cases, costs, strict=True), 1):
            name = case.norm if isinstance(case, norms.Case) else case.name
            bar.update(task, description=f"{done} of {len(cases)}: {name}, {case.what}")
            yield case
            bar.advance(task, cost)
            if not console.is_terminal and 10 * done // len(cases) > 10 * (done - 1) // len(cases):
                console.print(f"{done} of {len(cases)} cases measured")


def _cost(case: Case, options: Options) -> float:
    """About how many seconds a case takes: for the time left, measured once, roughly."""
    if isinstance(case, models.Case):
        return 1.0 if options.quick else 5.0
    per_element = 3e-7 if case.norm == "switch" else 1e-7
    compiling = 15.0 if options.compile else 0.0
    return _how(case, options).seconds + per_element * math.prod(case.shape) + compiling


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
