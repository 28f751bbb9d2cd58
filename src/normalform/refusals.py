"""What a norm refuses, in PyTorch's words where PyTorch refuses it too, and with the ways out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normalform.recipes import Recipe


def require_float(x: Tensor, who: object) -> None:
    """Refuse what has no mean and variance in its own type."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{who} normalizes tensors, got {type(x).__name__}: torch.as_tensor(x)")
    if not x.is_floating_point():
        raise TypeError(
            f"{who} normalizes floating point tensors, got {x.dtype}: convert it first, x.float()"
        )


def require_eps(eps: float | None, who: object) -> None:
    """Refuse None, which has a meaning in RMS norm alone."""
    if eps is None:
        raise TypeError(f"eps must be a number, not None ({who})")


def require_groups(input: Tensor, num_groups: int, who: object) -> None:
    """Refuse an input that does not divide into groups of channels that have a variance."""
    if input.ndim < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {input.ndim}: "
            f"{who} takes (N, C, *)"
        )
    require_float(input, who)
    samples, channels = input.shape[:2]
    if num_groups < 1:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(input.shape)} and num_groups={num_groups} ({who})"
        )
    # PyTorch refuses one value per group only in a batch of one; so do we.
    if samples * channels // num_groups * math.prod(input.shape[2:]) == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{list(input.shape)}: every group of {who} holds one value, which has no variance. "
            "Use fewer groups or a larger input"
        )


def require_rows(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, who: object
) -> None:
    """Refuse an input that does not end in ``shape``, and a weight or bias of another one."""
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
            f"element, but got normalized_shape = [] ({who})"
        )
    if tuple(input.shape[-len(shape) :]) != shape:
        expected = ", ".join(map(str, ("*", *shape)))
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{expected}], "
            f"but got input of size{list(input.shape)} ({who})"
        )
    require_float(input, who)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and tuple(value.shape) != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(value.shape)} and normalized_shape = {list(shape)} ({who})"
            )


def require_values(shape: torch.Size, recipe: Recipe, who: object) -> None:
    """Refuse one value a cell, in PyTorch's words and with the ways out."""
    axis = recipe.axes[0]
    samples = shape[0] if axis.averaged else 1
    if axis.size is not None:
        samples = min(axis.size, samples)
    if samples * math.prod(shape[2:]) != 1:
        return
    if axis.averaged:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{shape}: one value has no variance ({who}). Use a larger "
            f"{'block' if axis.split else 'batch'} or image, or the running statistics: eval()"
        )
    raise ValueError(
        f"Expected more than 1 spatial element when training, got input size {shape}: one value "
        f"has no variance ({who}). Use a larger image, or a norm with larger cells, as group norm"
    )


def require_fit(
    x: Tensor, dims: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, who: object
) -> None:
    """Refuse a weight or bias without one value for each position along ``dims`` of x."""
    sizes = [x.shape[d] for d in dims]
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a tensor or None, got {value!r} ({who})")
        if len(sizes) > 1 and list(value.shape) != sizes and value.numel() == math.prod(sizes):
            raise RuntimeError(
                f"{name} has shape {list(value.shape)}, the input of shape {list(x.shape)} needs "
                f"{sizes} ({who})"
            )
        if value.numel() != math.prod(sizes):  # along one axis any shape will do, as for PyTorch
            raise RuntimeError(
                f"{name} should contain {math.prod(sizes)} elements not {value.numel()}: it has "
                f"shape {list(value.shape)}, the input of shape {list(x.shape)} needs {sizes} "
                f"({who})"
            )


def require_channels(
    x: Tensor, channels: int, running: tuple[Tensor, Tensor] | None, who: object
) -> None:
    """Refuse running statistics without one value a channel."""
    for name, buffer in zip(("running_mean", "running_var"), running or (), strict=False):
        if buffer.numel() != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {buffer.numel()}: the input of "
                f"shape {list(x.shape)} has {channels} channels ({who})"
            )


def require_logits(logits: tuple[Tensor, Tensor] | None, branches: int, who: object) -> None:
    """Refuse logits that are not one for each branch."""
    for name, value in zip(("mean_weight", "var_weight"), logits or (), strict=False):
        if value.shape != (branches,):
            raise RuntimeError(
                f"{name} should have shape [{branches}], one logit for each branch, not "
                f"{list(value.shape)} ({who})"
            )
