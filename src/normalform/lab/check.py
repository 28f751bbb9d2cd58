"""``normalform check``: is every norm as exact as promised, on this machine and on your data?

Our layers and PyTorch's against the float64 reference, on random input of every kind and on the
user's own; then what the source articles print, computed again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from normalform.kernels.plan import has_float64
from normalform.lab import articles, check_report, folders
from normalform.lab.accuracy import COMPILE, Measured, by_kernel, measured, worst
from normalform.lab.accuracy import accuracy as accuracy
from normalform.lab.cases import (
    DTYPES,
    NORMS,
    Case,
    graph,
    in_order_of_graphs,
    modes,
    plan,
    plan_compiled,
    why_not,
)
from normalform.lab.devices import device_named, model_of
from normalform.lab.environment import environment
from normalform.lab.own import Content, Own, read

try:
    from rich.console import Console
    from rich.progress import track
except ModuleNotFoundError as error:
    raise ImportError('normalform check needs rich: pip install "normalform[lab]"') from error

MARK = "normalform check"  # in every JSON file of ours: no other file is overwritten


@dataclass(frozen=True)
class Options:
    """What to check.

    Attributes:
        norms: some of ``NORMS``.
        dtypes: some of ``DTYPES``.
        kernel: the kernel our layers run. With "auto" other ways to run them are checked too, on
            fewer cases: the eager recipe, and torch.compile.
        compile: check torch.compile with every norm, type and layout, instead of with some.
        quick: fewer and smaller cases; nothing is compiled unless ``compile`` asks for it.
        input: a file of the user's own: ``.npy``, ``.npz``, ``.pt`` or a picture.
        key: the one array wanted of a file that holds several.
        json: a file to write every number to.
        device: where the layers run: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``: CUDA
            where there is one. The articles' tensors are computed on the CPU.
    """

    norms: Sequence[str] = NORMS
    dtypes: Sequence[str] = tuple(DTYPES)
    kernel: str = "auto"
    compile: bool = False
    quick: bool = False
    input: Path | None = None
    key: str | None = None
    json: Path | None = None
    device: str = "cpu"


def run(options: Options, console: Console | None = None) -> int:
    """Measure, print, write; the exit status.

    Args:
        options: what to check.
        console: where to print; None for standard output.

    Returns:
        1 if anything of ours is outside its promise or an article's number did not come out, else
        0. PyTorch's being outside is shown and is no failure.

    Raises:
        FileNotFoundError: there is no ``input``, or no folder for ``json``.
        ValueError: an unknown norm, dtype or kernel, an ``input`` that cannot be used, a ``json``
            that is another program's file, a device that is not here.
    """
    console = console or Console()
    options = _placed(options)
    if options.device != "cpu":
        console.print(f"Layers run on {model_of(options.device)}, the reference on the CPU.")
    cases = plan(options.norms, options.dtypes, quick=options.quick)
    if options.json is not None:
        _refuse_other_files(options.json)
    content = Content((), ()) if options.input is None else read(options.input, options.key)

    found = _measured([(case, None) for case in cases], options.kernel, options)
    by_ratio = [each for each in found if each.case.dtype == options.dtypes[0]]
    console.print(
        check_report.on_random_input(
            worst(found, lambda case: (case.norm, case.dtype)),
            worst(
                by_ratio,
                lambda case: (case.norm, check_report.ratio(case.ratio or 0.0), case.dtype),
            ),
        )
    )
    others = _in_other_ways(options)
    console.print(check_report.on_kernels(by_kernel([*found, *others])))
    for own in content.arrays:
        here, left_out = _on_own(own, options)
        measured_here = _measured([(case, own.x) for case in here], options.kernel, options)
        table = worst(measured_here, lambda case: (case.norm, case.dtype))
        console.print(check_report.on_own_input(own, table, left_out))
        found += measured_here
    for reason in content.left_out:
        console.print(f"Not checked: {reason}.", markup=False)
    report = articles.check(options.kernel)
    console.print(check_report.on_articles(report))
    console.print(check_report.verdict(found, others, report.ok))
    ok = report.ok and all(each.ok for each in [*found, *others])
    if options.json is not None:
        _write(options.json, options, found, others, report)
        console.print(f"All numbers are in {options.json}.", markup=False)
    return 0 if ok else 1


def _placed(options: Options) -> Options:
    """With a device that is here, and the types that it has."""
    device = device_named(options.device)
    lacks = () if has_float64(torch.device(device)) else ("float64",)
    dtypes = [dtype for dtype in options.dtypes if dtype not in lacks]
    if not dtypes:
        raise ValueError(f"device {device} has no float64; choose another type or device")
    return replace(options, device=device, dtypes=dtypes)


def _measured(
    work: Sequence[tuple[Case, Tensor | None]], kernel: str, options: Options
) -> list[Measured]:
    console = Console(stderr=True)
    bar = track(work, "measuring", console=console, transient=True, disable=not console.is_terminal)
    found: list[Measured] = []
    for case, x in bar:
        found.append(measured(case, x, kernel=kernel, device=options.device))
        if len(found) == 1 and len(work) >= 100 and not console.is_terminal:
            console.print(f"Measuring {len(work)} cases.")
    return found


def _in_other_ways(options: Options) -> list[Measured]:
    """What "auto" does not run here: the eager recipe everywhere, and norms in compiled graphs."""
    cases = plan(options.norms, options.dtypes, quick=True)
    found: list[Measured] = []
    if options.kernel == "auto":
        found += _measured([(case, None) for case in cases], "eager", options)
    if options.compile or (options.kernel == "auto" and not options.quick):
        here = in_order_of_graphs(cases) if options.compile else plan_compiled(cases)
        for _, alike in itertools.groupby(here, graph):
            torch.compiler.reset()
            found += _measured([(case, None) for case in alike], COMPILE, options)
    return found


def _on_own(own: Own, options: Options) -> tuple[list[Case], list[str]]:
    """The cases on an array of the user's, and why others are left out."""
    shape = tuple(own.x.shape)
    left_out = [f"{norm}: {why}" for norm in options.norms if (why := why_not(norm, shape))]
    fitting: list[str] = []
    for dtype in options.dtypes:
        if own.x.to(DTYPES[dtype]).isfinite().all():
            fitting.append(dtype)
        else:
            largest = torch.finfo(DTYPES[dtype]).max
            left_out.append(f"{dtype}: the data has numbers beyond {largest:.5g}, its largest")
    cases = [
        case
        for norm in options.norms
        if not why_not(norm, shape)
        for dtype in fitting
        for case in modes(Case(norm, dtype, shape, source=own.name))
    ]
    return cases, left_out


def _refuse_other_files(path: Path) -> None:
    """Raise where writing would destroy something or cannot succeed."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"json {path}: a folder; give the name of a file")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:100]:
        raise ValueError(f"json {path}: another file stands there; give another name")


def _write(
    path: Path,
    options: Options,
    found: Sequence[Measured],
    others: Sequence[Measured],
    report: articles.Report,
) -> None:
    """Everything as JSON."""
    tensors = [
        {
            "article": each.example.article,
            "layer": each.example.code,
            "called": each.example.called,
            "ours": each.ours,
            "reference": each.reference,
        }
        for each in report.examples
    ]
    content = {
        "made_by": MARK,
        "ok": report.ok and all(each.ok for each in [*found, *others]),
        "environment": environment(),
        "options": {**asdict(options), "input": str(options.input or ""), "json": str(path)},
        "cases": [_all_of(each) for each in found],
        "cases_in_other_ways": [_all_of(each) for each in others],
        "articles": {
            "tensors": tensors,
            "mislabelled": asdict(report.mislabelled),
            "sums": [asdict(each) for each in report.sums],
            "signed_sum": asdict(report.signed),
        },
    }
    text = json.dumps(_strict(content), indent=1, allow_nan=False)
    folders.replace(path, f"{text}\n".encode())


def _all_of(each: Measured) -> dict[str, Any]:
    numbers = {"ours": each.ours, "torch": each.torch}
    return {**asdict(each.case), "kernel": each.kernel, **numbers}


def _strict(value: Any) -> Any:
    """JSON has no number for infinity: it becomes the text "inf", and NaN "nan"."""
    if isinstance(value, Mapping):
        return {key: _strict(each) for key, each in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in cast(Sequence[Any], value)]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
