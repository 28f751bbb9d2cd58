"""How far layers are from the exact result: ours and PyTorch's, in units of the promise.

Our layer and PyTorch's get the same input and parameters. The float64 reference says what they
should have given, and how far from it the promise lets them be: an error of 1.00 is all of that.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normalform.explain import chosen
from normalform.lab.cases import (
    DTYPES,
    NORMS,
    Case,
    laid_out,
    layers,
    plan,
    random_input,
)
from normalform.testing import measure

# Columns of the table, each the largest of what measure() calls by these names.
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "y": ("y",),
    "dx": ("dx",),
    "dweight": ("dweight",),
    "dbias": ("dbias",),
    "logits": ("dmean_weight", "dvar_weight"),
    "running": ("running_mean", "running_var"),
}

COMPILE = "torch.compile"  # in the place of a kernel: our layer under it, with kernel "auto"


@dataclass(frozen=True)
class Measured:
    """Largest error of a case in units of the promise, by quantity; PyTorch's beside ours.

    ``kernel`` is what our layer was asked to run, and what it chose: ``"auto: cpu"``.
    """

    case: Case
    kernel: str
    ours: Mapping[str, float]
    torch: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Ours is inside the promise."""
        return all(error <= 1 for error in self.ours.values())


@dataclass(frozen=True)
class Row:
    """The worst of several cases."""

    label: tuple[str, ...]
    ours: Mapping[str, float]
    torch: Mapping[str, float]
    cases: int

    @property
    def ok(self) -> bool:
        """Ours is inside the promise."""
        return all(error <= 1 for error in self.ours.values())


def accuracy(
    norms: Sequence[str] = NORMS,
    dtypes: Sequence[str] = tuple(DTYPES),
    *,
    kernel: str = "auto",
    quick: bool = False,
) -> list[Row]:
    """The table of accuracy: for every norm and type the worst of all cases.

    Args:
        norms: some of ``NORMS``.
        dtypes: some of ``DTYPES``.
        kernel: the kernel our layers run.
        quick: fewer and smaller cases.

    Returns:
        Rows labelled (norm, dtype).

    Raises:
        ValueError: an unknown norm, dtype or kernel.

    >>> row, = accuracy(["rms"], ["float32"], quick=True)
    >>> row.label, row.ok, list(row.ours)
    (('rms', 'float32'), True, ['y', 'dx', 'dweight'])
    """
    found = [measured(case, kernel=kernel) for case in plan(norms, dtypes, quick=quick)]
    return worst(found, lambda case: (case.norm, case.dtype))


def measured(
    case: Case, x: Tensor | None = None, *, kernel: str = "auto", device: str = "cpu"
) -> Measured:
    """Run our layer and PyTorch's.

    Args:
        case: what to run.
        x: the input (N, C, *); None for random numbers.
        kernel: the kernel our layer runs, or ``COMPILE``.
        device: where both run; the reference runs on the CPU.
    """
    threads = torch.get_num_threads()
    with _threads(1):  # waking others takes longer than small inputs, above all on a busy machine
        generator = torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))
        x = random_input(case, generator) if x is None else x
        ours, theirs = layers(case, x, generator)
        dy = torch.randn(case.shape, generator=generator, dtype=torch.float64)
        ours, theirs = ours.to(device), theirs.to(device)
        x, dy = (laid_out(t, case).to(device) for t in (x, dy))
        if kernel == COMPILE:
            found = _measure_compiled(ours, x, dy)
        else:
            ours.kernel = kernel  # pyright: ignore[reportArgumentType]
            if kernel == "auto":
                kernel = f"auto: {chosen(ours, x).kernel}"
            with _threads(threads if kernel == "auto: cpu" else 1):
                found = measure(ours, x, dy)
        return Measured(case, kernel, _columns(found), _columns(measure(theirs, x, dy)))


def by_kernel(found: Sequence[Measured]) -> list[Row]:
    """The worst of all cases that ran alike, labelled by the kernel."""
    rows: list[Row] = []
    for kernel in dict.fromkeys(each.kernel for each in found):
        alike = [each for each in found if each.kernel == kernel]
        rows += worst(alike, lambda _, kernel=kernel: (kernel,))
    return rows


def worst(found: Iterable[Measured], label: Callable[[Case], tuple[str, ...]]) -> list[Row]:
    """The worst of all cases that share a label, in the order in which labels come."""
    sides: dict[tuple[str, ...], list[Measured]] = {}
    for each in found:
        sides.setdefault(label(each.case), []).append(each)
    return [
        Row(
            name,
            ours=_largest(each.ours for each in members),
            torch=_largest(each.torch for each in members),
            cases=len(members),
        )
        for name, members in sides.items()
    ]


@contextmanager
def _threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_compiled(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, float]:
    """As :func:`measure`, in one graph; its operators run as they are, without a C++ compiler."""
    compiler: Any = torch.compile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of its own functions
        return measure(compiler(layer, backend="aot_eager", fullgraph=True), x, dy)


def _columns(errors: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for column, names in QUANTITIES.items():
        present = [errors[name] for name in names if name in errors]
        if present:
            found[column] = max(present)
    return found


def _largest(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sides = list(found)
    columns = [column for column in QUANTITIES if any(column in side for side in sides)]
    return {column: max(side.get(column, 0.0) for side in sides) for column in columns}
