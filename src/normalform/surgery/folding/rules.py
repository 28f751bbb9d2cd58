"""Which operations commute with a scale and a shift for each channel, and under what condition.

Copies and reshapes do, averages and interpolations do (their weights add up to one), maxima do
where no scale is negative, zero padding does where nothing is shifted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.nn.modules import padding, pooling
from torch.nn.modules.dropout import _DropoutNd

from normalform.surgery.folding.flow import Flow
from normalform.surgery.folding.weights import has_hooks

RESHAPES = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim"),
    *("squeeze", "unsqueeze", "narrow", "select", "contiguous", "clone", "detach"),
)
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.interpolate)
MAXIMA = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.max_pool3d),
)
BORDERS = (padding._ReflectionPadNd, padding._ReplicationPadNd, padding._CircularPadNd)


@dataclass(frozen=True)
class Rule:
    """How an operation commutes.

    Attributes:
        channels: where channels go: their numbers in, laid as the input is, and laid as the output.
        unshifted: only where nothing is shifted.
        nonnegative: only where no scale is negative.
    """

    channels: Callable[[Tensor], Tensor]
    unshifted: bool = False
    nonnegative: bool = False


class Mixed(Exception):
    """An operation takes values of several channels together."""


def rule_of(node: fx.Node, source: fx.Node, module: nn.Module | None, flow: Flow) -> Rule | None:
    """How a call commutes, None where it does not.

    Args:
        node: the call.
        source: its input.
        module: that is called, None where that is a function or a method.
        flow: whose node it is.
    """
    if module is not None:
        return None if has_hooks(module) else _of_module(module, flow.shapes[node])
    name = str(getattr(node.target, "__name__", node.target))
    if node.target is operator.getitem or (name in RESHAPES and _is_torchs(node, name)):
        return Rule(lambda numbers: _same_call(node, source, numbers, flow))
    if name in ("mean", "amax") and _is_torchs(node, name):
        dims, keep = _given(node, 1, "dim", None), _given(node, 2, "keepdim", False)
        reduce = None if dims is None else lambda numbers: _reduced(numbers, dims, keep)
        return None if reduce is None else Rule(reduce, nonnegative=name == "amax")
    return _of_function(node, flow.shapes[node])


def _of_module(module: Any, shape: torch.Size) -> Rule | None:
    spread = Rule(lambda numbers: _spread(numbers, shape))
    if isinstance(module, nn.Identity) or (isinstance(module, _DropoutNd) and _is_off(module)):
        return Rule(lambda numbers: numbers)
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return Rule(module)
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
        padded = _any(module.padding) and module.count_include_pad
        divisor = getattr(module, "divisor_override", None)
        return Rule(spread.channels, unshifted=padded or divisor is not None)
    if isinstance(module, (pooling._AdaptiveAvgPoolNd, nn.Upsample, *BORDERS)):
        return spread
    if isinstance(module, pooling._MaxPoolNd | pooling._AdaptiveMaxPoolNd):
        return None if module.return_indices else Rule(spread.channels, nonnegative=True)
    if isinstance(module, padding._ConstantPadNd):
        return None if module.value else Rule(spread.channels, unshifted=True)
    return None


def _of_function(node: fx.Node, shape: torch.Size) -> Rule | None:
    spread = Rule(lambda numbers: _spread(numbers, shape))
    target = node.target
    if target in DROPOUTS:
        off = not _given(node, 2, "training", True) or not _given(node, 1, "p", 0.5)
        return Rule(lambda numbers: numbers) if off else None
    if target in AVERAGE_POOLS:
        padded = _any(_given(node, 3, "padding", 0)) and _given(node, 5, "count_include_pad", True)
        divisor = _given(node, 6, "divisor_override", None)
        return Rule(spread.channels, unshifted=bool(padded) or divisor is not None)
    if target in AVERAGES:
        return spread
    if target in MAXIMA:
        return Rule(spread.channels, nonnegative=True)
    if target is F.pad:
        if _given(node, 2, "mode", "constant") != "constant":
            return spread
        return None if _given(node, 3, "value", None) else Rule(spread.channels, unshifted=True)
    return None


def _is_torchs(node: fx.Node, name: str) -> bool:
    return node.op == "call_method" or node.target is getattr(torch, name, None)


def _is_off(module: Any) -> bool:
    return not module.training or module.p == 0


def _any(sizes: int | Sequence[int]) -> bool:
    return any(sizes) if isinstance(sizes, Sequence) else bool(sizes)


def _given(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _same_call(node: fx.Node, source: fx.Node, numbers: Tensor, flow: Flow) -> Tensor:
    """The call itself, on the numbers."""

    def value(argument: fx.Node) -> Any:
        return numbers.contiguous() if argument is source else flow.values[argument]

    args, kwargs = map_arg((node.args, node.kwargs), value)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _reduced(numbers: Tensor, dims: Any, keep: bool) -> Tensor:
    lowest = numbers.amin(dims, keep)
    if not torch.equal(lowest, numbers.amax(dims, keep)):
        raise Mixed
    return lowest


def _spread(numbers: Tensor, shape: torch.Size) -> Tensor:
    """Over other positions, where the channels are on axis 1."""
    first = numbers[(slice(1), slice(None), *[slice(1)] * (numbers.ndim - 2))]
    if numbers.ndim != len(shape) or first.size(1) != shape[1] or not (numbers == first).all():
        raise Mixed
    return first.expand(shape)
