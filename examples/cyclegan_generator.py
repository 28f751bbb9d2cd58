"""A generator in the manner of CycleGAN that takes any norm by name.

    python examples/cyclegan_generator.py group:8

A convolution before batch norm needs no bias: the norm subtracts the mean, and has a bias of its
own. Before an instance norm without parameters a bias does nothing either, but networks are usually
given one there, and without a norm it is needed. What decides is the class inside the partial.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor, nn

import normalform as nf


class ResidualBlock(nn.Module):
    """Two convolutions, each with a norm, beside the identity."""

    def __init__(self, channels: int, norm_layer: partial[nn.Module], bias: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            norm_layer(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body makes of x to x."""
        return x + self.body(x)


def generator(norm_layer: partial[nn.Module], width: int = 16, blocks: int = 3) -> nn.Sequential:
    """Two strides down, residual blocks, two strides up."""
    bias = issubclass(norm_layer.func, (nn.InstanceNorm2d, nn.Identity))

    def stage(conv: nn.Module, channels: int) -> list[nn.Module]:
        return [conv, norm_layer(channels), nn.ReLU()]

    wide = 4 * width
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        *stage(nn.Conv2d(3, width, 7, bias=bias), width),
        *stage(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=bias), 2 * width),
        *stage(nn.Conv2d(2 * width, wide, 3, 2, 1, bias=bias), wide),
        *(ResidualBlock(wide, norm_layer, bias) for _ in range(blocks)),
        *stage(nn.ConvTranspose2d(wide, 2 * width, 3, 2, 1, 1, bias=bias), 2 * width),
        *stage(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1, bias=bias), width),
        nn.ReflectionPad2d(3),
        nn.Conv2d(width, 3, 7),
        nn.Tanh(),
    )


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "instance"
    model = generator(nf.get_norm_layer(name))
    image = model(torch.randn(1, 3, 64, 64))
    norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    biased = sum(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    print(
        f"{name}: {', '.join(norms) or 'no norm'}; {biased} biased convolutions; "
        f"image {tuple(image.shape)}"
    )
