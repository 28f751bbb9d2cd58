"""The norms of a model, by type, and how many values each of their statistics stands on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import path
from normalform.layers.mixing import _GhostBatchNorm, _SwitchNorm
from normalform.recipes import Recipe
from normalform.surgery.kinds import is_norm

_FAMILIES: tuple[tuple[type[nn.Module], str], ...] = (
    (_InstanceNorm, "instance"),
    (_BatchNorm, "batch"),
    (nn.GroupNorm, "group"),
    (nn.LayerNorm, "layer"),
    (nn.RMSNorm, "rms"),
    (_SwitchNorm, "switch"),
    (_GhostBatchNorm, "ghost"),
)
SHARED = ("batch", "ghost")  # samples share every statistic
BY_CHANNEL = ("batch", "ghost", "instance")  # no cell reaches over two channels
ROWS = ("layer", "rms")  # over the last axes, whatever stands before them


@dataclass(frozen=True)
class Norm:
    """A norm of the model.

    Attributes:
        names: every dotted name it has.
        module: the norm.
        family: ``batch``, ``instance``, ``group``, ``layer``, ``rms``, ``switch``, ``ghost``;
            ``fixed`` where running statistics are always used, ``own`` for other classes.
        label: what to call it where its class is not known.
    """

    names: tuple[str, ...]
    module: nn.Module
    family: str
    label: str = ""

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0] or "(the model)"

    @property
    def kind(self) -> str:
        """The name of its class, or what its tensors look like."""
        return self.label or type(self.module).__name__

    @property
    def running(self) -> tuple[Tensor, Tensor] | None:
        """Running mean and variance, None where it keeps none."""
        mean = getattr(self.module, "running_mean", None)
        var = getattr(self.module, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            return None
        return mean.detach(), var.detach()

    @property
    def affine(self) -> dict[str, nn.Parameter]:
        """Its own parameters by name."""
        return dict(self.module.named_parameters(recurse=False))

    @property
    def eps(self) -> float | None:
        """Its eps; None where it has none, or the type's own."""
        eps = getattr(self.module, "eps", None)
        return float(eps) if isinstance(eps, int | float) else None

    @property
    def switchable(self) -> bool:
        """Whether it uses running statistics in evaluation, and those of the batch in training."""
        tracks = bool(getattr(self.module, "track_running_stats", True))
        return self.family not in ("fixed", "own") and self.running is not None and tracks


def norms_of(model: nn.Module) -> tuple[Norm, ...]:
    """Every norm, in the order of the model, each once."""
    found: dict[int, tuple[nn.Module, str, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        family = family_of(module)
        if family:
            found.setdefault(id(module), (module, family, []))[2].append(name)
    return tuple(Norm(tuple(names), module, family) for module, family, names in found.values())


def family_of(module: nn.Module) -> str:
    """Which norm a module is, by type; empty where it is none.

    >>> family_of(torch.nn.LayerNorm(4)), family_of(nf.SwitchNorm2d(4)), family_of(torch.nn.ReLU())
    ('layer', 'switch', '')
    """
    for kind, family in _FAMILIES:
        if isinstance(module, kind):
            return family
    if _keeps_statistics(module):
        return "fixed"
    return "own" if is_norm(module) else ""


def _keeps_statistics(module: nn.Module) -> bool:
    """A class nobody knows, with a mean and a variance for each channel."""
    mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return False
    return mean.ndim == 1 and mean.shape == var.shape


def channel_axis(norm: Norm, x: Tensor) -> int:
    """The axis of the channels: 1, but the last of norms over rows, 0 where there is no sample."""
    if norm.family in ROWS:
        return x.ndim - 1
    if isinstance(norm.module, _InstanceNorm) and x.ndim == norm.module._get_no_batch_dim():
        return 0
    return min(1, x.ndim - 1)


def values_per_statistic(norm: Norm, x: Tensor) -> int:
    """How many values of ``x`` stand behind each mean and variance.

    The fewest, where cells differ; those of the batch branch of a switchable norm; 0 where nobody
    knows, or no statistics are taken.

    >>> norm = Norm(("norm",), torch.nn.BatchNorm2d(4), "batch")
    >>> values_per_statistic(norm, torch.zeros(2, 4, 3, 3))
    18
    """
    if norm.family in ("fixed", "own"):
        return 0
    if norm.family in ROWS:
        return math.prod(getattr(norm.module, "normalized_shape"))  # noqa: B009
    shape = (1, *x.shape) if channel_axis(norm, x) == 0 else tuple(x.shape)
    found = [min(recipe.cells(shape).counts) for recipe in recipes_of(norm)]
    values = found[-1] if norm.family == "switch" else min(found)
    synchronized = isinstance(norm.module, nn.SyncBatchNorm) and dist.is_initialized()
    return values * dist.get_world_size() if synchronized else values


def recipes_of(norm: Norm) -> tuple[Recipe, ...]:
    """Which elements share statistics; the one over samples last, where several are blended."""
    if norm.family in ROWS:
        return (path.ROWS if norm.family == "layer" else path.RMS_ROWS,)
    if isinstance(norm.module, nn.GroupNorm):
        return (path.read("group", g=norm.module.num_groups),)
    if norm.family in ("switch", "ghost"):
        over: tuple[Recipe, ...] = getattr(norm.module, "over")  # noqa: B009
        return tuple(sorted(over, key=lambda recipe: "n" in recipe.over))
    return (path.INSTANCE if norm.family == "instance" else path.BATCH,)


def exact(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)


def cell_variances(norm: Norm, x: Tensor) -> Tensor:
    """Variance of the cells of ``x`` in float64, about 0 for norms that are not centred.

    Of a norm that nobody knows, all of x is a cell.
    """
    x = exact(x)
    if norm.family == "own":
        return x.flatten().var(0, correction=0)
    if norm.family in ROWS:
        rows = x.flatten(-len(getattr(norm.module, "normalized_shape")))  # noqa: B009
        return rows.square().mean(-1) if norm.family == "rms" else rows.var(-1, correction=0)
    if channel_axis(norm, x) == 0:
        x = x[None]
    if isinstance(norm.module, nn.GroupNorm):
        return x.reshape(x.size(0), norm.module.num_groups, -1).var(-1, correction=0)
    if norm.family == "instance":
        return x.flatten(2).var(-1, correction=0)
    return x.transpose(0, 1).flatten(1).var(-1, correction=0)
