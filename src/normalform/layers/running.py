"""Norms with running statistics that torch has: batch and instance."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import path
from normalform.layers.tracing import as_leaf, is_traced

_BATCH_DOC = """Batch norm over {shape}: :class:`torch.nn.BatchNorm{dim}d`, exact.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    While training, mean and *biased* variance of each channel over the batch; the running buffers
    move by ``running = (1 - momentum) * running + momentum * batch``, with the *unbiased* variance.
    In evaluation the running ones, a constant scale and shift. A channel whose new running value is
    not finite keeps its old one, with a warning.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the share of the new batch; None for the average over all batches so far.
        affine: learn weight and bias, one value a channel.
        track_running_stats: keep running statistics; without them evaluation uses the batch's.
        device: where parameters and buffers live.
        dtype: of parameters and buffers.

    Shape: {shape}, the output as the input.

    Raises:
        ValueError: another number of axes, or one value per channel while training.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.

    >>> layer = nf.BatchNorm{dim}d(3)
    >>> y = layer(torch.randn({example}) + 100)
    >>> (layer.running_mean - 10).abs() < 1      # a tenth of the way from 0 to 100
    tensor([True, True, True])
    """

_INSTANCE_DOC = """Instance norm over {shape}: :class:`torch.nn.InstanceNorm{dim}d`, exact.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Mean and *biased* variance of each sample and channel over its positions. With
    ``track_running_stats`` the buffers follow the mean over the samples of the means and *unbiased*
    variances, and evaluation uses them. ``momentum=None`` is the average over all batches so far
    (PyTorch's never updates then).

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the share of the new batch; None for the average over all batches so far.
        affine: learn weight and bias, one value a channel.
        track_running_stats: keep running statistics and use them in evaluation.
        device: where parameters and buffers live.
        dtype: of parameters and buffers.

    Shape: {shape}, or without N; the output as the input.

    Raises:
        ValueError: another number of axes, or one value per sample and channel.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.

    >>> y = nf.InstanceNorm{dim}d(3)(torch.randn({example}) + 100)
    >>> bool(y.mean().abs() < 1e-6)
    True
    """


def next_momentum(layer: _NormBase | nn.Module) -> float | Tensor:
    """Count a batch, and the share it has in the running statistics."""
    momentum, counter = layer.momentum, layer.num_batches_tracked
    if counter is not None:
        counter.add_(1)
    if momentum is not None:
        return momentum
    # A tensor, not float(): compilation must not break here.
    return 0.0 if counter is None else 1.0 / counter.to(torch.float64)


def _batch_forward(self: _BatchNorm, input: Tensor) -> Tensor:
    """Normalize ``input``."""
    if is_traced(input):
        return as_leaf(self, input)
    if path.exporting():
        return _BatchNorm.forward(self, input)
    self._check_input_dim(input)
    tracks = self.training and self.track_running_stats
    momentum = next_momentum(self) if tracks else 0.0
    used = tracks or not self.training
    mean, var = (self.running_mean, self.running_var) if used else (None, None)
    training = self.training or (mean is None and var is None)
    return path.batch_norm(
        input, mean, var, self.weight, self.bias, training, momentum, self.eps,
        kernel=self.kernel, who=self,
    )  # fmt: skip


def _instance_forward(self: _InstanceNorm, input: Tensor) -> Tensor:
    """Normalize ``input``."""
    if is_traced(input):
        return as_leaf(self, input)
    if path.exporting():
        return _InstanceNorm.forward(self, input)
    self._check_input_dim(input)
    unbatched = input.dim() == self._get_no_batch_dim()
    x = input.unsqueeze(0) if unbatched else input
    if x.size(1) != self.num_features:
        _wrong_channels(self, input, input.dim() - self._get_no_batch_dim())
    training = self.training or not self.track_running_stats
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.momentum is None and training and self.track_running_stats:
        momentum = next_momentum(self)
    y = path.running_norm(
        x, (path.INSTANCE,), self.running_mean, self.running_var, self.weight, self.bias,
        training, momentum, self.eps, kernel=self.kernel, who=self,
    )  # fmt: skip
    return y.squeeze(0) if unbatched else y


def _wrong_channels(layer: _InstanceNorm, input: Tensor, dim: int) -> None:
    """Refuse, or without parameters warn, exactly as PyTorch does."""
    if layer.affine:
        raise ValueError(
            f"expected input's size at dim={dim} to match num_features ({layer.num_features}), "
            f"but got: {input.size(dim)}."
        )
    warnings.warn(
        f"input's size at dim={dim} does not match num_features. You can silence this warning by "
        "not passing in num_features, which is not used because affine=False",
        stacklevel=3,
    )


class BatchNorm1d(nn.BatchNorm1d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=1, shape="(N, C) or (N, C, L)", example="8, 3")
    kernel: str = "auto"
    forward = _batch_forward


class BatchNorm2d(nn.BatchNorm2d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=2, shape="(N, C, H, W)", example="8, 3, 4, 4")
    kernel: str = "auto"
    forward = _batch_forward


class BatchNorm3d(nn.BatchNorm3d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=3, shape="(N, C, D, H, W)", example="8, 3, 4, 4, 4")
    kernel: str = "auto"
    forward = _batch_forward


class InstanceNorm1d(nn.InstanceNorm1d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=1, shape="(N, C, L)", example="2, 3, 4")
    kernel: str = "auto"
    forward = _instance_forward


class InstanceNorm2d(nn.InstanceNorm2d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=2, shape="(N, C, H, W)", example="2, 3, 4, 4")
    kernel: str = "auto"
    forward = _instance_forward


class InstanceNorm3d(nn.InstanceNorm3d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=3, shape="(N, C, D, H, W)", example="2, 3, 4, 4, 4")
    kernel: str = "auto"
    forward = _instance_forward
