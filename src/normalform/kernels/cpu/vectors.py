"""Loops over runs of neighbouring values, written as what happens to a vector of them.

The compiler's own loop takes many vectors at once and what is left in smaller steps: on runs of 49
values that takes as long as the vectors. Here what is left is one more vector, which overlaps the
last; memory can be asked for while something else is computed, and what will not be read soon can
be written past the cache: no line of it is read before it is written, and nothing else falls out.

A body is a function of :class:`Values`. Its operands are float64 numbers, or rows, which are read
at the same places. :func:`mapped` writes what it gives to a row; :func:`summed` sums it. Sums are
of float64, always; what is written may be computed in float32, of which a vector holds twice as
many, and half of the time that a run in the cache takes are conversions between both.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from normalform.kernels.cpu import memory
from normalform.kernels.cpu.compiled import helper, inlined, intrinsic, row_at
from normalform.kernels.cpu.memory import (
    DOUBLE,
    FLOAT,
    INT,
    LANES,
    LINE,
    WORD,
    constant,
    several,
    splat,
)
from normalform.kernels.cpu.values import FUSED, MOST, Values

_FEWEST = 128  # values that are worth writing past the cache
_SINGLES = 2 * LANES  # values of float32 in a vector
_SOON = 1024  # values: as many before it is written to is memory asked for otherwise


def mapped(
    body: Callable[..., Sequence[Values]],
    adds: int = 0,
    streams: int | None = None,
    at_once: int = 1,
    single: bool = False,
) -> Any:
    """``f(rows, start, stop, operands)``: write what ``body(*operands)`` gives, rounded, to rows.

    Added to the last ``adds`` of them, which may not be rounded. The others must not be operands:
    some values are computed twice. ``at_once`` vectors are worked on together.

    With ``single`` vectors are of float32, unless the tensors hold float64. Where there are too few
    values for one, where float32 would compute with one of the numbers worse than with others, or
    where other rows hold float64, they are of float64.

    With ``streams`` it is ``f(rows, start, stop, operands, ahead)``, for tensors that may lie
    beyond the cache. Unless ``ahead`` is negative, what the first ``streams`` operands hold
    ``ahead`` values later is asked for, and rows that are not added to go past the cache where
    its lines can be written whole.
    """

    def over(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = [*_rows(builder, signature.args[0], args[0]).values()]
        sources = [*_rows(builder, signature.args[3], args[3]).values()]
        written, wide = len(to) - adds, types.float64 in {dtype for dtype, _ in sources}
        narrow, sources = single and to[0][0] != types.float64, sources[: streams or 0]
        operands, apart = _reader(builder, signature.args[3], args[3], narrow and not wide)
        width, many = (_SINGLES, (at_once + 1) // 2) if narrow and not wide else (LANES, at_once)

        def put(i: int, at: Any, lanes: int, value: Any, again: Any, line: bool) -> None:
            if i >= written:
                before = memory.read(builder, *to[i], at, lanes)
                value = builder.fadd(before, value, flags=FUSED)
                value = value if again is None else builder.select(again, before, value)
            memory.write(builder, *to[i], at, lanes, value, line and i < written)

        def emit(at: Any, lanes: int, place: int, again: Any) -> None:
            for i, value in enumerate(body(*operands(at, lanes))):
                put(i, at, lanes, value.value, again, False)

        def ask(at: Any, place: int, rows: Sequence[tuple[Any, Any]]) -> None:
            for row in sources:
                memory.ask(builder, *row, builder.add(at, args[4]), place, width, 0)
            for row in rows:
                memory.ask(builder, *row, builder.add(at, WORD(_SOON)), place, width, 1)

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
                values = [body(*operands(at, width)) for at in some]
                for i, of_row in enumerate(zip(*values, strict=True)):
                    for at, value in zip(some, of_row, strict=True):
                        put(i, at, width, value.value, None, True)

        def stream(run: _Run) -> None:
            if streams is None:
                run.vectors(emit)
                return
            stays = builder.icmp_signed("<", args[4], WORD(0))
            with builder.if_else(stays) as (near, far):
                with near:
                    run.vectors(emit)
                with far:
                    if written:
                        run.lines(to[:written], asking, whole)
                    else:
                        run.vectors(asking)

        run = _Run(builder, args[1], args[2], LANES, at_once)
        exactly = run._replace(at_once=1)
        if not narrow:
            stream(run)
        elif wide:
            exactly.vectors(emit)
        else:
            few = run.fewer_than(width)
            worse = few if apart is None else builder.or_(few, apart)
            with builder.if_else(worse) as (double, single_):
                with double:
                    exactly.vectors(emit)
                with single_:
                    stream(run._replace(lanes=width, at_once=many, enough=True))
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
            values, _ = _reader(builder, operands, args[2])
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
                    after = builder.fadd(builder.load(sum_), value, flags=FUSED)
                    builder.store(after, sum_)

            _Run(builder, args[0], args[1], LANES, at_once).vectors(emit)
            vectors = [_added(builder, [builder.load(at) for at in each[:-1]]) for each in totals]
            ends = [builder.load(each[-1]) for each in totals]
            found = zip(_totals(builder, vectors), ends, strict=True)
            sums = [builder.fadd(sum_, end) for sum_, end in found]
            return context.make_tuple(builder, signature.return_type, sums)

        return result(types.int64, types.int64, operands), generate

    return over


_fill, _copy = mapped(lambda value: (value,)), mapped(lambda source: (source,))


def beyond(*numbers: Values) -> Sequence[Values]:
    """How many are none that float32 computes with as with others."""
    return (functools.reduce(operator.add, (n.counted(n.beyond()) for n in numbers)),)


any_beyond = summed(beyond, 1)
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
def nearest(typing: Any, row: Any, value: Any) -> Any:
    """The nearest number of the type that vectors of a row have; itself beyond ``MOST``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        most = constant(DOUBLE, -1.0 if row.dtype == types.float64 else MOST, 1)
        return Values(builder, args[1]).nearest(Values(builder, most)).value

    return types.float64(row, types.float64), generate


@intrinsic
def is_double(typing: Any, row: Any) -> Any:
    """Whether float64 is no wider than the tensor's own type."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, row.dtype == types.float64)

    return types.boolean(row), generate


class _Run(NamedTuple):
    """Some values, and how they are taken: ``at_once`` vectors of so many, or one by one."""

    builder: Any
    start: Any
    stop: Any
    lanes: int
    at_once: int
    enough: bool = False  # whether they are known to be none, or enough for a vector

    def vectors(self, emit: Callable[..., None]) -> None:
        """``emit(at, lanes, place, again)`` for all of them.

        ``place`` is that among ``at_once`` vectors, ``again`` says which lanes were there before.
        """
        if self.enough:
            self._together(emit)
            return
        with self.builder.if_else(self.fewer_than(self.lanes)) as (short, long):
            with short:
                self._one_by_one(emit)
            with long:
                self._together(emit)

    def fewer_than(self, values: int) -> Any:
        """Whether they are."""
        size = self.builder.sub(self.stop, self.start)
        return self.builder.icmp_signed("<", size, WORD(values))

    def _one_by_one(self, emit: Callable[..., None]) -> None:
        builder = self.builder
        with cgutils.for_range_slice(builder, self.start, self.stop, WORD(1)) as (at, _):
            emit(at, 1, 0, None)
            # Nothing, but the compiler does not try to make vectors of what it cannot see into.
            builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)

    def _together(self, emit: Callable[..., None]) -> None:
        builder, start, stop, lanes, at_once, _ = self

        def up_to(step: int) -> Any:
            return builder.add(start, builder.and_(builder.sub(stop, start), WORD(-step)))

        def loop(first: Any, last: Any, together: int) -> None:
            step = WORD(together * lanes)
            with cgutils.for_range_slice(builder, first, last, step) as (at, _):
                for i in range(together):
                    emit(builder.add(at, WORD(i * lanes)), lanes, i, None)

        blocks, whole = up_to(at_once * lanes), up_to(lanes)
        loop(start, blocks, at_once)
        if at_once > 1:
            loop(blocks, whole, 1)
        with builder.if_then(builder.icmp_signed("<", whole, stop)):
            at = builder.sub(stop, WORD(lanes))
            places = ir.Constant(ir.VectorType(WORD, lanes), [*range(lanes)])
            fresh = splat(builder, builder.sub(whole, at), lanes)
            emit(at, lanes, 0, builder.icmp_signed("<", places, fresh))

    def lines(
        self, to: Sequence[tuple[Any, Any]], emit: Callable[..., None], whole: Callable[..., None]
    ) -> None:
        """The same, but ``whole(places)`` for the vectors of each line of the cache.

        What comes before and after them is no value, or enough for a vector. All comes before
        where they are few, or where rows do not lie alike in their lines.
        """
        builder, start, stop, lanes, _, _ = self
        size = to[0][0].bitwidth // 8
        line = LINE // size

        def within(at: Any) -> list[Any]:
            places = (builder.ptrtoint(builder.gep(data, [at]), WORD) for _, data in to)
            return [builder.and_(place, WORD(LINE - 1)) for place in places]

        def enough(left: Any) -> Any:
            values = builder.udiv(left, WORD(size))
            few = builder.icmp_unsigned("<", builder.sub(values, WORD(1)), WORD(lanes - 1))
            return builder.select(few, builder.add(values, WORD(line)), values)

        (head, *others), (tail, *_) = within(start), within(stop)
        lined = builder.icmp_signed(">=", builder.sub(stop, start), WORD(_FEWEST))
        for other in others:
            lined = builder.and_(lined, builder.icmp_unsigned("==", head, other))
        before = enough(builder.and_(builder.neg(head), WORD(LINE - 1)))
        first = builder.select(lined, builder.add(start, before), stop)
        self._replace(stop=first).vectors(emit)
        with builder.if_then(lined):
            last = builder.sub(stop, enough(tail))
            with cgutils.for_range_slice(builder, first, last, WORD(line)) as (at, _):
                whole([builder.add(at, WORD(i)) for i in range(0, line, lanes)])
            self._replace(start=last, at_once=1).vectors(emit)


def _reader(
    builder: Any, kinds: Any, operands: Any, narrow: bool = False
) -> tuple[Callable[..., list[Values]], Any]:
    """A function of a place and a number of lanes: the operands there.

    With ``narrow`` vectors are of float32, and whether a number is none for that comes with it.
    """
    rows = _rows(builder, kinds, operands)
    given = cgutils.unpack_tuple(builder, operands)
    singles, apart = given, None
    if narrow:
        singles, apart = _narrowed(builder, given, rows)

    def read(at: Any, lanes: int) -> list[Values]:
        single = narrow and lanes == _SINGLES
        found = [
            memory.read(builder, *rows[i], at, lanes, single)
            if i in rows
            else splat(builder, value, lanes)
            for i, value in enumerate(singles if single else given)
        ]
        return [Values(builder, value) for value in found]

    return read, apart


def _narrowed(builder: Any, given: Sequence[Any], rows: Collection[int]) -> tuple[list[Any], Any]:
    """The numbers of some operands in float32, and whether one of them is none for that.

    All at once: on runs of 49 values that would else take as long as the run.
    """
    places = [i for i in range(len(given)) if i not in rows]
    if not places:
        return [*given], None
    numbers = constant(DOUBLE, 0.0, max(2, 1 << (len(places) - 1).bit_length()))
    for lane, i in enumerate(places):
        numbers = builder.insert_element(numbers, given[i], INT(lane))
    flags = Values(builder, numbers).beyond()
    kind = ir.IntType(flags.type.count)
    apart = builder.icmp_unsigned("!=", builder.bitcast(flags, kind), kind(0))
    near, singles = builder.fptrunc(numbers, several(FLOAT, flags.type.count)), [*given]
    for lane, i in enumerate(places):
        singles[i] = builder.extract_element(near, INT(lane))
    return singles, apart


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
