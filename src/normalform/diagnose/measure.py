"""Forward passes over the same few batches, and how their outcomes compare."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normalform.diagnose.norms import (
    Norm,
    exact,
)
from normalform.surgery.feeding import batches as first
from normalform.surgery.feeding import given

Loss = Callable[..., Any]


@dataclass(frozen=True)
class Data:
    """The batches that everything is measured on, and the loss."""

    batches: tuple[Any, ...]
    loss: Loss | None = None


@dataclass(frozen=True)
class Result:
    """What a pass gave.

    Attributes:
        outputs: all floating point outputs of each batch, as one vector.
        loss: mean over the batches, None without a loss.
        chance: the loss where each output meets the target of another sample.
    """

    outputs: tuple[Tensor, ...]
    loss: float | None = None
    chance: float | None = None


def run(model: nn.Module, data: Data) -> Result:
    """Every batch once, without gradients, always with the same random numbers."""
    outputs: list[Tensor] = []
    losses: list[float] = []
    chances: list[float] = []
    with torch.no_grad(), warnings.catch_warnings(), _every_module_called():
        warnings.simplefilter("ignore")  # the model's own were seen when it was trained
        torch.manual_seed(0)
        for batch in first(data.batches, doing="diagnose"):
            batch = given(model, batch)
            output = model(*batch.args, **batch.kwargs)
            outputs.append(_vector(output))
            if data.loss is not None:
                losses.append(float(data.loss(output, *batch.rest)))
                chances += _chance(data.loss, output, batch.rest)
    return Result(tuple(outputs), _mean(losses), _mean(chances))


@contextmanager
def _every_module_called() -> Generator[None]:
    """PyTorch's fused encoder layers, which call none of their norms, are off inside."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _chance(loss: Loss, output: Any, rest: tuple[Any, ...]) -> list[float]:
    turned = [t.roll(1, 0) if isinstance(t, Tensor) and t.ndim else t for t in rest]
    try:
        return [float(loss(output, *turned))] if rest else []
    except (ValueError, RuntimeError, IndexError, TypeError):  # targets that fit no other output
        return []


def _mean(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _vector(output: Any) -> Tensor:
    found = [t.detach().flatten().to(torch.float32) for t in _floats(output)]
    if not found:
        raise ValueError(f"the model returns no tensor of numbers but a {type(output).__name__}")
    return torch.cat(found)


def _floats(output: Any) -> Generator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _floats(value)


def distance(result: Result, reference: Result) -> float:
    """By how much outputs differ, in units of the size of the reference's."""
    apart = size = 0.0
    for a, b in zip(result.outputs, reference.outputs, strict=True):
        a, b = exact(a), exact(b)
        apart += float((a - b).square().sum())
        size += float(b.square().sum())
    return math.sqrt(apart / size) if size else math.sqrt(apart)


@contextmanager
def batch_statistics(norms: Sequence[Norm]) -> Generator[None]:
    """These norms use the statistics of the batch inside; afterwards all is as before.

    Their momentum is 1 inside, so that the running statistics are those of the batch alone. All
    other modules stay as they are, dropout for one.
    """
    buffers = [b for norm in norms for b in norm.module.buffers(recurse=False)]
    copies = [b.clone() for b in buffers]
    before = [(n.module, n.module.training, getattr(n.module, "momentum", None)) for n in norms]
    try:
        for module, _, _ in before:
            module.training = True
            setattr(module, "momentum", 1.0)  # noqa: B010
        yield
    finally:
        for module, training, own in before:
            module.training = training
            setattr(module, "momentum", own)  # noqa: B010
        with torch.no_grad():
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)
