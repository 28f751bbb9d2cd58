"""How the parts of a program are shared out among threads.

A program is a list of phases; a phase is one or more kernels and a number of parts. The kernels of
a phase run one after the other on each part; phases wait for one another. Parts do not depend on
the number of threads, so neither do results.

Threads are those of PyTorch's own OpenMP: its workers are awake when a layer before us has just
used them, and two pools would fight for the cores. OpenMP cannot be entered in a child after fork,
and is not everywhere; there, plain threads do the same.
"""

# An intrinsic takes a typing context that Python does not see, and Numba types itself loosely.
# pyright: reportCallIssue=false
# pyright: reportArgumentType=false
# pyright: reportReturnType=false

from __future__ import annotations

import ctypes
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import types

from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.compiled import call, compile_function, fence, helper, row_at

# A program: number of phases; for each, first part, number of parts, number of kernels, addresses
# of kernels.
KERNELS_A_PHASE = 5
PHASE = 3 + KERNELS_A_PHASE

_OPENMP = "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier", "GOMP_parallel"
_thread_num = types.ExternalFunction("omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())
_barrier = types.ExternalFunction("GOMP_barrier", types.void())


def program(phases: list[tuple[int, list[int]]]) -> np.ndarray:
    """The table of a program: (number of parts, addresses of kernels) for each phase.

    Of -1 parts there is one, which has the number -1.
    """
    table = np.zeros(1 + PHASE * len(phases), np.int64)
    table[0] = len(phases)
    for i, (parts, addresses) in enumerate(phases):
        at = 1 + PHASE * i
        table[at : at + 3] = min(parts, 0), abs(parts), len(addresses)
        table[at + 3 : at + 3 + len(addresses)] = addresses
    return table


def run(args: Any, threads: int) -> None:
    """Run a program; ``args`` is the table of the call, bytes or a ctypes array."""
    if threads == 1:
        _alone()(args)
    elif (team := openmp()) is None:
        _in_threads(args, threads)
    else:
        team(args, threads)


def prepare() -> None:
    """Compile, or load, what runs programs, on one thread and on several."""
    _alone()
    if openmp() is None:
        _phase()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    openmp.cache_clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@helper
def _share(args: int, phase: int, thread: int, threads: int) -> None:
    a = row_at(args, np.int64)
    phases = row_at(a[t.PROGRAM], np.int64)
    at = 1 + PHASE * phase
    first, parts = phases[at], phases[at + 1]
    for part in range(thread * parts // threads, (thread + 1) * parts // threads):
        for k in range(phases[at + 2]):
            call(phases[at + 3 + k], a[t.X], args, first + part)
    fence()


def _all(args: int) -> None:
    """A whole program."""
    a = row_at(args, np.int64)
    for phase in range(row_at(a[t.PROGRAM], np.int64)[0]):
        _share(args, phase, 0, 1)


def _member(args: int) -> None:
    """What each thread of an OpenMP team does."""
    a = row_at(args, np.int64)
    for phase in range(row_at(a[t.PROGRAM], np.int64)[0]):
        _share(args, phase, _thread_num(), _num_threads())
        _barrier()


def _one_phase(args: int, phase: int, thread: int, threads: int) -> None:
    """One thread's parts of a phase."""
    _share(args, phase, thread, threads)


@cache
def _alone() -> Any:
    return _compile(_all, 1)[0]


@cache
def openmp() -> Any:
    """``f(args, threads)`` on torch's threads, or None where it has none that can be used."""
    if _forked or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        library = ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD)  # the one that torch has loaded
        for name in _OPENMP:
            llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    except (OSError, AttributeError):
        return None
    parallel = library.GOMP_parallel
    parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    member = _compile(_member, 1)[1]
    return lambda args, threads: parallel(member, args, threads, 0)


def _in_threads(args: Any, threads: int) -> None:
    one_phase, pool = _phase(), _pool()
    program = int.from_bytes(bytes(args)[:8], sys.byteorder)
    for phase in range(ctypes.c_int64.from_address(program).value):
        others: list[Future[None]] = []
        try:
            for i in range(1, threads):
                others.append(pool.submit(one_phase, args, phase, i, threads))
            one_phase(args, phase, 0, threads)
        finally:  # an interrupt must not free what others still write to
            wait(others)


@cache
def _phase() -> Any:
    return _compile(_one_phase, 4)[0]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="normalform")


def _compile(function: Any, words: int) -> tuple[Any, int]:
    """A function of numbers as a callable that lets other threads run, and where it is."""
    compiled = compile_function(function, types.void(*[types.int64] * words))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * (words - 1))
    callable_ = kind(compiled.address)
    _kept.append(compiled)
    return callable_, compiled.address


_kept: list[Any] = []
