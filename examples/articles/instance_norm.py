"""Instance normalization: one mean for each channel of each sample; and what restyles an image.

    python examples/articles/instance_norm.py

Giving a content image the mean and spread of a style image is adaptive instance norm (Huang and
Belongie, arXiv:1703.06868): instance norm, with weight and bias taken from the other image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import normalform as nf

Array = NDArray[np.float64]


def instance_norm(x: Array, eps: float = 1e-5) -> Array:
    """Normalize x of shape (N, C, H, W) over H and W."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    var = x.var(axis=(2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + eps)


def restyled(content: Array, style: Array, eps: float = 1e-5) -> Array:
    """The content with the mean and standard deviation of the style, channel by channel."""
    mean = style.mean(axis=(2, 3), keepdims=True)
    std = np.sqrt(style.var(axis=(2, 3), keepdims=True) + eps)
    return std * instance_norm(content, eps) + mean


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 3, 5, 5))
    exact = nf.reference.instance_norm(x).y
    layer = nf.InstanceNorm2d(3)  # no parameters and no running statistics, unless asked for
    found = {"formula": instance_norm(x), "layer": layer(torch.tensor(x)).numpy()}
    for name, y in found.items():
        difference = np.abs(y - exact).max()
        print(f"{name}: largest difference from the reference {difference:.0e}")
        assert difference < 1e-12, name

    style = rng.normal(-1, 0.5, (10, 3, 8, 8))
    y = restyled(x, style)
    for moment in (np.mean, np.std):
        difference = np.abs(moment(y, axis=(2, 3)) - moment(style, axis=(2, 3))).max()
        print(f"restyled: {moment.__name__} within {difference:.0e} of the style's")
        assert difference < 1e-4  # eps is in both standard deviations, not in the one measured
