"""The judge: every norm in plain NumPy, forward and hand-written backward.

All norms are one formula, with ``d = x - mean``::

    y = weight * xhat + bias,    xhat = d * rstd,    rstd = 1 / sqrt(var + eps)

and differ in which elements share a mean and a variance. Those that do are a *cell*; a recipe says
which they are (``[n] c [s]``, batch norm: one cell a channel, all samples and positions). With
``average``, the mean over the cell of an element, put in that element's place::

    mean = average(x),    var = average(d**2)                          # biased: divided by n

and backward, where ``mean`` and ``var`` depend on ``x`` too, for ``g = weight * dy``::

    dx = rstd * (g - average(g) - xhat * average(g * xhat))

The code of both is in :mod:`normalform.normal_form`; here are the norms that have names, and their
running statistics. Arrays are (N, C, *) of any float type, with at least one element; results are
float64, and good enough to judge float64 by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from normalform import recipes
from normalform.normal_form import Array, Moments, last, lay, moments, narrow, normalize, widen
from normalform.normal_form import Gradients as Gradients
from normalform.normal_form import Result as Result
from normalform.recipes import Recipe, named

Given = ArrayLike | None


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
    bound = recipes.recipe(named(recipe), center=center, **sizes)
    return _normalize(x, [bound], weight, bias, eps, params=params)


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
    running = _Running(running_mean, running_var, use_input_stats, momentum)
    return _normalize(x, [named("instance")], weight, bias, eps, running)


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
    recipe = named("batch" if block is None else f"ghost:{block}")
    running = _Running(running_mean, running_var, training, momentum)
    return _normalize(x, [recipe], weight, bias, eps, running)


def switch_norm(
    x: ArrayLike,
    mean_weight: ArrayLike,
    var_weight: ArrayLike,
    weight: Given = None,
    bias: Given = None,
    eps: float = 1e-5,
    *,
    over: Sequence[str | Recipe] = ("instance", "layer", "batch"),
    running_mean: Given = None,
    running_var: Given = None,
    training: bool = True,
    momentum: float = 0.1,
) -> Result:
    """Switchable norm: the statistics of several norms, blended by learned shares.

    With ``w = softmax(mean_weight)`` and ``v = softmax(var_weight)``, one logit a branch::

        mean = sum_k w[k] * mean_k,    var = sum_k v[k] * var_k

    The spread between the means is left out of ``var``, as in the paper (Luo et al. 2018,
    arXiv:1806.10779). In evaluation running statistics stand in for every branch that averages over
    samples. A branch whose cells hold one value says nothing: the softmax runs over the others,
    and its logits get no gradient; ValueError where no branch is left.

    >>> x = np.random.default_rng(0).normal(size=(2, 3, 4))
    >>> only_layer = [-1e9, 0.0, -1e9]
    >>> bool(np.all(switch_norm(x, only_layer, only_layer).y == layer_norm(x).y))
    True
    """
    recipes = [named(each) for each in over]
    running = _Running(running_mean, running_var, training, momentum)
    return _normalize(x, recipes, weight, bias, eps, running, (mean_weight, var_weight))


@dataclass(frozen=True)
class _Running:
    """Running statistics of shape (C,), and what to do with them."""

    mean: Given = None
    var: Given = None
    training: bool = True
    momentum: float = 0.1


def _normalize(
    x: ArrayLike,
    over: Sequence[Recipe],
    weight: Given,
    bias: Given,
    eps: float,
    running: _Running | None = None,
    logits: tuple[ArrayLike, ArrayLike] | None = None,
    params: str = "c",
) -> Result:
    """One recipe, or a blend of several where there are logits."""
    x = widen(x)
    if x.size == 0:
        raise ValueError(f"x of shape {x.shape} has no element to normalize")
    dims = over[0].param_dims(x.ndim, params)
    weight, bias = lay(weight, x, dims, "weight"), lay(bias, x, dims, "bias")
    running = running or _Running()
    # Of a blend, running statistics are those of what is averaged over samples.
    tracked = [logits is None or "n" in recipe.over for recipe in over]
    with np.errstate(all="ignore"):
        branches = [
            moments(x, recipe) if running.training or not tracks else _constants(x, recipe, running)
            for recipe, tracks in zip(over, tracked, strict=True)
        ]
        if logits is not None:
            branches = _shared(branches, *logits)
        result = normalize(branches, weight, bias, eps, dims, learned=logits is not None)
        source = next((k for k, tracks in zip(branches, tracked, strict=True) if tracks), None)
        mean, var = _updated(running, source)
    return replace(result, running_mean=mean, running_var=var)


def _shared(
    branches: Sequence[Moments], mean_weight: ArrayLike, var_weight: ArrayLike
) -> list[Moments]:
    """The branches with their shares: a softmax over those that have a variance."""
    alive = np.array([_has_variance(k) for k in branches])
    if not alive.any():
        raise ValueError(f"every cell of shape {branches[0].d.shape} holds one value: no variance")
    shares: list[Array] = []
    for logits in (widen(mean_weight), widen(var_weight)):
        if logits.shape != alive.shape:
            raise ValueError(f"{len(branches)} branches, but logits of shape {logits.shape}")
        shares.append(_softmax(np.where(alive, logits, -np.inf)))
    return [
        replace(k, mean_share=w, var_share=v) for k, w, v in zip(branches, *shares, strict=True)
    ]


def _softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def _has_variance(k: Moments) -> bool:
    return k.cells is None or max(k.cells.counts) > 1


def _constants(x: Array, recipe: Recipe, running: _Running) -> Moments:
    """Running statistics in the place of those of ``x``."""
    channels = recipe.param_dims(x.ndim, "c")
    mean = lay(running.mean, x, channels, "running_mean")
    var = lay(running.var, x, channels, "running_var")
    if mean is None or var is None:
        raise ValueError("evaluation needs running_mean and running_var")
    return Moments(x - mean, widen(mean), widen(var), None)


def _updated(running: _Running, batch: Moments | None) -> tuple[Array | None, Array | None]:
    """Running mean and variance after a batch, unchanged where it has none.

    They learn ``mean`` and the *unbiased* ``n / (n - 1) * var``; where a channel has several cells,
    the mean over samples, which weighs a block by its size.
    """
    if running.mean is None and running.var is None:
        return None, None
    if batch is None or batch.cells is None or not _has_variance(batch):
        return _moved(running.mean, None, 0), _moved(running.var, None, 0)
    cells = batch.cells
    runs = zip(cells.runs, cells.counts, strict=True)
    factor = np.concatenate(
        [np.full((stop - start, 1), widen(n) / widen(n - 1)) for (start, stop, _), n in runs]
    )
    mean, var = (
        np.reshape(np.transpose(t, cells.order), (-1, cells.shape[1]))
        for t in (batch.mean, batch.var)
    )
    return (
        _moved(running.mean, np.mean(last(mean, [0]), axis=-1), running.momentum),
        _moved(running.var, np.mean(last(factor * var, [0]), axis=-1), running.momentum),
    )


def _moved(old: Given, new: Array | None, momentum: float) -> Array | None:
    """``(1 - momentum) * old + momentum * new``; ``old`` where that is not finite in its type."""
    if old is None:
        return None
    old = np.asarray(old)
    if new is None:
        return narrow(old)
    moved = (1 - momentum) * widen(old) + momentum * new
    fits = np.abs(moved) <= np.finfo(np.result_type(old, 1.0)).max
    return narrow(np.where(fits, moved, old))
