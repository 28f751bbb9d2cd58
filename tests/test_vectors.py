"""Loops over vectors do to every value once what is asked, however many there are."""

import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray

from normalform.kernels.cpu.compiled import row_at
from normalform.kernels.cpu.values import LEAST, MOST, Values
from normalform.kernels.cpu.vectors import LANES, mapped, summed

SIZES = [*range(18), 23, 24, 25, 31, 32, 33, 39, 40, 41, 49, 63, 64, 65, 196, 1000]
MARGIN = 3  # values before and after, which nobody may touch

_scaled = mapped(lambda x, scale, shift: (x * scale + shift,))
_added = mapped(lambda x, y: (x + y, x * y), adds=1)
_streamed = mapped(lambda x, shift: (x + shift,), streams=1, at_once=4)
_streamed_and_added = mapped(lambda x, y: (x, y, x * y), adds=1, streams=2)
_added_far = mapped(lambda x, y: (x * y,), adds=1, streams=1)
_roots = mapped(lambda x: (x.inverse(), (x * x).inverse_root(), -x))
_quotients = mapped(lambda x, y: (x / y, x.or_zero()))
_ROUGH = float(1 << 40)  # of what is added to it, float32 keeps nothing, and float64 all


def _kept(x: Values, rough: Values, *others: Values) -> tuple[Values]:
    return ((x + rough) - rough,)


_single, _single_far = mapped(_kept, at_once=4, single=True), mapped(_kept, streams=1, single=True)


def _powers(x: Values, shift: Values) -> tuple[Values, Values]:
    d = x - shift
    return d, d * d


_sums, _sums_one_by_one = summed(_powers, 2), summed(_powers, 2, at_once=1)


@njit
def row(values: NDArray[np.float64]) -> object:
    """An array as the loops take it."""
    return row_at(values.ctypes.data, values)


@njit
def scaled(y: NDArray[np.float64], x: NDArray[np.float64], start: int, stop: int) -> None:
    _scaled((row(y),), start, stop, (row(x), 0.75, -0.5))


@njit
def added(
    y: NDArray[np.float64], z: NDArray[np.float64], x: NDArray[np.float64], start: int, stop: int
) -> None:
    _added((row(y), row(z)), start, stop, (row(x), 3.0))


@njit
def streamed(
    y: NDArray[np.float64], x: NDArray[np.float64], start: int, stop: int, ahead: int
) -> None:
    _streamed((row(y),), start, stop, (row(x), 0.25), ahead)


@njit
def streamed_and_added(
    y: NDArray[np.float64], z: NDArray[np.float64], sums: NDArray[np.float64],
    x: NDArray[np.float64], start: int, stop: int, ahead: int,
) -> None:  # fmt: skip
    _streamed_and_added((row(y), row(z), row(sums)), start, stop, (row(x), 3.0), ahead)


@njit
def added_far(sums: NDArray[np.float64], x: NDArray[np.float64], ahead: int) -> None:
    _added_far((row(sums),), 0, x.size, (row(x), 2.0), ahead)


@njit
def roots(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], x: NDArray[np.float64]
) -> None:
    _roots((row(a), row(b), row(c)), 0, x.size, (row(x),))


@njit
def quotients(
    a: NDArray[np.float64], b: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> None:
    _quotients((row(a), row(b)), 0, x.size, (row(x), row(y)))


@njit
def single(
    y: NDArray[np.float64], x: NDArray[np.float64], other: float, start: int, stop: int
) -> None:
    _single((row(y),), start, stop, (row(x), _ROUGH, other))


@njit
def single_far(
    y: NDArray[np.float64], x: NDArray[np.float64], other: float, start: int, stop: int, ahead: int
) -> None:
    _single_far((row(y),), start, stop, (row(x), _ROUGH, other), ahead)


@njit
def single_by(
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    rough: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    _single((row(y),), start, stop, (row(x), row(rough)))


@njit
def sums(x: NDArray[np.float64], start: int, stop: int) -> tuple[tuple[float, float], ...]:
    operands = row(x), 0.25
    return _sums(start, stop, operands), _sums_one_by_one(start, stop, operands)


def numbers(size: int, dtype: type) -> NDArray[np.float64]:
    """Multiples of 1/16, so that nothing here is rounded."""
    return (np.random.default_rng(size).integers(-64, 64, size) / 16).astype(dtype)


def at_a_line(size: int, dtype: type) -> NDArray[np.float64]:
    """Room for numbers that begins where a line of the cache does."""
    step = np.dtype(dtype).itemsize
    room = np.empty(size + 64 // step, dtype)
    return room[-room.ctypes.data % 64 // step :][:size]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_every_value_is_written_once(size: int, dtype: type):
    x = numbers(size + 2 * MARGIN, dtype)
    y, z = np.full_like(x, 9), np.full_like(x, 9)
    inside = slice(MARGIN, MARGIN + size)
    wanted = np.full_like(x, 9)
    wanted[inside] = x[inside] * 0.75 - 0.5
    scaled(y, x, MARGIN, MARGIN + size)
    assert np.array_equal(y, wanted)

    y = np.full_like(x, 9)
    added(y, z, x, MARGIN, MARGIN + size)
    wanted[inside] = x[inside] + 3
    assert np.array_equal(y, wanted)
    wanted[inside] = 9 + 3 * x[inside]
    assert np.array_equal(z, wanted)


@pytest.mark.parametrize("ahead", [-1, 0, 77])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 5, 49, *range(127, 162), 1000])
def test_every_value_is_written_past_the_cache_once(size: int, dtype: type, ahead: int):
    """However a run lies in the lines of the cache, and two beside each other."""
    line = 64 // np.dtype(dtype).itemsize
    x = numbers(size + 4 * line, dtype)
    room, other = (at_a_line(x.size + 64, dtype) for _ in range(2))
    for offset in range(0, line, 3):
        inside = slice(offset, offset + size)
        room[:], other[:] = 9, 9
        wanted = room.copy()
        streamed(room, x, offset, offset + size, ahead)
        wanted[inside] = x[inside] + 0.25
        assert np.array_equal(room, wanted)

        for apart in (line, line + 1):  # in its lines as the other one, and not
            y, z, sums = room, other[apart:], np.full(x.size, 0.5)
            streamed_and_added(y, z, sums, x, offset, offset + size, ahead)
            wanted[inside] = x[inside]
            assert np.array_equal(y, wanted)
            found, wanted_z = other.copy(), np.full_like(other, 9)
            wanted_z[apart:][inside] = 3
            assert np.array_equal(found, wanted_z)
            wanted_sums = np.full(x.size, 0.5)
            wanted_sums[inside] += 3 * x[inside]
            assert np.array_equal(sums, wanted_sums)
            other[:] = 9


ANY = (0.0, -0.5, -LEAST, MOST, np.nan, -np.inf)
WORSE = (LEAST / 2, -1e-40, 1e-200, 1.5 * MOST, -1e300)


@pytest.mark.parametrize("ahead", [None, -1, 77])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_vectors_are_of_float32_unless_that_is_worse(size: int, dtype: type, ahead: int | None):
    x = numbers(size + 2 * MARGIN, dtype)
    inside = slice(MARGIN, MARGIN + size)
    for other in (*ANY, *WORSE):
        y, wanted = np.full_like(x, 9), np.full_like(x, 9)
        if ahead is None:
            single(y, x, other, MARGIN, MARGIN + size)
        else:
            single_far(y, x, other, MARGIN, MARGIN + size, ahead)
        rough = dtype is np.float32 and size >= 2 * LANES and other not in WORSE
        wanted[inside] = 0 if rough else x[inside]
        assert np.array_equal(y, wanted)


@pytest.mark.parametrize("of", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_they_are_of_float64_where_another_row_is(size: int, dtype: type, of: type):
    x = numbers(size + 2 * MARGIN, dtype)
    y, wanted, inside = np.full_like(x, 9), np.full_like(x, 9), slice(MARGIN, MARGIN + size)
    single_by(y, x, np.full(x.shape, _ROUGH, of), MARGIN, MARGIN + size)
    rough = dtype is np.float32 and of is np.float32 and size >= 2 * LANES
    wanted[inside] = 0 if rough else x[inside]
    assert np.array_equal(y, wanted)


@pytest.mark.parametrize("ahead", [-1, 0, 2000])
@pytest.mark.parametrize("size", [0, 5, 49, 500])
def test_reading_ahead_changes_nothing(size: int, ahead: int):
    x = numbers(size, np.float32)
    sums = np.full(size, 0.5)
    added_far(sums, x, ahead)
    assert np.array_equal(sums, 0.5 + 2 * x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_every_value_is_summed_once(size: int, dtype: type):
    x = numbers(size + 2 * MARGIN, dtype)
    d = x[MARGIN : MARGIN + size].astype(np.float64) - 0.25
    wanted = d.sum(), (d * d).sum()
    assert sums(x, MARGIN, MARGIN + size) == (wanted, wanted)


@pytest.mark.parametrize("size", [3, 8, 19])
def test_values_outside_are_not_summed(size: int):
    x = numbers(size + 2 * MARGIN, np.float32)
    x[:MARGIN] = x[-MARGIN:] = np.nan
    assert np.isfinite(sums(x, MARGIN, MARGIN + size)).all()


@pytest.mark.parametrize("size", [5, 21])
def test_inverses_and_roots(size: int):
    x = numbers(size, np.float64)
    x[1] = 0
    a, b, c = (np.empty_like(x) for _ in range(3))
    roots(a, b, c, x)
    with np.errstate(divide="ignore"):
        assert np.array_equal(a, 1 / x)
        assert np.array_equal(b, 1 / np.abs(x))
    assert np.array_equal(c, -x)


@pytest.mark.parametrize("size", [2, 8, 11])
def test_quotients_and_what_is_not_negative(size: int):
    x, y = numbers(size, np.float64), numbers(size + 1, np.float64)[1:]
    x[-1] = np.nan
    a, b = np.empty_like(x), np.empty_like(x)
    quotients(a, b, x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.array_equal(a, x / y, equal_nan=True)
    assert np.array_equal(b, np.where(x < 0, 0, x), equal_nan=True)


@pytest.mark.parametrize("size", [1, 7, 8, 13, 40])
def test_bfloat16_is_rounded_as_torch_does(size: int):
    bits = np.random.default_rng(size).integers(0, 1 << 16, size).astype(np.uint16)
    x = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    y = np.zeros_like(bits)
    scaled(y, bits, 0, size)
    found = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)
    wanted = (x.double() * 0.75 - 0.5).float().bfloat16()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(0), wanted.nan_to_num(0))
