"""Norms in plain Python loops over 100-digit decimals: what the judge is judged by.

Nothing here knows recipes or arrays. An element is an index; ``cell_of`` says by index arithmetic
which cell it is in; a gradient is a central difference, which in 100 digits is exact to over 40.
"""

from __future__ import annotations

import decimal
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

Index = tuple[int, ...]
Key = Callable[[Index], Hashable]
Values = dict[Any, Decimal]  # by index, by channel, by branch

DIGITS = decimal.Context(prec=100, Emax=100_000, Emin=-100_000)
STEP = Decimal("1e-22")


def cell_of(name: str, shape: Sequence[int]) -> Key:
    """The cell of an element; the channels of token and rms stand last."""
    kind, _, number = name.partition(":")
    if kind == "ghost":
        size, positions = int(number), int(np.prod(shape[2:]))
        tail = shape[0] % size
        blocks = shape[0] // size + (tail > 0) - (tail * positions == 1)
        return lambda i: (min(i[0] // size, blocks - 1), i[1])
    if kind == "group":
        return lambda i: (i[0], i[1] * int(number) // shape[1])
    keys: dict[str, Key] = {
        "batch": lambda i: i[1],
        "layer": lambda i: i[0],
        "instance": lambda i: i[:2],
        "token": lambda i: i[:-1],
        "rms": lambda i: i[:-1],
        "position": lambda i: (i[0], *i[2:]),
    }
    return keys[kind]


def values(array: Any) -> Values:
    """The elements of an array by index, of a vector by number."""
    array = np.asarray(array, dtype=np.float64)
    indices = itertools.product(*map(range, array.shape))
    return {i if array.ndim > 1 else i[0]: Decimal(float(array[i])) for i in indices}


def array(results: Values, shape: Sequence[int]) -> np.ndarray:
    """Back to an array, in the widest type: float64 would be wrong by half a digit of its own."""
    rounded = np.zeros(shape, dtype=np.longdouble)
    for index, value in results.items():
        rounded[index] = np.longdouble(str(value))
    return rounded


@dataclass
class Norm:
    """A norm, or a blend of several: ``cells`` has a key a branch, None for running statistics.

    ``param`` is the key of weight and bias, ``channel`` that of running statistics.
    """

    cells: Sequence[Key | None]
    param: Key = lambda i: i[1]
    channel: Key = lambda i: i[1]
    eps: float = 1e-5
    center: bool = True

    def forward(self, given: dict[str, Values]) -> Values:
        """``y`` of ``given["x"]`` and whichever of weight, bias, logits and running_* there are."""
        x = given["x"]
        found = [self.moments(cell, given) for cell in self.cells]
        w = _softmax(given["mean_weight"]) if "mean_weight" in given else {0: 1}
        v = _softmax(given["var_weight"]) if "var_weight" in given else {0: 1}
        y = Values()
        for i in x:
            mean = sum(w[k] * found[k][0][i] for k in w)
            var = sum(v[k] * found[k][1][i] for k in v)
            y[i] = (x[i] - mean) / (var + Decimal(self.eps)).sqrt()
            if "weight" in given:
                y[i] *= given["weight"][self.param(i)]
            if "bias" in given:
                y[i] += given["bias"][self.param(i)]
        return y

    def moments(self, cell: Key | None, given: dict[str, Values]) -> tuple[Values, Values]:
        """Mean and variance that every element meets, of one branch."""
        x = given["x"]
        if cell is None:
            running = given["running_mean"], given["running_var"]
            mean, var = ({i: known[self.channel(i)] for i in x} for known in running)
            return mean, var
        members: dict[Hashable, list[Index]] = defaultdict(list)
        for i in x:
            members[cell(i)].append(i)
        means, vars_ = Values(), Values()
        for inside in members.values():
            mean = sum(x[i] for i in inside) / len(inside) if self.center else Decimal(0)
            var = sum((x[i] - mean) ** 2 for i in inside) / len(inside)
            for i in inside:
                means[i], vars_[i] = mean, var
        return means, vars_

    def gradient(self, given: dict[str, Values], dy: Values, name: str) -> Values:
        """Of ``sum(dy * y)`` in ``given[name]``, by central differences."""

        def loss(key: Hashable, step: Decimal) -> Decimal:
            moved = {**given[name], key: given[name][key] + step}
            y = self.forward({**given, name: moved})
            return sum((dy[i] * y[i] for i in y), Decimal(0))

        scale = max(map(abs, given[name].values())) or 1
        step = STEP * scale
        return {key: (loss(key, step) - loss(key, -step)) / (2 * step) for key in given[name]}


def _softmax(logits: Values) -> Values:
    powers = {k: logit.exp() for k, logit in logits.items()}
    return {k: power / sum(powers.values()) for k, power in powers.items()}
