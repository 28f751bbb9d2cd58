"""The passes over x in plain torch: every device that has float64, every dtype, any strides.

Four functions, the same in every kernel: ``moments`` and ``apply`` forward, ``sums`` and
``grad_input`` backward. Each casts x to float64 and rounds its result once, so that all errors but
that one rounding are of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels.plan import Coefficients, Moments, Pair, Terms, of_values, total


def moments(x: Tensor, cells: Cells) -> list[Moments]:
    """Moments of each cell, in float64."""
    return of_values(x.to(torch.float64), cells)


def apply(x: Tensor, at: Coefficients, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y = weight * (x - mean) * rstd + bias``, rounded once."""
    y = _centred(x, at).mul_(at.rstd if weight is None else at.rstd * weight.to(at.rstd))
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def sums(dy: Tensor, x: Tensor, at: Coefficients, shape: tuple[int, ...]) -> Pair:
    """``sum dy`` and ``sum dy (x - mean)`` over the axes where ``shape`` is 1."""
    wide = dy.to(torch.float64)
    return sum_to(wide, shape), sum_to(_centred(x, at).mul_(wide), shape)


def grad_input(dy: Tensor, x: Tensor, scale: Tensor, terms: Terms | None) -> Tensor:
    """``dx = scale dy + slope (x - mean) + offset``, rounded once."""
    dx = dy.to(torch.float64, copy=True).mul_(scale)
    if terms is not None:
        dx.addcmul_(_centred(x, terms), terms.slope).add_(terms.offset)
    return dx.to(x.dtype)


def _centred(x: Tensor, about: Coefficients | Terms) -> Tensor:
    """``x - mean`` in a new tensor, which stays in the cache while it is worked on in place."""
    return x.to(torch.float64, copy=True).sub_(about.shift).sub_(about.mean)


def sum_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the axes where ``shape`` is 1."""
    dims = [d for d, size in enumerate(shape) if size == 1 and t.shape[d] != 1]
    return total(t, dims) if dims else t
