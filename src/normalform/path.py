"""The one path every norm takes, from a recipe and a tensor to the result.

Look whether the call is known, check it, then go by one operator where a graph is compiled, by the
compiled kernels where they take it, or by passes in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normalform import kernels
from normalform.kernels import op
from normalform.kernels.call import Call
from normalform.kernels.known import count as count
from normalform.kernels.known import is_ordinary, remember
from normalform.kernels.known import known as known
from normalform.kernels.passes import affine, normalized
from normalform.kernels.plan import Pair
from normalform.kernels.watchers import exporting as exporting
from normalform.recipes import Recipe, named, recipe
from normalform.refusals import (
    require_eps,
    require_float,
    require_groups,
    require_rows,
    require_values,
)

BATCH, INSTANCE = named("batch"), named("instance")
ROWS, RMS_ROWS = recipe("n [c]"), recipe("n [c]", center=False)

ASK = "ask"  # a kernel that computes nothing: it raises what "auto" would take


class Asked(Exception):
    """The answer to the kernel ``ASK``: what :func:`compiled` found."""

    def __init__(self, found: kernels.Steps | str) -> None:
        super().__init__(found)
        self.found = found


def grouped(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    kernel: str,
    who: object,
) -> Tensor:
    """:func:`normalform.functional.group_norm`, with ``who`` to name in errors."""
    options = "group", num_groups, eps
    y = known(options, kernel, input, weight, bias)
    if y is not None:
        return y
    if exporting() or kernel == "torch":
        return F.group_norm(input, num_groups, weight, bias, eps)
    require_groups(input, num_groups, who)
    recipes = (read("group", g=num_groups),)
    return run(Call(input, recipes, weight, bias, eps, who=who), kernel, options)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    *,
    kernel: str,
    who: object,
) -> Tensor:
    """:func:`normalform.functional.batch_norm`, with ``who`` to name in errors."""
    if training and eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if input.ndim == 1 and input.numel() == 0:  # PyTorch takes an empty input without channels
        return input.clone()
    return running_norm(
        input, (BATCH,), running_mean, running_var, weight, bias, training, momentum, eps,
        kernel=kernel, who=who,
    )  # fmt: skip


def running_norm(
    input: Tensor,
    recipes: tuple[Recipe, ...],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float | Tensor,
    eps: float,
    *,
    logits: Pair | None = None,
    kernel: str = "auto",
    who: object,
) -> Tensor:
    """A norm with running statistics, with ``who`` to name in errors."""
    running = None
    if running_mean is not None and running_var is not None:
        running = running_mean, running_var
    options = use_input_stats, eps, running_mean is None, running_var is None, recipes
    y = known(options, kernel, input, weight, bias, logits, running, momentum)
    if y is not None:
        return y
    if recipes == (BATCH,) and logits is None and (exporting() or kernel == "torch"):
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, float(momentum), eps
        )
    require_float(input, who)
    if input.ndim < 2:
        raise ValueError(f"{who} takes (N, C, *), got an input of shape {list(input.shape)}")
    if (running_mean is None) != (running_var is None):
        raise (ValueError if use_input_stats else RuntimeError)(
            "running_mean and running_var must either both be None or neither be None"
        )
    tracked = tracked_branch(recipes) if logits is not None else 0
    given = not use_input_stats and tracked is not None
    if given and running_mean is None:
        raise RuntimeError(
            f"running_mean must be defined in evaluation mode, and running_var ({who})"
        )
    if given and logits is None and exporting():
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    if not given and logits is None:
        require_values(input.shape, recipes[0], who)
    if given:  # running statistics know no blocks of samples, which would tie a graph to a batch
        recipes = tuple(BATCH if k == tracked else r for k, r in enumerate(recipes))
    call = Call(
        input, recipes, weight, bias, eps, logits=logits, running=running,
        tracked=None if running is None else tracked, given=given, momentum=momentum, who=who,
    )  # fmt: skip
    return run(call, kernel, options)


def run(call: Call, kernel: str, options: tuple[Any, ...]) -> Tensor:
    """The one path every norm takes.

    ``options`` say all of the call but its tensors, for :func:`known`.
    """
    if kernel in ("auto", "cpu"):
        if torch.compiler.is_compiling():
            y = op.normalize(call)
            if y is not None:
                return y
        steps = compiled(call)
        if not isinstance(steps, str):
            return _first(call, steps, options)
        if kernel == "cpu":
            raise ValueError(f'kernel "cpu" does not run here: {steps} ({call.who}). Use "auto"')
    if kernel == ASK:
        call.laid()  # which refuses what does not fit
        raise Asked(compiled(call))
    return normalized(call, kernel)


def compiled(call: Call) -> kernels.Steps | str:
    """The compiled form of a norm on tensors that lie in memory as these, or why there is none."""
    if not is_ordinary(*call.tensors):
        return "a tensor is not an ordinary one on the CPU, or operators are being watched"
    engine = kernels.cpu_engine()
    return engine if isinstance(engine, str) else engine.find(call)


def _first(call: Call, steps: kernels.Steps, options: tuple[Any, ...]) -> Tensor:
    """The first of many such calls."""
    learns = kernels.learns(*call.tensors)
    remember(options, *call.tensors, steps, learns)
    return kernels.differentiable(steps, learns, *call.tensors, float(call.momentum))


def rows(
    input: Tensor,
    normalized_shape: Sequence[int],
    recipe: Recipe,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    *,
    kernel: str,
    who: object,
) -> Tensor:
    """A norm over the trailing axes: rows of one ``n [c]``. ``eps`` is None only in RMS norm."""
    shape, nested = tuple(normalized_shape), input.is_nested
    options = shape, eps, recipe
    y = None if nested else known(options, kernel, input, weight, bias)
    if y is not None:
        return y
    if recipe.center:
        require_eps(eps, who)
    if exporting() or kernel == "torch" or nested or (input.is_complex() and not recipe.center):
        if recipe.center and eps is not None:
            return F.layer_norm(input, shape, weight, bias, eps)
        return F.rms_norm(input, shape, weight, eps)
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype == torch.float64 else torch.float32).eps
    require_rows(input, shape, weight, bias, who)
    if input.numel() == 0:
        return affine(input, weight, bias)
    flat = input.contiguous().view(-1, math.prod(shape))
    call = Call(flat, (recipe,), weight, bias, eps, who=who)
    if input.is_contiguous() and kernel in ("auto", "cpu"):
        steps = compiled(call)
        if not isinstance(steps, str):
            return _first(call._replace(x=input), steps, options)
    y = run(call, kernel, options).view(input.shape)
    # As PyTorch: layer norm answers contiguously, RMS norm in the input's memory format.
    if not recipe.center and kernels.is_channels_last(input) and not input.is_contiguous():
        y = y.contiguous(memory_format=kernels.CHANNELS_LAST[y.ndim])
    return y


def read(item: str | Recipe, center: bool = True, **sizes: int) -> Recipe:
    """A recipe from a name, notation or recipe, and sizes."""
    if torch.compiler.is_compiling():  # which sees through a cache, and warns of it
        return recipe(named(item), center=center, **sizes)
    return _read(item, center, tuple(sizes.items()))


@lru_cache(maxsize=1024)
def _read(item: str | Recipe, center: bool, sizes: tuple[tuple[str, int], ...]) -> Recipe:
    return recipe(named(item), center=center, **dict(sizes))


def branches(over: Sequence[str | Recipe]) -> tuple[Recipe, ...]:
    """The recipes of a blend."""
    if isinstance(over, str):
        raise TypeError(f'over={over!r} is one norm, a blend takes several: over=("{over}",)')
    recipes = tuple(read(item) for item in over)
    for r in recipes:
        if [axis.name for axis in r.axes] != ["n", "c", "s"] or not r.center:
            raise ValueError(
                f'over: recipe "{r}" does not blend; its axes must be n c s, and it must subtract '
                "the mean"
            )
    return recipes


def tracked_branch(recipes: Sequence[Recipe]) -> int | None:
    """The branch that averages over samples: the one that running statistics can stand for."""
    found = [k for k, r in enumerate(recipes) if "n" in r.over]
    return found[0] if found else None
