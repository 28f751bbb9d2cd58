"""Constant norms folded into the layers before or behind them, by data flow, and then proved.

A norm with constant statistics is a scale and a shift for each channel. What lies between it and a
layer is found by tracing, so neither the order of children nor names matter; what is not exact is
refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from normalform.surgery.feeding import inside
from normalform.surgery.folding.flow import Flow, flow_of
from normalform.surgery.folding.paths import Blocked, Walker
from normalform.surgery.folding.proof import copied, proved
from normalform.surgery.folding.result import Folded, Folding
from normalform.surgery.folding.weights import Weights, affine_of, is_affine_of_its_own
from normalform.surgery.keeping import kept
from normalform.surgery.kinds import is_norm, label, named, require_model
from normalform.surgery.report import Left

ALONE = "it is the model itself, without a layer"


def fold(model: nn.Module, example: Any, *, verify: bool = True) -> Folding:
    """A copy of ``model`` without the norms that convolutions and linear layers can take up.

        norm(conv(x)) = scale * (W x + b) + shift = (scale W) x + (scale b + shift)

    Batch norm in evaluation mode, frozen norms, instance norms with running statistics and
    modules that are nothing but such a scale and shift go backwards into the layer before them, or
    forwards into the one behind: Conv1d to 3d, ConvTranspose1d to 3d, grouped and depthwise, and
    Linear. The way there may lead through identities, dropout that is off, reshapes, average pools
    and interpolation; through max-pools where no scale is negative; through zero padding where
    nothing is shifted. Folded norms are replaced by ``Identity``; layers that had no bias get one.

    Left and named are norms for which it would not be exact: an activation in between, several uses
    of a value, zero padding, layers or weights that are shared, parametrized or have hooks, norms
    in training mode or whose statistics are those of each input.

    The model itself is not touched. Data flow is found by :mod:`torch.fx`; a part whose own code
    cannot be traced is left as it is. Reshapes are judged by the shapes in the example, and the
    folded model is exact for calls such as the example's: arguments of ``forward`` that it leaves
    out keep their defaults, and what is read elsewhere, by other methods or by hooks on the
    modules around a layer, is not seen.

    Args:
        model: the model, in evaluation mode.
        example: an input, as a tensor or as a batch that a loader gives.
        verify: compare the outputs for the example, with all values in float64: they must agree to
            1e-9 of the largest.

    Returns:
        The folded copy as ``.model``, with what was folded and what was not; prints as a table.

    Raises:
        TypeError: not a model, or one that cannot be copied.
        ValueError: the data flow of the model's own ``forward`` cannot be followed.
        RuntimeError: the outputs do not agree.

    >>> conv = torch.nn.Conv2d(3, 4, 3)
    >>> model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    >>> folding = nf.fold(model, torch.randn(2, 3, 8, 8))
    >>> folding.folded[0].names, folding.folded[0].into
    (('1',), '0')
    >>> folding.model
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    >>> folding.proof.error < 1e-12
    True
    """
    require_model(model, "fold")
    original = inside(model)
    folded = copied(original)
    found = _candidates(folded)
    if not found or ("",) in found.values():
        left = [Left(names, label(m), ALONE) for m, names in found.items()]
        return Folding(folded, left=tuple(left))
    with kept(folded), torch.no_grad():
        flow = flow_of(folded, example, found)
    plan = _planned(folded, found, flow)
    plan.apply(folded)
    if not plan.folded or not verify:
        return Folding(folded, tuple(plan.folded), tuple(plan.left))
    proof = proved(original, folded, plan.apply, example)
    return Folding(folded, tuple(plan.folded), tuple(plan.left), proof)


@dataclass
class _Plan:
    """What to do; it holds names, so that it can be done to any copy."""

    folded: list[Folded] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    weights: dict[str, Weights] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        for name, weights in self.weights.items():
            weights.write(model.get_submodule(name))
        for row in self.folded:
            for name in row.names:
                parent, _, child = name.rpartition(".")
                model.get_submodule(parent)._modules[child] = nn.Identity()


def _candidates(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Norms, and modules that are a scale and a shift, by their names."""
    return {m: names for m, names in named(model) if is_norm(m) or is_affine_of_its_own(m)}


def _planned(model: nn.Module, found: Mapping[nn.Module, tuple[str, ...]], flow: Flow) -> _Plan:
    """Backwards where possible, then forwards, until nothing more can be taken up."""
    plan, gone = _Plan(), set[fx.Node]()
    walker = Walker(flow, model, gone)
    position = {node.target: k for k, node in enumerate(flow.graph.nodes)}
    waiting = sorted(found.items(), key=lambda item: position.get(item[1][0], len(position)))
    done: dict[tuple[str, ...], Folded] = {}
    why: dict[tuple[str, ...], str] = {}
    progress = True
    while progress:
        progress = False
        for module, names in waiting:
            if names in done:
                continue
            row = _taken_up(module, names, flow, walker, plan)
            if isinstance(row, str):
                why[names] = row
                continue
            done[names], progress = row, True
            gone.update(flow.calls(names))
    plan.folded = [done[names] for names in found.values() if names in done]
    plan.left = [Left(n, label(m), why[n]) for m, n in found.items() if n not in done]
    return plan


def _taken_up(
    module: nn.Module, names: tuple[str, ...], flow: Flow, walker: Walker, plan: _Plan
) -> Folded | str:
    """Fold one norm into the weights of a layer, or say why not."""
    calls = flow.calls(names)
    affine = affine_of(module, flow.shapes.get(calls[0]) if calls else None)
    if isinstance(affine, str):
        return affine
    reason = _unfit(names, calls, flow)
    if reason:
        return reason
    reasons: list[str] = []
    for look in (walker.back, walker.ahead):
        try:
            node, change = look(calls[0], affine)
        except Blocked as blocked:
            reasons.append(str(blocked))
            continue
        into, ahead = str(node.target), look == walker.ahead
        weights = plan.weights.setdefault(into, Weights(walker.module(node)))
        (weights.ahead if ahead else weights.behind)(change)
        return Folded(names, label(module), into, ahead)
    return "; ".join(dict.fromkeys(reasons))


def _unfit(names: tuple[str, ...], calls: list[Any], flow: Flow) -> str:
    """Why a constant norm cannot be dropped where it is, or nothing."""
    hidden = flow.hidden(names)
    if hidden:
        return f"inside {hidden}, which cannot be traced: {flow.opaque[hidden]}"
    if not calls:
        return "it is not called in evaluation"
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    return "its tensors have another use" if flow.looks_at(names) else ""
