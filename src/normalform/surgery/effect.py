"""By how much a change of a model changes its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normalform.surgery.feeding import feed
from normalform.surgery.keeping import kept


@dataclass(frozen=True)
class Effect:
    """How far apart the outputs for an example are, before and after.

    Args:
        largest: of the differences, infinite where one of the two is not a number.
        relative: that, by the largest of the outputs before.
        training: the mode of the model, in which it was measured.
    """

    largest: float
    relative: float
    training: bool

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        if self.largest == 0:
            return f"the outputs for the example do not change at all, in {mode}"
        return (
            f"the outputs for the example change by up to {self.largest:.3g}, "
            f"{self.relative:.3g} times the largest of them, in {mode}"
        )


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """The floating point tensors that ``model`` makes of an example; nothing of it changes.

    Drawn at random, as by dropout, they are the same at every call.
    """
    with kept(model), torch.no_grad():
        leaves = tree_leaves(feed(model, example))
    found = [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    if not found:
        raise ValueError("the model makes no floating point tensor of the example to be compared")
    return [t.detach().double().cpu() for t in found]


def watched(
    model: nn.Module, example: Any, norms: Collection[nn.Module]
) -> tuple[list[Tensor], Mapping[nn.Module, set[int]]]:
    """:func:`outputs`, and how many axes the inputs of some norms had."""
    seen: dict[nn.Module, set[int]] = {norm: set() for norm in norms}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        seen[module].update(t.dim() for t in given[:1])

    with kept(model):
        for norm in norms:
            norm.register_forward_pre_hook(look, with_kwargs=True)
        return outputs(model, example), seen


def effect(before: list[Tensor], after: list[Tensor], training: bool) -> Effect:
    """How far apart two results of :func:`outputs` are.

    Raises:
        ValueError: they are of other shapes.
    """
    if [t.shape for t in before] != [t.shape for t in after]:
        raise ValueError("the outputs for the example have other shapes than before")
    apart = [_apart(a, b) for a, b in zip(before, after, strict=True)]
    largest = max(apart)
    finite = [t[t.isfinite()] for t in before]
    size = max((float(t.abs().max()) for t in finite if t.numel()), default=0.0)
    return Effect(largest, largest / size if size else largest and float("inf"), training)


def _apart(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(float("inf"), float("inf"))
    return float(apart.max()) if apart.numel() else 0.0
