"""A bank of filters by scale and direction that takes pictures apart and puts them together again.

The filters are a steerable pyramid's (Simoncelli & Freeman 1995), defined by what they let pass of
each frequency; no band is made smaller. Their squares add up to one, so that filtering once more
and adding up gives back the picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import normalform as nf

EPS = 1e-12  # pixels are from 0 to 1, and bands of a smooth picture small


def bank(size: int, scales: int, directions: int) -> Tensor:
    """The filters, (bands, size, size), as factors by frequency in the order of the FFT.

    Args:
        size: of the pictures, a side.
        scales: octaves below the highest frequencies.
        directions: of each octave.

    >>> squares = bank(32, scales=3, directions=4).square().sum(0)
    >>> bool((squares - 1).abs().max() < 1e-12)
    True
    """
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    down, across = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = 2 * torch.hypot(down, across)  # 1 at the highest frequency of an axis
    octave = torch.log2(radius.clamp_min(1e-9))
    angle = torch.atan2(down, across)
    turns = math.pi * torch.arange(directions, dtype=torch.float64) / directions
    fan = torch.cos(angle - turns[:, None, None]).abs() ** (directions - 1)
    fan = fan / fan.square().sum(0).sqrt()
    high = [torch.sin(math.pi / 2 * (octave + s + 1).clamp(0, 1)) for s in range(scales + 1)]
    low = [torch.sqrt((1 - h.square()).clamp_min(0)) for h in high]
    rings = [low[s] * high[s + 1] for s in range(scales)]
    return torch.cat([high[:1][0][None], *(ring * fan for ring in rings), low[-1][None]])


def take_apart(x: Tensor, filters: Tensor) -> Tensor:
    """Pictures (N, C, H, W) as bands (N, C * bands, H, W)."""
    spectrum = torch.fft.fft2(x)[:, :, None] * filters
    return torch.fft.ifft2(spectrum).real.flatten(1, 2)


def put_together(bands: Tensor, filters: Tensor) -> Tensor:
    """Pictures (N, C, H, W) from bands (N, C * bands, H, W)."""
    spectrum = torch.fft.fft2(bands.unflatten(1, (-1, len(filters)))) * filters
    return torch.fft.ifft2(spectrum.sum(2)).real


def adain(content: Tensor, style: Tensor, recipe: str = "n c [s]") -> Tensor:
    """Adaptive instance norm: the content's values with the style's mean and deviation.

    ::

        y = std(style) * (content - mean(content)) / std(content) + mean(style)

    Mean and deviation are those of each sample and channel; the content's are taken over what
    ``recipe`` brackets.

    Args:
        content: (N, C, H, W).
        style: the same shape.
        recipe: of the content's statistics.

    Source: Huang & Belongie 2017, arXiv:1703.06868.
    """
    var, mean = torch.var_mean(style, (2, 3), correction=0)
    return nf.norm(content, recipe, var.sqrt(), mean, EPS, params="n c")
