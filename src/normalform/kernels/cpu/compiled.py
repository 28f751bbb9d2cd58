"""From a Python function to machine code: how the kernels of this folder are compiled by Numba.

A kernel is a function ``f(x, args, part)``: ``x`` is a pointer whose type says what the tensors
hold, ``args`` the address of a table of int64 (addresses and sizes), ``part`` which part of the
work to do. It is compiled when it is first needed and kept on disk. It releases nothing and calls
nothing of Python's, so it runs on any thread.
"""

# An intrinsic takes a typing context that Python does not see, and Numba types itself loosely.
# pyright: reportReturnType=false
# pyright: reportAttributeAccessIssue=false

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
import torch
from llvmlite import ir
from numba import types
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.target_extension import target_override
from numba.extending import intrinsic as _intrinsic
from numba.misc.appdirs import AppDirs

from normalform.kernels import uncollected
from normalform.kernels.cpu import target

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

_CODE = {"nopython": True, "error_model": "numpy", "_nrt": False, "no_rewrites": True}
_OPTIONS = {**_CODE, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
helper = target.helper(**_OPTIONS)
inlined = target.helper(forceinline=True, **_OPTIONS)  # a call takes as long as a short run

_NUMBERS = types.CPointer(types.float64)

# Takes one argument less than the function that it decorates.
intrinsic: Any = _intrinsic

# bfloat16 travels as its bits: NumPy and Numba do not know it.
HOLDS: dict[torch.dtype, Any] = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.bfloat16: types.uint16,
}
# Parameters and buffers are few: their type is asked when they are read, not compiled for.
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


class Kernel:
    """A function compiled once for each type of its tensors."""

    def __init__(self, function: Callable[..., None], reads_x: bool) -> None:
        self.function, self.reads_x = function, reads_x
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._address: dict[torch.dtype, int] = {}
        self._compiled: list[target.ForC] = []  # keeps the machine code alive

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


def compile_function(function: Callable[..., Any], signature: Any) -> target.ForC:
    """Compile for C, or load what was compiled before."""
    with _lock, uncollected(), target_override(target.NAME):
        compiled = target.ForC(function, (signature.args, signature.return_type), {}, _CODE)
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
def row_at(typing: Any, address: Any, like: Any) -> Any:
    """The row at an address; ``like`` is the type of its values, or another row of them."""
    kind = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, like), generate


@intrinsic
def numbers(typing: Any, address: Any, offset: Any) -> Any:
    """The row of float64 numbers at an address, from an offset on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = builder.inttoptr(args[0], context.get_value_type(_NUMBERS))
        return builder.gep(row, [args[1]])

    return _NUMBERS(types.int64, types.int64), generate


def workspace(size: int) -> Any:
    """``f()``: room for so many float64 numbers, of any value, while a kernel runs."""

    @intrinsic
    def room(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # Numba's own would fill it with zeros, of which the compiler makes as many stores.
            with builder.goto_entry_block():
                place = builder.alloca(ir.ArrayType(ir.DoubleType(), size))
            place.align = 64
            return builder.bitcast(place, context.get_value_type(_NUMBERS))

        return _NUMBERS(), generate

    return room


@intrinsic
def narrowed(typing: Any, room: Any, like: Any) -> Any:
    """Room as a row of the type that another row is computed in: float32, unless it is float64."""
    kind = types.CPointer(types.float64 if like.dtype == types.float64 else types.float32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(kind))

    return kind(room, like), generate


def _reinterpret(source: Any, wanted: Any) -> Any:
    @intrinsic
    def reinterpret(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(wanted))

        return wanted(source), generate

    return reinterpret


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


@intrinsic
def fence(typing: Any) -> Any:
    """Nothing that comes later is seen by other threads before what was written past the cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
