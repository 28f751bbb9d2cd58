"""The passes over x for devices without float64: pairs of float32 whose sum carries 48 bits.

The same four functions as :mod:`normalform.kernels.eager`, and the same promise. Sums over x run in
two-float arithmetic [Dekker 1971; Knuth, The Art of Computer Programming 2, 4.2.2] by pairwise
halving, so that their order is fixed; arrays of one value a cell travel to the CPU and are float64
there. Factors are applied in two steps, so that squares and scales neither overflow nor vanish.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels.plan import Coefficients, Moments, Pair, Terms, split, wide


def moments(x: Tensor, cells: Cells) -> list[Moments]:
    """Moments of each cell: summed on x's device in two floats, returned in float64."""
    return [_moments(split(x, run, cells.groups).to(torch.float32), cells) for run in cells.runs]


def _moments(values: Tensor, cells: Cells) -> Moments:
    kept = values.shape[4:] if not cells.spatial else (1,) * (values.ndim - 4)
    shape = (values.shape[0], 1, values.shape[2], 1, *kept)
    largest = _largest(values, shape)
    exponent = -_exponent(largest)
    scaled, unit = _times_power(values, exponent), _power(exponent)
    count = values.numel() / largest.numel()
    zero = torch.zeros_like(scaled)
    if not cells.center:
        second = _sum(_product(scaled, scaled), shape) / count
        second = torch.where(largest.isinf(), largest, second)
        return Moments(torch.zeros_like(unit), torch.zeros_like(unit), second / unit / unit)
    shift = (_sum((scaled, zero), shape) / count).to(torch.float32)
    high, low = _two_sum(scaled, -shift.to(values.device))
    rest = _sum((high, low), shape) / count
    square, error = _product(high, high)
    second = _sum((square, error + 2 * high * low), shape) / count
    # |rest| is under half a unit in the last place of shift, no more than a standard deviation.
    var = (second - rest.square()).clamp_min(0)
    return Moments(wide(shift) / unit, rest / unit, var / unit / unit)


def apply(x: Tensor, at: Coefficients, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``y = weight * (x - mean) * rstd + bias`` in four roundings of float32."""
    high, low = _centred(x, at)
    y = _times(high + low, at.rstd if weight is None else at.rstd * wide(weight))
    return (y if bias is None else y + bias.to(torch.float32)).to(x.dtype)


def sums(dy: Tensor, x: Tensor, at: Coefficients, shape: tuple[int, ...]) -> Pair:
    """``sum dy`` and ``sum dy (x - mean)`` over the axes where ``shape`` is 1, in float64."""
    dy = dy.to(torch.float32)
    high, low = _centred(x, at)
    up, down = -_exponent(_largest(high, shape)), -_exponent(_largest(dy, shape))
    high, low, scaled = _times_power(high, up), _times_power(low, up), _times_power(dy, down)
    product, error = _product(scaled, high)
    products = _sum((product, error + scaled * low), shape) / _power(up) / _power(down)
    return _sum((dy, torch.zeros_like(dy)), shape), products


def grad_input(dy: Tensor, x: Tensor, scale: Tensor, terms: Terms | None) -> Tensor:
    """``dx = scale dy + (slope (x - mean) + offset)``, rounded to float32 once each."""
    dx = _times(dy.to(torch.float32), scale)
    if terms is not None:
        # Branches of a blend may cancel between slope and offset.
        high, low = _times_pair(_centred(x, terms), terms.slope)
        offset, rest = _pair(terms.offset, x)
        high, error = _two_sum(high, offset)
        dx = dx + (high + (error + low + rest))
    return dx.to(x.dtype)


def _centred(x: Tensor, about: Coefficients | Terms) -> Pair:
    """``x - (shift + mean)``, exact to 2^-48."""
    near = (about.shift + about.mean).to(torch.float32)
    rest = about.shift - wide(near) + about.mean
    rest_high, rest_low = _pair(rest, x)
    distance, error = _two_sum(x.to(torch.float32), -near.to(x.device))
    high, more = _two_sum(distance, -rest_high)
    return high, more + (error - rest_low)


def _narrow(t: Tensor, like: Tensor) -> Tensor:
    return t.to(device=like.device, dtype=torch.float32)


def _largest(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Largest size over the axes where ``shape`` is 1."""
    dims = [d for d, size in enumerate(shape) if size == 1]
    return wide(t.abs().amax(dims, keepdim=True) if dims else t.abs())


def _pair(t: Tensor, like: Tensor) -> Pair:
    """A float64 number as two float32."""
    high = _narrow(t, like)
    return high, _narrow(t - wide(high), like)


def _exponent(t: Tensor) -> Tensor:
    """The power of two just above abs(t), as an integer; 0 for 0, inf and nan."""
    return torch.where(t.isfinite(), torch.frexp(t).exponent, 0)


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` in float64, from its bits."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _times_power(t: Tensor, exponent: Tensor) -> Tensor:
    """``t * 2^exponent``, in two steps: a power of two may lie outside float32's range."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    for part in (half, exponent - half):
        t = t * _narrow(_power(part), t)
    return t


def _times(t: Tensor, factor: Tensor) -> Tensor:
    """``t * factor`` with a float64 factor of any size: rounded factor, rounded product."""
    exponent = _exponent(factor)
    return _times_power(t, exponent) * _narrow(factor * _power(-exponent), t)


def _times_pair(pair: Pair, factor: Tensor) -> Pair:
    """The same in two floats."""
    exponent = _exponent(factor)
    first, second = _pair(factor * _power(-exponent), pair[0])
    high, low = (_times_power(t, exponent) for t in pair)
    product, error = _product(high, first)
    return product, error + high * second + low * first


def _two_sum(a: Tensor, b: Tensor) -> Pair:
    """Rounded sum and its exact error."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def _product(a: Tensor, b: Tensor) -> Pair:
    """Rounded product and its exact error."""
    high = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Tensor) -> Pair:
    """Two numbers of 12 bits that add up to a."""
    c = a * 4097.0
    high = c - (c - a)
    return high, a - high


def _sum(pair: Pair, shape: tuple[int, ...]) -> Tensor:
    """Sum over the axes where ``shape`` is 1, in two floats, by halves; the result in float64."""
    dims = [d for d, size in enumerate(shape) if size == 1]
    if not dims:
        return wide(pair[0]) + wide(pair[1])
    high, low = (t.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)) for t in pair)
    while (count := high.shape[-1]) > 1:
        half = (count + 1) // 2
        other = [F.pad(t[..., half:], (0, 2 * half - count)) for t in (high, low)]
        high, error = _two_sum(high[..., :half], other[0])
        low, rest = _two_sum(low[..., :half], other[1])
        high, low = _renormalize(high, error + low)
        high, low = _renormalize(high, low + rest)
    return (wide(high) + wide(low)).reshape(shape)


def _renormalize(high: Tensor, low: Tensor) -> Pair:
    total = high + low
    return total, low - (total - high)
