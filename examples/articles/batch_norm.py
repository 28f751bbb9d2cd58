"""Batch normalization as the source articles mean it: one mean for each channel of the batch.

    python examples/articles/batch_norm.py

The variance that normalizes is divided by n; the one kept for evaluation is divided by n - 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import normalform as nf

Array = NDArray[np.float64]


def batch_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Normalize x of shape (N, C, H, W) over N, H and W; weight and bias have shape (C,)."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    var = x.var(axis=(0, 2, 3), keepdims=True)  # divided by n = N * H * W
    per_channel = (1, -1, 1, 1)
    return weight.reshape(per_channel) * (x - mean) / np.sqrt(var + eps) + bias.reshape(per_channel)


def moved(running: Array, new: Array, momentum: float = 0.1) -> Array:
    """Running statistics after one more batch: momentum is the share of the new one."""
    return (1 - momentum) * running + momentum * new


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 3, 5, 5))
    weight, bias = rng.uniform(0.5, 2, 3), rng.normal(size=3)
    mean = moved(np.zeros(3), x.mean(axis=(0, 2, 3)))
    var = moved(np.ones(3), x.var(axis=(0, 2, 3), ddof=1))
    exact = nf.reference.batch_norm(
        x, weight, bias, running_mean=np.zeros(3), running_var=np.ones(3)
    )

    layer = nf.BatchNorm2d(3, dtype=torch.float64)
    layer.load_state_dict(
        {"weight": torch.tensor(weight), "bias": torch.tensor(bias)}, strict=False
    )
    y = layer(torch.tensor(x)).detach().numpy()

    for name, found in (("formula", batch_norm(x, weight, bias)), ("layer", y)):
        difference = np.abs(found - exact.y).max()
        print(f"{name}: largest difference from the reference {difference:.0e}")
        assert difference < 1e-12, name
    for name, found in (("running_mean", mean), ("running_var", var)):
        assert np.allclose(found, getattr(exact, name), rtol=1e-12, atol=0), name
        assert np.allclose(found, layer.get_buffer(name), rtol=1e-12, atol=0), name
    print("running mean and variance: the same three times")
