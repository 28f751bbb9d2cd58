"""Check a norm against the promise on rounding errors, whoever wrote it.

What is exact comes from :mod:`normalform.reference`, what is allowed from :mod:`normalform.budget`.
``measure`` gives errors in units of what is allowed; the two ``assert_`` functions are for tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normalform import budget, layers, reference
from normalform.reference import Result

Array = NDArray[np.floating[Any]]

HardInput = Callable[[tuple[int, ...], torch.Generator], Tensor]

AFFINE = ("weight", "bias")
LOGITS = ("mean_weight", "var_weight")
BUFFERS = ("running_mean", "running_var")
SWITCH = (layers.SwitchNorm1d, layers.SwitchNorm2d, layers.SwitchNorm3d)
GHOST = (layers.GhostBatchNorm1d, layers.GhostBatchNorm2d, layers.GhostBatchNorm3d)
FROZEN = (layers.FrozenBatchNorm1d, layers.FrozenBatchNorm2d, layers.FrozenBatchNorm3d)
INSTANCE = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def measure(layer: nn.Module, x: Tensor, dy: Tensor | None = None) -> dict[str, float]:
    """Largest error of each result of ``layer``, in units of what is promised: 1 is the limit.

    Args:
        layer: a norm of this library or of PyTorch, in the mode to measure. It runs once; its
            buffers and gradients are left as they were.
        x: its input.
        dy: gradient of its output; without it only the forward pass is measured.

    Returns:
        Of ``y``, of ``running_mean`` and ``running_var`` where they are kept, and with ``dy`` of
        ``dx``, ``dweight``, ``dbias``, ``dmean_weight`` and ``dvar_weight`` where there are such
        parameters: largest error / allowed error, infinite where NaN stands for a finite value.

    >>> x = 1e4 + torch.randn(8, 3, 16, 16)
    >>> measure(nf.BatchNorm2d(3), x)["y"] <= 1
    True
    >>> measure(torch.nn.BatchNorm2d(3), x)["y"] > 100
    True
    """
    return {
        name: float(_units(actual, exact, allowed).max(initial=0))
        for name, actual, exact, allowed in _compare(layer, x, dy)
    }


def assert_layer_accurate(layer: nn.Module, x: Tensor, dy: Tensor | None = None) -> None:
    """:func:`measure` for a test: every result of ``layer`` keeps the promise.

    Raises:
        AssertionError: of the first that does not, as from :func:`assert_accurate`.
    """
    for name, actual, exact, allowed in _compare(layer, x, dy):
        assert_accurate(actual, exact, allowed, name)


def assert_accurate(actual: Tensor, exact: Array, allowed: Array, name: str = "y") -> None:
    """``|actual - exact| <= allowed``, everywhere.

    NaN is met by NaN alone. Infinity is right where the exact value, within what is allowed, is
    beyond the type of ``actual``.

    Raises:
        AssertionError: how many are outside; of the worst its index, value, exact value, error and
            allowed error.

    >>> assert_accurate(torch.tensor([1.0, 2.5]), np.array([1.0, 2.0]), np.array(1e-6))
    Traceback (most recent call last):
    AssertionError: y: 1 of 2 outside; worst at (1,): got 2.5, exact 2, error 0.5, allowed 1e-06
    """
    units = _units(actual, exact, allowed)
    outside = int((units > 1).sum())
    if outside:
        worst = np.unravel_index(int(units.argmax()), units.shape)
        got, truth, room = (
            float(np.broadcast_to(t, units.shape)[worst]) for t in (_exact(actual), exact, allowed)
        )
        raise AssertionError(
            f"{name}: {outside} of {units.size} outside; worst at {tuple(map(int, worst))}: "
            f"got {got:.17g}, exact {truth:.17g}, error {abs(got - truth):.3g}, allowed {room:.3g}"
        )


def judge(layer: nn.Module, x: Tensor) -> Result:
    """What ``layer`` should make of ``x``, in its mode, with the parameters and buffers it has.

    ``y`` has the shape of ``x``. The rest has the shape it was judged in: layer and RMS norm as
    rows, an input without samples as one sample.

    Raises:
        TypeError: not a norm whose exact result is known.
    """
    module: Any = getattr(layer, "_orig_mod", layer)  # torch.compile wraps
    values = _exact(x)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        result = _judge_rows(module, values, x.dtype)
    elif isinstance(module, nn.GroupNorm):
        affine = _given(module, *AFFINE)
        result = reference.group_norm(values, module.num_groups, **affine, eps=module.eps)
    elif isinstance(module, _InstanceNorm):
        result = _judge_instance(module, values)
    elif isinstance(module, FROZEN):
        given = _given(module, *AFFINE) | _buffers(module)
        result = reference.batch_norm(values, **given, eps=module.eps, training=False)
    elif isinstance(module, (_BatchNorm, *GHOST, *SWITCH)):
        result = _judge_batch(module, values)
    else:
        raise TypeError(f"{type(module).__name__} is not a norm whose exact result is known")
    return replace(result, y=result.y.reshape(values.shape))


def _judge_rows(module: nn.LayerNorm | nn.RMSNorm, values: Array, dtype: torch.dtype) -> Result:
    rows = values.reshape(-1, math.prod(module.normalized_shape))
    affine = {name: given.ravel() for name, given in _given(module, *AFFINE).items()}
    eps = module.eps
    if eps is None:
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return reference.norm(rows, "n [c]", **affine, eps=eps, center=isinstance(module, nn.LayerNorm))


def _judge_instance(module: _InstanceNorm, values: Array) -> Result:
    positions = next(n for kind, n in INSTANCE.items() if isinstance(module, kind))
    return reference.instance_norm(
        values if values.ndim == 2 + positions else values[None],
        **_given(module, *AFFINE),
        **_buffers(module),
        eps=module.eps,
        use_input_stats=module.training or not module.track_running_stats,
        momentum=_momentum(module),
    )


def _judge_batch(module: Any, values: Array) -> Result:
    """Batch, ghost and switchable norm."""
    keeps = module.track_running_stats or not module.training
    running = _buffers(module) if keeps else {}
    options: dict[str, Any] = {
        **_given(module, *AFFINE),
        **running,
        "eps": module.eps,
        "training": module.training or not running,
        "momentum": _momentum(module),
    }
    if isinstance(module, SWITCH):
        return reference.switch_norm(values, **_given(module, *LOGITS), over=module.over, **options)
    return reference.batch_norm(values, block=getattr(module, "block", None), **options)


def _momentum(module: Any) -> float:
    """The share of the next batch in the running statistics."""
    if module.momentum is not None:
        return module.momentum
    counter: Tensor | None = module.num_batches_tracked
    # PyTorch's own instance norm never counts, and without a number it never updates.
    if counter is None or type(module) in INSTANCE:
        return 0.0
    return 1 / (int(counter) + 1)


def _given(module: nn.Module, *names: str) -> dict[str, Any]:
    """Those parameters and buffers that the module has."""
    found = {name: getattr(module, name, None) for name in names}
    return {name: _exact(t) for name, t in found.items() if t is not None}


def _buffers(module: nn.Module) -> dict[str, Any]:
    """Running statistics in their own type, as what is too large for it is not learned."""
    found: dict[str, Tensor | None] = {name: getattr(module, name, None) for name in BUFFERS}
    kept = {name: t.detach().cpu() for name, t in found.items() if t is not None}
    # NumPy has no bfloat16; float32 reaches as far.
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in kept.items()}


def _exact(t: Tensor) -> Array:
    return t.detach().to("cpu", torch.float64).numpy()


def _compare(
    layer: nn.Module, x: Tensor, dy: Tensor | None
) -> Iterator[tuple[str, Tensor, Array, Array]]:
    """Of every result its name, what the layer makes of it, what is exact and what is allowed."""
    result = judge(layer, x)
    found = _run(layer, x, dy)
    yield "y", found["y"], result.y, budget.allowed_y(result, x.dtype)
    for name in BUFFERS:
        exact = getattr(result, name)
        if exact is not None:
            buffer = found[name]
            allowed = budget.allowed_running(name, result, _exact(x), x.dtype, buffer.dtype)
            yield name, buffer, exact, allowed
    if dy is None:
        return
    gradients = result.backward(_exact(dy))
    allowed = budget.allowed_dx(result, gradients, x.dtype)
    yield "dx", found["dx"], gradients.x.reshape(x.shape), allowed.reshape(x.shape)
    for name in AFFINE + LOGITS:
        if f"d{name}" in found:
            gradient = found[f"d{name}"]
            exact = getattr(gradients, name).reshape(gradient.shape)
            allowed = budget.allowed_sum(
                name, result, gradients, _exact(dy), x.dtype, gradient.dtype
            ).reshape(gradient.shape)
            yield f"d{name}", gradient, exact, allowed


def _run(layer: nn.Module, x: Tensor, dy: Tensor | None) -> dict[str, Tensor]:
    """What the layer makes of ``x``, its buffers after that, and its gradients."""
    module = getattr(layer, "_orig_mod", layer)
    kept = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    leaf = x.detach().requires_grad_(dy is not None)
    y = layer(leaf)
    found = {"y": y.detach()}
    if dy is not None:
        inputs = {"x": leaf, **dict(module.named_parameters())}
        gradients = torch.autograd.grad(y, list(inputs.values()), dy)
        found |= {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            found[name] = buffer.clone()
            buffer.copy_(kept[name])
    return found


def _units(actual: Tensor, exact: Array, allowed: Array) -> Array:
    """``|actual - exact| / allowed``; infinite where a number and NaN meet."""
    got = _exact(actual)
    if got.shape != exact.shape:
        raise AssertionError(f"got shape {got.shape}, exact is {exact.shape}")
    with np.errstate(all="ignore"):
        units = np.abs(got - exact) / allowed
        beyond = np.abs(exact) + allowed >= torch.finfo(actual.dtype).max
        overflows = np.isinf(got) & beyond & (np.sign(got) == np.sign(exact))
        right = (got == exact) | (np.isnan(got) & np.isnan(exact)) | overflows
    return np.where(right, 0.0, np.where(np.isnan(units), np.inf, units))


def _around(mean: float, std: float) -> HardInput:
    return lambda shape, generator: mean + std * torch.randn(shape, generator=generator)


def _constant(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(1, generator=generator).expand(shape).clone()


def _constant_channel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator)
    x[:, 0] = 7
    return x


def _channels_apart(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    means = 10.0 ** (torch.arange(shape[1]) % 7)
    return means.view(-1, *[1] * (len(shape) - 2)) + torch.randn(shape, generator=generator)


def _outlier(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator)
    x.view(-1)[0] = 1e4  # the first, on which a one-pass variance may be centred
    return x


def _near_half_max(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 65504 * (1 - 2 * torch.rand(shape, generator=generator))


# Float32 of shape (N, C, *). To coarser types cast those that stay finite.
HARD_INPUTS: Mapping[str, HardInput] = {
    "plain": _around(0, 1),
    "mean 1e3": _around(1e3, 1),
    "mean 1e6": _around(1e6, 1),
    "channels apart": _channels_apart,
    "variance below eps": _around(0, 1e-3),
    "mean 1, std 1e-4": _around(1, 1e-4),
    "constant": _constant,
    "constant channel": _constant_channel,
    "outlier": _outlier,
    "near half max": _near_half_max,
    "huge": _around(0, 1e30),
    "tiny": _around(0, 1e-30),
    "subnormal": _around(0, 1e-40),
}
