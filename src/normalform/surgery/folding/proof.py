"""Proof that a folded model does what it did: both run on an example, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from normalform.surgery.feeding import feed
from normalform.surgery.folding.result import Proof
from normalform.surgery.keeping import kept

EXACT = 1e-9  # of the largest output: what float64 may differ by where nothing is wrong


def copied(model: nn.Module) -> nn.Module:
    """A copy.

    Raises:
        TypeError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"fold: {type(model).__name__} cannot be copied by copy.deepcopy ({error}); "
            "give it a __deepcopy__, or fold its parts"
        ) from error


def proved(
    original: nn.Module, folded: nn.Module, change: Callable[[nn.Module], None], example: Any
) -> Proof:
    """Compare the outputs for the example.

    Args:
        original: the model; it is run as a copy.
        folded: the folded copy.
        change: folds any copy.
        example: an input.

    Raises:
        RuntimeError: they do not agree.
    """
    own = _outputs(copied(original), example)
    try:
        exact = _outputs(copied(original).double(), _double(example))
    except RuntimeError:  # it is written for its own type
        exact, ours = own, _still_runs(folded, example)
        dtype = next((t.dtype for t in own), torch.float32)
        allowed = torch.finfo(dtype).eps ** 0.5
    else:
        other = copied(original).double()
        change(other)
        ours = _still_runs(other, _double(example))
        dtype, allowed = torch.float64, EXACT
    if not exact:
        raise RuntimeError("fold: the model returns no tensors of numbers to compare; verify=False")
    error = _apart(ours, exact)
    if not error <= allowed:
        raise RuntimeError(
            f"fold: outputs for the example differ by {error:.1e} of the largest, more than "
            f"{allowed:.0e}: the model does something with its norms or weights that cannot be "
            "seen in its data flow. The model is as it was"
        )
    return Proof(error, _apart(_outputs(folded, example), exact), _apart(own, exact), dtype)


def _still_runs(model: nn.Module, example: Any) -> list[Tensor]:
    try:
        return _outputs(model, example)
    except Exception as error:
        raise RuntimeError(
            f"fold: the folded model does not run on the example ({type(error).__name__}: "
            f"{error}): it does more with its norms than call them. The model is as it was"
        ) from error


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    torch.clear_autocast_cache()  # it may hold weights as they were
    with kept(model), torch.no_grad():
        torch.manual_seed(0)
        found = tree_leaves(feed(model, example))
    return [t.detach() for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def _double(example: Any) -> Any:
    def double(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floats else value

    return tree_map(double, example)


def _apart(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of each output."""
    worst = 0.0
    for a, b in zip(found, exact, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        difference = torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf)
        size = b[b.isfinite()].abs().amax() if b.isfinite().any() else torch.ones(())
        if difference.numel():
            worst = max(worst, float(difference.amax() / size.clamp_min(1e-300)))
    return worst
