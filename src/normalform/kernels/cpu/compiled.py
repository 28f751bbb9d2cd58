"""From a Python function to machine code: how the kernels of this folder are compiled by Numba.

A kernel is a function ``f(x, args, part)``: ``x`` is a pointer whose type says what the tensors
hold, ``args`` the address of a table of int64 (addresses and sizes), ``part`` which part of the
work to do. It is compiled when it is first needed and kept on disk. It releases nothing and calls
nothing of Python's, so it runs on any thread.
"""

# An intrinsic takes a typing context that Python does not see, and Numba types itself loosely.
# pyright: reportCallIssue=false
# pyright: reportArgumentType=false
# pyright: reportReturnType=false
# pyright: reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core import serialize
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.extending import intrinsic, overload, register_jitable
from numba.misc.appdirs import AppDirs

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

# Sums are taken in whatever order is fastest, elsewhere only products may be fused into sums.
# Never nnan or ninf: both must propagate. Never reassoc where (x - high) - low must be so.
_OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
reduction = numba.njit(fastmath={"reassoc", "nsz", "contract"}, **_OPTIONS)
elementwise = numba.njit(fastmath={"contract"}, **_OPTIONS)
helper = numba.njit(**_OPTIONS)

# bfloat16 travels as its bits: NumPy and Numba do not know it.
HOLDS: dict[torch.dtype, Any] = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.bfloat16: types.uint16,
}


class Kernel:
    """A function compiled once for each type of its tensors."""

    def __init__(self, function: Callable[..., None], reads_x: bool) -> None:
        self.function, self.reads_x = function, reads_x
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._address: dict[torch.dtype, int] = {}
        self._compiled: list[CFunc] = []  # keeps the machine code alive

    def address(self, dtype: torch.dtype) -> int:
        """Where the machine code for tensors of ``dtype`` is, compiled or loaded if need be."""
        if dtype not in self._address:
            with _lock:
                if dtype not in self._address:
                    self._address[dtype] = self._compile(dtype)
        return self._address[dtype]

    def _compile(self, dtype: torch.dtype) -> int:
        pointer = types.CPointer(HOLDS[dtype])
        signature = types.void(pointer, types.int64, types.int64)
        compiled = compile_function(self.function, signature)
        self._compiled.append(compiled)
        return compiled.address


def kernel(function: Callable[..., None]) -> Kernel:
    """Mark ``f(x, args, part)`` as a kernel that reads tensors."""
    return Kernel(function, reads_x=True)


def small_kernel(function: Callable[..., None]) -> Kernel:
    """Mark it as a kernel of small arrays, which is the same for tensors of any type."""
    return Kernel(function, reads_x=False)


def compile_function(function: Callable[..., Any], signature: Any) -> CFunc:
    """Compile for C, or load what was compiled before."""
    options = {"nopython": True, "error_model": "numpy"}
    with _lock:
        compiled = CFunc(function, (signature.args, signature.return_type), {}, options)
        compiled._cache = _OnDisk(f"{function.__module__}.{function.__qualname__}")
        compiled.compile()
    return compiled


# A fork waits for whoever compiles: the child would wait forever for locks of a thread it lacks.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


@cache
def folders() -> list[Path]:
    """Where machine code is looked for; it is kept in the first of them that can be written to."""
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR)]
    users = AppDirs(appname="normalform", appauthor=False).user_cache_dir
    return [Path(__file__).parent / "__pycache__", Path(users)]


@cache
def source_stamp() -> bytes:
    """What machine code depends on: kernels call functions of other files of this folder."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


class _OnDisk:
    """Machine code in a file for each function, type and processor, in the place of Numba's cache.

    Numba's has an index for all types of a function: two processes that compile at the same time
    can leave one that names the code of another type, and a damaged one stops the program. Here a
    file that is not just as it was written, from the same source, counts as none.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def load_overload(self, signature: Any, context: Any) -> CompileResult | None:
        """What was saved, or None."""
        context.refresh()
        file = self._file(signature, context.codegen())
        for folder in folders():
            with suppress(OSError):
                found = (folder / file).read_bytes()
                seal, code = found[:32], found[32:]
                if seal == _seal(code):
                    return CompileResult._rebuild(context, *pickle.loads(code))
        return None

    def save_overload(self, signature: Any, compiled: CompileResult) -> None:
        """Write it, whole or not at all. Where no folder can be written to, there is no cache."""
        code, file = serialize.dumps(compiled._reduce()), self._file(signature, compiled.codegen)
        for folder in folders():
            part = folder / f"{file}.{uuid.uuid4().hex}"
            with suppress(OSError):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    part.write_bytes(_seal(code) + code)
                    part.replace(folder / file)
                    return
                finally:
                    part.unlink(missing_ok=True)

    def _file(self, signature: Any, codegen: Any) -> str:
        version = sys.implementation.cache_tag
        key = hashlib.sha256(repr((signature, codegen.magic_tuple(), version)).encode())
        return f"{self._name}-{key.hexdigest()[:16]}.nbc"


def _seal(code: bytes) -> bytes:
    return hashlib.sha256(source_stamp() + code).digest()


@intrinsic
def at(typing: Any, address: Any, like: Any) -> Any:
    """The pointer to an address; ``like`` is a type of elements, or a pointer of the same type."""
    pointer = like if isinstance(like, types.CPointer) else types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


@register_jitable
def array(address: int, like: Any, size: int) -> Any:
    """The array of ``size`` elements at an address."""
    return carray(at(address, like), (size,))


@register_jitable
def workspace(size: int) -> Any:
    """Room for float64 numbers, which starts with a cache line."""
    room = np.empty(size + 8)
    return room[(64 - room.ctypes.data % 64) // 8 % 8 :]


def _reinterpret(source: Any, target: Any) -> Any:
    @intrinsic
    def reinterpret(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return reinterpret


bits_of_float = _reinterpret(types.float32, types.uint32)
float_of_bits = _reinterpret(types.uint32, types.float32)
double_of_bits = _reinterpret(types.int64, types.float64)


@intrinsic
def call(typing: Any, function: Any, x: Any, args: Any, part: Any) -> Any:
    """Call the kernel at an address."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word, word, word])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


# What is read by ``load`` is not written to while a kernel runs, and ``store`` and ``add`` write to
# different arrays. Said so, the compiler needs no test for overlap before each loop, and takes
# several rows in one.
def _scopes(module: Any, *names: str) -> Any:
    domain = module.add_metadata(["normalform"])
    return module.add_metadata([module.add_metadata([name, domain]) for name in names])


def _element(context: Any, builder: Any, row: Any, args: Any) -> Any:
    return builder.gep(context.make_array(row)(context, builder, args[0]).data, [args[1]])


@intrinsic
def _read(typing: Any, row: Any, i: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_element(context, builder, row, args))
        value.set_metadata("alias.scope", _scopes(builder.module, "input"))
        return value

    return row.dtype(row, types.intp), generate


@intrinsic
def _write(typing: Any, row: Any, i: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        written = builder.store(args[2], _element(context, builder, row, args))
        written.set_metadata("noalias", _scopes(builder.module, "input", "sums"))
        return context.get_dummy_value()

    return types.void(row, types.intp, row.dtype), generate


@intrinsic
def _add(typing: Any, sums: Any, i: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _element(context, builder, sums, args)
        before = builder.load(at)
        after = builder.store(builder.fadd(before, args[2], flags=("contract",)), at)
        for access in (before, after):
            access.set_metadata("alias.scope", _scopes(builder.module, "sums"))
            access.set_metadata("noalias", _scopes(builder.module, "input"))
        return context.get_dummy_value()

    return types.void(sums, types.intp, types.float64), generate


# NumPy's way to write them takes Numba a quarter of a second each.
@register_jitable
def fill(row: Any, value: float) -> None:
    """``row[:] = value``."""
    for i in range(row.size):
        row[i] = value


@register_jitable
def copy(row: Any, source: Any) -> None:
    """``row[:] = source``."""
    for i in range(row.size):
        row[i] = source[i]


@register_jitable
def add(sums: Any, i: int, value: float) -> None:
    """``sums[i] += value``."""
    _add(sums, i, value)


def load(row: Any, i: int) -> float:
    """``row[i]`` in float64; of bfloat16 from its bits."""
    return float(row[i])


def rounded(row: Any, value: float) -> Any:
    """The value in the type of ``row``, rounded to nearest; in bfloat16 its bits."""
    return row.dtype.type(value)


def store(row: Any, i: int, value: float) -> None:
    """``row[i] = value``, rounded."""
    row[i] = value


@overload(load, strict=False)
def _load(row: Any, i: Any) -> Any:
    if row.dtype == types.uint16:
        return lambda row, i: np.float64(float_of_bits(np.uint32(_read(row, i)) << np.uint32(16)))
    return lambda row, i: np.float64(_read(row, i))


@overload(rounded, strict=False)
def _rounded(row: Any, value: Any) -> Any:
    if row.dtype == types.uint16:
        return lambda row, value: bfloat16(value)
    if row.dtype == types.float32:
        return lambda row, value: np.float32(value)
    return lambda row, value: np.float64(value)


@overload(store, strict=False)
def _store(row: Any, i: Any, value: Any) -> Any:
    return lambda row, i, value: _write(row, i, rounded(row, value))


@register_jitable
def bfloat16(value: float) -> Any:
    """The bits of the nearest bfloat16, ties to even."""
    bits = bits_of_float(np.float32(value))
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(nearest) if value == value else np.uint16(0x7FC0)


# Parameters and buffers are few: their type is asked when they are read, not compiled for.
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


@register_jitable
def peek(address: int, i: int, kind: int) -> float:
    """Element i of a parameter of one of ``KINDS``."""
    if kind == 0:
        return load(array(address, np.float32, i + 1), i)
    if kind == 1:
        return load(array(address, np.float64, i + 1), i)
    return load(array(address, np.uint16, i + 1), i)


@register_jitable
def poke(address: int, i: int, kind: int, value: float) -> None:
    """Write element i of a parameter of one of ``KINDS``."""
    if kind == 0:
        _put(array(address, np.float32, i + 1), i, value)
    elif kind == 1:
        _put(array(address, np.float64, i + 1), i, value)
    else:
        _put(array(address, np.uint16, i + 1), i, value)


@register_jitable
def _put(row: Any, i: int, value: float) -> None:
    row[i] = rounded(row, value)
