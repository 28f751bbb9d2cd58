"""How a recipe is computed: which kernel runs, why, and how its four passes become a gradient."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import (
    is_batchedtensor,
    is_legacy_batchedtensor,  # pyright: ignore[reportAttributeAccessIssue]
)

from normalform.kernels import eager, two_float
from normalform.kernels.plan import (
    Blend,
    Moments,
    Pair,
    Plan,
    blend,
    has_float64,
    logit_gradients,
    of_values,
    terms_of_dx,
)
from normalform.kernels.watchers import exporting, is_plain, is_watched, is_watched_by_mode

KERNELS: dict[str, ModuleType] = {"eager": eager, "two_float": two_float}
RUNNING = "running_mean", "running_var"
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def choose(kernel: str, x: Tensor) -> str:
    """The name of the kernel that runs: ``kernel`` itself, or for ``"auto"`` the best one here.

    ``two_float`` is for devices without float64; it can be asked for anywhere.
    """
    if kernel in ("auto", "cpu"):
        return "eager" if has_float64(x.device) else "two_float"
    if kernel == "torch":
        raise ValueError('kernel "torch": PyTorch has no operator for this norm; use "auto"')
    if kernel not in KERNELS:
        raise ValueError(
            f"unknown kernel {kernel!r}; known: auto, cpu, {', '.join(KERNELS)}, torch"
        )
    if kernel == "two_float" and x.dtype == torch.float64:
        raise ValueError('kernel "two_float" carries 48 bits, fewer than float64 input; use "auto"')
    return kernel


@cache
def cpu_engine() -> ModuleType | str:
    """The kernels compiled by Numba, or why there are none. Numba is imported on first use."""
    try:
        with uncollected():
            engine = import_module("normalform.kernels.cpu.steps")
            engine.team.prepare()
            return engine
    except (ImportError, OSError) as error:  # OSError: llvmlite does not find its library
        return f"Numba cannot be used: {error}"
    except Exception as error:  # a Numba that is newer than this, and other inside
        why = f"Numba cannot be used: {type(error).__name__}: {error}"
        warnings.warn(f"{why}. The layers are as exact without, and slower", stacklevel=2)
        return why


@contextmanager
def uncollected() -> Generator[None]:
    """Without looking for garbage, a third of the time of an import: what is made here stays."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def warn_not_finite(name: str, bad: int, total: int) -> None:
    """Say which running statistics kept their value, to the first caller outside us and torch."""
    ours = tuple(
        str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["normalform"])
    )
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{name}: {bad} of {total} channels kept their old value, the new one was not finite: "
        "the input holds nan, inf or values too large",
        stacklevel=level,
    )


def is_channels_last(x: Tensor) -> bool:
    """Whether x lies in memory as one of ``CHANNELS_LAST``."""
    if is_batchedtensor(x):  # vmap cannot be asked
        return False
    layout = CHANNELS_LAST.get(x.ndim)
    return layout is not None and x.is_contiguous(memory_format=layout)


def normalize(
    x: Tensor,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
    kernel: str,
) -> tuple[Tensor, list[Moments]]:
    """Normalize x (n, c, *s), and the compact moments that were taken from it.

    Everything broadcasts against x. ``running`` holds the mean and variance of branches that are
    given, ``logits`` those of mean and variance where branches are blended.
    """
    passes = KERNELS[choose(kernel, x)]
    if not is_plain(x, weight, bias, *(logits or ()), *(running or ())):
        return composite(x, plan, weight, bias, logits, running)
    with torch.no_grad():
        compact: list[Moments] = passes.moments(x, plan.base) if plan.base is not None else []
    steps = ByPasses(plan, passes, compact, running)
    tensors = x, weight, bias, logits, running
    return differentiable(steps, learns(*tensors), *tensors, 0.0), compact


def differentiable(
    steps: Steps,
    learns: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
    momentum: float,
) -> Tensor:
    """The output of ``steps``, with a gradient where a tensor wants one: where it ``learns``."""
    if not learns or not is_grad_enabled():
        return steps.forward(x, weight, bias, logits, running, momentum, False)[0]
    how = steps, running, momentum
    if logits is None:
        return _apply(how, x, weight, bias)
    return _apply(how, x, weight, bias, *logits)


def learns(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, logits: Pair | None, running: Pair | None
) -> bool:
    """Whether one of the tensors that are differentiated wants its gradient."""
    return any(t is not None and t.requires_grad for t in (x, weight, bias, *(logits or ())))


def composite(
    x: Tensor,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
) -> tuple[Tensor, list[Moments]]:
    """The same in operators that torch differentiates, any number of times, and traces.

    x is cast once: autograd rounds the gradient of each cast to the input's type, and two rounded
    terms that cancel would leave nothing of dx.
    """
    wide = x.to(work_dtype(x))
    compact = of_values(wide, plan.base) if plan.base is not None else []
    if running is not None:
        running = running[0].to(wide), running[1].to(wide)
    shift, mean, rstd = blend(compact, running, logits, plan).at
    y = (wide - shift - mean) * (rstd if weight is None else rstd * weight.to(rstd))
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype), compact


def work_dtype(x: Tensor) -> torch.dtype:
    """float64; float32 where there is none, and in exported graphs, like PyTorch's operators."""
    if x.dtype == torch.float64:
        return torch.float64
    return torch.float32 if exporting() or not has_float64(x.device) else torch.float64


# x, weight, bias, and both logits where there are any.
Saved: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None, *tuple[Tensor, ...]]"


class Steps(Protocol):
    """A norm laid over a shape, and how it is computed there, forward and backward."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
        running: Pair | None,
        momentum: float,
        keep: bool,
    ) -> tuple[Tensor, Any]:
        """The output, and what the backward needs besides its inputs if there will be one."""
        ...

    def takes(self, dy: Tensor, *saved: Tensor | None) -> bool:
        """Whether tensors that lie as these were taken before."""
        ...

    def arranged(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Saved]:
        """The same values, as the backward takes them."""
        ...

    def backward(
        self, kept: Any, dy: Tensor, saved: Saved, needs: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """The gradients of what is saved, where they are needed."""
        ...

    def again(
        self,
        kept: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
    ) -> Tensor:
        """The output in operators that torch differentiates."""
        ...


class _Normalize(torch.autograd.Function):
    """Saves x and small arrays, nothing else of x's size."""

    @staticmethod
    def forward(
        ctx: Any,
        how: tuple[Steps, Pair | None, float],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *logits: Any,
    ) -> Tensor:
        steps, running, momentum = how
        y, kept = steps.forward(x, weight, bias, logits or None, running, momentum, True)
        ctx.made = steps, kept
        ctx.save_for_backward(x, weight, bias, *logits)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        steps, kept = ctx.made
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if is_grad_enabled() or is_watched_by_mode() or not steps.takes(dy, *saved):
            # Differentiated once more, or for many dy at once: the passes work in place and cannot.
            ordinary = type(dy) is Tensor and not is_watched() and not is_legacy_batchedtensor(dy)
            if not ordinary or is_grad_enabled():
                return (None, *_differentiable_backward(steps, kept, dy, saved, needs))
            dy, saved = steps.arranged(dy, saved)
        return (None, *steps.backward(kept, dy, saved, needs))


# Past what the classes of torch.autograd do in Python: the backward's looks for another way to
# write it, the forward's for torch.func transforms, and is_plain has found none.
_Normalize._backward_cls.apply = _Normalize.backward  # pyright: ignore[reportAttributeAccessIssue]
_apply: Any = super(torch.autograd.Function, _Normalize).apply  # pyright: ignore[reportAttributeAccessIssue]


class ByPasses(NamedTuple):
    """Steps that go by the four passes of a kernel, with the small arrays in torch between them."""

    plan: Plan
    passes: ModuleType
    compact: list[Moments]
    constants: Pair | None

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
        running: Pair | None,
        momentum: float,
        keep: bool,
    ) -> tuple[Tensor, Blend]:
        """See :class:`Steps`; running statistics are moved by whoever asked."""
        blended = blend(self.compact, running, logits, self.plan)
        return self.passes.apply(x, blended.at, weight, bias), blended

    def takes(self, dy: Tensor, *saved: Tensor | None) -> bool:
        """See :class:`Steps`; none are remembered."""
        return False

    def arranged(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Saved]:
        """See :class:`Steps`; the passes take any."""
        return dy, saved

    def backward(
        self, kept: Blend, dy: Tensor, saved: Saved, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """See :class:`Steps`."""
        x, weight, bias, *logits = saved
        at = kept.at
        joint = _joint_shape(at.mean, at.rstd, weight, bias)
        total, product = self.passes.sums(dy, x, at, joint)
        dweight = dbias = dx = None
        if needs[1] and weight is not None:
            dweight = eager.sum_to(product * at.rstd, weight.shape).to(weight)
        if needs[2] and bias is not None:
            dbias = eager.sum_to(total, bias.shape).to(bias)
        scale = at.rstd
        if weight is not None:
            wide = weight.to(scale)
            total, product, scale = total * wide, product * wide, scale * wide
        dmean = eager.sum_to(-total * at.rstd, at.mean.shape)
        dvar = eager.sum_to(product, at.rstd.shape) * at.rstd.pow(3) * -0.5
        if needs[0]:
            terms = terms_of_dx(kept, self.plan, dmean, dvar)
            dx = self.passes.grad_input(dy, x, scale, terms)
        if not any(needs[3:]):
            return [dx, dweight, dbias, *(None for _ in logits)]
        pairs = zip(logit_gradients(kept, dmean, dvar), logits, strict=True)
        return [dx, dweight, dbias, *(gradient.to(logit) for gradient, logit in pairs)]

    def again(
        self,
        kept: Blend,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
    ) -> Tensor:
        """See :class:`Steps`."""
        return composite(x, self.plan, weight, bias, logits, self.constants)[0]


def _joint_shape(*tensors: Tensor | None) -> tuple[int, ...]:
    """What statistics and parameters vary over, together."""
    shapes = [t.shape for t in tensors if t is not None]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _differentiable_backward(
    steps: Steps, kept: Any, dy: Tensor, saved: Saved, needs: Sequence[bool]
) -> list[Tensor | None]:
    wanted = [t for t, needed in zip(saved, needs, strict=True) if needed and t is not None]
    again, (x, weight, bias, *logits) = is_grad_enabled(), saved
    with torch.enable_grad():
        y = steps.again(kept, x, weight, bias, both(*logits) if logits else None)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def both(mean: Tensor | None, var: Tensor | None) -> Pair | None:
    """What comes in pairs: both, or none."""
    return None if mean is None or var is None else (mean, var)
