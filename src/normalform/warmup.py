"""Compile what the norms of a model need before its first request."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normalform.explain import OURS, Choice, chosen, described


@dataclass(frozen=True)
class Warmed:
    """A norm, an input it was given, and what it runs on such an input.

    Args:
        name: of the layer in the model.
        kind: its class.
        x: the input in words.
        choice: the kernel, and why.
    """

    name: str
    kind: str
    x: str
    choice: Choice


@dataclass(frozen=True, repr=False)
class Warmup:
    """Every norm that ran; prints as a table.

    Args:
        norms: in the order they ran first; a layer has a row for each kind of input.
    """

    norms: tuple[Warmed, ...] = ()

    def __len__(self) -> int:
        return len(self.norms)

    def __str__(self) -> str:
        ready = sum(row.choice.steps is not None for row in self.norms)
        if not self.norms:
            return "no norms of normalform ran; nf.convert makes PyTorch's ours"
        head = f"norms: {len(self.norms)}; compiled kernels ready for {ready}"
        width = max(len(row.name) for row in self.norms)
        rows = [f"  {row.name:{width}}  {row.kind} on {row.x}: {row.choice}" for row in self.norms]
        return "\n".join([head, *rows])

    __repr__ = __str__


def warmup(model: nn.Module, example: Any, *, backward: bool = True) -> Warmup:
    """Compile or load what the norms of ``model`` need, so that its first request waits for none.

    The model runs once on the example, without gradients, to see what reaches its norms. Then all
    that they may run on such inputs is made ready, for one thread and for many, in the mode the
    model is in: warm up again after ``train()`` or ``eval()`` if both will be used. Machine code is
    kept on disk, so that the next process only loads it.

    Parameters, gradients, buffers, the mode and PyTorch's random numbers are left as they were,
    also where the model raises. Norms called as functions are seen only by what their forward
    compiles; a module that ``torch.compile`` made runs as it was before.

    Args:
        model: any module; its norms of PyTorch's own classes are passed over.
        example: an input as it will come: what the model takes, a tuple of arguments, or a dict of
            named ones. Shapes, types and memory format count; it is copied.
        backward: make the gradients ready, too; False where the model will only infer.

    Returns:
        What each norm runs, and why where that is not compiled; prints as a table.

    Raises:
        TypeError: not a module, or an example of which a norm is given no tensor.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), nf.BatchNorm2d(4))
    >>> nf.warmup(model, torch.randn(2, 3, 8, 8))
    norms: 1; compiled kernels ready for 1
      1  BatchNorm2d on (2, 4, 6, 6) float32, contiguous: kernel cpu (planes), one thread below
        32768 values
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"warmup takes an instance of torch.nn.Module, got {model!r}")
    model = getattr(model, "_orig_mod", model)
    found: dict[tuple[str, str], Warmed] = {}
    args, kwargs = _arguments(example)
    with _unchanged(model), torch.no_grad(), _seen_by_norms(model, found):
        model(*args, **kwargs)
    for row in found.values():
        if row.choice.steps is not None:
            row.choice.steps.prepare(backward)
    return Warmup(tuple(found.values()))


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    if isinstance(example, Mapping):
        return (), {name: own(value) for name, value in example.items()}
    if isinstance(example, tuple):
        return tuple(own(value) for value in example), {}
    return (own(example),), {}


@contextmanager
def _unchanged(model: nn.Module) -> Generator[None]:
    """The model works on copies of its buffers and draws no random numbers of anybody else."""
    modules = list(model.modules())
    buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    copies = {id(b): b.clone() for _, _, b in buffers}  # one for each, where it is shared
    with torch.random.fork_rng():
        try:
            for module, name, buffer in buffers:
                setattr(module, name, copies[id(buffer)])
            yield
        finally:
            for module, name, buffer in buffers:
                setattr(module, name, buffer)


@contextmanager
def _seen_by_norms(model: nn.Module, found: dict[tuple[str, str], Warmed]) -> Generator[None]:
    def look(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        x = next((value for value in given if isinstance(value, Tensor)), None)
        if x is None:
            kinds = " and ".join(type(value).__name__ for value in given) or "nothing"
            raise TypeError(
                f"warmup: {type(layer).__name__} {name!r} was given {kinds} and no tensor; the "
                "example has to be an input as the model takes it"
            )
        key = name, described(x)
        if key not in found:
            found[key] = Warmed(name, type(layer).__name__, key[1], chosen(layer, x))

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, OURS):
                hook = layer.register_forward_pre_hook(partial(look, name), with_kwargs=True)
                hooks.callback(hook.remove)
        yield
