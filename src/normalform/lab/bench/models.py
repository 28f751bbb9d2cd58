"""Whole networks, small ones of the kinds that use each norm, before and after ``nf.convert``.

All are made of PyTorch's own layers. ``ours`` is a copy of one, converted in place: weights, data
and everything else but the norms are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normalform as nf
from normalform.lab.bench.floors import INFERENCE
from normalform.lab.bench.targets import TRAINING

Work = Callable[[], Any]
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Model:
    """A network and what it is fed.

    Attributes:
        make: builds it.
        training: shape of a training batch.
        inference: shape of an input of one sample.
    """

    make: Callable[[], nn.Module]
    training: tuple[int, ...]
    inference: tuple[int, ...]


class UNet(nn.Module):
    """A U-Net of ``dim`` dimensions: instance norm, strided convolutions down, transposed up."""

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        conv = getattr(nn, f"Conv{dim}d")
        norm: Norm = partial(getattr(nn, f"InstanceNorm{dim}d"), affine=True)

        def block(ins: int, outs: int, stride: int) -> nn.Module:
            return nn.Sequential(
                conv(ins, outs, 3, stride, 1), norm(outs), nn.LeakyReLU(0.01),
                conv(outs, outs, 3, 1, 1), norm(outs), nn.LeakyReLU(0.01),
            )  # fmt: skip

        pairs = list(pairwise(widths))
        up = getattr(nn, f"ConvTranspose{dim}d")
        self.stem = block(1, widths[0], 1)
        self.down = nn.ModuleList(block(a, b, 2) for a, b in pairs)
        self.up = nn.ModuleList(up(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(block(2 * a, a, 1) for a, _ in reversed(pairs))
        self.head = conv(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Two logits a position."""
        kept = [self.stem(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), kept.pop()], 1))
        return self.head(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, ins: int, outs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(ins, outs, 3, stride, 1, bias=False), norm(outs), nn.ReLU(),
            nn.Conv2d(outs, outs, 3, 1, 1, bias=False), norm(outs),
        )  # fmt: skip
        same = ins == outs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), norm(outs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both, rectified."""
        return F.relu(self.body(x) + self.shortcut(x))


class TransformerBlock(nn.Module):
    """Attention and two linear layers, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


def resnet(norm: Norm) -> nn.Module:
    """ResNet-18."""
    body: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    for ins, outs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        body.append(ResidualBlock(ins, outs, 1 if ins == outs else 2, norm))
        body.append(ResidualBlock(outs, outs, 1, norm))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def style() -> nn.Module:
    """The transformation network of fast style transfer (Johnson et al. 2016), instance norm."""
    norm: Norm = partial(nn.InstanceNorm2d, affine=True)

    def layer(ins: int, outs: int, size: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(ins, outs, size, stride, size // 2)
        return [convolution, norm(outs), nn.ReLU()]

    return nn.Sequential(
        *layer(3, 32, 9, 1), *layer(32, 64, 3, 2), *layer(64, 128, 3, 2),
        *(ResidualBlock(128, 128, 1, norm) for _ in range(5)),
        nn.Upsample(scale_factor=2), *layer(128, 64, 3, 1),
        nn.Upsample(scale_factor=2), *layer(64, 32, 3, 1),
        nn.Conv2d(32, 3, 9, 1, 4),
    )  # fmt: skip


def transformer() -> nn.Module:
    """Four blocks of 256 channels."""
    return nn.Sequential(*(TransformerBlock(256, 4) for _ in range(4)), nn.LayerNorm(256))


MODELS: Mapping[str, Model] = {
    "unet2d": Model(partial(UNet, 2, (16, 32, 64, 128)), (4, 1, 96, 96), (1, 1, 192, 192)),
    "unet3d": Model(partial(UNet, 3, (8, 16, 32)), (1, 1, 32, 32, 32), (1, 1, 32, 32, 32)),
    "style": Model(style, (1, 3, 128, 128), (1, 3, 128, 128)),
    "resnet-batch": Model(partial(resnet, nn.BatchNorm2d), (8, 3, 96, 96), (1, 3, 224, 224)),
    "resnet-group": Model(
        partial(resnet, partial(nn.GroupNorm, 32)), (8, 3, 96, 96), (1, 3, 224, 224)
    ),
    "transformer": Model(transformer, (8, 128, 256), (1, 128, 256)),
}
QUICK = ("unet2d", "resnet-group", "transformer")
WHATS = (TRAINING, INFERENCE)
_LR = 1e-3


@dataclass(frozen=True)
class Case:
    """One of ``MODELS`` doing one of ``WHATS``: a training step, or inference of one sample."""

    name: str
    what: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        model = MODELS[self.name]
        return model.training if self.what == TRAINING else model.inference


def plan(names: Sequence[str] = tuple(MODELS)) -> list[Case]:
    """The cases.

    Raises:
        ValueError: an unknown model.
    """
    if strange := [name for name in names if name not in MODELS]:
        raise ValueError(f"models: unknown {strange[0]!r}; known: {', '.join(MODELS)}")
    return [Case(name, what) for name in names for what in WHATS]


def pair(case: Case, kernel: str = "auto", *, seed: int = 0) -> dict[str, nn.Module]:
    """A network as it is (``torch``) and a converted copy (``ours``) whose norms run a kernel."""
    model = MODELS[case.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theirs = model.make()
        with torch.no_grad():
            theirs(torch.randn(model.training))  # so that running statistics are those of data
    theirs.train(case.what == TRAINING)
    ours = copy.deepcopy(theirs)
    nf.convert(ours)
    for module in ours.modules():
        if hasattr(module, "kernel"):
            module.kernel = kernel  # pyright: ignore[reportArgumentType]
    return {"ours": ours, "torch": theirs}


def works(case: Case, networks: Mapping[str, nn.Module], x: Tensor) -> dict[str, Work]:
    """What each network does in a call: a step of SGD, or its output."""
    if case.what == INFERENCE:
        return {name: partial(network, x) for name, network in networks.items()}
    return {name: _training_step(network, x) for name, network in networks.items()}


def _training_step(network: nn.Module, x: Tensor) -> Work:
    optimizer = torch.optim.SGD(network.parameters(), lr=_LR)

    def step() -> None:
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()

    return step
