"""A norm as one operator of a graph that ``torch.compile`` makes, around the compiled kernels.

``normalform::norm`` and ``normalform::norm_backward`` change nothing they are given: running
statistics that move are an output, which the graph copies. What they are told names no size of x,
so one graph serves any batch, and is text, so that it may outlive the process that made it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from normalform.cells import Cells
from normalform.kernels import Saved, both, cpu_engine, is_channels_last
from normalform.kernels.call import Call
from normalform.kernels.plan import Pair
from normalform.kernels.request import Request, are_rows, requested
from normalform.kernels.watchers import exporting
from normalform.recipes import Recipe, recipe

if TYPE_CHECKING:
    from normalform.kernels.cpu.steps import Compiled

# Numbers that are kept: of a row; of a branch, a cell, a channel for each sample it differs in.
_ROW, _BRANCH, _CELL, _CHANNEL = 3, 2, 4, 7


def engine_runs() -> bool:
    """Whether the compiled kernels are there, and no transform wants derivatives they lack."""
    plain = peek_interpreter_stack() is None and forward_ad._current_level < 0
    return plain and not isinstance(cpu_engine(), str)


# As torch.compiler.assume_constant_result does, which imports the compiler: run, not traced.
engine_runs._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def room(call: Call) -> int | None:
    """How many numbers the operator keeps for its backward; None where it does not take the norm.

    It is traced, and where it need not, it ties no graph to the sizes of x.
    """
    if exporting() or not engine_runs() or not _are_ordinary(call):
        return None
    request = requested(call, *call.laid())
    if isinstance(request, str):
        return None
    only = request.plan.branches[0]
    if only is not None and are_rows(request):
        return _ROW * _count(only)
    return _room_of_cells(request)


def _are_ordinary(call: Call) -> bool:
    """Whether all tensors are of torch's own classes and lie in the memory of the CPU."""
    x, weight, bias, logits, running = call.tensors
    return all(
        t is None
        or (
            type(t) in (Tensor, torch.nn.Parameter)
            and t.layout == torch.strided
            and t.device.type == "cpu"
        )
        for t in (x, weight, bias, *(logits or ()), *(running or ()))
    )


def _count(cells: Cells) -> int:
    """How many cells there are."""
    blocks = sum((stop - start) // block for start, stop, block in cells.runs)
    return blocks * cells.groups * (1 if cells.spatial else math.prod(cells.shape[2:]))


def _room_of_cells(r: Request) -> int:
    samples, channels, *_ = r.shape
    count = sum(channels if c is None else _count(c) for c in r.plan.branches)
    spread = channels if r.whole else channels * samples
    return _BRANCH * len(r.plan.branches) + _CELL * count + _CHANNEL * spread


class Form(NamedTuple):
    """What a norm is, apart from tensors and eps, see :class:`Call`."""

    recipes: tuple[Recipe, ...]
    params: str
    tracked: int | None
    given: bool

    def write(self) -> str:
        """As text.

        >>> Form((recipe("(b [n]) c [s]", n=2),), "c", 0, False).write()
        '(b [n]) c [s], center=1, n=2; c; moved 0'
        """
        parts = [
            ", ".join(
                [str(r), f"center={int(r.center)}", *(f"{k}={n}" for k, n in r.sizes.items())]
            )
            for r in self.recipes
        ]
        use = "" if self.tracked is None else f"{'given' if self.given else 'moved'} {self.tracked}"
        return "; ".join([*parts, self.params, use])

    @staticmethod
    def read(text: str) -> Form:
        """From what :meth:`write` wrote."""
        *parts, params, use = text.split("; ")
        recipes: list[Recipe] = []
        for part in parts:
            notation, *rest = part.split(", ")
            sizes = {key: int(n) for key, n in (each.split("=") for each in rest)}
            recipes.append(recipe(notation, center=bool(sizes.pop("center")), **sizes))
        word, _, tracked = use.partition(" ")
        return Form(tuple(recipes), params, int(tracked) if use else None, word == "given")

    @property
    def moves(self) -> bool:
        """Whether running statistics move."""
        return self.tracked is not None and not self.given


_form = lru_cache(maxsize=1024)(Form.read)


def normalize(call: Call) -> Tensor | None:
    """The norm as the operator, where it takes it; running statistics that are tracked move."""
    kept = room(call)
    if kept is None:
        return None
    x, weight, bias, logits, running = call.tensors
    by = call.momentum
    share, number = (by, 0.0) if isinstance(by, Tensor) else (None, by)
    mean_logits, var_logits = logits or (None, None)
    running_mean, running_var = running or (None, None)
    form = Form(call.recipes, call.params, call.tracked, call.given)
    y, _, moved = norm(
        x, weight, bias, mean_logits, var_logits, running_mean, running_var, share, number,
        call.eps, form.write(), kept,
    )  # fmt: skip
    with torch.no_grad():
        for buffer, new in zip(running or (), moved, strict=False):
            buffer.copy_(new)
    return y


@torch.library.custom_op("normalform::norm", mutates_args=(), device_types="cpu")
def norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_logits: Tensor | None,
    var_logits: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    share: Tensor | None,
    momentum: float,
    eps: float,
    form: str,
    room: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y, ``room`` numbers for the backward, and the running statistics where they move.

    Those move by ``share``, or where there is none by ``momentum``.
    """
    logits, running = both(mean_logits, var_logits), both(running_mean, running_var)
    steps = _steps(
        x, weight, bias, logits, None if running is None else running[0].dtype, eps, form
    )
    moved: list[Tensor] = []
    if running is not None and _form(form).moves:
        running = running[0].clone(), running[1].clone()
        moved = [*running]
    number = momentum if share is None else float(share)
    y, kept = steps.forward(x, weight, bias, logits, running, number, True)
    assert kept is not None
    return y, _last(kept, room), moved


@torch.library.custom_op("normalform::norm_backward", mutates_args=(), device_types="cpu")
def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean_logits: Tensor | None,
    var_logits: Tensor | None,
    kept: Tensor,
    running: torch.dtype | None,
    eps: float,
    form: str,
    needs: list[bool],
) -> list[Tensor]:
    """Those gradients of x, weight, bias and both logits that are needed."""
    logits = both(mean_logits, var_logits)
    steps = _steps(x, weight, bias, logits, running, eps, form)
    small = _last(kept, steps.layout.small)
    saved: Saved = x, weight, bias, *(logits or ())
    if not steps.takes(dy, *saved):
        dy, saved = steps.arranged(dy, saved)
    found = steps.backward(small, dy, saved, needs)
    return [t for t, needed in zip(found, needs, strict=False) if needed and t is not None]


def _last(numbers: Tensor, count: int) -> Tensor:
    """The last of them, ``count``: what was only needed on the way lies before."""
    missing = count - len(numbers)
    if missing > 0:
        return torch.cat([numbers.new_zeros(missing), numbers])
    return numbers[-missing:].clone() if missing else numbers


@norm.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    *_, running_mean, running_var, _, _, _, form, room = args
    moved = [torch.empty_like(t) for t in (running_mean, running_var) if _form(form).moves]
    return _like(x), x.new_empty(room, dtype=torch.float64), moved


@norm_backward.register_fake
def _(dy: Tensor, x: Tensor, *args: Any) -> list[Tensor]:
    *small, _, _, _, _, needs = args
    gradients = [_like(x), *(None if t is None else torch.empty_like(t) for t in small)]
    return [g for g, needed in zip(gradients, needs, strict=True) if needed and g is not None]


def _like(x: Tensor) -> Tensor:
    """As the kernels make it: without gaps."""
    dense = x.is_contiguous() or is_channels_last(x)
    return torch.empty_like(
        x, memory_format=torch.preserve_format if dense else torch.contiguous_format
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    x, weight, bias, mean_logits, var_logits, running_mean, _, _, _, eps, form, _ = inputs
    _, kept, moved = output
    ctx.save_for_backward(x, weight, bias, mean_logits, var_logits, kept)
    ctx.mark_non_differentiable(kept, *moved)
    ctx.said = None if running_mean is None else running_mean.dtype, eps, form


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean_logits, var_logits, kept = ctx.saved_tensors
    needs = [bool(needed) for needed in ctx.needs_input_grad[:5]]
    found = iter(
        norm_backward(dy, x, weight, bias, mean_logits, var_logits, kept, *ctx.said, needs)
    )
    return *(next(found) if needed else None for needed in needs), *[None] * 7


norm.register_autograd(_gradients, setup_context=_save)


def _steps(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: torch.dtype | None,
    eps: float,
    form: str,
) -> Compiled:
    """The compiled steps, found once for each layout in memory."""
    key = (
        form, eps, running, x.dtype, x.shape, x.stride(),
        *(None if t is None else (t.dtype, t.shape) for t in (weight, bias, *(logits or ()))),
    )  # fmt: skip
    found = _found.get(key)
    if found is None:
        recipes, params, tracked, given = _form(form)
        buffer = torch.empty(recipes[0].cells(x.shape).shape[1], dtype=running)
        call = Call(
            x, recipes, weight, bias, eps, params, logits, running and (buffer, buffer), tracked,
            given,
        )  # fmt: skip
        found = import_module("normalform.kernels.cpu.steps").find(call)
        if isinstance(found, str):
            raise RuntimeError(f"the graph was compiled for compiled kernels, but {found}")
        if len(_found) >= 4096:
            _found.clear()
        _found[key] = found
    return found


_found: dict[tuple[Any, ...], Compiled] = {}
