"""Norms with running statistics that torch has: batch and instance."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import path
from normalform.layers.shared import COUNTER, PARAMETERS, RUNNING, as_leaf, held, is_traced

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


def next_momentum(layer: nn.Module, momentum: float | None) -> float | Tensor:
    """Count a batch, and the share it has in the running statistics."""
    (counter,) = held(layer, layer._buffers, COUNTER)
    if counter is not None:
        path.count(counter)
    if momentum is not None:
        return momentum
    # A tensor, not float(): compilation must not break here.
    return 0.0 if counter is None else 1.0 / counter.to(torch.float64)


class _Batch(_BatchNorm):
    kernel: str = "auto"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        self._check_input_dim(input)
        tracks = self.training and self.track_running_stats
        momentum = next_momentum(self, self.momentum) if tracks else 0.0
        mean = var = None
        if tracks or not self.training:
            mean, var = held(self, self._buffers, RUNNING)
        training = self.training or (mean is None and var is None)
        weight, bias = held(self, self._parameters, PARAMETERS)
        return path.batch_norm(
            input, mean, var, weight, bias, training, momentum, self.eps, kernel=self.kernel,
            who=self,
        )  # fmt: skip


class _Instance(_InstanceNorm):
    kernel: str = "auto"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        if path.exporting() or self.kernel == "torch":
            return super().forward(input)
        self._check_input_dim(input)
        dim = input.dim() - self._get_no_batch_dim()  # of the channels: 0 without samples
        if input.size(dim) != self.num_features:
            self._refuse_channels(input.size(dim), dim)
        x = input.unsqueeze(0) if dim == 0 else input
        training = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.momentum is None and training and self.track_running_stats:
            momentum = next_momentum(self, self.momentum)
        mean, var = held(self, self._buffers, RUNNING)
        weight, bias = held(self, self._parameters, PARAMETERS)
        y = path.running_norm(
            x, (path.INSTANCE,), mean, var, weight, bias, training, momentum, self.eps,
            kernel=self.kernel, who=self,
        )  # fmt: skip
        return y.squeeze(0) if dim == 0 else y

    def _refuse_channels(self, channels: int, dim: int) -> None:
        """Without parameters only a warning, as in PyTorch."""
        if self.affine:
            raise ValueError(
                f"expected input's size at dim={dim} to match num_features ({self.num_features}), "
                f"but got: {channels}."
            )
        warnings.warn(
            f"input's size at dim={dim} does not match num_features. You can silence this warning "
            "by not passing in num_features, which is not used because affine=False",
            stacklevel=3,
        )


class BatchNorm1d(_Batch, nn.BatchNorm1d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=1, shape="(N, C) or (N, C, L)", example="8, 3")


class BatchNorm2d(_Batch, nn.BatchNorm2d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=2, shape="(N, C, H, W)", example="8, 3, 4, 4")


class BatchNorm3d(_Batch, nn.BatchNorm3d):  # noqa: D101
    __doc__ = _BATCH_DOC.format(dim=3, shape="(N, C, D, H, W)", example="8, 3, 4, 4, 4")


class InstanceNorm1d(_Instance, nn.InstanceNorm1d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=1, shape="(N, C, L)", example="2, 3, 4")


class InstanceNorm2d(_Instance, nn.InstanceNorm2d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=2, shape="(N, C, H, W)", example="2, 3, 4, 4")


class InstanceNorm3d(_Instance, nn.InstanceNorm3d):  # noqa: D101
    __doc__ = _INSTANCE_DOC.format(dim=3, shape="(N, C, D, H, W)", example="2, 3, 4, 4, 4")
