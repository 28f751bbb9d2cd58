"""The norms of a model exchanged for norms of other kinds: which for which, and why not.

Norms over channels on axis 1 are exchanged among each other, norms over the last axes among each
other. Between the two nothing fits, neither the axes nor the shape of weight and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from normalform import layers
from normalform.recipes import meant
from normalform.surgery.kinds import (
    AFFINE,
    CLASSES,
    KINDS,
    Kind,
    in_fast_path,
    in_quantization,
    is_norm,
    label,
    label_of,
    named,
    obstacle,
    own_tensors,
    stranger,
)
from normalform.surgery.memory import OPTIONS, Form, become, tensors
from normalform.surgery.report import Converted, Left

HAS_DIM = frozenset(name for name, stem in CLASSES.items() if "{}" in stem)
ALONE = (
    "one channel in each group is instance norm: it needs several positions, and takes away more "
    "than group norm does; name fewer groups, or layer"
)
PAPERS = 32  # groups, where no number is given
ROWS = frozenset(("layer", "token", "rms", "none"))  # what a norm over the last axes may become
CHANNELS = frozenset((*CLASSES, "none")) - {"rms"}  # and a norm over channels on axis 1
TRACKING = frozenset(("batch", "ghost", "switch"))  # may or may not have running statistics

WITHIN = (
    "its running variances are those within samples, as instance norm keeps them: in evaluation "
    "nothing changes; train or recalibrate to have those of the batch"
)
UNTRAINED = "running statistics of 0 and 1: train or recalibrate before evaluation, which uses them"
UNBATCHED = "takes (N, C, L) alone: an input (N, C) it would read as one sample without N"
UNOPTIMIZED = (
    "has new parameters, which an optimizer or DistributedDataParallel made before does not know"
)
GUESSED = "of as many axes as all convolutions and norms of the model; an example would show them"
FAST = (
    "in evaluation nn.TransformerEncoderLayer computes a layer norm in its place: call "
    "torch.backends.mha.set_fastpath_enabled(False) first"
)


@dataclass(frozen=True)
class Target:
    """What a norm is exchanged for.

    Args:
        name: without its number.
        number: of groups, or of samples; None where the name had none.
        trainable: let weight and bias of a frozen norm learn.
    """

    name: str
    number: int | None = None
    trainable: bool = False

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number}"


@dataclass
class Plan:
    """What to do with the norms of a model, before anything is done."""

    forms: list[tuple[nn.Module, Form]]
    converted: list[Converted]
    left: list[Left]


@dataclass(frozen=True)
class Surroundings:
    """What is to be known about a norm beside itself.

    Args:
        parts: norms that belong to modules of torch.ao.
        fused: norms that the fast path of transformers computes itself.
        dims: how many axes follow the channels, of all convolutions and norms of the model.
        seen: how many axes the inputs of each norm had; None where nobody looked.
    """

    parts: set[int]
    fused: set[int]
    dims: set[int]
    seen: Mapping[nn.Module, set[int]] | None


def targets(mapping: Mapping[str, str]) -> dict[str, Target]:
    """The mapping that a caller gave, checked.

    Raises:
        TypeError: not a dict of names.
        ValueError: a name that is not known.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f'convert takes a dict such as {{"batch": "group:32"}}, got {type(mapping).__name__}'
        )
    found: dict[str, Target] = {}
    for key, name in mapping.items():
        if key not in CLASSES:
            near = meant(key, CLASSES) if isinstance(key, str) else ""
            known = f"{near}known: {', '.join(CLASSES)}"
            raise ValueError(f"convert: {key!r} is no kind of norm to look for; {known}")
        if not isinstance(name, str):
            raise TypeError(
                f'convert: what {key!r} becomes is a name such as "group:32", got {name!r}'
            )
        layers.get_norm_layer(name, 1)  # which says what is wrong with a name
        stem, _, number = name.partition(":")
        found[key] = Target(stem, int(number) if number else None)
    return found


def planned(
    model: nn.Module,
    wanted: Mapping[str, Target],
    seen: Mapping[nn.Module, set[int]] | None = None,
    unnamed: str = "the mapping does not name it",
) -> Plan:
    """What each norm is to become, or why it stays; ``unnamed`` is why others than wanted do."""
    fused = in_fast_path(model) if torch.backends.mha.get_fastpath_enabled() else set[int]()
    around = Surroundings(in_quantization(model), fused, _dims(model), seen)
    plan = Plan([], [], [])
    for module, names in named(model):
        if not is_norm(module):
            continue
        kind = KINDS.get(type(module))
        target = wanted.get(kind.name) if kind is not None else None
        if kind is None or target is None:
            made = (stranger(module) or "of no kind that is exchanged") if kind is None else unnamed
        else:
            made = obstacle(module, around.parts) or own_tensors(module)
            made = made or _made(module, kind, target, around)
        if kind is None or target is None or isinstance(made, str):
            plan.left.append(Left(names, label(module), str(made)))
            continue
        form = become(module, made)
        if target.name in ("switch", "ghost") and form.attributes.get("kernel") == "torch":
            form.attributes["kernel"] = "auto"  # PyTorch has none for them
        plan.forms.append((module, form))
        plan.converted.append(_row(names, module, kind, target, around, form))
    return plan


def _made(old: nn.Module, kind: Kind, target: Target, around: Surroundings) -> nn.Module | str:
    """A norm as ``target`` says with the options of ``old``, or why there is none."""
    reason = _senseless(old, kind, target, around)
    if reason:
        return reason
    dim = kind.dim or 1
    if kind.dim is None and target.name in HAS_DIM:
        dims = around.dims if around.seen is None else _followers(around.seen.get(old, set()))
        if len(dims) != 1:
            return (
                f"takes any number of axes, {target.name} norm does not: give example= an input "
                "that reaches it, so that they are seen"
            )
        (dim,) = dims
    made = _built(old, kind, target, dim)
    return f"{target} norm already" if _alike(old, made) else made


def _senseless(old: nn.Module, kind: Kind, target: Target, around: Surroundings) -> str:
    """Why the one norm cannot take the place of the other, or nothing."""
    rows = kind.name in ROWS
    if target.name not in (ROWS if rows else CHANNELS):
        axes = ("the last axes", "the channels on axis 1")
        ours, theirs = axes if rows else axes[::-1]
        return f"works on {ours}, {target.name} norm on {theirs}: neither axes nor weights fit"
    if target.name == "frozen" and getattr(old, "running_mean", None) is None:
        return "keeps no running statistics that could be frozen"
    if id(old) in around.fused and target.name not in ("layer", "token"):
        return FAST
    ndims = set[int]() if around.seen is None else around.seen.get(old, set())
    if kind.name == "instance" and kind.dim and kind.dim + 1 in ndims:
        return f"was given an input without N, which {target.name} norm does not take"
    if target.name == "instance" and 2 in ndims:
        return "was given (N, C): one value for each sample and channel has no variance"
    return ""


def _built(old: nn.Module, kind: Kind, target: Target, dim: int) -> nn.Module:
    """The new norm, with weight and bias where the old one has them."""
    if target.name == "none":
        return nn.Identity()
    held = tensors(old)
    like = next((t for t in held.values() if t is not None and t.is_floating_point()), None)
    if like is None:
        like = torch.empty(0)
    name, size, options = _options(old, kind, target, like.dtype)
    made = layers.get_norm_layer(name, dim, device=like.device, dtype=like.dtype, **options)(size)
    for each in AFFINE:
        if each in held and held[each] is None:
            (made._parameters if each in made._parameters else made._buffers)[each] = None
    learns = [p.requires_grad for p in old.parameters(recurse=False)]
    return made.requires_grad_(any(learns) or not learns)


def _options(
    old: Any, kind: Kind, target: Target, dtype: torch.dtype
) -> tuple[str, Any, dict[str, Any]]:
    """Name, size and options of the new norm."""
    affine = any(getattr(old, name, None) is not None for name in AFFINE)
    if kind.name in ROWS:
        name, eps = "rms" if target.name == "rms" else "token", old.eps
        if eps is None and name == "token":  # what RMS norm makes of None
            eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        return name, tuple(old.normalized_shape), {"eps": eps, "elementwise_affine": affine}
    channels: int = old.num_channels if kind.name == "group" else old.num_features
    options: dict[str, Any] = {"eps": old.eps, "affine": affine}
    if target.name == "frozen":
        return "frozen", channels, options | {"trainable": target.trainable and affine}
    if target.name in ("group", "layer"):
        groups = 1 if target.name == "layer" else divisor(channels, target.number or PAPERS)
        return f"group:{groups}", channels, options
    options["momentum"] = getattr(old, "momentum", 0.1)
    if target.name == "instance":  # as a rule it tracks nothing, whatever stood in its place
        options["track_running_stats"] = kind.name == "instance" and old.track_running_stats
    elif kind.name in TRACKING:
        options["track_running_stats"] = old.track_running_stats or old.running_mean is not None
    return str(target), channels, options


def divisor(channels: int, groups: int) -> int:
    """The largest number of groups up to ``groups`` that divides the channels."""
    return max(g for g in range(1, groups + 1) if channels % g == 0)


def _alike(old: nn.Module, made: nn.Module) -> bool:
    return type(old) is type(made) and all(
        getattr(old, name, None) == getattr(made, name, None) for name in OPTIONS
    )


def _followers(ndims: set[int]) -> set[int]:
    """How many axes follow the channels; a layer of one takes (N, C), too."""
    return {max(n - 2, 1) for n in ndims}


def _dims(model: nn.Module) -> set[int]:
    """How many axes follow the channels in the convolutions and norms of a model."""
    found = {KINDS[type(m)].dim for m in model.modules() if type(m) in KINDS}
    found |= {len(m.kernel_size) for m in model.modules() if isinstance(m, _ConvNd)}
    return {dim for dim in found if dim is not None}


def _row(
    names: tuple[str, ...],
    old: nn.Module,
    kind: Kind,
    target: Target,
    around: Surroundings,
    form: Form,
) -> Converted:
    """What is said about an exchange."""
    now, notes = form.attributes, list[str]()
    after = label_of(form.kind)
    if form.kind is layers.GroupNorm:
        groups, channels = now["num_groups"], now["num_channels"]
        after += f", {groups} group{'s' * (groups > 1)}"
        asked = target.number or PAPERS
        if target.name == "group" and groups != asked:
            notes.append(f"{channels} channels do not divide into {asked} groups: {groups} do")
        if target.name == "group" and groups == channels:
            notes.append(ALONE)
    if "block" in now:
        after += f", blocks of {now['block']}"
    if kind.name == "instance" and "running_var" in form.carried:
        notes.append(WITHIN)
    if "running_var" in form.fresh:
        notes.append(UNTRAINED)
    if form.kind is layers.InstanceNorm1d and kind.name != "instance" and around.seen is None:
        notes.append(UNBATCHED)
    if kind.dim is None and form.kind in KINDS and KINDS[form.kind].dim and around.seen is None:
        notes.append(GUESSED)
    had = [*map(id, old._parameters.values())]
    if any(id(p) not in had for p in now["_parameters"].values() if p is not None):
        notes.append(UNOPTIMIZED)
    note = "; ".join(notes)
    return Converted(names, label(old), after, note, form.carried, form.fresh, form.aside)
