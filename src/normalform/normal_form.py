"""The one formula in NumPy, forward and backward, for any recipe and any blend of recipes.

With ``d = x - mean``::

    y = weight * xhat + bias,    xhat = d * rstd,    rstd = 1 / sqrt(var + eps)

Everything is computed in the widest type the machine has, and about a value inside each cell, so
that neither many elements nor a mean much larger than the standard deviation costs digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalform.cells import Cells
from normalform.recipes import Recipe

Array = NDArray[np.floating[Any]]

# 64 bits of significand on x86, 11 more than float64 has. Where a machine has nothing wider than
# float64 the results are right to a few roundings of float64, at any |mean|/std.
WIDEST: type[np.floating[Any]] = np.longdouble


@dataclass(frozen=True)
class Moments:
    """The statistics of one recipe on ``x``, in a shape that broadcasts to it.

    A blend takes ``mean_share`` of the mean and ``var_share`` of the variance. ``cells`` is None
    for running statistics: they are constants, which hand no gradient on.
    """

    d: Array  # x - mean
    mean: Array
    var: Array
    cells: Cells | None
    mean_share: Any = 1.0
    var_share: Any = 1.0


def moments(x: Array, recipe: Recipe) -> Moments:
    """Mean and biased variance of every cell; uncentred, zero and the mean of squares."""
    cells = recipe.cells(x.shape)
    if not recipe.center:
        var = average(x * x, cells)
        return Moments(x, np.zeros_like(var), var, cells)
    # Counted from a value inside the cell nothing is large, and a constant cell is exactly zero.
    inside = per_cell(np.min, x, cells)
    offset = x - inside
    mean = average(offset, cells)
    d = offset - mean
    return Moments(d, inside + mean, average(d * d, cells), cells)


def average(values: Array, cells: Cells) -> Array:
    """The mean over the cell of each element, in a shape that broadcasts to ``values``."""
    return per_cell(np.mean, values, cells)


def per_cell(reduce: Callable[..., Array], values: Array, cells: Cells) -> Array:
    """Reduce every cell to one value, in a shape that broadcasts to ``values``."""
    samples, channels, *positions = cells.shape
    size = channels // cells.groups
    axes = (1, 3, *range(4, 4 + len(positions))) if cells.spatial else (1, 3)
    ordered = np.transpose(values, cells.order)  # (n, c, *s)
    rows: list[Array] = []
    for start, stop, block in cells.runs:
        # (blocks, samples in a block, groups, channels in a group, *s)
        blocks = np.reshape(ordered[start:stop], (-1, block, cells.groups, size, *positions))
        ones = [1] * len(positions) if cells.spatial else positions
        reduced = reduce(last(blocks, axes), axis=-1).reshape(len(blocks), cells.groups, *ones)
        rows.append(np.repeat(reduced, block, axis=0) if block < samples else reduced)
    joined = np.concatenate(rows)
    if 1 < cells.groups < channels:
        joined = np.repeat(joined, size, axis=1)
    return np.transpose(joined, np.argsort(cells.order))


def last(values: Array, axes: Sequence[int]) -> Array:
    """What lies along ``axes`` as one last axis, where NumPy adds by halves, not one by one."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    moved = np.transpose(values, (*kept, *axes))
    count = math.prod([values.shape[axis] for axis in axes])
    return np.ascontiguousarray(moved.reshape(*moved.shape[: len(kept)], count))


def normalize(
    branches: Sequence[Moments],
    weight: Array | None,
    bias: Array | None,
    eps: float,
    param_dims: Sequence[int],
    *,
    learned: bool = False,
) -> Result:
    """Normalize by the blend of ``branches``; ``learned`` where the shares have a gradient."""
    # The shares sum to 1, so x - mean is the blend of x - mean_k, which have lost no digits.
    d = _sum([k.mean_share * k.d for k in branches])
    mean = _sum([k.mean_share * k.mean for k in branches])
    var = _sum([k.var_share * k.var for k in branches])
    rstd = 1 / np.sqrt(var + eps)
    y = xhat = d * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return Result(
        y=narrow(y),
        xhat=narrow(xhat),
        mean=narrow(mean),
        var=narrow(var),
        weight=weight,
        bias=bias,
        _branches=branches,
        _d=d,
        _var=var,
        _rstd=rstd,
        _param_dims=param_dims,
        _learned=learned,
    )


@dataclass(frozen=True)
class Result:
    """A normalized array, and what its gradient needs.

    ``mean`` and ``var`` (biased) are those that normalized ``x``, in a shape that broadcasts to it;
    of a blend the blended ones. ``weight`` and ``bias`` are laid along the axes of ``x``. Running
    statistics are those after this batch, with unbiased variances; None where none are kept.
    """

    y: Array
    xhat: Array
    mean: Array
    var: Array
    weight: Array | None
    bias: Array | None
    running_mean: Array | None = None
    running_var: Array | None = None
    _branches: Sequence[Moments] = field(kw_only=True, repr=False)
    _d: Array = field(kw_only=True, repr=False)
    _var: Array = field(kw_only=True, repr=False)
    _rstd: Array = field(kw_only=True, repr=False)
    _param_dims: Sequence[int] = field(kw_only=True, repr=False)
    _learned: bool = field(kw_only=True, repr=False)

    def backward(self, dy: ArrayLike) -> Gradients:
        """Gradients for ``dy``, the gradient of ``y``.

        The mean and the variance that an element meets get, for ``g = weight * dy``,
        ``gm = -g * rstd`` and ``gv = -g * d * rstd**3 / 2``. Each branch ``k``, with shares ``w``
        and ``v``, hands them on to the elements of its cells, and to its two logits through the
        softmax::

            dx = g * rstd + sum_k (w * average(gm) + 2 * v * average(gv) * (x - mean_k))
            dmean_weight[k] = w * sum(gm * (mean_k - mean))
            dvar_weight[k] = v * sum(gv * (var_k - var))
        """
        with np.errstate(all="ignore"):
            return self._backward(np.reshape(widen(dy), self._d.shape))

    def _backward(self, dy: Array) -> Gradients:
        g = dy if self.weight is None else dy * self.weight
        gm = -g * self._rstd
        gv = gm * self._d * self._rstd**2 / 2
        dx = [-gm]
        for k in self._branches:
            if k.cells is not None:
                if k.cells.center:
                    dx.append(k.mean_share * average(gm, k.cells))
                dx.append(2 * k.var_share * average(gv, k.cells) * k.d)
        weight = bias = mean_weight = var_weight = Sum()
        if self.weight is not None:
            weight = Sum.over(dy * self._d * self._rstd, keep=self._param_dims)
        if self.bias is not None:
            bias = Sum.over(dy, keep=self._param_dims)
        if self._learned:
            # mean_k - mean is (x - mean) - (x - mean_k), neither of which has lost digits.
            to_mean = [k.mean_share * gm * (self._d - k.d) for k in self._branches]
            to_var = [k.var_share * gv * (k.var - self._var) for k in self._branches]
            mean_weight = Sum.over(np.stack(to_mean), keep=[0])
            var_weight = Sum.over(np.stack(to_var), keep=[0])
        return Gradients(
            x=narrow(_sum(dx)),
            weight=weight.total,
            bias=bias.total,
            mean_weight=mean_weight.total,
            var_weight=var_weight.total,
            terms=narrow(_sum([np.abs(term) for term in dx])),
            weight_scale=weight.scale,
            bias_scale=bias.scale,
            mean_weight_scale=mean_weight.scale,
            var_weight_scale=var_weight.scale,
        )

    @property
    def rstd(self) -> Array:
        """``1 / sqrt(var + eps)``."""
        return narrow(self._rstd)

    def largest(self, values: Array) -> Array:
        """Largest of ``values`` in the cell of each element; in all its cells, for a blend.

        Where statistics are constants an element stands alone.
        """
        cells = [k.cells for k in self._branches if k.cells is not None]
        return functools.reduce(
            np.maximum, [per_cell(np.max, values, each) for each in cells], values
        )


@dataclass(frozen=True)
class Gradients:
    """Gradients of ``sum(dy * y)``, and the sizes their rounding errors are measured by.

    None where there is no such input. A scale is the root of the sum of squares of what each
    element adds to a gradient: of ``(dy * xhat)**2`` for the weight, of ``dy**2`` for the bias.
    """

    x: Array
    weight: Array | None  # sum(dy * xhat)
    bias: Array | None  # sum(dy)
    mean_weight: Array | None  # of the logits of a blend
    var_weight: Array | None
    terms: Array  # sum of the absolute terms of x, each branch of a blend counted
    weight_scale: Array | None
    bias_scale: Array | None
    mean_weight_scale: Array | None
    var_weight_scale: Array | None


class Sum(NamedTuple):
    """A gradient that is a sum over elements, and the root of the sum of their squares."""

    total: Array | None = None
    scale: Array | None = None

    @staticmethod
    def over(values: Array, keep: Sequence[int]) -> Sum:
        """Sum over all axes but those to ``keep``."""
        axes = tuple(axis for axis in range(values.ndim) if axis not in keep)
        terms = last(values, axes)
        return Sum(narrow(terms.sum(axis=-1)), narrow(np.sqrt((terms**2).sum(axis=-1))))


def lay(values: ArrayLike | None, x: Array, dims: Sequence[int], name: str) -> Array | None:
    """Parameters of one value for each index along ``dims``, laid along the axes of ``x``."""
    if values is None:
        return None
    values = np.asarray(values, dtype=np.float64)
    shape = tuple(x.shape[d] for d in dims)
    if values.shape != shape:
        raise ValueError(
            f"{name} of shape {values.shape}: x of shape {x.shape} needs one of shape {shape}"
        )
    return np.expand_dims(values, [d for d in range(x.ndim) if d not in dims])


def widen(values: ArrayLike) -> Array:
    """The values in the widest type."""
    return np.asarray(values, dtype=WIDEST)


def narrow(values: Array) -> Array:
    """The values rounded to float64."""
    return values.astype(np.float64)


def _sum(terms: Sequence[Array]) -> Array:
    return functools.reduce(np.add, terms)
