"""The norms that a state_dict holds, told by which tensors stand together and by their shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from normalform.diagnose.norms import Norm

Tensors = Mapping[str, Tensor]
SCALE = "scale-like"  # an RMS norm, or a PReLU


def norms_in(state: Mapping[str, Any]) -> tuple[Norm, ...]:
    """What looks like a norm among the tensors of a checkpoint, whatever it is called.

    A mean and a variance that run beside each other make a batch norm, with two vectors of logits a
    switchable norm; weight and bias of the same shape, which no linear layer or convolution has, a
    layer or group norm; one vector alone the scale of an RMS norm, or of an activation.

    Args:
        state: tensors by dotted name, or mappings of such, as checkpoints hold them.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    >>> [(norm.name, norm.kind) for norm in norms_in(model.state_dict())]
    [('1', 'layer-like')]
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors_in(state):
        prefix, _, leaf = name.rpartition(".")
        groups.setdefault(prefix, {})[leaf] = tensor
    found = ((prefix, tensors, _family(tensors)) for prefix, tensors in groups.items())
    return tuple(
        Norm((prefix,), _module(tensors), family, label)
        for prefix, tensors, (family, label) in found
        if family
    )


def tensors_in(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested mappings, by the way to it."""
    for key, value in state.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from tensors_in(cast(Mapping[str, Any], value), name)


def _family(tensors: Tensors) -> tuple[str, str]:
    """The family, and what to call it; empty where it is no norm."""
    mean, var = tensors.get("running_mean"), tensors.get("running_var")
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if mean is not None and var is not None and mean.ndim == 1 and mean.shape == var.shape:
        blends = {"mean_weight", "var_weight"} <= tensors.keys()
        return ("switch", "switch-like") if blends else ("batch", "batch-like")
    if weight is None or weight.ndim == 0 or tensors.keys() - {"weight", "bias"}:
        return "", ""
    if bias is not None and weight.shape == bias.shape:
        return "layer", "layer-like"
    if bias is None and weight.ndim == 1 and weight.numel() > 1:
        return "rms", SCALE
    return "", ""


def _module(tensors: Tensors) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        learned = name in ("weight", "bias", "mean_weight", "var_weight")
        if learned and tensor.is_floating_point():
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(name, tensor)
    return module
