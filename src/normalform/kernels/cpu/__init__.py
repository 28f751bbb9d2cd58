"""Norms compiled for CPUs by Numba: exact, at the speed of the memory.

Each of a few memory patterns has its kernels (``planes``, ``columns``, ``rows``); ``blend`` holds
what is particular to norms, on arrays of one value a channel; ``layout`` chooses and orders them;
``team`` runs them on PyTorch's threads; ``compiled`` turns Python into machine code.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu import team
from normalform.kernels.cpu.layout import PARALLEL, Layout
from normalform.kernels.plan import Pair

_Args = ctypes.c_int64 * t.ARGS
_double, _word = struct.Struct("d"), struct.Struct("q")


class Kept(NamedTuple):
    """What the backward needs besides its inputs, and what the caller is told."""

    small: Tensor
    not_finite: tuple[int, int]


def forward(
    layout: Layout,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
    momentum: float,
) -> tuple[Tensor, Kept]:
    """The output; running statistics are moved where the layout tracks them.

    ``not_finite`` says how many means and variances kept their old value.
    """
    threads = 1 if layout.values < PARALLEL else torch.get_num_threads()
    programs = layout.programs(threads)
    x = dense(x, layout)
    y = torch.empty_like(x)
    small = torch.empty(layout.small, dtype=torch.float64)
    args = _Args(
        programs.forward[1], programs.address, x.data_ptr(), y.data_ptr(), 0, 0, small.data_ptr(),
        0, 0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
    )  # fmt: skip
    if logits is not None:
        args[t.MEAN_LOGITS], args[t.VAR_LOGITS] = logits[0].data_ptr(), logits[1].data_ptr()
    if running is None:
        team.run(args, threads)
        return y, Kept(small, (0, 0))
    args[t.RUNNING_MEAN], args[t.RUNNING_VAR] = running[0].data_ptr(), running[1].data_ptr()
    (args[t.MOMENTUM],) = _word.unpack(_double.pack(momentum))
    team.run(args, threads)
    if layout.request.tracked is not None:
        increment_version(running)
    return y, Kept(small, (args[t.NOT_FINITE_MEAN], args[t.NOT_FINITE_VAR]))


def backward(
    layout: Layout,
    kept: Kept,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight, bias and both logits, those that are needed."""
    threads = 1 if layout.values < PARALLEL else torch.get_num_threads()
    programs = layout.programs(threads)
    x = dense(x, layout)
    if dy.stride() != x.stride() or dy.is_neg() or dy._is_zerotensor():
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x) if needs[0] else None
    dweight = torch.empty_like(weight) if needs[1] and weight is not None else None
    dbias = torch.empty_like(bias) if needs[2] and bias is not None else None
    dmean = dvar = None
    if logits is not None and (needs[3] or needs[4]):
        dmean, dvar = torch.empty_like(logits[0]), torch.empty_like(logits[1])
    small = dweight is not None or dbias is not None or dmean is not None
    program = programs.backward(dx is not None, small)
    scratch = torch.empty(layout.scratch, dtype=torch.float64)
    args = _Args(
        program[1], programs.address, x.data_ptr(), 0, dy.data_ptr(),
        0 if dx is None else dx.data_ptr(), kept.small.data_ptr(), scratch.data_ptr(),
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if dweight is None else dweight.data_ptr(), 0 if dbias is None else dbias.data_ptr(),
    )  # fmt: skip
    if logits is not None:
        args[t.MEAN_LOGITS], args[t.VAR_LOGITS] = logits[0].data_ptr(), logits[1].data_ptr()
    if dmean is not None and dvar is not None:
        args[t.DMEAN_LOGITS], args[t.DVAR_LOGITS] = dmean.data_ptr(), dvar.data_ptr()
    team.run(args, threads)
    return dx, dweight, dbias, dmean, dvar


def dense(x: Tensor, layout: Layout) -> Tensor:
    """X as the layout has it: without gaps, each element of its own."""
    return x.contiguous() if layout.request.copies else x


def constants(layout: Layout, kept: Kept) -> Pair | None:
    """The running statistics that were used, (C,), as they were then."""
    roles, c = layout.roles(), layout.request.shape[1]
    if t.GIVEN not in roles:
        return None
    at = int(layout.table[t.AT_BRANCHES + t.BRANCH * roles.index(t.GIVEN) + t.AT_CELLS])
    return kept.small[at + c : at + 2 * c], kept.small[at + 3 * c : at + 4 * c]
