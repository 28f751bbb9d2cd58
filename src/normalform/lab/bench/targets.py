"""The figures to reach, as data, and what was reached.

Each target takes the worst figure of all cases that it speaks about; one case that misses it is
enough. Figures are ratios of least times inside one interleaved run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.rows import Result
from normalform.lab.cases import NORMS

TRAINING = "training"
_MILLION = 1_000_000
_LAYOUTS = ("contiguous", "channels_last")
_ALL = (FORWARD, STEP, INFERENCE)


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    Attributes:
        limit: the figure.
        names: norms or models that it holds for.
        whats: what they do.
        against: the competitor whose time is divided by ours, to be at least ``limit``; or
            ``floor``, which our time is divided by, to be at most ``limit``.
        least: elements of the input, from.
        below: elements of the input, under.
        layouts: of the input.
        kind: ``norm`` or ``model``.
        title: that stands for the names, where they are many.
    """

    limit: float
    names: Sequence[str]
    whats: Sequence[str]
    against: str = "torch"
    least: float = 0
    below: float = float("inf")
    layouts: Sequence[str] = _LAYOUTS
    kind: str = "norm"
    title: str = ""

    def holds_for(self, result: Result) -> bool:
        """Whether the target speaks about a case."""
        row = result.ours
        return (
            row.kind == self.kind
            and row.dtype == "float32"
            and row.name in self.names
            and row.what in self.whats
            and row.layout in self.layouts
            and self.least <= row.elements < self.below
        )

    def figure(self, result: Result) -> float | None:
        """The case's; None where it was not measured."""
        return result.of_floor if self.against == "floor" else result.speedup(self.against)

    def met_by(self, figure: float) -> bool:
        """Whether a figure reaches it."""
        return figure <= self.limit if self.against == "floor" else figure >= self.limit


@dataclass(frozen=True)
class Outcome:
    """What became of a target.

    Attributes:
        target: the target.
        cases: that it speaks about and that were measured.
        missed: how many of them miss it.
        worst: the figure furthest from it; None where no case was measured.
        where: the case of that figure.
    """

    target: Target
    cases: int
    missed: int
    worst: float | None
    where: Result | None

    @property
    def met(self) -> bool:
        """Every case reaches the figure, and there was one."""
        return self.cases > 0 and not self.missed


def _steps(limit: float, *names: str, layouts: Sequence[str] = _LAYOUTS) -> Target:
    return Target(limit, names, (STEP,), least=_MILLION, layouts=layouts)


_FIRST, _LAST = _LAYOUTS[:1], _LAYOUTS[1:]
_NETS = ("unet2d", "unet3d", "style", "resnet-group")
TARGETS = (
    Target(1.35, NORMS, (FORWARD, STEP), "floor", least=4 * _MILLION, title="every norm"),
    Target(2.0, NORMS, (FORWARD, STEP), "floor", _MILLION, 4 * _MILLION, title="every norm"),
    _steps(1.5, "batch", layouts=_FIRST),
    _steps(1.0, "batch", layouts=_LAST),
    _steps(2.2, "instance", layouts=_FIRST),
    _steps(4.0, "instance", layouts=_LAST),
    _steps(1.4, "layer"),
    _steps(1.0, "group", layouts=_FIRST),
    _steps(3.0, "group", layouts=_LAST),
    _steps(3.0, "rms"),
    _steps(1.0, "token"),
    _steps(7.0, "switch"),
    Target(2.0, ("switch",), (STEP,), "compiled", least=_MILLION),
    Target(0.95, NORMS, _ALL, title="every norm"),
    Target(
        1.0, (*_NETS, "resnet-batch", "transformer"), (TRAINING, INFERENCE),
        kind="model", title="every model",
    ),
    *(Target(1.05, (name,), (INFERENCE,), kind="model") for name in _NETS),
    *(Target(1.03, (name,), (TRAINING,), kind="model") for name in _NETS),
)  # fmt: skip


def outcomes(results: Iterable[Result], targets: Iterable[Target] = TARGETS) -> list[Outcome]:
    """What became of each target."""
    measured = list(results)
    return [_outcome(target, measured) for target in targets]


def _outcome(target: Target, results: Sequence[Result]) -> Outcome:
    figures = [
        (figure, result)
        for result in results
        if target.holds_for(result) and (figure := target.figure(result)) is not None
    ]
    if not figures:
        return Outcome(target, 0, 0, None, None)
    furthest = max if target.against == "floor" else min
    worst, where = furthest(figures, key=lambda pair: pair[0])
    missed = sum(not target.met_by(figure) for figure, _ in figures)
    return Outcome(target, len(figures), missed, worst, where)
