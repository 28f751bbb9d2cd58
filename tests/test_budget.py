"""The allowed errors are those that are printed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normalform import budget, reference

u, U = 2.0**-24, 2.0**-53
COARSE = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 0.0}
HALF_A_SUBNORMAL = {
    torch.float32: 2.0**-150,
    torch.bfloat16: 2.0**-134,
    torch.float16: 2.0**-25,
    torch.float64: 0.0,
}
DTYPES = list(COARSE)

X = np.random.default_rng(1).normal(5, 2, size=(4, 3, 2, 5))
DY = np.random.default_rng(2).normal(size=X.shape)
WEIGHT, BIAS = np.array([2.0, -1.0, 0.5]), np.array([0.0, 3.0, -1.0])
AXES = (0, 2, 3)


def laid(values: np.ndarray) -> np.ndarray:
    return np.abs(values).reshape(1, 3, 1, 1)


def batch_norm() -> reference.Result:
    return reference.batch_norm(X, WEIGHT, BIAS, running_mean=np.ones(3), running_var=np.ones(3))


def peak(result: reference.Result) -> np.ndarray:
    return np.maximum(1, np.abs(result.xhat).max(AXES, keepdims=True))


def conditioning() -> np.ndarray:
    std = np.sqrt(X.var(AXES, keepdims=True) + 1e-5)
    return 1 + np.abs(X.mean(AXES, keepdims=True)) / std


@pytest.mark.parametrize("dtype", DTYPES)
def test_y(dtype: torch.dtype) -> None:
    result = batch_norm()
    own = laid(WEIGHT) * np.abs(result.xhat) + laid(BIAS)
    printed = 4 * u * own + 1e-11 * laid(WEIGHT) * peak(result)
    if dtype == torch.float64:
        printed = 8 * U * (conditioning() * laid(WEIGHT) * peak(result) + laid(BIAS))
    printed = printed + COARSE[dtype] * np.abs(result.y) + HALF_A_SUBNORMAL[dtype]
    np.testing.assert_allclose(budget.allowed_y(result, dtype), printed, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dx(dtype: torch.dtype) -> None:
    result = batch_norm()
    gradients = result.backward(DY)
    printed = 8 * u * gradients.terms
    if dtype == torch.float64:
        largest = gradients.terms.max(AXES, keepdims=True)
        printed = 8 * U * conditioning() * peak(result) * largest
    printed = printed + COARSE[dtype] * np.abs(gradients.x) + HALF_A_SUBNORMAL[dtype]
    printed = np.broadcast_to(printed, X.shape)
    np.testing.assert_allclose(budget.allowed_dx(result, gradients, dtype), printed, 1e-12)


@pytest.mark.parametrize("parameter", DTYPES[:3])
@pytest.mark.parametrize("name", ["weight", "bias", "mean_weight", "var_weight"])
def test_sums(name: str, parameter: torch.dtype) -> None:
    result = reference.switch_norm(X, [0.0, 1.0, 2.0], [1.0, 0.0, 3.0], WEIGHT, BIAS)
    gradients = result.backward(DY)
    exact, scale = np.abs(getattr(gradients, name)), getattr(gradients, f"{name}_scale")
    lost = {
        "mean_weight": np.abs(laid(WEIGHT) * DY).sum(),
        "var_weight": np.abs(laid(WEIGHT) * DY * result.xhat).sum(),
    }
    printed = 2 * u * exact + 4 * u * scale + 1e-11 * lost.get(name, 0.0)
    printed = printed + COARSE[parameter] * exact + HALF_A_SUBNORMAL[parameter]
    found = budget.allowed_sum(name, result, gradients, DY, torch.float32, parameter)
    np.testing.assert_allclose(found, printed, 1e-12)


COARSER = {**COARSE, torch.float32: 2.0**-24}  # than float64


@pytest.mark.parametrize("parameter", DTYPES)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_sums_of_float64(name: str, parameter: torch.dtype) -> None:
    result = batch_norm()
    gradients = result.backward(DY)
    terms = np.abs(DY) * (1 + np.abs(result.xhat) if name == "weight" else 1)
    rest = np.sqrt(DY.size) * getattr(gradients, f"{name}_scale")
    printed = 8 * U * (conditioning().max() * terms.sum(AXES) + rest)
    exact = np.abs(getattr(gradients, name))
    printed = printed + COARSER[parameter] * exact + HALF_A_SUBNORMAL[parameter]
    found = budget.allowed_sum(name, result, gradients, DY, torch.float64, parameter)
    np.testing.assert_allclose(found, printed, 1e-12)


def test_a_parameter_keeps_its_axes_of_size_one() -> None:
    x, dy, weight = X[:, :, :1], DY[:, :, :1], np.ones((3, 1, 5))
    result = reference.norm(x, "[n] c s", weight, params="c s")
    gradients = result.backward(dy)
    printed = 2 * u * np.abs(gradients.weight) + 4 * u * gradients.weight_scale + 2.0**-150
    found = budget.allowed_sum("weight", result, gradients, dy, torch.float32, torch.float32)
    assert found.shape == weight.shape
    np.testing.assert_allclose(found, printed, 1e-12)
    wide = budget.allowed_sum("weight", result, gradients, dy, torch.float64, torch.float64)
    assert wide.shape == weight.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics(dtype: torch.dtype) -> None:
    result = batch_norm()
    mean, var = np.abs(result.running_mean), np.abs(result.running_var)
    if dtype == torch.float64:
        printed_mean = 8 * U * (conditioning().max() * mean + np.abs(X).max(AXES))
        printed_var = 8 * U * conditioning().max() * var
    else:
        printed_mean = 2 * u * mean + 1e-11 * np.abs(X).max(AXES)
        printed_var = 2 * u * var
    for name, exact, printed in (
        ("running_mean", mean, printed_mean),
        ("running_var", var, printed_var),
    ):
        found = budget.allowed_running(name, result, X, dtype, dtype)
        np.testing.assert_allclose(found, printed + COARSE[dtype] * exact + HALF_A_SUBNORMAL[dtype])
        if dtype == torch.float64:
            found = budget.allowed_running(name, result, X, dtype, torch.float32)
            np.testing.assert_allclose(found, printed + 2.0**-24 * exact + 2.0**-150)


def test_a_blend_takes_the_largest_of_all_its_cells() -> None:
    result = reference.switch_norm(X, [0.0, 0.0], [0.0, 0.0], over=("instance", "layer"))
    largest = np.maximum(1, np.abs(result.xhat).max((1, 2, 3), keepdims=True))
    printed = 4 * u * np.abs(result.xhat) + 1e-11 * largest + 2.0**-150
    np.testing.assert_allclose(budget.allowed_y(result, torch.float32), printed, 1e-12)
