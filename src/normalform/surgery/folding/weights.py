"""Constant norms as ``y = scale * x + shift``, and what that makes of weights. All in float64."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from normalform.surgery.kinds import KINDS, stranger

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
HOSTS = (*CONVS, *TRANSPOSED, nn.Linear)
RUNNING = ("batch", "ghost", "frozen", "instance")

TRAINING = "in training mode, where it normalizes by the batch: call eval() first"
OF_INPUT = "its statistics are those of each input"
NO_STATISTICS = "keeps no running statistics, so it always normalizes by the batch"
HOOKS = "has hooks, which may change its input or output"
NO_SCALE = "its forward is no scale and shift for each channel"
NOT_FINITE = "its scale or shift is not finite"

# A module of nothing but these, with constants, is affine; a probe finds scale and shift.
ARITHMETIC = (
    *(operator.add, operator.mul, operator.sub, operator.truediv, operator.neg, operator.pow),
    *(torch.add, torch.mul, torch.sub, torch.div, torch.rsqrt, torch.sqrt, torch.neg),
)
METHODS = ("view", "reshape", "unsqueeze", "rsqrt", "sqrt", "expand", "add", "mul", "sub", "div")


@dataclass(frozen=True)
class Affine:
    """``y = scale * x + shift``, a value a channel in float64."""

    scale: Tensor
    shift: Tensor


def affine_of(module: nn.Module, shape: torch.Size | None) -> Affine | str:
    """What a norm does to each channel, or why that is not constant.

    Args:
        module: the norm.
        shape: of an input, which a class of its own is probed with.
    """
    if has_hooks(module):
        return HOOKS
    kind = KINDS.get(type(module))
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if kind is None:
        affine = is_affine_of_its_own(module)
        found = _probed(module, shape) if affine and shape is not None else None
        return found or (NO_SCALE if affine else stranger(module))
    if kind.name not in RUNNING or (kind.name == "instance" and not tracks(module)):
        return OF_INPUT
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return NO_STATISTICS
    if module.training and kind.name != "frozen":
        return TRAINING
    mean, var = mean.detach().double(), var.detach().double()
    weight, bias = (_double(getattr(module, name)) for name in ("weight", "bias"))
    scale = (1.0 if weight is None else weight) / (var + float(getattr(module, "eps"))).sqrt()  # noqa: B009
    shift = (0.0 if bias is None else bias) - mean * scale
    return _checked(Affine(scale, shift))


def tracks(module: nn.Module) -> bool:
    """Whether an instance norm uses running statistics in evaluation."""
    return bool(getattr(module, "track_running_stats", False))


def is_affine_of_its_own(module: nn.Module) -> bool:
    """Whether a module of a class of its own is an arithmetic of its input and constants."""
    held = [*module.parameters(), *module.buffers()]
    ours = type(module) in KINDS or type(module).__module__.startswith("torch.")
    if ours or not held or next(module.children(), None) is not None:
        return False
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception:  # its own code, on a proxy: then it is not
        return False
    return all(_is_arithmetic(node) for node in graph.nodes)


def _is_arithmetic(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in ARITHMETIC
    return node.op != "call_method" or node.target in METHODS


def _probed(module: nn.Module, shape: torch.Size) -> Affine | None:
    """Scale and shift of an arithmetic, if it has one of each for every channel."""
    module = copy.deepcopy(module).double()
    place = next(t for t in (*module.parameters(), *module.buffers()))
    zeros = torch.zeros(shape, dtype=torch.float64, device=place.device)
    x = torch.linspace(-3, 5, zeros.numel(), dtype=torch.float64, device=place.device).view(shape)
    with torch.no_grad():
        shift = module(zeros)
        scale, y = module(zeros + 1) - shift, module(x)
    if y.shape != shape:
        return None
    first = (0, slice(None), *[0] * (len(shape) - 2))
    laid = Affine(scale[first], shift[first])
    channels = (-1, *[1] * (len(shape) - 2))
    error = (laid.scale.view(channels) * x + laid.shift.view(channels) - y).abs().max()
    if not error <= 1e-12 * (1 + y.abs().max()):
        return None
    found = _checked(laid)
    return found if isinstance(found, Affine) else None


def _checked(affine: Affine) -> Affine | str:
    finite = affine.scale.isfinite().all() and affine.shift.isfinite().all()
    return affine if finite else NOT_FINITE


class Weights:
    """Weight and bias of a convolution or linear layer, folded in float64, written at the end."""

    def __init__(self, host: nn.Module) -> None:
        self.host: Any = host
        self.weight: Tensor = self.host.weight.detach().double()
        bias = _double(self.host.bias)
        size = self.host.out_features if isinstance(host, nn.Linear) else self.host.out_channels
        self.bias = self.weight.new_zeros(size) if bias is None else bias

    def behind(self, affine: Affine) -> None:
        """``scale * host(x) + shift``: the norm comes after."""
        self.weight = self.weight * self._by_output(affine.scale)
        self.bias = self.bias * affine.scale + affine.shift

    def ahead(self, affine: Affine) -> None:
        """``host(scale * x + shift)``: the norm comes before."""
        shifts = self.weight * self._by_input(affine.shift)
        if self._transposed:  # then the kernel has one position, or nothing is shifted
            shifts = shifts.unflatten(0, (self._groups, -1)).flatten(3).sum((1, 3)).flatten()
        else:
            shifts = shifts.flatten(1).sum(1)
        self.bias = self.bias + shifts
        self.weight = self.weight * self._by_input(affine.scale)

    def write(self, host: Any) -> None:
        """Into a layer such as the one they are of, which gets a bias if it had none."""
        weight: nn.Parameter = host.weight
        weight.data = self.weight.to(weight.dtype)
        bias = self.bias.to(weight.dtype)
        if host.bias is None:
            host.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
        else:
            host.bias.data = bias

    @property
    def _transposed(self) -> bool:
        return isinstance(self.host, _ConvTransposeNd)

    @property
    def _groups(self) -> int:
        return self.host.groups if isinstance(self.host, _ConvNd) else 1

    def _by_output(self, values: Tensor) -> Tensor:
        """A value for each output channel, laid along the weight."""
        if not self._transposed:
            return values.view(-1, *[1] * (self.weight.ndim - 1))
        rows = self.weight.size(0) // self._groups  # inputs of each group
        by_group = values.view(self._groups, -1).repeat_interleave(rows, 0)
        return by_group.view(*self.weight.shape[:2], *[1] * (self.weight.ndim - 2))

    def _by_input(self, values: Tensor) -> Tensor:
        """A value for each input channel, laid along the weight."""
        if self._transposed:
            return values.view(-1, *[1] * (self.weight.ndim - 1))
        rows = self.weight.size(0) // self._groups  # outputs of each group
        by_group = values.view(self._groups, -1).repeat_interleave(rows, 0)
        return by_group.view(*self.weight.shape[:2], *[1] * (self.weight.ndim - 2))


def is_host(module: nn.Module) -> bool:
    """Whether weights can take up a norm: exact types, as nobody knows what subclasses do."""
    return type(module) in HOSTS and "forward" not in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs around its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double()
