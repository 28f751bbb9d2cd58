"""The passes over x in plain torch: every device that has float64, every dtype, any strides.

Four functions, the same in every kernel: ``moments`` and ``apply`` forward, ``sums`` and
``grad_input`` backward. Each casts x to float64 and rounds its result once, so that all errors but
that one rounding are of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normalform.kernels.plan import Coefficients, Moments, Pair, Terms, of_values, total
from normalform.recipes import Cells


def moments(x: Tensor, cells: Cells) -> list[Moments]:
    """Moments of each cell, in float64."""
    return of_values(x.to(torch.float64), cells)


def apply(x: Tensor, at: Coefficients, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y = weight * (x - mean) * rstd + bias``, rounded once."""
    scale = at.rstd if weight is None else at.rstd * weight.to(at.rstd)
    y = _centred(x, at)
    y = y * scale if bias is None else torch.addcmul(bias.to(y.dtype), y, scale)
    return y.to(x.dtype)


def sums(dy: Tensor, x: Tensor, at: Coefficients, shape: tuple[int, ...]) -> Pair:
    """``sum dy`` and ``sum dy (x - mean)`` over the axes where ``shape`` is 1."""
    wide = dy.to(at.rstd.dtype)
    return sum_to(wide, shape), sum_to(_centred(x, at) * wide, shape)


def grad_input(dy: Tensor, x: Tensor, scale: Tensor, terms: Terms | None) -> Tensor:
    """``dx = scale dy + slope (x - mean) + offset``, rounded once."""
    dx = dy.to(scale.dtype) * scale
    if terms is not None:
        dx = torch.addcmul(dx + terms.offset, _centred(x, terms), terms.slope)
    return dx.to(x.dtype)


def _centred(x: Tensor, about: Coefficients | Terms) -> Tensor:
    return x.to(about.shift.dtype) - about.shift - about.mean


def sum_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the axes where ``shape`` is 1."""
    dims = [d for d, size in enumerate(shape) if size == 1 and t.shape[d] != 1]
    return total(t, dims) if dims else t
