"""What :func:`normalform.fold` answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from normalform.surgery.report import WIDEST, Left, _counted, _joined


@dataclass(frozen=True)
class Folded:
    """A norm that was folded.

    Args:
        names: every dotted name it had; there is an ``Identity`` now.
        kind: what it was, as ``"nn.BatchNorm2d"``.
        into: the layer that does its work now.
        ahead: whether that comes behind the norm in the data flow, not before it.
    """

    names: tuple[str, ...]
    kind: str
    into: str
    ahead: bool = False


@dataclass(frozen=True)
class Proof:
    """By how much outputs differ on the example, relative to the largest.

    Args:
        error: of the folded model from the original, both computed in ``dtype``.
        rounding: of the folded model, in its own type, from the original in ``dtype``.
        before: the same of the original.
        dtype: float64, or the model's own type where it does not run in float64.
    """

    error: float
    rounding: float
    before: float
    dtype: torch.dtype

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        text = f"outputs differ by {self.error:.1e} in {name}"
        if self.dtype is torch.float64:
            text += f", by {self.rounding:.1e} with rounding ({self.before:.1e} before)"
        return text


@dataclass(frozen=True, repr=False)
class Folding:
    """The folded model, and what became of each norm; prints as a table.

    Args:
        model: a copy of the model, of the same classes.
        folded: the norms that are gone, in the order of the model; ``len()`` counts them.
        left: those that were not folded, and why.
        proof: that outputs are the same; None where nobody looked, or nothing was folded.
    """

    model: nn.Module
    folded: tuple[Folded, ...] = ()
    left: tuple[Left, ...] = ()
    proof: Proof | None = None

    def __len__(self) -> int:
        return len(self.folded)

    def __str__(self) -> str:
        if not self.folded and not self.left:
            return "no norms found"
        head = f"folded {_counted([row.kind for row in self.folded])}"
        if self.left:
            head += f"; left {_counted([row.kind for row in self.left])}"
        if self.proof is not None:
            head += f"; {self.proof}"
        rows = [
            (_joined(row.names), f"{row.kind} -> {row.into}{' (ahead)' if row.ahead else ''}")
            for row in self.folded
        ]
        rows += [(_joined(row.names), f"{row.kind} left: {row.reason}") for row in self.left]
        width = min(WIDEST, max(len(names) for names, _ in rows))
        return "\n".join([head, *(f"  {names:{width}}  {text}" for names, text in rows)])

    __repr__ = __str__
