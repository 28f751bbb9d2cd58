"""The passes over x in plain torch: every device that has float64, every dtype, any strides.

Four functions, the same in every kernel: ``moments`` and ``apply`` forward, ``sums`` and
``grad_input`` backward. Each casts x to float64 and rounds its result once, so that all errors but
that one rounding are of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normalform.kernels.plan import Moments, pool
from normalform.recipes import Cells


def moments(x: Tensor, cells: Cells) -> list[Moments]:
    """Mean and biased variance of each cell, in float64."""
    return pool(x.to(torch.float64), None, cells)


def apply(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y = weight * (x - mean) * rstd + bias``, rounded once."""
    y = (x.to(mean.dtype) - mean) * (rstd if weight is None else rstd * weight.to(mean.dtype))
    return (y if bias is None else y + bias.to(mean.dtype)).to(x.dtype)


def sums(dy: Tensor, x: Tensor, mean: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``sum dy`` and ``sum dy (x - mean)`` over the axes where ``shape`` is 1."""
    dy64 = dy.to(mean.dtype)
    return sum_to(dy64, shape), sum_to((x.to(mean.dtype) - mean) * dy64, shape)


def grad_input(
    dy: Tensor, x: Tensor, scale: Tensor, terms: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """``dx = scale dy + slope (x - m) + offset`` with ``terms = (m, slope, offset)``, rounded once."""
    dx = dy.to(scale.dtype) * scale
    if terms is not None:
        m, slope, offset = terms
        dx = (x.to(m.dtype) - m) * slope + offset + dx
    return dx.to(x.dtype)


def sum_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the axes where ``shape`` is 1."""
    dims = [d for d, size in enumerate(shape) if size == 1 and t.shape[d] != 1]
    return t.sum(dims, keepdim=True) if dims else t
