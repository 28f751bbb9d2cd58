"""Mean and variance of every channel of all that came, merged exactly.

Counts, means and sums of squares about the mean are merged in the form of Chan, Golub & LeVeque
1979, in float64: no variance is negative, and parts may be of any size and in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**18  # values that are held in float64 at once


class Population:
    """What is known of the channels of tensors (N, C, *).

    >>> population = Population(1)
    >>> population.add(torch.tensor([[1.0], [2.0]]))
    >>> population.add(torch.tensor([[6.0]]))
    >>> population.count, population.mean.item(), population.variance().item()
    (3, 3.0, 7.0)
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.spread = torch.zeros_like(self.mean)  # sum of the squares about the mean

    def add(self, x: Tensor) -> None:
        """Merge the values of a tensor."""
        self.merge(moments(x.detach()))

    def merge(self, other: Population) -> None:
        """Merge what is known of other values."""
        total = self.count + other.count
        if not total:
            return
        mean, spread = (t.to(other.mean.device) for t in (self.mean, self.spread))
        apart = other.mean - mean
        self.mean = mean + apart * (other.count / total)
        between = apart.square() * (self.count * other.count / total)
        self.spread = spread + other.spread + between
        self.count = total

    def variance(self) -> Tensor:
        """The *unbiased* variance, as running buffers have it."""
        return self.spread / (self.count - 1)


def moments(x: Tensor) -> Population:
    """Of one tensor (N, C, *) in any memory format, a chunk at a time."""
    if x.device.type == "mps":  # which has no float64
        x = x.cpu()
    found = Population(x.size(1), x.device)
    first = 0
    for channels in _channels(x):
        block = Population(channels.size(1), x.device)
        for chunk in channels.split(max(1, CHUNK // max(1, channels[:1].numel()))):
            block.merge(_moments(chunk.to(torch.float64, copy=True)))
        last = first + block.mean.numel()
        found.mean[first:last], found.spread[first:last] = block.mean, block.spread
        found.count, first = block.count, last
    return found


def _channels(x: Tensor) -> Iterator[Tensor]:
    """All channels at once, but where one sample of them would be more than a chunk."""
    return iter(x.split(max(1, CHUNK // max(1, x[:1, :1].numel())), 1))


def _moments(x: Tensor) -> Population:
    """Of a chunk in float64, which is overwritten."""
    found = Population(x.size(1), x.device)
    found.count = x.numel() // max(1, x.size(1))
    if found.count:
        dims = [0, *range(2, x.ndim)]
        found.mean = x.sum(dims) / found.count
        x -= found.mean.view(-1, *[1] * (x.ndim - 2))
        found.spread = x.square_().sum(dims)
    return found
