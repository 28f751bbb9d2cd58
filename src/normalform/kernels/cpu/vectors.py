"""Loops over runs of neighbouring values, written as what happens to a vector of them.

The compiler's own loop takes many vectors at once and what is left in smaller steps: on runs of 49
values that takes as long as the vectors. Here what is left is one more vector, which overlaps the
last; memory can be asked for while something else is computed, and what will not be read soon can
be written past the cache: no line of it is read before it is written, and nothing else falls out.

A body is a function of :class:`Values`. Its operands are float64 numbers, or rows, which are read
at the same places. :func:`mapped` writes what it gives to a row; :func:`summed` sums it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from normalform.kernels.cpu import memory
from normalform.kernels.cpu.compiled import helper, inlined, intrinsic, row_at
from normalform.kernels.cpu.memory import DOUBLE, INT, LANES, LINE, WORD, constant, splat

_FEWEST = 128  # values that are worth writing past the cache
_SOON = 1024  # values: as many before it is written to is memory asked for otherwise
_FUSED = ("contract",)  # no other order of sums: (x - high) - low must be just that


class Values:
    """A float64 number, or a vector of them; products may be fused into sums."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fadd(self.value, other.value, flags=_FUSED))

    def __sub__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fsub(self.value, other.value, flags=_FUSED))

    def __mul__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fmul(self.value, other.value, flags=_FUSED))

    def __truediv__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fdiv(self.value, other.value))

    def __neg__(self) -> Values:
        return Values(self.builder, self.builder.fneg(self.value))

    def magnitude(self) -> Values:
        """``|value|``."""
        return Values(self.builder, self._call("fabs"))

    def or_zero(self) -> Values:
        """Zero where it is negative."""
        zero = splat(self.builder, DOUBLE(0.0), self._lanes)
        negative = self.builder.fcmp_ordered("<", self.value, zero)
        return Values(self.builder, self.builder.select(negative, zero, self.value))

    def inverse(self) -> Values:
        """``1 / value``."""
        one = splat(self.builder, DOUBLE(1.0), self._lanes)
        return Values(self.builder, self.builder.fdiv(one, self.value))

    def inverse_root(self) -> Values:
        """``1 / sqrt(value)``."""
        one = splat(self.builder, DOUBLE(1.0), self._lanes)
        return Values(self.builder, self.builder.fdiv(one, self._call("sqrt")))

    def _call(self, name: str) -> Any:
        """What one of LLVM's functions makes of it."""
        kind, of = self.value.type, "f64" if self._lanes == 1 else f"v{self._lanes}f64"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{of}"
        )
        return self.builder.call(function, [self.value])

    @property
    def _lanes(self) -> int:
        return getattr(self.value.type, "count", 1)


def mapped(
    body: Callable[..., Sequence[Values]],
    adds: int = 0,
    streams: int | None = None,
    at_once: int = 1,
) -> Any:
    """``f(rows, start, stop, operands)``: write what ``body(*operands)`` gives, rounded, to rows.

    Added to the last ``adds`` of them, which may not be rounded. The others must not be operands:
    some values are computed twice.

    With ``streams`` it is ``f(rows, start, stop, operands, ahead)``, for tensors that may lie
    beyond the cache. Unless ``ahead`` is negative, what the first ``streams`` operands hold
    ``ahead`` values later is asked for, and rows that are not added to go past the cache where
    its lines can be written whole.
    """

    def over(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        operands = _reader(builder, signature.args[3], args[3])
        to = [*_rows(builder, signature.args[0], args[0]).values()]
        sources = [*_rows(builder, signature.args[3], args[3]).values()][: streams or 0]
        written = len(to) - adds

        def put(i: int, at: Any, lanes: int, value: Any, again: Any, line: bool) -> None:
            if i >= written:
                before = memory.read(builder, *to[i], at, lanes)
                value = builder.fadd(before, value, flags=_FUSED)
                value = value if again is None else builder.select(again, before, value)
            memory.write(builder, *to[i], at, lanes, value, line and i < written)

        def emit(at: Any, lanes: int, place: int, again: Any) -> None:
            for i, value in enumerate(body(*operands(at, lanes))):
                put(i, at, lanes, value.value, again, False)

        def ask(at: Any, place: int, rows: Sequence[tuple[Any, Any]]) -> None:
            for row in sources:
                memory.ask(builder, *row, builder.add(at, args[4]), place, 0)
            for row in rows:
                memory.ask(builder, *row, builder.add(at, WORD(_SOON)), place, 1)

        def asking(at: Any, lanes: int, place: int, again: Any) -> None:
            if lanes > 1 and again is None:
                ask(at, place, to[:written])
            emit(at, lanes, place, again)

        def whole(places: Sequence[Any]) -> None:
            """Lines of several rows one after the other: few can be open on their way to memory."""
            # Where sums are added to, a line of bfloat16 at once would fit into no registers.
            together = 1 if adds and written == 1 else len(places)
            for place, at in enumerate(places):
                ask(at, place, ())
            for first in range(0, len(places), together):
                some = places[first : first + together]
                values = [body(*operands(at, LANES)) for at in some]
                for i, of_row in enumerate(zip(*values, strict=True)):
                    for at, value in zip(some, of_row, strict=True):
                        put(i, at, LANES, value.value, None, True)

        if streams is None:
            _vectors(builder, args[1], args[2], at_once, emit)
            return context.get_dummy_value()
        stays = builder.icmp_signed("<", args[4], WORD(0))
        with builder.if_else(stays) as (near, far):
            with near:
                _vectors(builder, args[1], args[2], at_once, emit)
            with far:
                if written:
                    _lines(builder, args[1], args[2], at_once, to[:written], asking, whole)
                else:
                    _vectors(builder, args[1], args[2], at_once, asking)
        return context.get_dummy_value()

    if streams is None:

        @intrinsic
        def plain(typing: Any, rows: Any, start: Any, stop: Any, operands: Any) -> Any:
            return types.void(rows, types.int64, types.int64, operands), over

        return plain

    @intrinsic
    def streaming(typing: Any, rows: Any, start: Any, stop: Any, operands: Any, ahead: Any) -> Any:
        return types.void(rows, types.int64, types.int64, operands, types.int64), over

    return streaming


def summed(body: Callable[..., Sequence[Values]], count: int, at_once: int = 4) -> Any:
    """``f(start, stop, operands)``: the sums of the ``count`` values of ``body(*operands)``.

    ``at_once`` vectors have sums of their own: an addition waits for the one before it.
    """

    @intrinsic
    def over(typing: Any, start: Any, stop: Any, operands: Any) -> Any:
        result = types.UniTuple(types.float64, count)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = _reader(builder, operands, args[2])
            zeros, zero = constant(DOUBLE, 0.0, LANES), constant(DOUBLE, 0.0, 1)
            totals = [
                [cgutils.alloca_once_value(builder, each) for each in [zeros] * at_once + [zero]]
                for _ in range(count)
            ]

            def emit(at: Any, lanes: int, place: int, again: Any) -> None:
                for total, found in zip(totals, body(*values(at, lanes)), strict=True):
                    sum_, value = total[place if lanes > 1 else -1], found.value
                    if again is not None:
                        value = builder.select(again, zeros, value)
                    after = builder.fadd(builder.load(sum_), value, flags=_FUSED)
                    builder.store(after, sum_)

            _vectors(builder, args[0], args[1], at_once, emit)
            vectors = [_added(builder, [builder.load(at) for at in each[:-1]]) for each in totals]
            ends = [builder.load(each[-1]) for each in totals]
            found = zip(_totals(builder, vectors), ends, strict=True)
            sums = [builder.fadd(sum_, end) for sum_, end in found]
            return context.make_tuple(builder, signature.return_type, sums)

        return result(types.int64, types.int64, operands), generate

    return over


_fill, _copy = mapped(lambda value: (value,)), mapped(lambda source: (source,))
# ``f((sums,), start, stop, (row,))``: ``sums += row``; ``f(start, stop, (row,))``: its sum.
add, total = mapped(lambda row: (row,), adds=1), summed(lambda row: (row,), 1)


@inlined
def fill(row: Any, value: float, count: int) -> None:
    """``row[:count] = value``."""
    _fill((row,), 0, count, (value,))


@inlined
def copy(row: Any, source: Any, count: int) -> None:
    """``row[:count] = source[:count]``."""
    _copy((row,), 0, count, (source,))


@helper
def sum_runs(row: Any, runs: int, width: int) -> None:
    """Of ``width`` neighbours each the sum, in the first places."""
    if width > 1:
        for i in range(runs):
            (row[i],) = total(i * width, (i + 1) * width, (row,))


@helper
def widen(row: Any, count: int, address: int, first: int, kind: int) -> None:
    """Parameters of one of ``KINDS``, from the one numbered ``first`` on, in float64."""
    if kind == 0:
        _copy((row,), 0, count, (row_at(address, np.float32) + first,))
    elif kind == 1:
        _copy((row,), 0, count, (row_at(address, np.float64) + first,))
    else:
        _copy((row,), 0, count, (row_at(address, np.uint16) + first,))


@helper
def narrow(address: int, first: int, kind: int, row: Any, count: int) -> None:
    """Write them, rounded."""
    if kind == 0:
        _copy((row_at(address, np.float32) + first,), 0, count, (row,))
    elif kind == 1:
        _copy((row_at(address, np.float64) + first,), 0, count, (row,))
    else:
        _copy((row_at(address, np.uint16) + first,), 0, count, (row,))


@intrinsic
def load(typing: Any, row: Any, i: Any) -> Any:
    """``row[i]`` in float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return memory.read(builder, row.dtype, args[0], args[1], 1)

    return types.float64(row, types.int64), generate


@intrinsic
def is_double(typing: Any, row: Any) -> Any:
    """Whether float64 is no wider than the tensor's own type."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, row.dtype == types.float64)

    return types.boolean(row), generate


def _vectors(builder: Any, start: Any, stop: Any, at_once: int, emit: Callable[..., None]) -> None:
    """``emit(at, lanes, place, again)`` for all of a run.

    ``place`` is that among ``at_once`` vectors, ``again`` says which lanes were there before.
    """
    size = builder.sub(stop, start)

    def up_to(step: int) -> Any:
        return builder.add(start, builder.and_(size, WORD(-step)))

    def loop(first: Any, last: Any, step: int, lanes: int) -> None:
        with cgutils.for_range_slice(builder, first, last, WORD(step)) as (at, _):
            for i in range(step // lanes):
                emit(builder.add(at, WORD(i * lanes)), lanes, i, None)

    with builder.if_else(builder.icmp_signed("<", size, WORD(LANES))) as (short, long):
        with short, cgutils.for_range_slice(builder, start, stop, WORD(1)) as (at, _):
            emit(at, 1, 0, None)
            # Nothing, but the compiler does not try to make vectors of what it cannot see into.
            builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)
        with long:
            blocks, whole = up_to(at_once * LANES), up_to(LANES)
            loop(start, blocks, at_once * LANES, LANES)
            if at_once > 1:
                loop(blocks, whole, LANES, LANES)
            with builder.if_then(builder.icmp_signed("<", whole, stop)):
                at = builder.sub(stop, WORD(LANES))
                lanes = ir.Constant(ir.VectorType(WORD, LANES), [*range(LANES)])
                fresh = splat(builder, builder.sub(whole, at), LANES)
                emit(at, LANES, 0, builder.icmp_signed("<", lanes, fresh))


def _lines(
    builder: Any, start: Any, stop: Any, at_once: int, to: Sequence[tuple[Any, Any]],
    emit: Callable[..., None], whole_line: Callable[..., None],
) -> None:  # fmt: skip
    """As :func:`_vectors`, but ``whole_line(places)`` for the vectors of each line of the cache.

    What comes before and after them is no value, or enough for a vector. All comes before where
    the run is short, or where rows do not lie alike in their lines.
    """
    size = to[0][0].bitwidth // 8
    line = LINE // size

    def within(at: Any) -> list[Any]:
        places = (builder.ptrtoint(builder.gep(data, [at]), WORD) for _, data in to)
        return [builder.and_(place, WORD(LINE - 1)) for place in places]

    def enough(left: Any) -> Any:
        values = builder.udiv(left, WORD(size))
        few = builder.icmp_unsigned("<", builder.sub(values, WORD(1)), WORD(LANES - 1))
        return builder.select(few, builder.add(values, WORD(line)), values)

    (head, *others), (tail, *_) = within(start), within(stop)
    whole = builder.icmp_signed(">=", builder.sub(stop, start), WORD(_FEWEST))
    for other in others:
        whole = builder.and_(whole, builder.icmp_unsigned("==", head, other))
    before = enough(builder.and_(builder.neg(head), WORD(LINE - 1)))
    first = builder.select(whole, builder.add(start, before), stop)
    _vectors(builder, start, first, at_once, emit)
    with builder.if_then(whole):
        last = builder.sub(stop, enough(tail))
        with cgutils.for_range_slice(builder, first, last, WORD(line)) as (at, _):
            whole_line([builder.add(at, WORD(i)) for i in range(0, line, LANES)])
        _vectors(builder, last, stop, 1, emit)


def _reader(builder: Any, kinds: Any, operands: Any) -> Callable[..., list[Values]]:
    """A function of a place and a number of lanes: the operands there."""
    rows = _rows(builder, kinds, operands)
    given = cgutils.unpack_tuple(builder, operands)

    def read(at: Any, lanes: int) -> list[Values]:
        found = [
            memory.read(builder, *rows[i], at, lanes) if i in rows else splat(builder, value, lanes)
            for i, value in enumerate(given)
        ]
        return [Values(builder, value) for value in found]

    return read


def _rows(builder: Any, kinds: Any, operands: Any) -> dict[int, tuple[Any, Any]]:
    """What each row among the operands holds, and where it begins."""
    given = zip(kinds, cgutils.unpack_tuple(builder, operands), strict=True)
    return {
        i: (kind.dtype, value)
        for i, (kind, value) in enumerate(given)
        if isinstance(kind, types.CPointer)
    }


def _added(builder: Any, vectors: list[Any]) -> Any:
    """The sum of some vectors, by halves."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        vectors = [builder.fadd(left, right) for left, right in pairs]
    return vectors[0]


def _totals(builder: Any, vectors: list[Any]) -> list[Any]:
    """The sums of the lanes of some vectors, of two at a time.

    To add vectors that hold sums of two takes as long as if they held those of one.
    """

    def folded(left: Any, right: Any, low: Sequence[int], high: Sequence[int]) -> Any:
        parts = (
            builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(INT, len(at)), [*at]))
            for at in (low, high)
        )
        return builder.fadd(*parts)

    if len(vectors) > 2:
        return _totals(builder, vectors[:2]) + _totals(builder, vectors[2:])
    lanes, vector = LANES, vectors[0]
    if len(vectors) == 2:  # lanes of both by turns
        even, odd = range(0, LANES, 2), range(1, LANES, 2)
        by_turns = [[place for i in side for place in (i, LANES + i)] for side in (even, odd)]
        vector = folded(vectors[0], vectors[1], *by_turns)
    while lanes > len(vectors):
        lanes //= 2
        vector = folded(vector, vector, range(lanes), range(lanes, 2 * lanes))
    return [builder.extract_element(vector, INT(lane)) for lane in range(len(vectors))]
