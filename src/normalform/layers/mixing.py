"""Norms whose statistics torch does not have: blends of recipes, and blocks of the batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normalform import path
from normalform.functional import SWITCH
from normalform.layers.running import next_momentum
from normalform.layers.shared import PARAMETERS, RUNNING, as_leaf, held, is_traced
from normalform.recipes import Recipe


class _BatchStatistics(nn.Module):
    """Weight, bias and running statistics of shape (C,), as in :class:`torch.nn.BatchNorm2d`."""

    kernel: str = "auto"
    ndims: tuple[int, ...] = ()
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        over: tuple[Recipe, ...],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats, self.over = affine, track_running_stats, over
        _check_branches(type(self).__name__, over, num_features, track_running_stats)
        channels = torch.empty(num_features, device=device, dtype=dtype)
        for name in ("weight", "bias"):
            value = nn.Parameter(torch.empty_like(channels)) if affine else None
            self.register_parameter(name, value)
        tracks = track_running_stats and path.tracked_branch(over) is not None
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty_like(channels) if tracks else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if tracks else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_running_stats()
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running mean 0, running variance 1, no batch counted."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def logits(self) -> tuple[Tensor, Tensor] | None:
        """What the branches are blended by; None where there is one."""
        return None

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``."""
        if type(input) is not Tensor and is_traced(input):
            return as_leaf(self, input)
        if input.dim() not in self.ndims:
            expected = " or ".join(f"{n}D" for n in self.ndims)
            raise ValueError(f"expected {expected} input (got {input.dim()}D input): {self}")
        if input.size(1) != self.num_features:
            raise ValueError(
                f"{self} got {input.size(1)} channels in an input of shape {list(input.shape)}; "
                f"it was made for {self.num_features}"
            )
        mean, var = held(self, self._buffers, RUNNING)
        weight, bias = held(self, self._parameters, PARAMETERS)
        momentum = next_momentum(self, self.momentum) if self.training and mean is not None else 0.0
        return path.running_norm(
            input, self.over, mean, var, weight, bias, self.training or mean is None, momentum,
            self.eps, logits=self.logits(), kernel=self.kernel, who=self,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _check_branches(name: str, over: tuple[Recipe, ...], channels: int, tracks: bool) -> None:
    """Refuse at construction what could not run."""
    if not over:
        raise ValueError(f"{name}(over=()): name at least one norm to blend")
    tracked = [r for r in over if "n" in r.over]
    for r in over:
        blocks = r.axes[0].blocks
        r.cells((blocks or 1, channels))
        if tracks and "n" in r.over and "s" not in r.over:
            raise ValueError(
                f'{name}: recipe "{r}" has no running statistics of shape (C,); '
                "average over s too, or set track_running_stats=False"
            )
    if tracks and len(tracked) > 1:
        listed = " and ".join(f'"{r}"' for r in tracked)
        raise ValueError(
            f"{name}: {listed} would need two sets of running statistics; "
            "keep one of them, or set track_running_stats=False"
        )


class _SwitchNorm(_BatchStatistics):
    mean_weight: Tensor
    var_weight: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        over: Sequence[str | Recipe] = SWITCH,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        recipes = path.branches(over)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, recipes, device, dtype
        )
        for name in ("mean_weight", "var_weight"):
            ones = torch.ones(len(recipes), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(ones))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, all branches alike."""
        super().reset_parameters()
        for logits in (getattr(self, name, None) for name in ("mean_weight", "var_weight")):
            if logits is not None:
                nn.init.ones_(logits)

    def logits(self) -> tuple[Tensor, Tensor]:
        """``mean_weight`` and ``var_weight``."""
        return self.mean_weight, self.var_weight

    def switch_weights(self) -> tuple[Tensor, Tensor]:
        """The share of each branch in the mean and in the variance: the softmax of the logits."""
        return self.mean_weight.detach().softmax(0), self.var_weight.detach().softmax(0)

    def extra_repr(self) -> str:
        branches = ", ".join(repr(r) if r.sizes else f'"{r}"' for r in self.over)
        return f"{super().extra_repr()}, over=({branches})"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        keys = [prefix + name for name in ("mean_weight", "var_weight")]
        others = any(k.startswith(prefix) for k in state_dict)
        if others and not any(key in state_dict for key in keys):
            warnings.warn(
                f"{prefix.rstrip('.') or type(self).__name__}: the state_dict has no mean_weight "
                "and no var_weight, as that of a batch norm; they become ones: all branches "
                "weigh alike",
                stacklevel=2,
            )
            state_dict.update({key: torch.ones_like(self.mean_weight.detach()) for key in keys})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_SWITCH_DOC = """Switchable norm over {shape}: instance, layer and batch statistics, blended.

        y = weight * (x - mean) / sqrt(var + eps) + bias
        mean = sum_k w_k mean_k,   var = sum_k w'_k var_k

    with ``w = softmax(mean_weight)`` and ``w' = softmax(var_weight)``, one logit a branch, shared
    by all channels, all ones at the start. Variances are *biased*; the spread between the blended
    means is left out, as in the paper. In evaluation the batch branch uses its running statistics
    (zeros and ones at the start, the *unbiased* variance, torch's momentum), the others the
    sample's own.

    A branch whose cells hold one value is left out (instance at H = W = 1): the softmax runs over
    the remaining logits. The state_dict of a batch norm loads; the logits are then filled in.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the share of the new batch; None for the average over all batches so far.
        affine: learn weight and bias, one value a channel.
        track_running_stats: keep running statistics; without them evaluation uses the batch's.
        over: what is blended, as names, notation or recipes: ``("instance", "layer")`` serves a
            batch of one; ``("instance", "layer", "ghost:2")`` takes batch statistics from pairs.
        device: where parameters and buffers live.
        dtype: of parameters and buffers.

    Shape: {shape}, the output as the input.

    Raises:
        ValueError: another shape, branches that do not fit together, or one value in every branch.

    Source: Luo et al. 2018, arXiv:1806.10779.

    >>> layer = nf.SwitchNorm{dim}d(4)
    >>> y = layer(torch.randn({example}))
    >>> layer.switch_weights()[0]               # instance, layer, batch
    tensor([0.3333, 0.3333, 0.3333])
    """

_GHOST_DOC = """Batch norm over {shape} in blocks of the batch: ``(b [n]) c [s]``.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Mean and *biased* variance of each block of ``block`` neighbouring samples and each channel:
    what every device of a data parallel training computes from its share of the batch. The last
    block may be shorter; one that would hold a single value joins the block before it. Running
    statistics are the mean over the blocks, weighted by their sizes, of the means and *unbiased*
    variances, updated once a step.

    Args:
        num_features: C.
        block: samples that share statistics, the normalization batch size.
        eps: added to the variance.
        momentum: the share of the new batch; None for the average over all batches so far.
        affine: learn weight and bias, one value a channel.
        track_running_stats: keep running statistics; without them evaluation uses the batch's.
        device: where parameters and buffers live.
        dtype: of parameters and buffers.

    Shape: {shape}, the output as the input.

    Raises:
        ValueError: another shape, or one value per block and channel while training.

    Source: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.

    >>> x = torch.randn({example})
    >>> halves = [nf.BatchNorm{dim}d(4)(half) for half in x.chunk(2)]
    >>> torch.equal(nf.GhostBatchNorm{dim}d(4, block=2)(x), torch.cat(halves))
    True
    """


class _GhostBatchNorm(_BatchStatistics):
    def __init__(
        self,
        num_features: int,
        block: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        recipes = (path.read("ghost", n=block),)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, recipes, device, dtype
        )
        self.block = block

    def extra_repr(self) -> str:
        head, rest = super().extra_repr().split(", ", 1)
        return f"{head}, block={self.block}, {rest}"


class SwitchNorm1d(_SwitchNorm):  # noqa: D101
    __doc__ = _SWITCH_DOC.format(dim=1, shape="(N, C) or (N, C, L)", example="4, 4, 6")
    ndims = (2, 3)


class SwitchNorm2d(_SwitchNorm):  # noqa: D101
    __doc__ = _SWITCH_DOC.format(dim=2, shape="(N, C, H, W)", example="4, 4, 6, 6")
    ndims = (4,)


class SwitchNorm3d(_SwitchNorm):  # noqa: D101
    __doc__ = _SWITCH_DOC.format(dim=3, shape="(N, C, D, H, W)", example="4, 4, 6, 6, 6")
    ndims = (5,)


class GhostBatchNorm1d(_GhostBatchNorm):  # noqa: D101
    __doc__ = _GHOST_DOC.format(dim=1, shape="(N, C) or (N, C, L)", example="4, 4, 6")
    ndims = (2, 3)


class GhostBatchNorm2d(_GhostBatchNorm):  # noqa: D101
    __doc__ = _GHOST_DOC.format(dim=2, shape="(N, C, H, W)", example="4, 4, 6, 6")
    ndims = (4,)


class GhostBatchNorm3d(_GhostBatchNorm):  # noqa: D101
    __doc__ = _GHOST_DOC.format(dim=3, shape="(N, C, D, H, W)", example="4, 4, 6, 6, 6")
    ndims = (5,)
