"""Vectors of values from rows in memory, and to them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

# AVX-512 has vectors of 8 float64 numbers and 32 registers for them; others have half of both, or
# less. What does not fit into them goes to memory and back: a sum over planes of 7x7 took 1.7 times
# as long with vectors of 8 and AVX2, rows of 384 by fours 1.15 times as long as one by one.
_features: str | None = config.CPU_FEATURES  # pyright: ignore[reportAttributeAccessIssue]
WIDE = "+avx512f" in (_features or get_host_cpu_features())
LANES = 8 if WIDE else 4
LINE = 64  # bytes that come into the cache together
# Rows so many values apart, or a multiple, would all want the same places in the nearest cache.
ALIKE = 1024
DOUBLE, FLOAT = ir.DoubleType(), ir.FloatType()
_HALF, INT, WORD = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def ask(builder: Any, dtype: Any, data: Any, at: Any, place: int, lanes: int, write: int) -> None:
    """Ask for a line of the cache, once of the vectors that lie in it."""
    size = dtype.bitwidth // 8
    if place * lanes * size % LINE == 0:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        where = builder.bitcast(builder.gep(data, [at]), byte)
        builder.call(prefetch, [where, INT(write), INT(3), INT(1)])


def read(builder: Any, dtype: Any, data: Any, at: Any, lanes: int, single: bool = False) -> Any:
    """Some values of a row in float64, or in float32; of bfloat16 from its bits."""
    place, size = _place(builder, dtype, data, at, lanes)
    value = builder.load(place, align=size)
    if dtype == types.float64:
        return value
    if dtype == types.uint16:
        bits = builder.zext(value, several(INT, lanes))
        bits = builder.shl(bits, constant(INT, 16, lanes))
        value = builder.bitcast(bits, several(FLOAT, lanes))
    return value if single else builder.fpext(value, several(DOUBLE, lanes))


def write(
    builder: Any, dtype: Any, data: Any, at: Any, lanes: int, value: Any, past: bool = False
) -> None:
    """Some values to a row, rounded to nearest; in bfloat16 their bits, ties to even.

    They go ``past`` the cache only if they fill a line of it, with those that follow.
    """
    place, size = _place(builder, dtype, data, at, lanes)
    if dtype != types.float64 and value.type == several(DOUBLE, lanes):
        value = builder.fptrunc(value, several(FLOAT, lanes))
    if dtype == types.uint16:
        bits = builder.bitcast(value, several(INT, lanes))
        high = builder.lshr(bits, constant(INT, 16, lanes))
        odd = builder.and_(high, constant(INT, 1, lanes))
        up = builder.add(builder.add(bits, constant(INT, 0x7FFF, lanes)), odd)
        number = builder.fcmp_ordered("ord", value, value)
        nearest = builder.lshr(up, constant(INT, 16, lanes))
        bits = builder.select(number, nearest, constant(INT, 0x7FC0, lanes))
        value = builder.trunc(bits, several(_HALF, lanes))
    stored = builder.store(value, place, align=size * lanes if past else size)
    if past:
        stored.set_metadata("nontemporal", builder.module.add_metadata([INT(1)]))


def _place(builder: Any, dtype: Any, data: Any, at: Any, lanes: int) -> tuple[Any, int]:
    """Where some values of a row are, and the bytes of one."""
    element = {types.float64: DOUBLE, types.float32: FLOAT, types.uint16: _HALF}[dtype]
    place = builder.gep(data, [at])
    return builder.bitcast(place, several(element, lanes).as_pointer()), dtype.bitwidth // 8


def several(kind: Any, lanes: int) -> Any:
    """The type of a vector; of one number, its own."""
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def constant(kind: Any, value: Any, lanes: int) -> Any:
    """A vector of one constant."""
    return kind(value) if lanes == 1 else ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one number."""
    if lanes == 1:
        return value
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), constant(INT, 0, lanes))
