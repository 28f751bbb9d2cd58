"""What accuracy is measured on: every norm on many inputs, and the layers that get them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor, nn

import normalform as nf
from normalform import recipes
from normalform.lab import plain

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
RATIOS = (0.0, 1.0, 1e2, 1e4, 1e6)
_CLASSES: Mapping[str, str] = {
    "batch": "BatchNorm{dim}d",
    "instance": "InstanceNorm{dim}d",
    "group": "GroupNorm",
    "layer": "GroupNorm",
    "token": "LayerNorm",
    "rms": "RMSNorm",
    "switch": "SwitchNorm{dim}d",
    "ghost": "GhostBatchNorm{dim}d",
}

NORMS = tuple(_CLASSES)

BLOCK = 2  # samples that share statistics in ghost norm
_HALF = 3e4  # about half of what float16 holds

_SHAPES = ((64, 12), (6, 12, 37), (5, 12, 13, 11), (3, 8, 5, 6, 7))
_QUICK_SHAPES = ((16, 12), (3, 12, 5, 7))
# At some ratios only: it takes as long as all others together. Several threads work on it.
_LARGE = (4, 16, 32, 32)
_LARGE_RATIOS = (0.0, 1e4)


@dataclass(frozen=True)
class Case:
    """A norm on one input.

    Attributes:
        norm: one of ``NORMS``.
        dtype: one of ``DTYPES``: of input, parameters and buffers.
        shape: (N, C, *); token and rms take it as (N, *, C).
        channels_last: the channels come last in memory; else they come after the samples.
        training: normalize by the input's statistics, not by running ones.
        elementwise: layer norm with one weight an element, ``LayerNorm([C, *])``, instead of one a
            channel, ``GroupNorm(1, C)``.
        ratio: mean/std of random input; None for input that is given.
        source: what input is given.
    """

    norm: str
    dtype: str
    shape: tuple[int, ...]
    channels_last: bool = False
    training: bool = True
    elementwise: bool = False
    ratio: float | None = None
    source: str = ""


def plan(norms: Sequence[str], dtypes: Sequence[str], *, quick: bool = False) -> list[Case]:
    """The cases: every norm, type and mean/std on several shapes, layouts and modes.

    Raises:
        ValueError: an unknown norm or dtype, or none.
    """
    _refuse_unknown("norms", norms, NORMS)
    _refuse_unknown("dtypes", dtypes, tuple(DTYPES))
    cases: list[Case] = []
    for norm, dtype, ratio in itertools.product(norms, dtypes, RATIOS):
        shapes = _QUICK_SHAPES if quick else _SHAPES
        if ratio in _LARGE_RATIOS and not quick:
            shapes = (*shapes, _LARGE)
        for shape in (s for s in shapes if not why_not(norm, s)):
            for last in (False, True)[: len(shape) - 1]:
                cases += modes(Case(norm, dtype, shape, ratio=ratio, channels_last=last))
    return cases


def plan_compiled(cases: Sequence[Case]) -> list[Case]:
    """Few enough to compile each: with images, of one type; those that share a graph in a row."""
    images = [case for case in cases if len(case.shape) == 4 and case.dtype == cases[0].dtype]
    return in_order_of_graphs(images)


def in_order_of_graphs(cases: Sequence[Case]) -> list[Case]:
    """Those that differ by ``ratio`` alone, which a graph does not know, one after the other."""
    return sorted(cases, key=lambda case: repr(graph(case)))


def graph(case: Case) -> Case:
    """What a graph that is compiled for a case depends on."""
    return replace(case, ratio=None, source="")


def modes(case: Case) -> list[Case]:
    """The case training and in evaluation, and with both kinds of weight, where there are two."""
    found = [case]
    if case.norm in ("batch", "instance", "switch", "ghost"):
        found.append(replace(case, training=False))
    if case.norm == "layer":
        found.append(replace(case, elementwise=True))
    return found


def why_not(norm: str, shape: Sequence[int]) -> str:
    """Why a norm has nothing to do on an input (N, C, *) of this shape; empty where it has."""
    if norm == "rms":
        return ""
    found = _recipes(norm, shape[1])
    if any(min(recipe.cells(shape).counts) > 1 for recipe in found):
        return ""
    written = " and ".join(f'"{recipe}"' for recipe in found)
    return f"every mean of {written} would be of one value, which has no variance"


def groups(channels: int) -> int:
    """How many groups group norm gets: the most, up to 32, that leave two channels in each."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 2 * g))


def layers(case: Case, x: Tensor, generator: torch.Generator) -> tuple[nn.Module, nn.Module]:
    """Our layer and PyTorch's, with the same random parameters.

    Where running statistics are what normalizes they are those of x, else as they are at the start.
    """
    ours = _layer(case, nf)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name == "weight":
                parameter.mul_(0.5).add_(1)
        channels = x.to(torch.float64).transpose(0, 1).flatten(1)
        running = {"running_mean": channels.mean(1), "running_var": channels.var(1, correction=0)}
        for name, buffer in ours.named_buffers():
            if name in running and not case.training:
                buffer.copy_(running[name].clamp(max=torch.finfo(DTYPES[case.dtype]).max))
    theirs = _layer(case, plain if case.norm in ("switch", "ghost") else nn)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.to(DTYPES[case.dtype]).train(case.training)
    return ours, theirs


def random_input(case: Case, generator: torch.Generator) -> Tensor:
    """Numbers (N, C, *) of mean about ``ratio`` and std about 1, channels and samples unlike."""
    ratio = case.ratio or 0.0
    samples, channels = case.shape[:2]
    ones = (1,) * (len(case.shape) - 2)
    noise, spread, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (case.shape, (1, channels, *ones), (samples, channels, *ones))
    )
    x = noise * (0.5 + spread.abs()) + offset + ratio
    return x * min(1.0, _HALF / max(ratio, 1.0)) if case.dtype == "float16" else x


def laid_out(x: Tensor, case: Case) -> Tensor:
    """In the case's type and memory order, with the axes where its norm wants them."""
    x = x.to(DTYPES[case.dtype])
    last = x.movedim(1, -1)
    last = last.contiguous() if case.channels_last else x.contiguous().movedim(1, -1)
    return last if case.norm in ("token", "rms") else last.movedim(-1, 1)


def _refuse_unknown(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    strange = [each for each in given if each not in known]
    if strange or not given:
        asked = f"unknown {', '.join(map(repr, strange))}" if strange else "none given"
        raise ValueError(f"{what}: {asked}; known: {', '.join(known)}")


def _recipes(norm: str, channels: int) -> list[recipes.Recipe]:
    """What is averaged in an input (N, C, *)."""
    names = {
        "switch": recipes.NORMS["switch"].over,
        "token": ("position",),
        "group": (f"group:{groups(channels)}",),
        "ghost": (f"ghost:{BLOCK}",),
    }
    return [recipes.named(name) for name in names.get(norm, (norm,))]


def _layer(case: Case, library: ModuleType) -> nn.Module:
    """The layer of a library that does what the case asks for."""
    channels = case.shape[1]
    if case.elementwise:
        return library.LayerNorm(list(case.shape[1:]))
    name = _CLASSES[case.norm].format(dim=max(1, len(case.shape) - 2))
    arguments = {
        "group": (groups(channels), channels),
        "layer": (1, channels),
        "ghost": (channels, BLOCK),
    }
    options = {"affine": True, "track_running_stats": True} if case.norm == "instance" else {}
    return getattr(library, name)(*arguments.get(case.norm, (channels,)), **options)
