"""How a recipe is computed: which kernel runs, why, and how its four passes become a gradient."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from normalform.kernels import eager, two_float
from normalform.kernels.plan import Moments, Plan, coefficients, spread

KERNELS: dict[str, ModuleType] = {"eager": eager, "two_float": two_float}


def choose(kernel: str, device: torch.device) -> str:
    """The name of the kernel that runs: ``kernel`` itself, or for ``"auto"`` the best one here.

    ``two_float`` is for devices without float64; it can be asked for anywhere.
    """
    if kernel == "auto":
        return "eager" if has_float64(device) else "two_float"
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: auto, {', '.join(KERNELS)}")
    return kernel


def has_float64(device: torch.device) -> bool:
    """Whether tensors of float64 exist on the device."""
    return device.type != "mps"


def wide(t: Tensor) -> Tensor:
    """Small arrays: in float64, on the CPU where their device has none."""
    return t.to(torch.float64) if has_float64(t.device) else t.cpu().to(torch.float64)


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
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ) and all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


def normalize(
    x: Tensor,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Moments | None,
    running: Moments | None,
    kernel: str,
) -> tuple[Tensor, list[Moments]]:
    """Normalize x (n, c, *s), and the compact moments that were taken from it.

    Everything broadcasts against x. ``running`` holds the statistics of branches that are given,
    ``logits`` those of mean and variance where branches are blended.
    """
    name = choose(kernel, x.device)
    if not is_plain(x, weight, bias, *(logits or ()), *(running or ())):
        return composite(x, plan, weight, bias, logits, running)
    passes = KERNELS[name]
    with torch.no_grad():
        compact: list[Moments] = passes.moments(x, plan.base) if plan.base is not None else []
    flat = [t for pair in compact for t in pair]
    y = _Normalize.apply(passes, plan, x, weight, bias, *(logits or (None, None)), running, *flat)
    return y, compact


def composite(
    x: Tensor,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Moments | None,
    running: Moments | None,
) -> tuple[Tensor, list[Moments]]:
    """The same in operators that torch differentiates, any number of times, and traces.

    x is cast once: autograd rounds the gradient of each cast to the input's type, and two rounded
    terms that cancel would leave nothing of dx.
    """
    work = x.to(work_dtype(x))
    compact = eager.moments(work, plan.base) if plan.base is not None else []
    if running is not None:
        running = running[0].to(work), running[1].to(work)
    mean, rstd = coefficients(compact, running, logits, plan)
    return eager.apply(work, mean, rstd, weight, bias).to(x.dtype), compact


def work_dtype(x: Tensor) -> torch.dtype:
    """float64; float32 where there is none, and in an exported graph, as PyTorch's own operators."""
    if x.dtype == torch.float64:
        return torch.float64
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return torch.float32 if exporting or not has_float64(x.device) else torch.float64


class _Normalize(torch.autograd.Function):
    """Saves x and small arrays, nothing else of x's size."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        passes: ModuleType,
        plan: Plan,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
        running: Moments | None,
        *compact: Tensor,
    ) -> Tensor:
        mean, rstd = coefficients(_pairs(compact), running, _both(mean_logits, var_logits), plan)
        ctx.save_for_backward(x, weight, bias, mean_logits, var_logits, *compact)
        ctx.passes, ctx.plan, ctx.running = passes, plan, running
        return passes.apply(x, mean, rstd, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        if torch.is_grad_enabled():  # somebody will differentiate this gradient again
            grads = _differentiable_backward(ctx, dy)
        else:
            grads = _backward(ctx, dy)
        return (None, None, *grads, None, *(None for _ in ctx.saved_tensors[5:]))


def _backward(ctx, dy: Tensor) -> list[Tensor | None]:
    x, weight, bias, *logits = ctx.saved_tensors[:5]
    plan, passes = ctx.plan, ctx.passes
    needs = dict(zip(("x", "weight", "bias", "mean", "var"), ctx.needs_input_grad[2:7], strict=True))
    leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors[5:]]
    logits = [t if t is None else t.detach().requires_grad_() for t in logits]
    with torch.enable_grad():
        pair = coefficients(_pairs(leaves), ctx.running, _both(*logits), plan)
    mean, rstd = pair[0].detach(), pair[1].detach()

    joint = torch.broadcast_shapes(*(t.shape for t in (mean, rstd, weight, bias) if t is not None))
    joint = (1,) * (x.ndim - len(joint)) + tuple(joint)
    total, product = passes.sums(dy, x, mean, joint)
    dweight = eager.sum_to(product * rstd, weight.shape).to(weight) if needs["weight"] else None
    dbias = eager.sum_to(total, bias.shape).to(bias) if needs["bias"] else None

    scale = rstd
    if weight is not None:
        weight = weight.to(rstd)
        total, product, scale = total * weight, product * weight, rstd * weight
    small = eager.sum_to(-total * rstd, mean.shape), eager.sum_to(product, rstd.shape)
    inputs = [*leaves, *(t for t in logits if t is not None)]
    grads = _vjp(pair, inputs, small) if inputs else []
    terms = _terms(leaves, grads, plan) if plan.base is not None else None
    dx = passes.grad_input(dy, x, scale, terms) if needs["x"] else None
    return [dx, dweight, dbias, *(grads[len(leaves) :] or (None, None))]


def _vjp(outputs: Moments, inputs: list[Tensor], grads: Moments) -> list[Tensor]:
    """The chain rule through the small arrays."""
    used = [(t, g) for t, g in zip(outputs, grads, strict=True) if t.requires_grad]
    found = torch.autograd.grad(
        [t for t, _ in used], inputs, [g.expand_as(t) for t, g in used], allow_unused=True
    )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def _terms(
    leaves: list[Tensor], grads: list[Tensor], plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """m, slope = 2 dvar / n and offset = dmean / n, spread against x."""
    cells = plan.base
    assert cells is not None
    means = [t.detach() for t in leaves[0::2]]
    offsets = [g / n for g, n in zip(grads[0 : len(leaves) : 2], cells.counts, strict=True)]
    slopes = [2 * g / n for g, n in zip(grads[1 : len(leaves) : 2], cells.counts, strict=True)]
    if not cells.center:  # the mean is the constant 0
        offsets = [torch.zeros_like(g) for g in offsets]
    return spread(means, cells), spread(slopes, cells), spread(offsets, cells)


def _differentiable_backward(ctx, dy: Tensor) -> list[Tensor | None]:
    tensors = ctx.saved_tensors[:5]
    wanted = [t for t, needed in zip(tensors, ctx.needs_input_grad[2:7], strict=True) if needed]
    x, weight, bias, *logits = tensors
    y, _ = composite(x, ctx.plan, weight, bias, _both(*logits), ctx.running)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[2:7]]


def _pairs(flat) -> list[Moments]:
    return list(zip(flat[0::2], flat[1::2], strict=True))


def _both(mean: Tensor | None, var: Tensor | None) -> Moments | None:
    return None if mean is None or var is None else (mean, var)
