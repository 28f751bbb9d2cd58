"""Norms as functions: any recipe, and PyTorch's own functions under PyTorch's own signatures.

Each checks what PyTorch checks and names a recipe; the work is done in :mod:`normalform.path`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from normalform import path
from normalform.kernels.call import Call
from normalform.recipes import NORMS, Recipe
from normalform.refusals import require_float

SWITCH: tuple[str, ...] = NORMS["switch"].over


def norm(
    x: Tensor,
    recipe: str | Recipe,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    params: str = "c",
    center: bool = True,
    kernel: str = "auto",
    **sizes: int,
) -> Tensor:
    """Normalize by any recipe: ``y = weight * (x - mean) / sqrt(var + eps) + bias``.

    Mean and *biased* variance are those of each cell, the elements in brackets.

    Args:
        x: floating point, axes as the recipe names them; any strides.
        recipe: bracket notation, see :func:`normalform.recipe`, a recipe, or the name of a norm
            that has one, as ``"batch"`` or ``"group:8"``.
        weight: one value for each position along ``params``; None for ones.
        bias: the same shape; None for zeros.
        eps: added to the variance, inside the root.
        params: the axes weight and bias vary over, in the order of the tensor: ``"c"``;
            ``"n c"`` gives every sample its own; ``"c s"`` gives every element its own.
        center: subtract the mean; False divides by the root mean square.
        kernel: ``"auto"``, or the kernel to use.
        sizes: of split axes: ``g=8`` groups, or ``c=4`` channels a group; ``n=2`` samples a block.

    Returns:
        A tensor of x's shape, dtype and memory format. A cell of one value gives ``bias``.

    Raises:
        TypeError: x is no tensor of floating point, or a size does not belong to the recipe.
        ValueError: the recipe cannot be read or does not fit the shape.
        RuntimeError: weight or bias do not fit the shape.

    >>> x = torch.tensor([[1., 3.], [10., 30.]])
    >>> nf.norm(x, "n [c]", eps=0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    >>> nf.norm(torch.randn(2, 8, 4, 4), "n (g [c]) [s]", g=4).shape
    torch.Size([2, 8, 4, 4])
    """
    read = path.read(recipe, center, **sizes)
    options = params, eps, read
    y = path.known(options, kernel, x, weight, bias)
    if y is not None:
        return y
    require_float(x, "norm")
    return path.run(Call(x, (read,), weight, bias, eps, params), kernel, options)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    kernel: str = "auto",
) -> Tensor:
    """Batch norm, ``[n] c [s]``: :func:`torch.nn.functional.batch_norm`, exact.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with, for each channel, the mean and
    *biased* variance of the batch where ``training``, the running ones otherwise. While training
    the buffers move by ``running = (1 - momentum) * running + momentum * batch``, with the
    *unbiased* variance; a channel whose new value is not finite keeps its old one, with a warning.

    Args:
        input: (N, C, *).
        running_mean: (C,), or None.
        running_var: (C,), or None.
        weight: (C,), or None.
        bias: (C,), or None.
        training: use the batch's statistics and update the buffers.
        momentum: the share of the new batch.
        eps: added to the variance.
        kernel: ``"auto"``, or the kernel to use; ``"torch"`` is PyTorch's own operator.

    Raises:
        ValueError: one value per channel while training, or ``eps`` not positive.
        RuntimeError: a parameter or buffer does not have C elements, or is missing.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.

    >>> x = torch.tensor([[1.], [3.]])
    >>> nf.functional.batch_norm(x, None, None, training=True, eps=1e-12)
    tensor([[-1.],
            [ 1.]])
    """
    return path.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps,
        kernel=kernel, who="batch_norm",
    )  # fmt: skip


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    kernel: str = "auto",
) -> Tensor:
    """Instance norm, ``n c [s]``: :func:`torch.nn.functional.instance_norm`, exact.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with the mean and *biased* variance of each
    sample and channel, or the running ones without ``use_input_stats``. Buffers, where given, move
    towards the mean over the samples of the means and *unbiased* variances.

    Args:
        input: (N, C, *) with at least one axis after C.
        running_mean: (C,), or None.
        running_var: (C,), or None.
        weight: (C,), or None.
        bias: (C,), or None.
        use_input_stats: use the input's statistics and update the buffers.
        momentum: the share of the new batch.
        eps: added to the variance.
        kernel: ``"auto"``, or the kernel to use; ``"torch"`` is PyTorch's own operator.

    Raises:
        ValueError: one value per sample and channel.
        RuntimeError: a parameter or buffer does not have C elements, or is missing.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.

    >>> nf.functional.instance_norm(torch.tensor([[[1., 3.], [5., 9.]]]), eps=0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    if path.exporting() or kernel == "torch":
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return path.running_norm(
        input, (path.INSTANCE,), running_mean, running_var, weight, bias, use_input_stats, momentum,
        eps, kernel=kernel, who="instance_norm",
    )  # fmt: skip


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    kernel: str = "auto",
) -> Tensor:
    """Layer norm over the last axes: :func:`torch.nn.functional.layer_norm`, exact.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, mean and *biased* variance over the
    trailing axes of ``normalized_shape``, weight and bias one value for each of their elements. For
    one weight a channel at any image size use :func:`group_norm` with one group.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: the trailing sizes to normalize over.
        weight: of ``normalized_shape``, or None.
        bias: of ``normalized_shape``, or None.
        eps: added to the variance.
        kernel: ``"auto"``, or the kernel to use; ``"torch"`` is PyTorch's own operator.

    Raises:
        RuntimeError: the input does not end in ``normalized_shape``, or a parameter is not of it.

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.

    >>> nf.functional.layer_norm(torch.tensor([[1., 3.]]), (2,), eps=0)
    tensor([[-1.,  1.]])
    """
    return path.rows(
        input, normalized_shape, path.ROWS, weight, bias, eps, kernel=kernel, who="layer_norm"
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    kernel: str = "auto",
) -> Tensor:
    """Group norm, ``n (g [c]) [s]``: :func:`torch.nn.functional.group_norm`, exact.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with the mean and *biased* variance of each
    sample and group of C / num_groups neighbouring channels. One group is layer norm over the
    sample, C groups are instance norm.

    Args:
        input: (N, C, *).
        num_groups: how many groups; divides C.
        weight: (C,), or None.
        bias: (C,), or None.
        eps: added to the variance.
        kernel: ``"auto"``, or the kernel to use; ``"torch"`` is PyTorch's own operator.

    Raises:
        ValueError: one value per group in the whole input.
        RuntimeError: C does not divide by ``num_groups``, or a parameter does not have C elements.

    Source: Wu & He 2018, arXiv:1803.08494.

    >>> nf.functional.group_norm(torch.tensor([[1., 3., 10., 30.]]), 2, eps=0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    return path.grouped(input, num_groups, weight, bias, eps, kernel=kernel, who="group_norm")


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    kernel: str = "auto",
) -> Tensor:
    """RMS norm over the last axes: :func:`torch.nn.functional.rms_norm`, exact.

    ``y = weight * x / sqrt(mean(x^2) + eps)``: nothing is subtracted, there is no bias, and eps
    stands inside the root.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: the trailing sizes to normalize over.
        weight: of ``normalized_shape``, or None.
        eps: added to the mean square; None means the machine epsilon of float32 (of float64 for
            float64 input), as in PyTorch.
        kernel: ``"auto"``, or the kernel to use; ``"torch"`` is PyTorch's own operator.

    Raises:
        RuntimeError: the input does not end in ``normalized_shape``, or weight is not of it.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467 (where eps stands outside the root).

    >>> nf.functional.rms_norm(torch.tensor([[3., 4., 0., 0.]]), (4,), eps=0.)
    tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    return path.rows(
        input, normalized_shape, path.RMS_ROWS, weight, None, eps, kernel=kernel, who="rms_norm"
    )


def switch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    over: Sequence[str | Recipe] = SWITCH,
    kernel: str = "auto",
) -> Tensor:
    """Switchable norm: statistics that are a learned blend of several recipes'.

    With ``w = softmax(mean_weight)`` and ``w' = softmax(var_weight)``,
    ``mean = sum_k w_k mean_k``, ``var = sum_k w'_k var_k`` (*biased* variances; the spread between
    the blended means is left out, as in the paper) and
    ``y = weight * (x - mean) / sqrt(var + eps) + bias``.

    A branch whose cells hold one value has no variance and is left out: the softmax runs over the
    remaining logits, the dropped one gets no gradient. The branch that averages over samples uses
    the running statistics where ``training`` is False; they are updated as in :func:`batch_norm`.

    Args:
        input: (N, C, *).
        running_mean: (C,), or None.
        running_var: (C,), or None.
        mean_weight: one logit a branch.
        var_weight: one logit a branch.
        weight: (C,), or None.
        bias: (C,), or None.
        training: use the batch's statistics and update the buffers.
        momentum: the share of the new batch.
        eps: added to the variance.
        over: the branches, as names, notation or recipes; axes in the order ``n c s``.
        kernel: ``"auto"``, or the kernel to use.

    Raises:
        ValueError: every branch has one value a cell; the branches do not fit together.
        RuntimeError: a parameter or buffer does not have the right number of elements.

    Source: Luo et al. 2018, arXiv:1806.10779.

    >>> x, logits = torch.randn(4, 3, 5, 5), torch.tensor([50., 0., 0.])
    >>> y = nf.functional.switch_norm(x, None, None, logits, logits)
    >>> torch.allclose(y, nf.functional.instance_norm(x), rtol=0, atol=1e-6)
    True
    """
    recipes = path.branches(over)
    if running_mean is not None and sum("n" in r.over for r in recipes) > 1:
        raise ValueError(
            "switch_norm: one set of running statistics cannot stand for several branches that "
            "average over samples; keep one of them, or pass None for running_mean and running_var"
        )
    return path.running_norm(
        input, recipes, running_mean, running_var, weight, bias, training, momentum, eps,
        logits=(mean_weight, var_weight), kernel=kernel, who="switch_norm",
    )  # fmt: skip


# One node each in a graph that torch.fx traces, however they branch inside.
for _each in (norm, batch_norm, instance_norm, layer_norm, group_norm, rms_norm, switch_norm):
    torch.fx.wrap(_each)
