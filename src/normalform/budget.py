"""The promise on rounding errors: how far from exact a result may be, element by element.

``u = 2**-24`` is half the distance from 1 to the next float32. An asterisk marks what is exact for
the given input; ``T`` is the sum of the absolute terms that ``dx*`` is the sum of. For float32,
bfloat16 and float16, in training and evaluation, for any norm and any |mean|/std up to 1e6::

    y         4u (|weight xhat*| + |bias|) + 1e-11 |weight| max(1, |xhat*|)
    dx        8u T
    dweight   2u |dweight*| + 4u sqrt(sum((dy xhat*)**2)),   so for bias and logits
    logits    that, and 1e-11 sum |weight dy|, for the variances 1e-11 sum |weight dy xhat*|
    running   2u |running*|, the mean also 1e-11 max |x|

where ``max(1, |xhat*|)`` takes the largest in the cell. The 1e-11 is what statistics are good to,
in standard deviations; gradients of logits need it because they are sums of differences of
statistics, which may cancel. Rounding to a coarser type adds ``u_out`` of the exact value, which is
``2**-8`` of bfloat16, ``2**-11`` of float16, and ``2**-24`` of float32 where the input is float64;
to any type, half its smallest subnormal.

float64 is promised less, a rounding for each step. With ``U = 2**-53`` and ``k = 1 + |mean|/std``::

    y         8U (k |weight| max(1, |xhat*|) + |bias|)
    dx        8U k max(1, |xhat*|) T,   both and T the largest in the cell
    sums      8U (k sum |terms| + sqrt(n sum terms**2))
    running   8U k |running*|, the mean also 8U max |x|

8U: a variance takes a difference (which counts twice, squared), a square, a sum of squares and a
division; y then half of that, eps, root, inverse, two products and two sums, a blend as much again
for its weights; a running statistic the unbiased factor, two products and two sums. Half a U each,
one or two for the sum, which is taken in many short ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalform.reference import Gradients, Result

Array = NDArray[np.floating[Any]]

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
STATISTICS = 1e-11


def roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to ``dtype``: half the distance from 1 to the next number.

    bfloat16 has 8 bits of significand, the implicit one counted: that next number is ``1 + 2**-7``.

    >>> [roundoff(t) for t in (torch.float32, torch.float16, torch.bfloat16)] == [
    ...     2**-24, 2**-11, 2**-8
    ... ]
    True
    """
    return torch.finfo(dtype).eps / 2


def allowed_y(result: Result, dtype: torch.dtype) -> Array:
    """For ``y`` of type ``dtype``."""
    weight, bias = _magnitudes(result)
    xhat = np.abs(result.xhat)
    peak = weight * np.maximum(1, result.largest(xhat))
    if dtype == torch.float64:
        allowed = 8 * FLOAT64 * (_conditioning(result) * peak + bias)
    else:
        allowed = 4 * FLOAT32 * (weight * xhat + bias) + STATISTICS * peak
    return allowed.reshape(result.y.shape) + _to_round(result.y, dtype, dtype)


def allowed_dx(result: Result, gradients: Gradients, dtype: torch.dtype) -> Array:
    """For the gradient of ``x``, of type ``dtype``."""
    allowed = 8 * FLOAT32 * gradients.terms
    if dtype == torch.float64:
        peak = np.maximum(1, result.largest(np.abs(result.xhat)))
        allowed = 8 * FLOAT64 * _conditioning(result) * peak * result.largest(gradients.terms)
    return allowed + _to_round(gradients.x, dtype, dtype)


def allowed_sum(
    name: str,
    result: Result,
    gradients: Gradients,
    dy: Array,
    dtype: torch.dtype,
    parameter: torch.dtype,
) -> Array:
    """For the gradient of the parameter ``name``, of type ``parameter``, of ``x`` of ``dtype``."""
    exact, scale = getattr(gradients, name), getattr(gradients, f"{name}_scale")
    weight, _ = _magnitudes(result)
    dy, xhat = np.abs(dy).reshape(result.xhat.shape), np.abs(result.xhat)
    terms = {
        "weight": _over(dy * (1 + xhat), result.weight, gradients.weight),
        "bias": _over(dy, result.bias, gradients.bias),
        "mean_weight": (weight * dy).sum(),
        "var_weight": (weight * dy * xhat).sum(),
    }
    if dtype == torch.float64:
        k = _conditioning(result).max()
        allowed = 8 * FLOAT64 * (k * terms[name] + np.sqrt(dy.size) * scale)
    else:
        allowed = 2 * FLOAT32 * np.abs(exact) + 4 * FLOAT32 * scale
        if name in ("mean_weight", "var_weight"):
            allowed = allowed + STATISTICS * terms[name]
    return allowed + _to_round(exact, parameter, dtype)


def allowed_running(
    name: str, result: Result, x: Array, dtype: torch.dtype, buffer: torch.dtype
) -> Array:
    """For the running statistic ``name``, of type ``buffer``, after ``x`` of ``dtype``."""
    exact = getattr(result, name)
    x = np.abs(x).reshape(result.xhat.shape)  # (n, c, *s)
    largest = x.max(axis=tuple(d for d in range(x.ndim) if d != 1)) * (name == "running_mean")
    if dtype == torch.float64:
        k = _conditioning(result).max()
        allowed = 8 * FLOAT64 * (k * np.abs(exact) + largest)
    else:
        allowed = 2 * FLOAT32 * np.abs(exact) + STATISTICS * largest
    return allowed + _to_round(exact, buffer, dtype)


def _magnitudes(result: Result) -> tuple[Array | float, Array | float]:
    weight = 1.0 if result.weight is None else np.abs(result.weight)
    bias = 0.0 if result.bias is None else np.abs(result.bias)
    return weight, bias


def _conditioning(result: Result) -> Array:
    """``1 + |mean|/std``."""
    return 1 + np.abs(result.mean) * result.rstd


def _over(values: Array, laid: Array | None, like: Array | None) -> Array | float:
    """Sums of ``values``, one for each parameter that is ``laid`` along their axes."""
    if laid is None or like is None:
        return 0.0
    axes = tuple(axis for axis, size in enumerate(laid.shape) if size == 1)
    return values.sum(axis=axes).reshape(like.shape)


def _to_round(exact: Array, dtype: torch.dtype, x: torch.dtype) -> Array:
    """What the last rounding may cost, beyond what is allowed for an input of type ``x``."""
    counted = torch.float64 if x == torch.float64 else torch.float32
    coarse = roundoff(dtype) if roundoff(dtype) > roundoff(counted) else 0.0
    info = torch.finfo(dtype)
    return coarse * np.abs(exact) + info.tiny * info.eps / 2
