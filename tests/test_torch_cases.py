"""PyTorch's own cases: what it tests its norms with, ours must give and refuse alike.

Everything that knows PyTorch's private databases (``op_db``, ``module_db``) is in this file. The
truth is PyTorch's own answer in float64; the bounds are the promise, of which the judge computes
the sizes (the terms a gradient is the sum of).
"""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import normalform as nf
from normalform import budget, reference
from normalform.testing import assert_accurate

# How many cases PyTorch has at least: a database that was emptied or renamed must be noticed.
SAMPLES = {"batch_norm": 12, "instance_norm": 9, "layer_norm": 6, "group_norm": 21, "rms_norm": 6}
ERRORS = {"group_norm": 2, "rms_norm": 3}
MODULES = {
    "BatchNorm1d": 8,
    "BatchNorm2d": 4,
    "BatchNorm3d": 4,
    "InstanceNorm1d": 6,
    "InstanceNorm2d": 6,
    "InstanceNorm3d": 6,
    "LayerNorm": 4,
    "GroupNorm": 10,
    "RMSNorm": 2,
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

OPS = {name: op for op in op_db for name in SAMPLES if op.name == f"nn.functional.{name}"}
INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls.__module__.startswith("torch.nn")
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def exact(value: Any) -> Any:
    """A tensor in float64; anything else as it is."""
    return value.detach().double().numpy() if isinstance(value, Tensor) else value


def judged(name: str, a: Mapping[str, Any]) -> reference.Result:
    """The judge's answer to a call of ``torch.nn.functional``'s ``name``."""
    a = {key: exact(value) for key, value in a.items()}
    x, weight, bias = a["input"], a["weight"], a.get("bias")
    if a.get("unbatched"):
        x = x[None]
    if name in ("layer_norm", "rms_norm"):
        rows = x.reshape(-1, math.prod(a["normalized_shape"]))
        weight, bias = (v if v is None else v.ravel() for v in (weight, bias))
        return reference.norm(rows, "n [c]", weight, bias, a["eps"], center=name == "layer_norm")
    if name == "group_norm":
        return reference.group_norm(x, a["num_groups"], weight, bias, a["eps"])
    function = reference.batch_norm if name == "batch_norm" else reference.instance_norm
    state = {key: a[key] for key in ("running_mean", "running_var", "momentum")}
    mode = "training" if name == "batch_norm" else "use_input_stats"
    return function(x, weight, bias, a["eps"], **state, **{mode: a[mode]})


def bounds(name: str, a: Mapping[str, Any], dy: Tensor) -> dict[str, np.ndarray]:
    """The promise, for y and for each gradient by the name of its argument.

    In float64 the truth, PyTorch's own, is no better than ours: it is allowed as much.
    """
    result, x = judged(name, a), a["input"]
    dy64 = exact(dy)
    gradients = result.backward(dy64.reshape(result.y.shape))
    allowed = {
        "y": budget.allowed_y(result, x.dtype),
        "input": budget.allowed_dx(result, gradients, x.dtype),
    }
    for key in ("weight", "bias"):
        if a.get(key) is not None:
            dtype = a[key].dtype
            allowed[key] = budget.allowed_sum(key, result, gradients, dy64, x.dtype, dtype)
            # PyTorch's answer in float64 is only nearly exact, where a sum cancels.
            allowed[key] = allowed[key].reshape(a[key].shape) + 1e-13 * np.linalg.norm(dy64)
    allowed |= {key: allowed[key].reshape(x.shape) for key in ("y", "input")}
    return {key: (1 + (x.dtype == torch.float64)) * each for key, each in allowed.items()}


def run(call: Any, a: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Result, gradients and changed buffers of a call, with its tensors in ``dtype``."""
    a = {
        key: value.detach().clone().to(dtype).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for key, value in a.items()
    }
    y = call(**a)
    leaves = {key: v for key, v in a.items() if isinstance(v, Tensor) and v.requires_grad}
    found = torch.autograd.grad(y, list(leaves.values()), direction(y)) if leaves else ()
    buffers = {key: a[key] for key in ("running_mean", "running_var") if a.get(key) is not None}
    return y.detach(), dict(zip(leaves, found, strict=True)) | buffers


def direction(y: Tensor) -> Tensor:
    """A gradient of y that is the same in every dtype."""
    numbers = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return numbers.to(torch.bfloat16).to(y.dtype)


def check(name: str, ours: Any, torchs: Any, a: Mapping[str, Any]) -> None:
    """One case: y, gradients and buffers of ours against torch's in float64."""
    x = a["input"]
    y, found = run(ours, a, x.dtype)
    wide = dict(a)
    if "eps" in wide and wide["eps"] is None:  # the default depends on the dtype
        wide["eps"] = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    truth, expected = run(torchs, wide, torch.float64)
    native, _ = run(torchs, a, x.dtype)
    assert (y.shape, y.dtype, y.stride()) == (native.shape, native.dtype, native.stride())
    assert list(found) == list(expected)
    if x.numel() == 0:
        assert all(torch.equal(v.double(), expected[k]) for k, v in found.items())
        return
    allowed = bounds(name, wide, direction(y))
    assert_accurate(y, exact(truth), allowed["y"])
    for key, value in found.items():
        assert value.dtype == a[key].dtype
        if key in allowed:
            assert_accurate(value, exact(expected[key]), allowed[key], f"d{key}")
        else:  # a buffer, rounded once
            buffer = exact(expected[key])
            rounding = budget.roundoff(value.dtype) * np.abs(buffer)
            statistics = 1e-14 if x.dtype == torch.float64 else budget.STATISTICS
            largest = np.abs(exact(x)).max() ** 2
            assert_accurate(value, buffer, rounding + statistics * largest, key)


@each_dtype
@pytest.mark.parametrize("name", SAMPLES)
def test_functions_agree_on_torchs_samples(name: str, dtype: torch.dtype):
    torchs, ours = getattr(F, name), getattr(nf.functional, name)
    count = 0
    for requires_grad in (False, True):
        for sample in OPS[name].sample_inputs("cpu", dtype, requires_grad=requires_grad):
            given = inspect.signature(torchs).bind(sample.input, *sample.args, **sample.kwargs)
            given.apply_defaults()
            check(name, ours, torchs, given.arguments)
            count += 1
    assert count >= 2 * SAMPLES[name]


def test_complex_rms_norm_is_torchs():
    count = 0
    for sample in OPS["rms_norm"].sample_inputs("cpu", torch.complex64):
        ours = nf.functional.rms_norm(sample.input, *sample.args, **sample.kwargs)
        assert torch.equal(ours, F.rms_norm(sample.input, *sample.args, **sample.kwargs))
        count += 1
    assert count >= SAMPLES["rms_norm"]


def outcome(call: Any, *args: Any, **kwargs: Any) -> Exception | None:
    """What a call raises."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return error
    return None


def assert_same_refusal(ours: Exception | None, torchs: Exception | None, regex: str) -> None:
    assert type(ours) is type(torchs)
    if re.search(regex, str(torchs)):
        assert re.search(regex, str(ours)), f"{ours} does not match {regex!r}"


@pytest.mark.parametrize("name", ERRORS)
def test_functions_refuse_what_torch_refuses(name: str):
    torchs, ours = getattr(F, name), getattr(nf.functional, name)
    errors = list(OPS[name].error_inputs("cpu"))
    assert len(errors) >= ERRORS[name]
    for error in errors:
        s = error.sample_input
        refused = [outcome(f, s.input, *s.args, **s.kwargs) for f in (ours, torchs)]
        assert isinstance(refused[1], error.error_type)
        assert_same_refusal(*refused, error.error_regex)


def as_call(module: nn.Module, x: Tensor) -> tuple[str, dict[str, Any]]:
    """The name and arguments of the function that a module's forward is, values not trivial."""
    generator = torch.Generator().manual_seed(2)
    a: dict[str, Any] = {"input": x, "eps": module.eps}
    for key in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(module, key, None)
        new = None if old is None else torch.rand(old.shape, generator=generator) + 0.5
        learned = isinstance(old, nn.Parameter) and x.requires_grad
        a[key] = None if new is None else new.to(x.dtype).requires_grad_(learned)
    if isinstance(module, nn.GroupNorm):
        return "group_norm", a | {"num_groups": module.num_groups}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        name = "layer_norm" if isinstance(module, nn.LayerNorm) else "rms_norm"
        return name, a | {"normalized_shape": module.normalized_shape}
    uses_input = module.training or module.running_mean is None
    a |= {"momentum": 0.1, "training": uses_input, "use_input_stats": uses_input}
    if isinstance(module, _BatchNorm):
        return "batch_norm", a
    return "instance_norm", a | {"unbatched": x.ndim == module._get_no_batch_dim()}


def forward(module: nn.Module) -> Any:
    """The module's forward as a function of its input, parameters and buffers."""

    def call(input: Tensor, eps: float | None, **a: Any) -> Tensor:
        module.eps = eps
        own = [key for key, _ in (*module.named_parameters(), *module.named_buffers())]
        state = {key: a[key] for key in own if key in a}
        return torch.func.functional_call(module, state, (input,))

    return call


@each_dtype
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_agree_on_torchs_inputs(name: str, training: bool, dtype: torch.dtype):
    info, count = INFOS[name], 0
    for requires_grad in (False, True):
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
        )
        for each in inputs:
            made, (x,) = each.constructor_input, each.forward_input.args
            torchs, ours = (
                cls(*made.args, **made.kwargs).train(training)
                for cls in (info.module_cls, getattr(nf, name))
            )
            function, a = as_call(ours, x)
            check(function, forward(ours), forward(torchs), a)
            count += 1
    assert count >= 2 * MODULES[name]


def attempt(cls: type[nn.Module], error: Any, training: bool) -> None:
    """Make a module, and call it where that is what should fail."""
    made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
    module = cls(*made.args, **made.kwargs).train(training)
    if error.error_on == ModuleErrorEnum.FORWARD_ERROR:
        module(*given.args, **given.kwargs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm"])
def test_modules_refuse_what_torch_refuses(name: str, training: bool):
    info = INFOS[name]
    errors = list(
        info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        )
    )
    assert len(errors) >= 2
    for error in errors:
        refused = [
            outcome(attempt, cls, error, training) for cls in (getattr(nf, name), info.module_cls)
        ]
        assert isinstance(refused[1], error.error_type) or not training
        assert_same_refusal(*refused, error.error_regex)
