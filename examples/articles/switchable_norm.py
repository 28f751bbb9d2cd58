"""Switchable normalization: the statistics of instance, layer and batch norm, in learned shares.

    python examples/articles/switchable_norm.py

The shares are a softmax of three logits, apart for mean and variance, that start equal. In
evaluation the batch's share comes from running statistics, so that a sample's result does not
depend on the samples beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import normalform as nf

Array = NDArray[np.float64]
BRANCHES = ((2, 3), (1, 2, 3), (0, 2, 3))  # what instance, layer and batch norm average over


def softmax(logits: Array) -> Array:
    """Shares that are positive and sum to one."""
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def switchable_norm(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    running: tuple[Array, Array] | None = None,
    eps: float = 1e-5,
) -> Array:
    """Normalize x of shape (N, C, H, W); running is the batch's mean and variance in evaluation."""
    means = [x.mean(axis=axes, keepdims=True) for axes in BRANCHES]
    variances = [x.var(axis=axes, keepdims=True) for axes in BRANCHES]
    if running is not None:
        means[2], variances[2] = (each.reshape(1, -1, 1, 1) for each in running)
    mean = sum(share * each for share, each in zip(softmax(mean_logits), means, strict=True))
    var = sum(share * each for share, each in zip(softmax(var_logits), variances, strict=True))
    return (x - mean) / np.sqrt(var + eps)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 3, 5, 5))
    mean_logits, var_logits = rng.normal(size=3), rng.normal(size=3)
    running = rng.normal(size=3), rng.uniform(1, 4, 3)

    layer = nf.SwitchNorm2d(3, affine=False, dtype=torch.float64)
    learned = (mean_logits, var_logits, *running)
    names = ("mean_weight", "var_weight", "running_mean", "running_var")
    state = {name: torch.tensor(value) for name, value in zip(names, learned, strict=True)}
    layer.load_state_dict(state, strict=False)

    for training in (False, True):  # training moves the layer's running statistics, so it is last
        layer.train(training)
        exact = nf.reference.switch_norm(
            x,
            mean_logits,
            var_logits,
            running_mean=running[0],
            running_var=running[1],
            training=training,
        ).y
        formula = switchable_norm(x, mean_logits, var_logits, None if training else running)
        y = layer(torch.tensor(x)).detach().numpy()
        for name, found in (("formula", formula), ("layer", y)):
            difference = np.abs(found - exact).max()
            mode = "training" if training else "evaluation"
            print(f"{mode}, {name}: largest difference from the reference {difference:.0e}")
            assert difference < 1e-12, (mode, name)
