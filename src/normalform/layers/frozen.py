"""Batch norm that has stopped: running statistics that no call and no mode changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normalform import path
from normalform.layers.shared import as_leaf, is_traced
from normalform.recipes import Recipe

_FROZEN_DOC = """Batch norm over {shape} with statistics that stay as they are, in every mode.

        y = weight * (x - running_mean) / sqrt(running_var + eps) + bias

    What ``BatchNorm{dim}d`` computes in evaluation, while training, too: a constant scale and shift
    for each channel. Weight and bias are buffers, so no optimizer, weight decay or
    ``requires_grad_()`` reaches them; with ``trainable`` they are parameters that learn.

    The state_dict is that of ``BatchNorm{dim}d``. It loads with or without
    ``num_batches_tracked``, which frozen norms of other libraries leave out.
    :func:`normalform.freeze` makes such layers of the batch norms of a model.

    Args:
        num_features: C.
        eps: added to the variance; 1e-5 as in PyTorch, whatever the checkpoint was trained with.
        affine: have weight and bias, one value a channel.
        trainable: let weight and bias learn.
        device: where parameters and buffers live.
        dtype: of parameters and buffers.

    Shape: {shape}, the output as the input.

    Raises:
        ValueError: another number of axes.
        RuntimeError: another number of channels.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167; frozen as in He et al. 2015, arXiv:1512.03385.

    >>> trained = nf.BatchNorm{dim}d(3)
    >>> y = trained(torch.randn({example}) + 100)
    >>> layer = nf.FrozenBatchNorm{dim}d(3)
    >>> layer.load_state_dict(trained.state_dict())
    <All keys matched successfully>
    >>> x = torch.randn({example})
    >>> torch.equal(layer.train()(x), trained.eval()(x))
    True
    """


class _FrozenBatchNorm(nn.Module):
    _version = 2  # of the state_dict, as torch's batch norm: with num_batches_tracked
    kernel: str = "auto"
    over: tuple[Recipe, ...] = (path.BATCH,)
    ndims: tuple[int, ...] = ()
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        trainable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if trainable and not affine:
            raise ValueError(f"{type(self).__name__}: without weight and bias nothing is trainable")
        self.num_features, self.eps = num_features, eps
        self.affine, self.trainable = affine, trainable
        ones = torch.ones(num_features, device=device, dtype=dtype)
        for name, value in (("weight", ones), ("bias", torch.zeros_like(ones))):
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value if affine else None)
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", torch.ones_like(ones))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        if input.dim() not in self.ndims:
            expected = " or ".join(f"{n}D" for n in self.ndims)
            raise ValueError(f"expected {expected} input (got {input.dim()}D input): {self}")
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        return path.batch_norm(
            input, mean, var, weight, bias, False, 0.0, self.eps, kernel=self.kernel, who=self
        )

    def extra_repr(self) -> str:
        trainable = ", trainable=True" if self.trainable else ""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}{trainable}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if prefix + "running_mean" in state_dict:
            state_dict.setdefault(key, self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FrozenBatchNorm1d(_FrozenBatchNorm):  # noqa: D101
    __doc__ = _FROZEN_DOC.format(dim=1, shape="(N, C) or (N, C, L)", example="8, 3")
    ndims = (2, 3)


class FrozenBatchNorm2d(_FrozenBatchNorm):  # noqa: D101
    __doc__ = _FROZEN_DOC.format(dim=2, shape="(N, C, H, W)", example="8, 3, 4, 4")
    ndims = (4,)


class FrozenBatchNorm3d(_FrozenBatchNorm):  # noqa: D101
    __doc__ = _FROZEN_DOC.format(dim=3, shape="(N, C, D, H, W)", example="8, 3, 4, 4, 4")
    ndims = (5,)
