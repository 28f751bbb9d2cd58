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
    Coefficients,
    Moments,
    Pair,
    Plan,
    Terms,
    coefficients,
    has_float64,
    of_values,
    spread,
)
from normalform.recipes import Cells

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
    return passes.apply(x, coefficients(compact, running, logits, plan), weight, bias), compact


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
    shift, mean, rstd = coefficients(compact, running, logits, plan)
    y = (wide - shift - mean) * (rstd if weight is None else rstd * weight.to(rstd))
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype), compact


def work_dtype(x: Tensor) -> torch.dtype:
    """float64; float32 where there is none, and in exported graphs, like PyTorch's operators."""
    if x.dtype == torch.float64:
        return torch.float64
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return torch.float32 if exporting or not has_float64(x.device) else torch.float64


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
        ctx.leaves = [m._replace(mean=_leaf(m.mean), var=_leaf(m.var)) for m in compact]
        ctx.logits = [t if t is None else _leaf(t) for t in (mean_logits, var_logits)]
        with torch.enable_grad():  # a graph of the small arrays, for their chain rule
            ctx.at = coefficients(ctx.leaves, running, _both(*ctx.logits), plan)
        return passes.apply(x, Coefficients(*(t.detach() for t in ctx.at)), weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        again = torch.is_grad_enabled()  # somebody will differentiate this gradient once more
        grads = _differentiable_backward(ctx, dy) if again else _backward(ctx, dy)
        return (None, None, None, None, *grads)


def _backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    x, weight, bias, *_ = ctx.saved_tensors
    plan, passes, needs = ctx.plan, ctx.passes, ctx.needs_input_grad[4:]
    at = Coefficients(*(t.detach() for t in ctx.at))

    joint = _joint_shape(at.mean, at.rstd, weight, bias)
    total, product = passes.sums(dy, x, at, joint)
    dweight = eager.sum_to(product * at.rstd, weight.shape).to(weight) if needs[1] else None
    dbias = eager.sum_to(total, bias.shape).to(bias) if needs[2] else None
    scale = at.rstd
    if weight is not None:
        weight = weight.to(scale)
        total, product, scale = total * weight, product * weight, scale * weight
    dmean = eager.sum_to(-total * at.rstd, at.mean.shape)
    drstd = eager.sum_to(product, at.rstd.shape)

    inputs = [t for m in ctx.leaves for t in (m.mean, m.var)]
    inputs += [t for t in ctx.logits if t is not None]
    grads = _vjp((ctx.at.mean, ctx.at.rstd), inputs, (dmean, drstd))
    terms = None if plan.base is None else _terms(ctx.leaves, grads, plan.base)
    dx = passes.grad_input(dy, x, scale, terms) if needs[0] else None
    return [dx, dweight, dbias, *(grads[2 * len(ctx.leaves) :] or (None, None))]


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


def _joint_shape(*tensors: Tensor | None) -> tuple[int, ...]:
    """What statistics and parameters vary over, together."""
    shapes = [t.shape for t in tensors if t is not None]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _vjp(outputs: Pair, inputs: list[Tensor], grads: Pair) -> list[Tensor]:
    """The chain rule through the small arrays."""
    used = [(t, g.expand_as(t)) for t, g in zip(outputs, grads, strict=True) if t.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(
        [t for t, _ in used], inputs, [g for _, g in used], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def _terms(compact: list[Moments], grads: list[Tensor], cells: Cells) -> Terms:
    """``slope = 2 dvar / n`` and ``offset = dmean / n``."""
    pairs = list(zip(grads[0::2], grads[1::2], cells.counts, strict=False))
    offset = spread([dmean / n for dmean, _, n in pairs], cells)
    slope = spread([2 * dvar / n for _, dvar, n in pairs], cells)
    shift = spread([m.shift for m in compact], cells)
    mean = spread([m.mean.detach() for m in compact], cells)
    # Without centring the mean is the constant 0.
    return Terms(shift, mean, slope, offset if cells.center else torch.zeros_like(offset))


def _differentiable_backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    needs = ctx.needs_input_grad[4:]
    x, weight, bias, *logits = ctx.saved_tensors[:5]
    wanted = [t for t, needed in zip(ctx.saved_tensors, needs, strict=False) if needed]
    y, _ = composite(x, ctx.plan, weight, bias, _both(*logits), ctx.running)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


def _both(mean: Tensor | None, var: Tensor | None) -> Pair | None:
    return None if mean is None or var is None else (mean, var)
