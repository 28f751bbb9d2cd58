"""What the bodies of loops compute with, see :mod:`~normalform.kernels.cpu.vectors`."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from normalform.kernels.cpu.memory import DOUBLE, FLOAT, constant, several

FUSED = ("contract",)  # no other order of sums: (x - high) - low must be just that
# Magnitudes of numbers that float32 computes with as exactly as with any: below, products and sums
# of a result that is none of the smallest may be; and no finite x less such a number is infinite.
LEAST, MOST = 2.0**-100, 2.0**100


class Values:
    """A number, of float64 or float32, or a vector of them; products may be fused into sums."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fadd(self.value, other.value, flags=FUSED))

    def __sub__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fsub(self.value, other.value, flags=FUSED))

    def __mul__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fmul(self.value, other.value, flags=FUSED))

    def __truediv__(self, other: Values) -> Values:
        return Values(self.builder, self.builder.fdiv(self.value, other.value))

    def __neg__(self) -> Values:
        return Values(self.builder, self.builder.fneg(self.value))

    # These are of float64.
    def magnitude(self) -> Values:
        """``|value|``."""
        return Values(self.builder, self._call("fabs"))

    def or_zero(self) -> Values:
        """Zero where it is negative."""
        zero = self._all(0.0)
        negative = self.builder.fcmp_ordered("<", self.value, zero)
        return Values(self.builder, self.builder.select(negative, zero, self.value))

    def inverse(self) -> Values:
        """``1 / value``."""
        return Values(self.builder, self.builder.fdiv(self._all(1.0), self.value))

    def inverse_root(self) -> Values:
        """``1 / sqrt(value)``."""
        return Values(self.builder, self.builder.fdiv(self._all(1.0), self._call("sqrt")))

    def nearest(self, most: Values) -> Values:
        """The nearest number of float32, where its magnitude is no more than ``most``."""
        single = self.builder.fptrunc(self.value, several(FLOAT, self._lanes))
        near = self.builder.fpext(single, self.value.type)
        small = self.builder.fcmp_ordered("<=", self.magnitude().value, most.value)
        return Values(self.builder, self.builder.select(small, near, self.value))

    def large(self) -> Any:
        """Whether it is larger than ``MOST``, and finite: what is not stays in its cell."""
        size, compare = self.magnitude().value, self.builder.fcmp_ordered
        finite = compare("<", size, self._all(math.inf))
        return self.builder.and_(compare(">", size, self._all(MOST)), finite)

    def beyond(self) -> Any:
        """Whether float32 would compute with it less exactly than with others."""
        size, compare = self.magnitude().value, self.builder.fcmp_ordered
        little = compare("<", size, self._all(LEAST)), compare("!=", size, self._all(0.0))
        return self.builder.or_(self.large(), self.builder.and_(*little))

    def counted(self, flags: Any) -> Values:
        """1 where they are set, 0 elsewhere."""
        return Values(self.builder, self.builder.uitofp(flags, self.value.type))

    def _call(self, name: str) -> Any:
        """What one of LLVM's functions makes of it."""
        kind, of = self.value.type, "f64" if self._lanes == 1 else f"v{self._lanes}f64"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{of}"
        )
        return self.builder.call(function, [self.value])

    def _all(self, number: float) -> Any:
        return constant(DOUBLE, number, self._lanes)

    @property
    def _lanes(self) -> int:
        return getattr(self.value.type, "count", 1)
