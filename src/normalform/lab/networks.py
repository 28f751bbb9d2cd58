"""The two probe networks: how few values stand behind a mean depends on how small the maps become.

Both are the plainest convolutional classifier: 3x3 convolutions of stride 2 without bias, each
followed by a norm and ReLU, then the mean over positions and a linear layer. On 28x28 pictures
``stride8`` ends on 4x4 maps, ``stride32`` on 1x1, where batch norm has one value a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor, as_tensor, nn


class Map(NamedTuple):
    """What one convolution gives for one picture: its channels and the size of its maps."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Network:
    """A probe network before it meets data: the output channels of its convolutions.

    >>> STRIDE8.maps(28, 28)[-1]
    Map(channels=32, height=4, width=4)
    >>> STRIDE32.last_map(28, 28), STRIDE32.last_map(64, 64)
    ('1x1', '2x2')
    """

    name: str
    widths: tuple[int, ...]

    def maps(self, height: int, width: int) -> tuple[Map, ...]:
        """The maps after each convolution, for pictures of this size."""
        found: list[Map] = []
        for channels in self.widths:
            height, width = -(-height // 2), -(-width // 2)
            found.append(Map(channels, height, width))
        return tuple(found)

    def place(self, index: int) -> str:
        """What to call the layer of this index."""
        return f"conv{index + 1}"

    def last_map(self, height: int, width: int) -> str:
        """Size of the last maps as text: ``"4x4"``."""
        last = self.maps(height, width)[-1]
        return f"{last.height}x{last.width}"

    def title(self, height: int, width: int) -> str:
        """One line for people: widths, stride and the last map."""
        widths = "-".join(map(str, self.widths))
        return f"{widths}, stride {2 ** len(self.widths)}, last map {self.last_map(height, width)}"


STRIDE8 = Network("stride8", (16, 32, 32))
STRIDE32 = Network("stride32", (16, 32, 64, 64, 64))
NETWORKS = (STRIDE8, STRIDE32)


class Probe(nn.Module):
    """A probe network with its norms.

    Args:
        widths: output channels of each convolution.
        norm_layer: makes the norm for a channel count, as ``nf.get_norm_layer`` gives it.
        channels: input channels.
        classes: number of classes.
        bias: give the convolutions a bias. A norm's own bias makes it idle, so only the network
            without norms has it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        norm_layer: Callable[[int], nn.Module],
        channels: int,
        classes: int,
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        sizes = [channels, *widths]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=bias)
            for before, after in zip(sizes, widths, strict=False)
        )
        self.norms = nn.ModuleList(norm_layer(width) for width in widths)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, C, H, W)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.linear(x.mean((2, 3)))


def initialize(network: Probe, rng: np.random.Generator) -> None:
    """He's normal initialization of every weight matrix, drawn in order from ``rng``; biases 0.

    Norm layers draw nothing, so networks that differ only in their norms start with equal weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
            values = rng.standard_normal(tuple(module.weight.shape)) * np.sqrt(gain / fan_in)
            module.weight.data.copy_(as_tensor(values))
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                module.bias.data.zero_()
