"""Norms without running statistics: layer, group and root mean square."""

from __future__ import annotations

from torch import Tensor, nn

from normalform import path
from normalform.layers.shared import PARAMETERS, as_leaf, held, is_traced


class LayerNorm(nn.LayerNorm):
    r"""Layer norm over the last axes: :class:`torch.nn.LayerNorm`, exact.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Mean and *biased* variance over the trailing axes ``normalized_shape``; weight and bias have
    one value for each of their elements, which ties a layer over (C, H, W) to one image size. For
    one weight a channel at any size use ``GroupNorm(1, C)``.

    Args:
        normalized_shape: size of the last axis, or sizes of the last axes.
        eps: added to the variance.
        elementwise_affine: learn weight and bias.
        bias: learn a bias.
        device: where weight and bias live.
        dtype: of weight and bias.

    Shape: (\*, \*normalized_shape), the output as the input.

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.

    >>> nf.LayerNorm(2, eps=1e-12, elementwise_affine=False)(torch.tensor([[1., 3.]]))
    tensor([[-1.,  1.]])
    """

    kernel: str = "auto"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        weight, bias = held(self, self._parameters, PARAMETERS)
        return path.rows(
            input, self.normalized_shape, path.ROWS, weight, bias, self.eps, kernel=self.kernel,
            who=self,
        )  # fmt: skip


class GroupNorm(nn.GroupNorm):
    r"""Group norm: :class:`torch.nn.GroupNorm`, exact.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Mean and *biased* variance of each sample and group of neighbouring channels, over all
    positions. One group is layer norm over the sample; C groups are instance norm.

    Args:
        num_groups: how many groups; divides ``num_channels``.
        num_channels: C.
        eps: added to the variance.
        affine: learn weight and bias, one value a channel.
        device: where weight and bias live.
        dtype: of weight and bias.
        bias: learn a bias.

    Shape: (N, C, \*), the output as the input.

    Source: Wu & He 2018, arXiv:1803.08494.

    >>> nf.GroupNorm(2, 4, eps=1e-12, affine=False)(torch.tensor([[1., 3., 10., 30.]]))
    tensor([[-1.,  1., -1.,  1.]])
    """

    kernel: str = "auto"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        weight, bias = held(self, self._parameters, PARAMETERS)
        return path.grouped(
            input, self.num_groups, weight, bias, self.eps, kernel=self.kernel, who=self
        )


class RMSNorm(nn.RMSNorm):
    r"""Root mean square norm over the last axes: :class:`torch.nn.RMSNorm`, exact.

        y = weight * x / sqrt(mean(x^2) + eps)

    Nothing is subtracted and there is no bias. eps stands inside the root, as in PyTorch; None
    means the machine epsilon of float32, of float64 for float64 input.

    Args:
        normalized_shape: size of the last axis, or sizes of the last axes.
        eps: added to the mean square.
        elementwise_affine: learn weight.
        device: where weight lives.
        dtype: of weight.

    Shape: (\*, \*normalized_shape), the output as the input.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467 (where eps stands outside the root).

    >>> nf.RMSNorm(4, eps=0., elementwise_affine=False)(torch.tensor([[3., 4., 0., 0.]]))
    tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """

    kernel: str = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``."""
        if type(x) is not Tensor and is_traced(x):
            return as_leaf(self, x)
        weight = held(self, self._parameters, PARAMETERS[:1])[0]
        return path.rows(
            x, self.normalized_shape, path.RMS_ROWS, weight, None, self.eps, kernel=self.kernel,
            who=self,
        )  # fmt: skip
