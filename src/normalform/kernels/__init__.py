"""How a recipe is computed: which kernel runs, why, and how its four passes become a gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from normalform.kernels import eager, two_float
from normalform.kernels.plan import (
    Moments,
    Pair,
    Plan,
    blend,
    has_float64,
    logit_gradients,
    of_values,
    terms_of_dx,
)

KERNELS: dict[str, ModuleType] = {"eager": eager, "two_float": two_float}


def choose(kernel: str, x: Tensor) -> str:
    """The name of the kernel that runs: ``kernel`` itself, or for ``"auto"`` the best one here.

    ``two_float`` is for devices without float64; it can be asked for anywhere.
    """
    if kernel == "auto":
        return "eager" if has_float64(x.device) else "two_float"
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: auto, {', '.join(KERNELS)}")
    if kernel == "two_float" and x.dtype == torch.float64:
        raise ValueError('kernel "two_float" carries 48 bits, fewer than float64 input; use "auto"')
    return kernel


def exporting() -> bool:
    """Whether a graph for other runtimes is made: they know PyTorch's operators, not ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a hand-written gradient is safe: ordinary tensors, and nobody watching the operators.

    Under compilation, tracing, torch.func transforms, forward-mode differentiation and tensor
    subclasses the recipe runs as ordinary differentiable operators instead.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ) and all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


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
    inputs = (x, weight, bias, *(logits or (None, None)))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _Normalize.apply(passes, plan, running, compact, *inputs), compact
    at = blend(compact, running, logits, plan).at
    return passes.apply(x, at, weight, bias), compact


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


class _Normalize(torch.autograd.Function):
    """Saves x and small arrays, nothing else of x's size."""

    @staticmethod
    def forward(
        ctx: Any,
        passes: ModuleType,
        plan: Plan,
        running: Pair | None,
        compact: list[Moments],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean_logits, var_logits)
        ctx.passes, ctx.plan, ctx.running = passes, plan, running
        ctx.blended = blend(compact, running, _both(mean_logits, var_logits), plan)
        return passes.apply(x, ctx.blended.at, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Differentiated once more, or for many dy at once: the passes work in place and cannot.
        batched = not is_plain(dy) or torch._C._functorch.is_legacy_batchedtensor(dy)  # pyright: ignore[reportAttributeAccessIssue]
        traced = torch.is_grad_enabled() or batched
        grads = _differentiable_backward(ctx, dy) if traced else _backward(ctx, dy)
        return (None, None, None, None, *grads)


def _backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    x, weight, bias, *logits = ctx.saved_tensors
    passes, needs, at = ctx.passes, ctx.needs_input_grad[4:], ctx.blended.at
    joint = _joint_shape(at.mean, at.rstd, weight, bias)
    total, product = passes.sums(dy, x, at, joint)
    dweight = eager.sum_to(product * at.rstd, weight.shape).to(weight) if needs[1] else None
    dbias = eager.sum_to(total, bias.shape).to(bias) if needs[2] else None
    scale = at.rstd
    if weight is not None:
        weight = weight.to(scale)
        total, product, scale = total * weight, product * weight, scale * weight
    dmean = eager.sum_to(-total * at.rstd, at.mean.shape)
    dvar = eager.sum_to(product, at.rstd.shape) * at.rstd.pow(3) * -0.5
    dx, dlogits = None, (None, None)
    if needs[0]:
        terms = terms_of_dx(ctx.blended, ctx.plan, dmean, dvar)
        dx = passes.grad_input(dy, x, scale, terms)
    if needs[3] or needs[4]:
        pairs = zip(logit_gradients(ctx.blended, dmean, dvar), logits, strict=True)
        dlogits = [gradient.to(logit) for gradient, logit in pairs]
    return [dx, dweight, dbias, *dlogits]


def _joint_shape(*tensors: Tensor | None) -> tuple[int, ...]:
    """What statistics and parameters vary over, together."""
    shapes = [t.shape for t in tensors if t is not None]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _differentiable_backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    needs = ctx.needs_input_grad[4:]
    x, weight, bias, *logits = ctx.saved_tensors
    wanted = [t for t, needed in zip(ctx.saved_tensors, needs, strict=True) if needed]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        y, _ = composite(x, ctx.plan, weight, bias, _both(*logits), ctx.running)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def _both(mean: Tensor | None, var: Tensor | None) -> Pair | None:
    return None if mean is None or var is None else (mean, var)
