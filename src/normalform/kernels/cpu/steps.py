"""Which norms the compiled kernels take, and a norm laid over a tensor as they compute it."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, empty_like, get_num_threads
from torch.autograd.graph import increment_version

from normalform.kernels import RUNNING, Saved, composite, warn_not_finite
from normalform.kernels.call import Call
from normalform.kernels.cpu import table as t
from normalform.kernels.cpu import team
from normalform.kernels.cpu.layout import PARALLEL, Layout
from normalform.kernels.known import alike
from normalform.kernels.plan import Pair
from normalform.kernels.request import pattern, requested

# The table of a call, see ``table``: all of it, and as much of it as the forward needs.
_CALL = struct.Struct(f"12qd{t.ARGS - 13}q")
_FORWARD = struct.Struct(f"12qd{8 * (t.ARGS - 13)}x")
_Table = ctypes.c_int64 * t.ARGS
LOGITS = "mean_weight", "var_weight"
# One for all layouts: memory of each one's own would lie between the tensors and hold their pages.
_NUMBER = torch.empty(1, dtype=torch.float64, device="cpu")


class Compiled:
    """The steps of a norm on tensors of one layout, in machine code. See ``kernels.Steps``.

    ``x`` is a tensor as the recipes see it, ``order`` brings its axes into (n, c, *s).
    """

    def __init__(self, layout: Layout, x: Tensor, order: tuple[int, ...]) -> None:
        self.layout, self.shape, self.order = layout, tuple(x.shape), order
        request = layout.request
        self.copies, self.tracks = request.copies, request.tracked is not None
        # How x lies where that is with gaps or in another order.
        self.lies = None if self.copies or x.is_contiguous() else (self.shape, x.stride())
        # Why one thread works on it, always by the same programs.
        self.few = ""
        if layout.values < PARALLEL:
            self.few = f"one thread below {PARALLEL} values"
        elif layout.programs(2).parts == 1:
            self.few = "one thread: too few rows for two"
        self.alone = layout.programs(1) if self.few else None
        self.huge = layout.values * request.dtype.itemsize >= _HUGE
        # Torch is faster at making a tensor like another than one of a size.
        self.small = _NUMBER.expand(layout.small)
        # Whether there is room for it in memory of each thread's own.
        self.fits = max(layout.small + layout.temporary, layout.scratch) <= _LARGEST
        self.rows = layout.kind == "rows"
        self.takes: Callable[..., bool] = _none

    def __str__(self) -> str:
        threads = self.few or f"threads: {get_num_threads()}"
        return f"cpu ({self.layout.kind}), {threads}"

    def prepare(self, backward: bool) -> None:
        """Compile, or load, whatever it may run on any number of threads."""
        team.prepare()
        asked, layout = self.layout.request, self.layout
        small = any(kind is not None for kind in (asked.weight, asked.bias, asked.logits))
        for programs in (layout.tiled, layout.staged if layout.kind != "rows" else None):
            if programs is not None:
                programs.forward()
                if backward:
                    programs.backward(True, small)

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
        running: Pair | None,
        momentum: float,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the small arrays; running statistics are moved where they are tracked."""
        programs, threads = self.alone, 1
        if programs is None:
            threads = get_num_threads()
            programs = self.layout.programs(threads)
        if self.copies:
            x = x.contiguous()
        y = _new(x) if self.huge else empty_like(x)
        small = empty_like(self.small) if keep else None
        if self.fits:
            scratch = _local.address
        else:
            memory = _doubles(self.layout.small + self.layout.temporary)
            scratch = memory.data_ptr()
        if small is None:  # nobody needs the small arrays afterwards
            at_small, scratch = scratch, scratch + 8 * self.layout.small
        else:
            at_small = small.data_ptr()
        at_x = x.data_ptr()
        at_weight = at_bias = to_mean = to_var = mean = var = 0
        if not at_x:
            raise _freed("the input")
        if weight is not None and not (at_weight := weight.data_ptr()):
            raise _freed("weight")
        if bias is not None and not (at_bias := bias.data_ptr()):
            raise _freed("bias")
        if logits:
            to_mean, to_var = _both_at(LOGITS, logits)
        if running:
            mean, var = _both_at(RUNNING, running)
        args = _FORWARD.pack(
            programs.forward_at or programs.forward(), programs.address,
            at_x, y.data_ptr(), at_small, scratch,
            at_weight, at_bias, to_mean, to_var, mean, var, momentum,
        )  # fmt: skip
        if self.tracks and running is not None:
            self._move(args, threads, running)
        else:
            team.run(args, threads)
        return y, small

    def _move(self, args: bytes, threads: int, running: Pair) -> None:
        """Run, and say that running statistics were written to, and which kept their value."""
        told = _Table.from_buffer_copy(args)
        team.run(told, threads)
        increment_version(running)
        if told[t.NOT_FINITE_MEAN] or told[t.NOT_FINITE_VAR]:
            channels = self.layout.request.shape[1]
            for name, at in zip(RUNNING, (t.NOT_FINITE_MEAN, t.NOT_FINITE_VAR), strict=True):
                if told[at]:
                    warn_not_finite(name, told[at], channels)

    def arranged(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Saved]:
        """What the backward gets, as the kernels read it: mostly as it is, and then it is taken."""
        asked, (x, weight, bias, *logits) = self.layout.request, saved
        x = _as_saved("input", x, asked.dtype, self.layout.values, self.lies)
        samples, channels = asked.shape[:2]
        params = channels * samples if asked.per_sample else channels
        if weight is not None:
            weight = _as_saved("weight", weight, asked.weight, params)
        if bias is not None:
            bias = _as_saved("bias", bias, asked.bias, params)
        branches = len(asked.plan.branches)
        logits = [_as_saved("logits", t, asked.logits, branches) for t in logits]
        came, found = (dy, *saved), (x, weight, bias, *logits)
        if dy.stride() != x.stride() or dy.is_neg() or dy._is_zerotensor():
            dy = empty_like(x).copy_(dy)
        if all(a is b for a, b in zip(came, (dy, *found), strict=True)):
            self.takes = _alike(came)
        return dy, found

    def backward(
        self, kept: Tensor, dy: Tensor, saved: Saved, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight, bias and both logits, those that are needed."""
        programs, threads = self.alone, 1
        if programs is None:
            threads = get_num_threads()
            programs = self.layout.programs(threads)
        x, weight, bias, *logits = saved
        at_x, at_dy = x.data_ptr(), dy.data_ptr()
        if not at_x or not at_dy:
            raise _freed("the gradient of the output" if at_x else "the input")
        dx = dweight = dbias = dmean = dvar = None
        at_weight = at_bias = to_mean = to_var = 0
        to_dx = to_dweight = to_dbias = to_dmean = to_dvar = 0
        if needs[0] or self.rows:  # whose kernel makes all at once
            dx = _new(x) if self.huge else empty_like(x)
            to_dx = dx.data_ptr()
        if weight is not None:
            if not (at_weight := weight.data_ptr()):
                raise _freed("weight")
            if needs[1]:
                dweight = empty_like(weight)
                to_dweight = dweight.data_ptr()
        if bias is not None and needs[2]:  # the bias itself is not read
            dbias = empty_like(bias)
            to_dbias = dbias.data_ptr()
        if logits:
            to_mean, to_var = _both_at(LOGITS, logits)
            if needs[3] or needs[4]:
                dmean, dvar = torch.zeros_like(logits[0]), torch.zeros_like(logits[1])
                if self.layout.blends:  # else they decide nothing
                    to_dmean, to_dvar = dmean.data_ptr(), dvar.data_ptr()
        if self.fits:
            scratch = _local.address
        else:
            memory = _doubles(self.layout.scratch)
            scratch = memory.data_ptr()
        program = programs.backward_at if to_dx and to_dweight else 0
        args = _CALL.pack(
            program or programs.backward(to_dx != 0, to_dweight + to_dbias + to_dmean != 0),
            programs.address, at_x, 0, kept.data_ptr(), scratch,
            at_weight, at_bias, to_mean, to_var, 0, 0, 0.0, 0, 0,
            at_dy, to_dx, to_dweight, to_dbias, to_dmean, to_dvar,
        )  # fmt: skip
        team.run(args, threads)
        if not needs[0]:
            dx = None
        return (dx, dweight, dbias, dmean, dvar) if logits else (dx, dweight, dbias)

    def again(
        self,
        kept: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        logits: Pair | None,
    ) -> Tensor:
        """The output in operators that torch differentiates."""
        constants, z = self._constants(kept), x.reshape(self.shape).permute(self.order)
        # (n, c) comes before the positions in every order that is taken.
        request = self.layout.request
        samples, channels, *s = request.shape
        shape = samples if request.per_sample else 1, channels, *(1 for _ in s)
        w, b = (None if t is None else t.reshape(shape) for t in (weight, bias))
        y, _ = composite(z, request.plan, w, b, logits, constants)
        back = [self.order.index(d) for d in range(z.ndim)]
        return y.permute(back).reshape(x.shape)

    def _constants(self, kept: Tensor) -> Pair | None:
        """The running statistics that were used, as they were then."""
        roles, (_, c, *s) = self.layout.roles(), self.layout.request.shape
        if t.GIVEN not in roles:
            return None
        at = int(self.layout.table[t.AT_BRANCHES + t.BRANCH * roles.index(t.GIVEN) + t.AT_CELLS])
        shape = (1, c, *(1 for _ in s))
        return kept[at + c : at + 2 * c].view(shape), kept[at + 3 * c : at + 4 * c].view(shape)


def _both_at(names: Sequence[str], pair: Sequence[Tensor]) -> tuple[int, int]:
    """Where two tensors are."""
    first, second = pair[0].data_ptr(), pair[1].data_ptr()
    if not first or not second:
        raise _freed(names[1 if first else 0])
    return first, second


def _freed(name: str) -> RuntimeError:
    return RuntimeError(
        f"the memory of {name} was freed, its storage has no bytes; it must be there during a "
        "norm's forward and backward"
    )


def _as_saved(
    name: str, t: Tensor, dtype: torch.dtype | None, values: int,
    lay: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> Tensor:  # fmt: skip
    """A saved tensor as it lay in memory, without gaps or with this shape and these strides.

    Hooks that kept it elsewhere give back its values, but need not keep its strides.
    """
    if t.dtype is not dtype or t.numel() != values or (lay is not None and t.shape != lay[0]):
        raise RuntimeError(
            f"the {name} that was saved for the backward came back as {t.dtype} {list(t.shape)}, "
            f"it was {dtype} of {values} values: hooks of saved tensors must give back what they "
            "got"
        )
    as_it_lay = t.is_contiguous() if lay is None else t.stride() == lay[1]
    if as_it_lay and not t.is_neg():
        return t
    if lay is None:
        return t.resolve_neg().contiguous()
    return torch.empty_strided(*lay, dtype=dtype).copy_(t)


# From this many bytes on malloc often takes fresh pages for a tensor. Where they were of 4 KiB, to
# get them took 4 times as long as a norm itself (tensors of 32 and 64 MB, Linux, 2026-11).
_HUGE = 4 << 20


def _new(x: Tensor) -> Tensor:
    """An empty tensor like x, of ``_HUGE`` bytes or more; all of it will be written to."""
    new = empty_like(x)
    size = new.nbytes
    if (advise := _madvise()) is not None:
        first = -(-new.data_ptr() // 4096) * 4096
        advise(first, (new.data_ptr() + size) // 4096 * 4096 - first, 14)  # MADV_HUGEPAGE
    return new


@cache
def _madvise() -> Any:
    """Advice to the system, which may ignore it; on Linux only."""
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return advise


_LARGEST = 1 << 16  # numbers, half a megabyte for each thread that computes


def _doubles(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float64, device="cpu")


class _Local(threading.local):
    """Memory of each thread's own, for numbers that nobody needs once a call is over."""

    def __init__(self) -> None:
        self.memory = _doubles(_LARGEST)
        self.address = self.memory.data_ptr()


_local = _Local()


def _none(*tensors: Tensor | None) -> bool:
    return False


def _alike(tensors: Sequence[Tensor | None]) -> Callable[..., bool]:
    """:func:`alike` of those that there are."""
    there = [t for t in tensors if t is not None]
    check = alike(there).check
    if len(there) == len(tensors):
        return check
    return lambda *others: check(*[t for t in others if t is not None])


def find(call: Call) -> Compiled | str:
    """The steps, or why there are none. It depends on shapes, strides and types alone."""
    cells, dims = call.laid()
    request = requested(call, cells, dims)
    if isinstance(request, str):
        return request
    layout = Layout(request, pattern(request))
    return Compiled(layout, call.x, cells[0].order)
