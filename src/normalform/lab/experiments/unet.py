"""A U-Net of one convolution a level: small enough to be trained many times over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Segments pictures: convolutions of stride 2 down, and up again beside what was kept.

    Args:
        widths: channels of each level, the first at full size.
        norm_layer: makes the norm for a channel count.
        classes: logits a pixel.
        bias: give the convolutions before norms a bias, for networks without norms.
    """

    def __init__(
        self,
        widths: Sequence[int],
        norm_layer: Callable[[int], nn.Module],
        classes: int,
        *,
        bias: bool,
    ) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(before, after, 3, stride, 1, bias=bias)
            return nn.Sequential(conv, norm_layer(after), nn.ReLU())

        sizes = list(pairwise(widths))
        self.stem = block(1, widths[0])
        self.down = nn.ModuleList(block(upper, lower, 2) for upper, lower in sizes)
        self.up = nn.ModuleList(block(lower + upper, upper) for upper, lower in reversed(sizes))
        self.head = nn.Conv2d(widths[0], classes, 1)

    @property
    def norms(self) -> list[nn.Module]:
        """The norms, in the order data meet them."""
        return [block[1] for block in (self.stem, *self.down, *self.up)]  # pyright: ignore[reportIndexIssue]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of pictures (N, 1, H, W); each level halves H and W."""
        kept = [self.stem(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        for up in self.up:
            beside = kept.pop()
            x = up(torch.cat([F.interpolate(x, size=beside.shape[2:]), beside], 1))
        return self.head(x)
