"""Group normalization: one mean for each group of channels of each sample.

    python examples/articles/group_norm.py

With one group it is layer norm over the sample, with a group a channel instance norm.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import normalform as nf

Array = NDArray[np.float64]


def group_norm(x: Array, groups: int, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Normalize x of shape (N, C, H, W) over each group of C / groups channels, H and W."""
    n, c, h, w = x.shape
    if c % groups:
        raise ValueError(f"{c} channels do not split into {groups} equal groups")
    cells = x.reshape(n, groups, c // groups, h, w)
    mean = cells.mean(axis=(2, 3, 4), keepdims=True)
    var = cells.var(axis=(2, 3, 4), keepdims=True)
    xhat = ((cells - mean) / np.sqrt(var + eps)).reshape(n, c, h, w)
    # Back in the shape of x: weight and bias are one a channel, whatever the groups.
    return weight.reshape(1, c, 1, 1) * xhat + bias.reshape(1, c, 1, 1)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 20, 5, 5))
    weight, bias = rng.uniform(0.5, 2, 20), rng.normal(size=20)
    exact = nf.reference.group_norm(x, 4, weight, bias).y

    layer = nf.GroupNorm(4, 20, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    y = layer(torch.tensor(x)).detach().numpy()
    for name, found in (("formula", group_norm(x, 4, weight, bias)), ("layer", y)):
        difference = np.abs(found - exact).max()
        print(f"{name}: largest difference from the reference {difference:.0e}")
        assert difference < 1e-12, name

    relatives = {1: nf.reference.layer_norm, 20: nf.reference.instance_norm}
    for groups, relative in relatives.items():
        difference = np.abs(group_norm(x, groups, weight, bias) - relative(x, weight, bias).y).max()
        print(f"{groups} groups of 20 channels: {relative.__name__}, to {difference:.0e}")
        assert difference < 1e-12, groups
