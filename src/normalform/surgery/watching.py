"""Batch norms of a model in one pass over some data: what reaches each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import path
from normalform.surgery.keeping import kept
from normalform.surgery.kinds import KINDS, label, label_of, named, stranger
from normalform.surgery.population import Population, moments
from normalform.surgery.report import Left

BATCHES = ("batch", "ghost", "switch")

FROZEN = "frozen: its statistics are not meant to change"
IN_EVALUATION = "frozen: it is in evaluation mode while the model trains"
NO_STATISTICS = "keeps no running statistics"
NOT_BATCH = "its running statistics are those of instances, not of the batch"
ALL_CHANNELS = "channels share its running statistics"
UNKNOWN = "a class of its own: nobody knows what its statistics are of"
OTHER = "a subclass of {}, and its statistics are not those of its input"


@dataclass(eq=False)
class Watch:
    """A norm, and what reached it.

    Attributes:
        names: every dotted name it has.
        module: the norm.
        population: of all its inputs.
        known: whether its class is, so that its statistics are those of its input.
        calls: how many of them.
        reason: why it must be left, found on the way.
        latest: of its latest input.
    """

    names: tuple[str, ...]
    module: Any
    population: Population = field(init=False)
    known: bool = field(init=False)
    calls: int = 0
    reason: str = ""
    latest: Population = field(default_factory=lambda: Population(0))

    def __post_init__(self) -> None:
        self.population = Population(self.module.running_mean.numel())
        self.known = type(self.module) in KINDS and "forward" not in vars(self.module)


def watches(model: nn.Module) -> tuple[list[Watch], list[Left]]:
    """The norms whose running statistics are those of the batch, and others that keep some."""
    found: list[Watch] = []
    left: list[Left] = []
    evaluated = _in_evaluation(model)
    for module, names in named(model):
        reason = _obstacle(module)
        if reason == "" and id(module) in evaluated:
            reason = IN_EVALUATION
        if reason:
            left.append(Left(names, label(module), reason))
        elif reason == "":
            found.append(Watch(names, module))
    return found, left


def watch_all(model: nn.Module, found: list[Watch]) -> None:
    """Watched norms in training mode, all the rest in evaluation; somebody else undoes it.

    Modes are set on each module alone: a ``train`` of a model's own may do more than that.
    """
    for module in model.modules():
        module.training = False
    for watch in found:
        norm = watch.module
        norm.training = True
        if type(norm) is nn.SyncBatchNorm:
            norm.__class__ = _OfThisRank
        elif not watch.known:
            norm.momentum = 1.0  # so that its buffers show what it takes for its input
        norm.register_forward_pre_hook(partial(_before, watch), with_kwargs=True)
        norm.register_forward_hook(partial(_after, watch))


class _OfThisRank(nn.SyncBatchNorm):
    """Waits for no other rank, which may have no more batches, and runs on any device."""

    def forward(self, input: Tensor) -> Tensor:
        return _BatchNorm.forward(self, input)


def _obstacle(module: nn.Module) -> str | None:
    """Why a norm is left; empty where it is not, None for what keeps no such statistics."""
    kind = KINDS.get(type(module))
    stats = [getattr(module, name, None) for name in ("running_mean", "running_var")]
    keeps = all(isinstance(t, Tensor) for t in stats)
    if kind is not None and kind.name == "frozen":
        return FROZEN
    scripted = isinstance(module, torch.jit.ScriptModule)
    subclass = kind is None and isinstance(module, _BatchNorm) and not scripted
    if subclass and isinstance(module, nn.SyncBatchNorm):
        return stranger(module)
    if not subclass and (kind is None or kind.name not in BATCHES):
        known = isinstance(module, _InstanceNorm)
        return (NOT_BATCH if known else stranger(module) or UNKNOWN) if keeps else None
    if not keeps:
        return NO_STATISTICS
    return ALL_CHANNELS if _shares_channels(module) else ""


def _shares_channels(module: nn.Module) -> bool:
    over = getattr(module, "over", ())
    tracked = path.tracked_branch(over)
    return tracked is not None and "c" in over[tracked].over


def _in_evaluation(model: nn.Module) -> set[int]:
    """The modules that are in evaluation mode while the model is in training mode.

    Where some ``train`` is not PyTorch's, it is asked what it makes of them.
    """
    found = {id(m) for m in model.modules() if model.training and not m.training}
    own = (type(m).train is not nn.Module.train or "train" in vars(m) for m in model.modules())
    if any(own):
        with kept(model, parameters=True):
            model.train()
            found |= {id(m) for m in model.modules() if not m.training}
    return found


def _before(watch: Watch, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if x is None or x.ndim < 2 or x.size(1) != watch.population.mean.numel():
        watch.reason = "" if watch.known else _other(norm)  # of the known, forward says it
        return
    if not x.numel():
        return
    now = moments(x.detach())
    watch.calls += 1
    watch.latest = now
    watch.population.merge(now)
    if now.count == 1 and KINDS.get(type(norm), ("",))[0] != "switch":
        _use_the_population(watch, x)


def _use_the_population(watch: Watch, x: Tensor) -> None:
    """Where the batch has one value a channel and therefore no variance."""
    if watch.population.count < 2:
        raise ValueError(
            f"recalibrate: the first input of {watch.names[0] or 'the model'} is "
            f"{list(x.shape)}, one value in each channel, which has no variance; give larger "
            "batches, the first at least"
        )
    norm = watch.module
    norm.training = False
    norm.running_mean.copy_(watch.population.mean)
    norm.running_var.copy_(watch.population.variance())


def _after(watch: Watch, norm: Any, args: tuple[Any, ...], y: Any) -> None:
    if norm.training and not watch.known and not watch.reason and watch.latest.count > 1:
        watch.reason = "" if _is_of(watch.latest, norm) else _other(norm)
    norm.training = True


def _is_of(input: Population, norm: Any) -> bool:
    """Whether the buffers that a norm has just written are about those of its input."""
    mean, var = input.mean, input.variance()
    found = norm.running_mean.to(mean), norm.running_var.to(mean)
    std = var.sqrt()
    near = (found[0] - mean).abs() <= 0.02 * std + 1e-4 * mean.abs()
    near &= (found[1] - var).abs() <= 0.1 * var + (1e-3 * mean).square()
    return bool((near | ~mean.isfinite() | ~var.isfinite()).all())


def _other(norm: nn.Module) -> str:
    base = next(b for b in type(norm).__mro__ if b in KINDS)
    return OTHER.format(label_of(base))
