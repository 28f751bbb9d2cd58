"""What a diagnosis says: findings, and a row for each norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normalform.diagnose.norms import Norm

SEVERITIES = ("note", "warning", "error")
MOST_NAMES = 3
Number = float | int | str


@dataclass(frozen=True)
class Tried:
    """What a remedy did to a copy of the model.

    Attributes:
        before: the loss in evaluation as the model is, None without one.
        after: on the copy with the remedy.
        change: by how much the outputs in evaluation changed, in units of their own size.
    """

    before: float | None
    after: float | None
    change: float

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"outputs change by {said(self.change)} of their size"
        return f"loss {said(self.before)} -> {said(self.after)}"


@dataclass(frozen=True)
class Finding:
    """Something about the norms that costs accuracy, speed or memory, or may do so.

    Attributes:
        severity: ``note``, ``warning`` or ``error``.
        check: which kind of fault it is.
        where: the norms, the one to look at first first.
        what: the fault in one sentence.
        evidence: numbers by name, of the first norm where they differ.
        effect: what it costs, in units of the loss; None where that was not measured.
        remedy: the line that mends it.
        tried: what that line did to a copy; None where it was not tried.
    """

    severity: str
    check: str
    where: tuple[str, ...]
    what: str
    evidence: Mapping[str, Number] = field(default_factory=dict)
    effect: float | None = None
    remedy: str = ""
    tried: Tried | None = None


@dataclass(frozen=True)
class Suspicion:
    """A finding before its remedy was tried.

    Attributes:
        finding: what it says so far.
        mend: does to a copy of the model what the remedy does.
        recalibrates: the remedy is to recalibrate, which is tried once for all.
        expects: what the remedy does in evaluation: ``better``; ``same``, and where outputs change
            the suspicion was wrong; ``training`` before the loss says anything.
    """

    finding: Finding
    mend: Callable[[nn.Module], object] | None = None
    recalibrates: bool = False
    expects: str = "better"


def suspect(
    severity: str,
    check: str,
    norms: Iterable[Norm],
    what: str,
    evidence: Mapping[str, Number],
    remedy: str = "",
    mend: Callable[[nn.Module], object] | None = None,
    *,
    recalibrates: bool = False,
    expects: str = "better",
    effect: float | None = None,
) -> Suspicion:
    """A suspicion of these norms."""
    where = tuple(dict.fromkeys(norm.name for norm in norms))
    return Suspicion(
        Finding(severity, check, where, what, evidence, effect, remedy),
        mend,
        recalibrates,
        expects,
    )


@dataclass(frozen=True)
class Row:
    """A norm in numbers; None for what was not measured.

    Attributes:
        name: its dotted name.
        kind: its class.
        values: how many values stand behind each of its statistics.
        mean_off: distance of the running mean from the batch's, in standard deviations of the
            batch, root mean square over the channels.
        var_off: how many times too large or too small the running variance is, in the median.
        share: of the gap between training and evaluation, 1 for all of it.
        effect: that in units of the loss.
        among: the norms that ``share`` belongs to, where it was not divided further.
    """

    name: str
    kind: str
    values: int | None = None
    mean_off: float | None = None
    var_off: float | None = None
    share: float | None = None
    effect: float | None = None
    among: int = 1


@dataclass(frozen=True)
class Losses:
    """What the loss was, over the same batches.

    Attributes:
        evaluation: of the model in evaluation.
        batch: with the statistics of the batch in all norms, all else as in evaluation.
        recalibrated: of a copy with recalibrated statistics, in evaluation.
        unit: ``loss``; without one, ``distance`` of the outputs from those with the statistics of
            the batch, in units of their size.
    """

    evaluation: float
    batch: float
    recalibrated: float | None = None
    unit: str = "loss"

    @property
    def gap(self) -> float:
        """What running statistics cost in evaluation."""
        return self.evaluation - self.batch


def said(value: Any) -> str:
    """A number as people read it.

    >>> said(1.93456), said(0.00012345), said(80000.0), said(4608)
    ('1.93', '0.000123', '8e+04', '4,608')
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if math.isfinite(value) and 1 <= abs(value) < 1e4:
        return f"{value:.{max(0, 2 - int(math.log10(abs(value))))}f}"
    return f"{value:.3g}"


def joined(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Some names, and how many more.

    >>> joined(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
