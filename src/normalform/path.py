"""The one path every norm takes, from a recipe and a tensor to the result.

Check, lay the recipes over the shape, bring the axes into the order (n, c, *s), hand over to a
kernel, update running statistics.
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
from normalform.cells import Cells
from normalform.kernels import exporting as exporting
from normalform.kernels import op
from normalform.kernels.known import is_ordinary, remember
from normalform.kernels.known import known as known
from normalform.kernels.plan import Pair, Plan, population, wide
from normalform.recipes import Recipe, named, recipe

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
    call = "group", num_groups, eps
    y = known(call, kernel, input, weight, bias)
    if y is not None:
        return y
    if input.ndim < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {input.ndim}: "
            f"{who} takes (N, C, *)"
        )
    require_float(input, who)
    samples, channels = input.shape[:2]
    if num_groups < 1:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(input.shape)} and num_groups={num_groups} ({who})"
        )
    # PyTorch refuses one value per group only in a batch of one; so do we.
    if samples * channels // num_groups * math.prod(input.shape[2:]) == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{list(input.shape)}: every group of {who} holds one value, which has no variance. "
            "Use fewer groups or a larger input"
        )
    recipes = (read("group", g=num_groups),)
    return blend(input, recipes, weight, bias, eps, kernel=kernel, who=who, call=call)


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
    call = use_input_stats, eps, running_mean is None, running_var is None, recipes
    y = known(call, kernel, input, weight, bias, logits, running, momentum)
    if y is not None:
        return y
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
        _require_values(input.shape, recipes[0], who)
    return blend(
        input, recipes, weight, bias, eps, logits=logits, running=running, tracked=tracked,
        given=given, momentum=momentum, kernel=kernel, who=who, call=call,
    )  # fmt: skip


def blend(
    x: Tensor,
    recipes: tuple[Recipe, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    params: str = "c",
    logits: Pair | None = None,
    running: Pair | None = None,
    tracked: int | None = None,
    given: bool = False,
    momentum: float | Tensor = 0.1,
    kernel: str = "auto",
    who: object = "norm",
    call: tuple[Any, ...],
) -> Tensor:
    """The one path every norm takes. ``tracked`` is the branch with running statistics.

    They are used in its place where ``given``, and updated from it otherwise. ``call`` says all of
    this but the tensors, for :func:`known`.
    """
    if kernel in ("auto", "cpu"):
        if torch.compiler.is_compiling():
            y = _as_operator(
                x, recipes, weight, bias, eps, params, logits, running, tracked, given, momentum,
                who,
            )  # fmt: skip
            if y is not None:
                return y
        steps = compiled(
            x, recipes, weight, bias, eps, params, logits, running, tracked, given, who
        )
        if not isinstance(steps, str):
            remember(call, x, weight, bias, logits, running, steps)
            return kernels.differentiable(steps, x, weight, bias, logits, running, float(momentum))
        if kernel == "cpu":
            raise ValueError(f'kernel "cpu" does not run here: {steps} ({who}). Use "auto"')
    layout, dims = _laid(x, recipes, weight, bias, params, running, tracked, given, who)
    if kernel == ASK:
        raise Asked(
            compiled(x, recipes, weight, bias, eps, params, logits, running, tracked, given, who)
        )
    order, channel = layout[0].order, layout[0].shape[1]
    weight, bias = _param(weight, x, dims, order), _param(bias, x, dims, order)
    branches = [None if given and k == tracked else cells for k, cells in enumerate(layout)]
    if logits is not None:
        branches, logits = _drop_single_values(branches, logits, x, who)
    z = x if order == tuple(range(x.ndim)) else x.permute(order)
    if x.numel() == 0:
        y = _affine(z, weight, bias)
    else:
        plan = Plan.of(tuple(branches), eps)
        constants = None
        if given and running is not None:
            shape = (1, channel) + (1,) * (x.ndim - 2)
            mean, var = (t.detach().clone() for t in running)  # they may move before the backward
            constants = wide(mean).view(shape), wide(var).view(shape)
        y, compact = kernels.normalize(z, plan, weight, bias, logits, constants, kernel)
        if running is not None and tracked is not None and not given and plan.base is not None:
            batch = layout[tracked]
            if any(cells is batch for cells in plan.branches):  # it was not left out
                update(running, population(compact, batch, plan.base), momentum)
    if z is not x:
        y = y.permute([order.index(d) for d in range(x.ndim)])
    return y if x.is_contiguous() or kernels.is_channels_last(x) else y.contiguous()


def _as_operator(
    x: Tensor,
    recipes: tuple[Recipe, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    params: str,
    logits: Pair | None,
    running: Pair | None,
    tracked: int | None,
    given: bool,
    momentum: float | Tensor,
    who: object,
) -> Tensor | None:
    """The norm in a graph that is being compiled, where one operator can stand for it."""
    layout, dims = _laid(x, recipes, weight, bias, params, running, tracked, given, who)
    tracked = None if running is None else tracked
    room = op.room(x, layout, dims, weight, bias, logits, running, tracked, given)
    if room is None:
        return None
    used = tuple(BATCH if given and k == tracked else r for k, r in enumerate(recipes))
    form = op.Form(used, params, tracked, given)
    return op.normalize(x, weight, bias, logits, running, momentum, eps, form, room)


def compiled(
    x: Tensor,
    recipes: tuple[Recipe, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    params: str,
    logits: Pair | None,
    running: Pair | None,
    tracked: int | None,
    given: bool,
    who: object,
) -> kernels.Steps | str:
    """The compiled form of a norm on tensors that lie in memory as these, or why there is none."""
    if not is_ordinary(x, weight, bias, logits, running):
        return "a tensor is not an ordinary one on the CPU, or operators are being watched"
    engine = kernels.cpu_engine()
    if isinstance(engine, str):
        return engine
    layout, dims = _laid(x, recipes, weight, bias, params, running, tracked, given, who)
    return engine.find(x, layout, eps, dims, weight, bias, logits, running, tracked, given)


def _laid(
    x: Tensor,
    recipes: tuple[Recipe, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    params: str,
    running: Pair | None,
    tracked: int | None,
    given: bool,
    who: object,
) -> tuple[list[Cells], tuple[int, ...]]:
    """The recipes laid over x, and the axes of weight and bias, which have to fit."""
    # Running statistics know no blocks of samples, which would tie a graph to a batch size.
    laid = [BATCH if given and k == tracked else r for k, r in enumerate(recipes)]
    layout = [_cells(r, x.shape) for r in laid]
    dims = recipes[0].param_dims(x.ndim, params)
    _require_fit(weight, "weight", x, dims, who)
    _require_fit(bias, "bias", x, dims, who)
    channel = layout[0].shape[1]
    for name, buffer in zip(("running_mean", "running_var"), running or (), strict=False):
        if buffer.numel() != channel:
            raise RuntimeError(
                f"{name} should contain {channel} elements not {buffer.numel()}: the input of "
                f"shape {list(x.shape)} has {channel} channels ({who})"
            )
    return layout, dims


def rows(
    input: Tensor,
    normalized_shape: Sequence[int],
    recipe: Recipe,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    kernel: str,
    who: object,
) -> Tensor:
    """A norm over the trailing axes: rows of one ``n [c]``."""
    shape = tuple(normalized_shape)
    call = shape, eps, recipe
    y = known(call, kernel, input, weight, bias)
    if y is not None:
        return y
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
            f"element, but got normalized_shape = [] ({who})"
        )
    if tuple(input.shape[-len(shape) :]) != shape:
        expected = ", ".join(map(str, ("*", *shape)))
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{expected}], "
            f"but got input of size{list(input.shape)} ({who})"
        )
    require_float(input, who)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and tuple(value.shape) != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(value.shape)} and normalized_shape = {list(shape)} ({who})"
            )
    if input.numel() == 0:
        return _affine(input, weight, bias)
    flat = input.contiguous().view(-1, math.prod(shape))
    if input.is_contiguous() and kernel in ("auto", "cpu"):
        steps = compiled(flat, (recipe,), weight, bias, eps, "c", None, None, None, False, who)
        if not isinstance(steps, str):
            remember(call, input, weight, bias, None, None, steps)
            return kernels.differentiable(steps, input, weight, bias, None, None, 0.0)
    y = blend(flat, (recipe,), weight, bias, eps, kernel=kernel, who=who, call=call)
    y = y.view(input.shape)
    # As PyTorch: layer norm answers contiguously, RMS norm in the input's memory format.
    if not recipe.center and kernels.is_channels_last(input) and not input.is_contiguous():
        y = y.contiguous(memory_format=kernels.CHANNELS_LAST[y.ndim])
    return y


def update(running: Pair, batch: Pair, momentum: float | Tensor) -> None:
    """``running = (1 - momentum) * running + momentum * batch``, only where that is finite."""
    with torch.no_grad():
        for name, buffer, new in zip(("running_mean", "running_var"), running, batch, strict=True):
            new = new.to(buffer.device).view(buffer.shape)
            new = torch.lerp(buffer.to(new.dtype), new, momentum).to(buffer.dtype)
            finite = new.isfinite()
            # Asking an accelerator would stop it once a step, so only a CPU warns.
            if buffer.device.type == "cpu" and kernels.is_plain(new):
                if finite.all():
                    buffer.copy_(new)
                    continue
                kernels.warn_not_finite(name, int((~finite).sum()), finite.numel())
            buffer.copy_(torch.where(finite, new, buffer))


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


def require_float(x: Tensor, who: object) -> None:
    """Refuse what has no mean and variance in its own type."""
    if not x.is_floating_point():
        raise TypeError(
            f"{who} normalizes floating point tensors, got {x.dtype}: convert it first, x.float()"
        )


def _require_values(shape: torch.Size, recipe: Recipe, who: object) -> None:
    """Refuse one value a cell, in PyTorch's words and with the ways out."""
    axis = recipe.axes[0]
    samples = shape[0] if axis.averaged else 1
    if axis.size is not None:
        samples = min(axis.size, samples)
    if samples * math.prod(shape[2:]) != 1:
        return
    if axis.averaged:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{shape}: one value has no variance ({who}). Use a larger "
            f"{'block' if axis.split else 'batch'} or image, or the running statistics: eval()"
        )
    raise ValueError(
        f"Expected more than 1 spatial element when training, got input size {shape}: one value "
        f"has no variance ({who}). Use a larger image, or a norm with larger cells, as group norm"
    )


def _drop_single_values(
    branches: list[Cells | None], logits: Pair, x: Tensor, who: object
) -> tuple[list[Cells | None], Pair]:
    """Leave out the branches of a blend whose cells hold one value."""
    for logit in logits:
        if logit.numel() != len(branches):
            raise RuntimeError(
                f"{who}: {len(branches)} branches need as many logits, got {logit.numel()}"
            )
    kept = [k for k, cells in enumerate(branches) if cells is None or max(cells.counts) != 1]
    if not kept:
        raise ValueError(
            f"{who}: every branch has one value a cell in an input of shape {list(x.shape)}, and "
            "one value has no variance. Use a larger batch or image, or blend larger cells"
        )
    if len(kept) == len(branches):
        return branches, logits
    return [branches[k] for k in kept], (logits[0][kept], logits[1][kept])


def _require_fit(
    value: Tensor | None, name: str, x: Tensor, dims: tuple[int, ...], who: object
) -> None:
    """Refuse a weight or bias without one value for each position along ``dims`` of x."""
    if value is None:
        return
    sizes = [x.shape[d] for d in dims]
    if len(sizes) > 1 and list(value.shape) != sizes and value.numel() == math.prod(sizes):
        raise RuntimeError(
            f"{name} has shape {list(value.shape)}, the input of shape {list(x.shape)} needs "
            f"{sizes} ({who})"
        )
    if value.numel() != math.prod(sizes):  # along one axis any shape will do, as for PyTorch
        raise RuntimeError(
            f"{name} should contain {math.prod(sizes)} elements not {value.numel()}: it has shape "
            f"{list(value.shape)}, the input of shape {list(x.shape)} needs {sizes} ({who})"
        )


def _param(
    value: Tensor | None, x: Tensor, dims: tuple[int, ...], order: tuple[int, ...]
) -> Tensor | None:
    """Weight or bias along ``dims`` of x, made to broadcast against x (n, c, *s)."""
    if value is None:
        return None
    full = value.reshape([size if d in dims else 1 for d, size in enumerate(x.shape)])
    return full if order == tuple(range(x.ndim)) else full.permute(order)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What is left of a norm of an empty tensor: an empty result, and gradients of zeros."""
    y = x.clone() if weight is None else x * weight.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)


@lru_cache(maxsize=4096)
def _cached_cells(recipe: Recipe, shape: torch.Size) -> Cells:
    return recipe.cells(shape)


def _cells(recipe: Recipe, shape: torch.Size) -> Cells:
    if torch.compiler.is_compiling() or any(type(size) is not int for size in shape):
        return recipe.cells(shape)
    return _cached_cells(recipe, shape)
