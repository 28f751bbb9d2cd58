"""Gradient descent for networks beyond the probe: segmenting, recurrent, deep.

As in the main comparison, SGD with momentum 0.9 whose learning rate falls to 0 along a cosine, and
whole batches of 32 images an epoch, cut into smaller ones where an arm asks for it: arms of equal
seed see equal images in equal order. What is new is that the gradients of several batches may be
added up to one step, and cut where they are too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from normalform.lab.arms import SGD_BATCH
from normalform.lab.train import MOMENTUM, ORDER

Loss = Callable[[Tensor], Tensor]  # of the samples of these indices


def batches(seed: int, samples: int, epochs: int, size: int) -> Tensor:
    """The samples of every batch of a training, as indices (epochs, batches, size).

    >>> batches(0, samples=70, epochs=3, size=4).shape
    torch.Size([3, 16, 4])
    """
    rng = np.random.default_rng((seed, ORDER))
    used = samples // SGD_BATCH * SGD_BATCH
    orders = np.stack([rng.permutation(samples)[:used] for _ in range(epochs)])
    return torch.as_tensor(orders).reshape(epochs, -1, size)


def descend(
    network: nn.Module,
    loss: Loss,
    order: Tensor,
    lr: float,
    *,
    accumulate: int = 1,
    longest: float = math.inf,
) -> Iterator[float]:
    """Train; after each epoch give the mean loss of its batches.

    The caller may change modes between epochs: each begins with the modes it finds.

    Args:
        network: what to train.
        loss: of the samples of a batch, mean over them.
        order: the batches, see :func:`batches`.
        lr: the learning rate to start from.
        accumulate: this many batches, the gradients of their mean, make one step.
        longest: a gradient whose norm over all parameters is larger is scaled down to this.

    Raises:
        ValueError: an epoch's batches do not divide into steps.
    """
    epochs, count = order.shape[:2]
    if count % accumulate:
        raise ValueError(f"{count} batches an epoch do not divide into steps of {accumulate}")
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM)
    for epoch in range(epochs):
        total = 0.0
        for index, batch in enumerate(order[epoch].unbind()):
            value = loss(batch)
            torch.autograd.backward(value / accumulate)
            total += value.item()
            if (index + 1) % accumulate == 0:
                done = (epoch * count + index + 1 - accumulate) / (epochs * count)
                optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
                if longest < math.inf:
                    nn.utils.clip_grad_norm_(parameters, longest)
                optimizer.step()  # pyright: ignore[reportUnknownMemberType]
                optimizer.zero_grad()
        yield total / count
