"""Layer normalization, which is two norms: over a whole sample, and over the features of a token.

    python examples/articles/layer_norm.py

The source articles describe the first and quote interfaces of the second.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import normalform as nf

Array = NDArray[np.float64]


def layer_norm(
    x: Array, weight: Array, bias: Array, eps: float = 1e-5, *, axes: tuple[int, ...] = (1, 2, 3)
) -> Array:
    """Normalize x over its last axes; weight and bias have the shape of these, one an element."""
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    return weight * (x - mean) / np.sqrt(var + eps) + bias


if __name__ == "__main__":
    rng = np.random.default_rng(0)

    x = rng.normal(3, 2, (10, 3, 5, 5))  # images: one mean a sample
    weight, bias = rng.uniform(0.5, 2, (3, 5, 5)), rng.normal(size=(3, 5, 5))
    sample = nf.LayerNorm([3, 5, 5], dtype=torch.float64)
    sample.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    whole = nf.reference.layer_norm(x, weight, bias, params="c s").y

    tokens = rng.normal(3, 2, (4, 7, 16))  # texts: one mean for each of 4 x 7 tokens
    scale, shift = rng.uniform(0.5, 2, 16), rng.normal(size=16)
    token = nf.LayerNorm(16, dtype=torch.float64)
    token.load_state_dict({"weight": torch.tensor(scale), "bias": torch.tensor(shift)})
    each = nf.reference.norm(tokens, "n s [c]", scale, shift).y

    found = {
        "sample, formula": (layer_norm(x, weight, bias), whole),
        "sample, layer": (sample(torch.tensor(x)), whole),
        "token, formula": (layer_norm(tokens, scale, shift, axes=(2,)), each),
        "token, layer": (token(torch.tensor(tokens)), each),
    }
    for name, (y, exact) in found.items():
        y = y.detach().numpy() if isinstance(y, torch.Tensor) else y
        difference = np.abs(y - exact).max()
        print(f"{name}: largest difference from the reference {difference:.0e}")
        assert difference < 1e-12, name

    # Over the channels of each pixel is a third thing: (N, 1, H, W) means, not N.
    assert np.abs(nf.reference.norm(x, "n [c] s").y - nf.reference.layer_norm(x).y).max() > 0.1
