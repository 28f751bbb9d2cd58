"""A deep plain network, and what passes through it: activations forward, gradients back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

HALVINGS = 2  # convolutions of stride 2 at the start; the others keep the size


class Deep(nn.Module):
    """3x3 convolutions in a row, each with a norm and ReLU; then the mean over positions.

    Args:
        depth: convolutions.
        width: channels of each.
        norm_layer: makes the norm for a channel count.
        classes: how many.
        bias: give the convolutions a bias, for networks without norms.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        norm_layer: Callable[[int], nn.Module],
        classes: int,
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width if i else 1, width, 3, 2 if i < HALVINGS else 1, 1, bias=bias)
            for i in range(depth)
        )
        self.norms = nn.ModuleList(norm_layer(width) for _ in range(depth))
        self.linear = nn.Linear(width, classes)

    def activations(self, x: Tensor) -> list[Tensor]:
        """What each layer hands to the next, (N, width, H, W), of pictures (N, 1, H, W)."""
        found: list[Tensor] = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            found.append(x)
        return found

    def read(self, last: Tensor) -> Tensor:
        """Logits (N, classes) from what the last layer gives."""
        return self.linear(last.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, 1, H, W)."""
        return self.read(self.activations(x)[-1])


def initialize(network: Deep, rng: np.random.Generator, gain: float) -> None:
    """Normal weights of variance ``gain / inputs``, drawn in order from ``rng``; biases 0.

    He's initialization, made for ReLU, has a gain of 2; PyTorch's of convolutions has 1/3.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        own = gain if isinstance(layer, nn.Conv2d) else 1.0
        values = rng.standard_normal(tuple(layer.weight.shape))
        layer.weight.data.copy_(torch.as_tensor(values * np.sqrt(own / layer.weight[0].numel())))
        if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            layer.bias.data.zero_()


class Layered(Protocol):
    """A network whose layers can be looked at."""

    def activations(self, x: Tensor) -> list[Tensor]:
        """What each layer hands to the next."""
        ...

    def read(self, last: Tensor) -> Tensor:
        """Logits from what the last layer gives."""
        ...


class Spread(NamedTuple):
    """What is to be seen in each layer, the first layer first.

    Attributes:
        activation: standard deviation of what it hands on, over all values.
        gradient: standard deviation of the gradient of the loss with respect to that.
        apart: how far the same value differs from sample to sample, as a share of ``activation``;
            zero where all samples have become the same.
    """

    activation: NDArray[np.float64]
    gradient: NDArray[np.float64]
    apart: NDArray[np.float64]


def spread(network: Layered, x: Tensor, y: Tensor) -> Spread:
    """How far a layer's activations vary, in all and between samples, and their gradient.

    Args:
        network: in the mode it is to be looked at.
        x: samples.
        y: their labels; the loss is the mean cross entropy.
    """
    found = network.activations(x)
    gradients = torch.autograd.grad(F.cross_entropy(network.read(found[-1]), y), found)
    deviations = _stds(found)
    between = [float(t.detach().double().var(0, correction=0).mean().sqrt()) for t in found]
    shares = np.divide(between, deviations, out=np.zeros(len(found)), where=deviations > 0)
    return Spread(deviations, _stds(gradients), shares)


def _stds(tensors: list[Tensor] | tuple[Tensor, ...]) -> NDArray[np.float64]:
    return np.array([float(tensor.detach().double().std(correction=0)) for tensor in tensors])


def growth(gradient: NDArray[np.float64]) -> float:
    """The factor by which the gradient grows from a layer to the one before it.

    It is that of the straight line through the logarithms of the layers of equal size.

    >>> round(growth(np.array([9, 9, 8.0, 4.0, 2.0, 1.0])), 6)
    2.0
    """
    logs = np.log(gradient[HALVINGS:])
    return float(np.exp(-np.polynomial.Polynomial.fit(range(len(logs)), logs, 1).convert().coef[1]))
