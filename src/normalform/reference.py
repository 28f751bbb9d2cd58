"""The judge: every norm in plain NumPy, forward and hand-written backward.

All norms are one formula, with ``d = x - mean``::

    y = weight * xhat + bias,    xhat = d * rstd,    rstd = 1 / sqrt(var + eps)

and differ in which elements share a mean and a variance. Those that do are a *cell*; a recipe says
which they are (``[n] c [s]``, batch norm: one cell a channel, all samples and positions). With
``average``, the mean over the cell of an element, put in that element's place::

    mean = average(x),    var = average(d**2)                          # biased: divided by n

and backward, where ``mean`` and ``var`` depend on ``x`` too, for ``g = weight * dy``::

    dx = rstd * (g - average(g) - xhat * average(g * xhat))

Arrays are (N, C, *) of any float type, with at least one element. Results are float64. Inside,
everything is computed in the widest type the machine has, so that float64 can be judged too, and
``x`` is centred before it is squared or scaled, so that no digits are lost to a large mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalform import recipes
from normalform.recipes import Cells, Recipe, named

Array = NDArray[np.floating[Any]]
Given = ArrayLike | None

# 64 bits of significand on x86, 11 more than float64 has. Where a machine has nothing wider than
# float64 the results are right to a few roundings of float64, at any |mean|/std.
WIDEST = np.longdouble


@dataclass(frozen=True)
class Gradients:
    """Gradients of ``sum(dy * y)``, and the sizes their rounding errors are measured by.

    Attributes:
        x: shape of ``x``.
        weight: ``sum(dy * xhat)``, shape of ``weight``; None where there is no weight.
        bias: ``sum(dy)``, shape of ``bias``; None where there is no bias.
        mean_weight: of the logits that blend the means, one a branch; None outside a blend.
        var_weight: of the logits that blend the variances.
        terms: sum of the absolute terms that ``x`` is the sum of, each branch of a blend counted.
        weight_scale: root of the sum of ``(dy * xhat)**2``.
        bias_scale: root of the sum of ``dy**2``.
        mean_weight_scale: root of the sum of squares of what each element adds to ``mean_weight``.
        var_weight_scale: the same for ``var_weight``.
    """

    x: Array
    weight: Array | None
    bias: Array | None
    mean_weight: Array | None
    var_weight: Array | None
    terms: Array
    weight_scale: Array | None
    bias_scale: Array | None
    mean_weight_scale: Array | None
    var_weight_scale: Array | None


@dataclass(frozen=True)
class Branch:
    """The statistics of one recipe on ``x``, and their shares of the blend; 1 outside a blend."""

    cells: Cells | None  # None: running statistics, constants to the gradient
    d: Array  # x - mean
    mean: Array
    var: Array
    mean_share: Any = 1.0
    var_share: Any = 1.0


@dataclass(frozen=True)
class Result:
    """A normalized array, and what its gradient needs.

    Attributes:
        y: the normalized array, shape of ``x``.
        xhat: the same before weight and bias.
        mean: what was subtracted, broadcastable to ``x``; blended, for a blend.
        var: the biased variance that was divided by, likewise.
        weight: laid along the axes of ``x``; None where there is none.
        bias: likewise.
        running_mean: the running mean after this batch; None where none is kept.
        running_var: the running variance after this batch, made of unbiased variances.
    """

    y: Array
    xhat: Array
    mean: Array
    var: Array
    weight: Array | None
    bias: Array | None
    running_mean: Array | None
    running_var: Array | None
    _d: Array = field(repr=False)
    _rstd: Array = field(repr=False)
    _branches: Sequence[Branch] = field(repr=False)
    _param_dims: Sequence[int] = field(repr=False)
    _learned: bool = field(repr=False)

    def backward(self, dy: ArrayLike) -> Gradients:
        """Gradients for ``dy``, the gradient of ``y``.

        The mean and the variance that an element meets get ``gm = -g * rstd`` and
        ``gv = -g * d * rstd**3 / 2``. Each branch ``k``, with shares ``w`` and ``v``, hands them on
        to the elements of its cells, and to its two logits through the softmax::

            dx = g * rstd + sum_k (w * average(gm) + 2 * v * average(gv) * (x - mean_k))
            dmean_weight[k] = w * sum(gm * (mean_k - mean))
            dvar_weight[k] = v * sum(gv * (var_k - var))
        """
        dy = _wide(dy).reshape(self._d.shape)
        with np.errstate(all="ignore"):
            g = dy if self.weight is None else self.weight * dy
            gm = -g * self._rstd
            gv = gm * self._d * self._rstd**2 / 2
            terms = [-gm]
            for k in self._branches:
                if k.cells is not None:
                    terms.append(k.mean_share * _average(gm, k.cells))
                    terms.append(2 * k.var_share * _average(gv, k.cells) * k.d)
            to_weight = None if self.weight is None else dy * self._d * self._rstd
            to_bias = None if self.bias is None else dy
            to_mean = to_var = None
            if self._learned:
                # mean_k - mean as (x - mean) - (x - mean_k), neither of which has lost digits.
                to_mean = np.stack([k.mean_share * gm * (self._d - k.d) for k in self._branches])
                var = sum(k.var_share * k.var for k in self._branches)
                to_var = np.stack([k.var_share * gv * (k.var - var) for k in self._branches])
            weight, weight_scale = _sums(to_weight, self._param_dims)
            bias, bias_scale = _sums(to_bias, self._param_dims)
            mean_weight, mean_weight_scale = _sums(to_mean, [0])
            var_weight, var_weight_scale = _sums(to_var, [0])
            return Gradients(
                x=_narrow(sum(terms)),
                weight=weight,
                bias=bias,
                mean_weight=mean_weight,
                var_weight=var_weight,
                terms=_narrow(sum(np.abs(term) for term in terms)),
                weight_scale=weight_scale,
                bias_scale=bias_scale,
                mean_weight_scale=mean_weight_scale,
                var_weight_scale=var_weight_scale,
            )

    def largest(self, values: Array) -> Array:
        """Largest of ``values`` in the cell of each element; in all its cells, for a blend.

        Where the statistics are constants an element stands alone.
        """
        for branch in self._branches:
            if branch.cells is not None:
                values = np.maximum(values, _per_cell(np.max, values, branch.cells))
        return values


def norm(
    x: ArrayLike,
    recipe: str | Recipe,
    weight: Given = None,
    bias: Given = None,
    eps: float = 1e-5,
    *,
    params: str = "c",
    center: bool = True,
    **sizes: int,
) -> Result:
    """Normalize by any recipe, given by its notation, its name or itself.

    ``weight`` and ``bias`` vary over the axes named in ``params`` (``"c"``, ``"n c"``, ``"c s"``),
    whatever is averaged. Without ``center`` nothing is subtracted and ``var`` is the mean of
    ``x**2``. ``sizes`` are those of split axes, such as ``g=8``.

    >>> x = [[0.0, 2.0, 5.0, 5.0], [3.0, 1.0, 0.0, 8.0]]
    >>> norm(x, "n (g [c])", bias=[0, 0, 10, 10], eps=0.01, g=2).y.round(2)
    array([[-1.,  1., 10., 10.],
           [ 1., -1.,  9., 11.]])
    """
    spec = recipes.recipe(named(recipe), center=center, **sizes)
    x = _wide(x)
    return _apply(x, [_statistics(x, spec)], spec.param_dims(x.ndim, params), weight, bias, eps)


def layer_norm(
    x: ArrayLike, weight: Given = None, bias: Given = None, eps: float = 1e-5, *, params: str = "c"
) -> Result:
    """Layer norm of a sample, ``n [c s]``; ``params="c s"`` for one weight an element.

    >>> layer_norm([[0.0, 4.0], [5.0, 7.0]], eps=0).y
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    return norm(x, "layer", weight, bias, eps, params=params)


def group_norm(
    x: ArrayLike, groups: int, weight: Given = None, bias: Given = None, eps: float = 1e-5
) -> Result:
    """Group norm, ``n (g [c]) [s]``: one group is layer norm, a group a channel instance norm.

    >>> group_norm([[0.0, 4.0, 5.0, 7.0]], groups=2, eps=0).y
    array([[-1.,  1., -1.,  1.]])
    """
    return norm(x, "group", weight, bias, eps, g=groups)


def rms_norm(x: ArrayLike, weight: Given = None, eps: float = 2.0**-23) -> Result:
    """RMS norm over the last axis: divided by the root of the mean square, nothing subtracted.

    >>> rms_norm([[1.0, 7.0]], eps=0).y
    array([[0.2, 1.4]])
    """
    return norm(x, "rms", weight, None, eps)


def instance_norm(
    x: ArrayLike,
    weight: Given = None,
    bias: Given = None,
    eps: float = 1e-5,
    *,
    running_mean: Given = None,
    running_var: Given = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
) -> Result:
    """Instance norm, ``n c [s]``: every channel of every sample by itself.

    Running statistics, where kept, move by ``momentum`` towards the mean over samples of each one's
    mean and unbiased variance. Without ``use_input_stats`` they are what normalizes.

    >>> instance_norm([[[0.0, 2.0], [10.0, 50.0]]], eps=0).y
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    running = (running_mean, running_var)
    return _track(x, [named("instance")], [0], running, use_input_stats, momentum, ...)


def batch_norm(
    x: ArrayLike,
    weight: Given = None,
    bias: Given = None,
    eps: float = 1e-5,
    *,
    running_mean: Given = None,
    running_var: Given = None,
    training: bool = True,
    momentum: float = 0.1,
    block: int | None = None,
) -> Result:
    """Batch norm, ``[n] c [s]``; with ``block``, ghost batch norm over so many samples each.

    Training normalizes by the batch and moves running statistics towards it by ``momentum``: the
    mean, and the unbiased variance ``n / (n - 1) * var``; for ghost blocks the mean of theirs,
    weighted by block size. Evaluation normalizes by the running statistics.

    >>> result = batch_norm([[0.0], [2.0], [4.0]], eps=0, running_mean=[2.0], running_var=[1.0])
    >>> result.y.ravel().round(4), result.running_mean, result.running_var   # 0.9 * 1 + 0.1 * 4
    (array([-1.2247,  0.    ,  1.2247]), array([2.]), array([1.3]))
    """
