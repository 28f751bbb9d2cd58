"""Switchable and ghost norm as one would write them in plain PyTorch, in float32.

PyTorch has no such layers. These stand in for them where our layers are compared with PyTorch's:
same constructor, parameters and buffers as ours, and a forward of ordinary operators. They are
for layers with weight, bias and running statistics, and for the usual three branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normalform as nf

Switch = nf.SwitchNorm1d | nf.SwitchNorm2d | nf.SwitchNorm3d
Ghost = nf.GhostBatchNorm1d | nf.GhostBatchNorm2d | nf.GhostBatchNorm3d


def _switch_forward(self: Switch, input: Tensor) -> Tensor:
    """Blend the statistics of instance, layer and batch norm; leave out cells of one value."""
    x = input if input.dtype == torch.float64 else input.float()
    mean_weight, var_weight = self.get_parameter("mean_weight"), self.get_parameter("var_weight")
    positions = list(range(2, x.ndim))
    branches = [positions, [1, *positions], [0, *positions]]  # instance, layer, batch
    means: list[Tensor] = []
    variances: list[Tensor] = []
    kept: list[int] = []
    for k, dims in enumerate(branches):
        n = math.prod(x.shape[d] for d in dims)
        if k == 2 and not self.training:
            mean, var = (_along_channels(self, name, x) for name in ("running_mean", "running_var"))
        elif n > 1:
            mean = x.mean(dims, keepdim=True)
            var = x.var(dims, unbiased=False, keepdim=True)
        else:
            continue
        if k == 2 and self.training:
            _update(self, mean.flatten(), var.flatten() * n / (n - 1))
        means.append(mean)
        variances.append(var)
        kept.append(k)
    mean, var = _blend(mean_weight[kept], means), _blend(var_weight[kept], variances)
    xhat = (x - mean) / torch.sqrt(var + self.eps)
    y = _along_channels(self, "weight", x) * xhat + _along_channels(self, "bias", x)
    return y.to(input.dtype)


def _ghost_forward(self: Ghost, input: Tensor) -> Tensor:
    """Batch norm of every block; the running statistics follow the mean over the blocks."""
    weight, bias = self.get_parameter("weight"), self.get_parameter("bias")
    if not self.training:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(input, mean, var, weight, bias, eps=self.eps)
    blocks = [input[i : i + self.block] for i in range(0, len(input), self.block)]
    if len(blocks) > 1 and blocks[-1][:, 0].numel() == 1:  # one value has no variance
        blocks[-2:] = [torch.cat(blocks[-2:])]
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    parts = [len(block) / len(input) for block in blocks]
    shares = torch.tensor(parts, dtype=wide, device=input.device)
    channels = [block.detach().to(wide).transpose(0, 1).flatten(1) for block in blocks]
    mean = shares @ torch.stack([each.mean(1) for each in channels])
    var = shares @ torch.stack([each.var(1) for each in channels])
    _update(self, mean, var)
    return torch.cat(
        [F.batch_norm(b, None, None, weight, bias, training=True, eps=self.eps) for b in blocks]
    )


def _blend(logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
    shares = logits.to(branches[0].dtype).softmax(0)
    blended = shares[0] * branches[0]
    for share, branch in zip(shares[1:], branches[1:], strict=True):
        blended = blended + share * branch
    return blended


def _update(layer: Switch | Ghost, mean: Tensor, var: Tensor) -> None:
    with torch.no_grad():
        for name, value in (("running_mean", mean), ("running_var", var)):
            running = layer.get_buffer(name)
            running.lerp_(value.to(running.dtype), layer.momentum or 0.0)


def _along_channels(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    """A parameter or buffer of shape (C,), to broadcast against x (N, C, *)."""
    value = getattr(layer, name)
    return value.to(x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))


class SwitchNorm1d(nf.SwitchNorm1d):
    """Switchable norm over (N, C) or (N, C, L)."""

    forward = _switch_forward


class SwitchNorm2d(nf.SwitchNorm2d):
    """Switchable norm over (N, C, H, W)."""

    forward = _switch_forward


class SwitchNorm3d(nf.SwitchNorm3d):
    """Switchable norm over (N, C, D, H, W)."""

    forward = _switch_forward


class GhostBatchNorm1d(nf.GhostBatchNorm1d):
    """Ghost batch norm over (N, C) or (N, C, L)."""

    forward = _ghost_forward


class GhostBatchNorm2d(nf.GhostBatchNorm2d):
    """Ghost batch norm over (N, C, H, W)."""

    forward = _ghost_forward


class GhostBatchNorm3d(nf.GhostBatchNorm3d):
    """Ghost batch norm over (N, C, D, H, W)."""

    forward = _ghost_forward
