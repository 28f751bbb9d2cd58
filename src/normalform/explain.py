"""What a norm does, and which kernel computes it on a tensor and why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import functional, kernels, layers, path
from normalform.drawing import Sets, example_shape, sized
from normalform.recipes import NORMS, Recipe, named, recipe

FROZEN = (layers.FrozenBatchNorm1d, layers.FrozenBatchNorm2d, layers.FrozenBatchNorm3d)
OURS = tuple(kind for kind in vars(layers).values() if isinstance(kind, type))
FORMULA = "y = weight * (x - mean) / sqrt(var + eps) + bias"
RMS_FORMULA = "y = weight * x / sqrt(mean(x^2) + eps)"
_SUMMARIES = {(row.recipe, row.center): row.summary for row in NORMS.values()}


@dataclass(frozen=True)
class Choice:
    """Which kernel computes a norm on a tensor.

    Args:
        kernel: its name, as the argument ``kernel`` of a norm takes it; None where none runs.
        why: in words.
        steps: what it runs, for the compiled kernels.
    """

    kernel: str | None
    why: str
    steps: Any = None

    def __str__(self) -> str:
        if self.kernel is None:
            return f"no kernel: {self.why}"
        return f"kernel {self.why if self.steps is not None else f'{self.kernel}: {self.why}'}"


@dataclass(frozen=True, repr=False)
class Explanation:
    """A norm in words and as a picture; prints as a few lines, a notebook shows the picture.

    Args:
        norm: the layer or the name.
        title: the class of the layer, or the name.
        recipes: which elements share statistics; several are blended.
        formula: how y comes from x.
        tensors: shape of each parameter and buffer.
        laid: the recipes as they are drawn, with an axis for each that they name.
        shape: of the tensor that is drawn, that asked about or a small one.
        x: the tensor asked about, in words, or nothing.
        choice: the kernel that runs on it, None without a tensor.
        stored: that running statistics stand in for those of the input, where they do.
    """

    norm: str
    title: str
    recipes: tuple[Recipe, ...]
    formula: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    laid: tuple[Recipe, ...]
    shape: tuple[int, ...]
    x: str = ""
    choice: Choice | None = None
    stored: str = ""

    @property
    def lines(self) -> list[str]:
        """What is said below the name."""
        lines = [*map(_meaning, self.recipes)]
        if len(self.recipes) > 1:
            lines.append("mean and var are blends of these, weighted by two softmaxes")
        if self.stored:
            lines.append(self.stored)
        lines.append(self.formula)
        if self.tensors:
            lines.append(", ".join(f"{name} {shape}" for name, shape in self.tensors))
        if self.choice is not None:
            lines.append(f"on {self.x}: {self.choice}")
        return lines

    def __str__(self) -> str:
        return "\n  ".join([self.norm, *self.lines])

    __repr__ = __str__

    @property
    def sets(self) -> list[Sets]:
        """Which elements share a mean, for each recipe, as they are drawn.

        Raises:
            ValueError: a tensor that cannot be drawn.
        """
        return [Sets.of(recipe, self.shape) for recipe in self.laid]

    def svg(self, *more: str) -> str:
        """The picture as SVG: the elements that share a mean, and below the lines and ``more``.

        Raises:
            ValueError: a tensor that cannot be drawn.
        """
        from normalform.drawing.card import card

        sets = self.sets
        notation = "a blend" if len(sets) > 1 else str(self.laid[0])
        return card(self.title, notation, sets, [*self.lines, *more])

    def _repr_svg_(self) -> str | None:
        drawable = 2 <= len(self.shape) <= 5 and 0 not in self.shape
        return self.svg() if drawable else None


def explain(norm: nn.Module | str | Recipe, x: Tensor | None = None, **sizes: int) -> Explanation:
    """Say what a norm does, and with a tensor which kernel computes it and why.

    Nothing is computed and nothing changes: the layer is asked which kernel it would run.

    Args:
        norm: a layer of normalform, the name of a norm, notation, or a recipe.
        x: an input. A name stands for :func:`normalform.norm`, without weight and bias.
        sizes: of split axes, as :func:`normalform.norm` takes them: ``g=8``.

    Returns:
        A value that prints as a few lines; its ``svg()`` is the picture that a notebook shows.

    Raises:
        TypeError: a module that is no layer of normalform, an input that is no tensor, or a size
            that does not belong there.
        ValueError: an unknown name, or an input that the norm refuses.

    >>> nf.explain(nf.GroupNorm(2, 4), torch.randn(2, 4, 8, 8).half())
    GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
      n (g [c]) [s], g=2: one mean per sample and group of channels
      y = weight * (x - mean) / sqrt(var + eps) + bias
      weight (4,), bias (4,)
      on (2, 4, 8, 8) float16, contiguous: kernel eager: not cpu, it takes float32, float64 and
        bfloat16, not float16
    >>> nf.explain("switch")
    switch
      n c [s]: one mean per sample and channel, over its positions
      n [c s]: one mean per sample, over all its channels and positions
      [n] c [s]: one mean per channel, over the samples and positions of the batch
      mean and var are blends of these, weighted by two softmaxes
      y = weight * (x - mean) / sqrt(var + eps) + bias
    """
    if x is not None and not isinstance(x, Tensor):
        raise TypeError(f"explain takes a tensor as its input, got {type(x).__name__}")
    given = None if x is None else tuple(x.shape)
    if isinstance(norm, nn.Module):
        if sizes:
            raise TypeError(f"explain: {type(norm).__name__} has its sizes, got {', '.join(sizes)}")
        recipes = _recipes(norm)
        stored = [*norm.named_parameters(), *norm.named_buffers()]
        tensors = tuple((name, tuple(t.shape)) for name, t in stored if t.ndim)
        laid, shape = _laid(norm, recipes, given)
        ask = partial(chosen, norm)
    else:
        over = NORMS[norm].over if isinstance(norm, str) and norm in NORMS else ()
        recipes, tensors = tuple(named(r).bind(**sizes) for r in over or (norm,)), ()
        laid = tuple(map(sized, recipes))
        shape = example_shape(laid) if given is None else given
        ask = partial(_chosen_of, recipes)
    formula = FORMULA if recipes[0].center else RMS_FORMULA
    title = type(norm).__name__ if isinstance(norm, nn.Module) else str(norm)
    found = Explanation(str(norm), title, recipes, formula, tensors, laid, shape)
    found = replace(found, stored=_stored(norm) if isinstance(norm, nn.Module) else "")
    return found if x is None else replace(found, x=described(x), choice=ask(x))


def _stored(layer: nn.Module) -> str:
    """That running statistics stand in for those of the input, where they do."""
    frozen = isinstance(layer, FROZEN)
    if getattr(layer, "running_mean", None) is None or (layer.training and not frozen):
        return ""
    whose = "mean and var" if len(_recipes(layer)) == 1 else "those over the batch"
    when = "" if frozen else ", in evaluation"
    return f"{whose} are running_mean and running_var{when}"


def chosen(layer: nn.Module, x: Tensor) -> Choice:
    """The kernel that ``layer`` runs on x, as it is now."""
    asked = str(getattr(layer, "kernel", "auto"))
    if asked not in ("auto", "cpu"):
        return Choice(asked, "the layer asks for it")
    twin = copy.copy(layer)
    twin._buffers = {k: None if b is None else b.clone() for k, b in layer._buffers.items()}
    twin.kernel = path.ASK  # pyright: ignore[reportArgumentType]
    return _answer(partial(twin.forward, x), x)


def _chosen_of(recipes: tuple[Recipe, ...], x: Tensor) -> Choice:
    if len(recipes) == 1:
        return _answer(partial(functional.norm, x, recipes[0], kernel=path.ASK), x)
    ones = torch.ones(len(recipes))
    return _answer(
        partial(functional.switch_norm, x, None, None, ones, ones, over=recipes, kernel=path.ASK), x
    )


def _answer(run: Callable[[], object], x: Tensor) -> Choice:
    try:
        run()
    except path.Asked as answer:
        if isinstance(answer.found, str):
            return Choice(kernels.choose("auto", x), f"not cpu, {answer.found}")
        return Choice("cpu", str(answer.found), answer.found)
    return Choice(None, "there is nothing to compute" if x.numel() == 0 else "PyTorch's operator")


def _recipes(layer: nn.Module) -> tuple[Recipe, ...]:
    if not isinstance(layer, OURS):
        raise TypeError(
            "explain takes a layer of normalform, or the name of a norm; got "
            f"{type(layer).__name__}. nf.convert makes PyTorch's norms ours, and a model has them "
            "as layers of it"
        )
    if isinstance(layer, _BatchNorm):
        return (path.BATCH,)
    if isinstance(layer, _InstanceNorm):
        return (path.INSTANCE,)
    if isinstance(layer, nn.GroupNorm):
        return (path.read("group", g=layer.num_groups),)
    if isinstance(layer, nn.LayerNorm):
        return (path.ROWS,)
    return (path.RMS_ROWS,) if isinstance(layer, nn.RMSNorm) else layer.over  # pyright: ignore[reportReturnType]


def _laid(
    layer: nn.Module, recipes: tuple[Recipe, ...], given: tuple[int, ...] | None
) -> tuple[tuple[Recipe, ...], tuple[int, ...]]:
    """The recipes with an axis for each that they name, and the shape they are drawn on."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        r, shape = _rows_laid(layer.normalized_shape, given)
        return (recipe(r, center=recipes[0].center),), shape
    if given is None:
        sizes = (getattr(layer, name, None) for name in ("num_features", "num_channels"))
        return recipes, example_shape(recipes, next(c for c in sizes if c is not None))
    if isinstance(layer, _InstanceNorm) and len(given) == layer._get_no_batch_dim():
        return recipes, (1, *given)
    return recipes, given


def _rows_laid(rows: Sequence[int], given: tuple[int, ...] | None) -> tuple[str, tuple[int, ...]]:
    """Norms over the last axes: what stands before those is samples, or channels, or positions."""
    ahead = ((2, 3) if len(rows) == 1 else (2,)) if given is None else given[: -len(rows)]
    if len(ahead) < 2:
        return "n [c s]" if len(rows) > 1 else "n [c]", (*(ahead or (1,)), *rows)
    if len(rows) == 1:
        first = max(1, len(ahead) - 3)  # pictures have three axes of positions
        return "n s [c]", (math.prod(ahead[:first]), *ahead[first:], *rows)
    return "n c [s]", (math.prod(ahead[:-1]), ahead[-1], *rows)


def _meaning(r: Recipe) -> str:
    sizes = "".join(f", {letter}={size}" for letter, size in r.sizes.items())
    if r in (path.ROWS, path.RMS_ROWS):
        return f"{r}: one {'mean' if r.center else 'mean square'} per row of the last axes"
    summary = _SUMMARIES.get((str(r), r.center))
    return f"{r}{sizes}" if summary is None else f"{r}{sizes}: {summary}"


def described(x: Tensor) -> str:
    """Shape, type and order in memory."""
    if x.is_contiguous():
        order = "contiguous"
    elif kernels.is_channels_last(x):
        order = "channels_last"
    else:
        order = f"strides {x.stride()}"
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}, {order}"
