"""What the norms of a model get in forward passes."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from normalform.diagnose.norms import (
    Norm,
    cell_variances,
    channel_axis,
    exact,
    values_per_statistic,
)
from normalform.surgery.population import Population

_Made = dict[int, tuple[weakref.ref[Tensor], int, str]]  # by id: tensor, version, by which layer


@dataclass
class Seen:
    """What a norm got in a pass.

    Attributes:
        order: among the norms, by the first call.
        shape: of the first input.
        dtype: of the first input.
        values: behind each statistic, the fewest of all calls with the largest batch.
        largest: samples of that batch.
        samples: in all batches together.
        finite_in: whether every input was finite.
        finite_out: whether every output was.
        feeder: the convolution or linear layer whose output is the input, untouched.
        cell_var: median variance of the cells of the first input.
        all: mean and variance of each channel, over all that came.
        batch: mean and variance of each batch as the norm itself found them, where it used those.
    """

    order: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: int
    cell_var: float
    all: Population
    largest: int = 0
    samples: int = 0
    finite_in: bool = True
    finite_out: bool = True
    feeder: str = ""
    batch: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def watched(model: nn.Module, norms: Sequence[Norm], seen: dict[str, Seen]) -> Generator[None]:
    """Notes in ``seen``, by name, what the norms get inside."""
    made: _Made = {}

    def note_made(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = weakref.ref(output), output._version, name

    def note_input(norm: Norm, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        x = next(given, None)
        if x is not None and x.ndim and x.numel():
            _note_input(norm, x, seen, made)

    def note_output(norm: Norm, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and norm.name in seen:
            row = seen[norm.name]
            row.finite_out &= bool(output.isfinite().all())
            if module.training and norm.running is not None:  # of this batch alone: momentum is 1
                mean, var = norm.running
                row.batch.append((exact(mean), exact(var)))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, _ConvNd | nn.Linear):
                hook = module.register_forward_hook(partial(note_made, name))
                hooks.callback(hook.remove)
        for norm in norms:
            before = norm.module.register_forward_pre_hook(
                partial(note_input, norm), with_kwargs=True
            )
            hooks.callback(before.remove)
            after = norm.module.register_forward_hook(partial(note_output, norm))
            hooks.callback(after.remove)
        yield


def _note_input(norm: Norm, x: Tensor, seen: dict[str, Seen], made: _Made) -> None:
    values, axis = values_per_statistic(norm, x), channel_axis(norm, x)
    row = seen.get(norm.name)
    if row is None:
        var = float(cell_variances(norm, x).median())
        every = Population(x.size(axis), x.device)
        feeder = _feeder(x, made)
        row = Seen(len(seen), tuple(x.shape), x.dtype, values, var, every, feeder=feeder)
        seen[norm.name] = row
    samples = x.size(0) if axis else 1
    if samples > row.largest:  # the last batch of a loader is often smaller
        row.values, row.largest = values, samples
    elif samples == row.largest:
        row.values = min(row.values, values)
    row.samples += samples
    row.finite_in &= bool(x.isfinite().all())
    row.all.add(x.movedim(axis, 1) if axis else x.unsqueeze(0))


def _feeder(x: Tensor, made: _Made) -> str:
    """Whose output this very tensor is, if nothing was done to it in place."""
    tensor, version, name = made.get(id(x), (None, 0, ""))
    return name if tensor is not None and tensor() is x and version == x._version else ""
