"""Every layer, with an input shape it takes: the one list that a new norm joins."""

from collections.abc import Callable

import torch
from torch import nn

import normalform as nf

ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch rows": (lambda: nf.BatchNorm1d(6), (9, 6)),
    "batch 1d": (lambda: nf.BatchNorm1d(6), (4, 6, 7)),
    "batch 2d": (lambda: nf.BatchNorm2d(6), (4, 6, 5, 3)),
    "batch 3d": (lambda: nf.BatchNorm3d(4), (3, 4, 2, 3, 3)),
    "batch, no statistics": (lambda: nf.BatchNorm2d(6, track_running_stats=False), (4, 6, 5, 3)),
    "instance 1d": (lambda: nf.InstanceNorm1d(6, affine=True), (4, 6, 7)),
    "instance 2d": (lambda: nf.InstanceNorm2d(6, affine=True), (4, 6, 5, 3)),
    "instance 3d": (lambda: nf.InstanceNorm3d(4), (3, 4, 2, 3, 3)),
    "instance, tracked": (
        lambda: nf.InstanceNorm2d(6, affine=True, track_running_stats=True),
        (4, 6, 5, 3),
    ),
    "layer, token": (lambda: nf.LayerNorm(7), (3, 4, 7)),
    "layer, elementwise": (lambda: nf.LayerNorm((6, 5, 3)), (4, 6, 5, 3)),
    "layer, no bias": (lambda: nf.LayerNorm(7, bias=False), (12, 7)),
    "layer, sample": (lambda: nf.GroupNorm(1, 6), (4, 6, 5, 3)),
    "group": (lambda: nf.GroupNorm(3, 6), (4, 6, 5, 3)),
    "group 1d": (lambda: nf.GroupNorm(2, 6), (4, 6, 7)),
    "rms": (lambda: nf.RMSNorm(7), (3, 4, 7)),
    "rms, elementwise": (lambda: nf.RMSNorm((4, 7), eps=1e-5), (3, 4, 7)),
    "switch rows": (lambda: nf.SwitchNorm1d(6), (9, 6)),
    "switch 1d": (lambda: nf.SwitchNorm1d(6), (4, 6, 7)),
    "switch 2d": (lambda: nf.SwitchNorm2d(6), (4, 6, 5, 3)),
    "switch 3d": (lambda: nf.SwitchNorm3d(4), (3, 4, 2, 3, 3)),
    "switch of two": (lambda: nf.SwitchNorm2d(6, over=("instance", "layer")), (1, 6, 5, 3)),
    "switch of four": (
        lambda: nf.SwitchNorm2d(6, over=("position", "group:2", "ghost:2", "instance")),
        (5, 6, 5, 3),
    ),
    "switch, one value": (lambda: nf.SwitchNorm2d(6), (1, 6, 1, 1)),
    "ghost 1d": (lambda: nf.GhostBatchNorm1d(6, 2), (5, 6)),
    "ghost 2d": (lambda: nf.GhostBatchNorm2d(6, 2), (5, 6, 4, 3)),
    "ghost 3d": (lambda: nf.GhostBatchNorm3d(4, 2), (4, 4, 2, 3, 3)),
    "frozen": (lambda: nf.FrozenBatchNorm2d(6, trainable=True), (4, 6, 5, 3)),
}


def build(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with parameters and buffers that are not all alike, and its shape."""
    make, shape = ZOO[name]
    generator = torch.Generator().manual_seed(seed)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for key, buffer in layer.named_buffers():
            if key == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif key == "running_var":
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return layer.to(dtype), shape
