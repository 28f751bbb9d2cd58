"""One training step of a layer, and whether two of them gave the same."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ZOO, build

IN_TORCH = [name for name in ZOO if hasattr(nn, type(build(name)[0]).__name__)]


def torch_twin(layer: nn.Module) -> nn.Module:
    """PyTorch's own layer with the same state."""
    twin = copy.deepcopy(layer)
    twin.__class__ = getattr(nn, type(layer).__name__)
    return twin


def example(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).add(0.3).to(dtype)


def prepared(
    name: str, training: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Any, Tensor]:
    """A layer of the zoo, and an input for it."""
    layer, shape = build(name, dtype=dtype)
    return layer.train(training), example(shape, dtype)


def direction(y: Tensor) -> Tensor:
    """A gradient of y of no particular structure."""
    return torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(y.dtype)


def step(call: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Result, gradients and buffers of one call, which is a call of ``layer`` by some way."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(leaf)
    leaves = {"x": leaf, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(y, list(leaves.values()), direction(y))
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    found = {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y.detach(), **found, **buffers}


def assert_same(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], terms: float = 0
) -> None:
    """Equal but for one rounding of what was exact: an ulp, and float64's own error.

    Kernels round to float32 on their way: where one is compared with another, or with the
    recipe, ``terms`` ulp of the largest value more.
    """
    assert list(actual) == list(expected)
    for name, value in actual.items():
        other = expected[name]
        assert (value.shape, value.dtype) == (other.shape, other.dtype), name
        a, b = value.double(), other.double()
        ulp = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        largest = b.abs().amax()
        allowed = ulp * (b.abs() + terms * largest) + 1e-12 * (1 + largest) * bool(ulp)
        apart = (a - b).abs()
        assert bool((apart <= allowed).all()), f"{name}: {float(apart.max())} apart"
