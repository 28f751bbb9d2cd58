"""The numbers of a small tensor, step by step: mean, variance, xhat and y, from the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalform import reference
from normalform.drawing import Sets
from normalform.drawing.sets import Element, Most
from normalform.recipes import Recipe

LIMIT = 200  # elements whose numbers somebody may read
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Step:
    """The statistics of one recipe, where each element stands. Of a blend there are several."""

    sets: Sets
    mean: Array
    var: Array


@dataclass(frozen=True)
class Numbers:
    """A norm of whole numbers from 1 to 9, which a reader can check by hand.

    The weight is 1 and 2 in turns and the bias 0, 10, 20, ..., a value a channel, so that what
    varies by channel is seen apart from what is shared.

    Attributes:
        x: the input.
        steps: the statistics of each recipe.
        mean: what is subtracted from each element: for a blend the equal mixture of the steps'.
        var: likewise.
        xhat: ``(x - mean) / sqrt(var + eps)``.
        y: ``weight * xhat + bias``.
        weight: where each element stands.
        bias: likewise; None for norms that have none.
        eps: added to the variance.
    """

    x: Array
    steps: tuple[Step, ...]
    mean: Array
    var: Array
    xhat: Array
    y: Array
    weight: Array
    bias: Array | None
    eps: float

    @classmethod
    def of(cls, recipes: Sequence[Recipe], shape: Sequence[int]) -> Numbers:
        """Normalize an example; of several recipes the blend with equal shares.

        Raises:
            ValueError: too many elements to be read.
        """
        size = math.prod(shape)
        if size > LIMIT:
            raise ValueError(
                f"the numbers of {'x'.join(map(str, shape))} = {size:,} elements are too many to "
                f"read; a shape of at most {LIMIT} elements is not, as 2,4,3,3"
            )
        cells = recipes[0].cells(shape)
        x = np.random.default_rng(0).integers(1, 10, cells.shape).astype(float)
        x = x.transpose(np.argsort(cells.order))  # the same numbers in any order of the axes
        channels = cells.shape[1]
        center = recipes[0].center
        weight, bias = 1.0 + np.arange(channels) % 2, 10.0 * np.arange(channels)
        eps = 1e-5 if center else float(np.finfo(np.float32).eps)  # as the layers have them
        given = (weight, bias if center else None, eps)
        found = [reference.norm(x, each, *given, center=center) for each in recipes]
        result = found[0]
        if len(recipes) > 1:
            ones = np.ones(len(recipes))
            result = reference.switch_norm(x, ones, ones, *given, over=recipes)
        all_of_it = Most(size, size, size)
        steps = [
            Step(Sets.of(r, shape, all_of_it), *(_spread(t, x) for t in (k.mean, k.var)))
            for r, k in zip(recipes, found, strict=True)
        ]
        laid = (None if t is None else _spread(t, x) for t in (result.weight, result.bias))
        weight, bias = laid
        assert weight is not None
        mean, var = _spread(result.mean, x), _spread(result.var, x)
        return cls(x, tuple(steps), mean, var, result.xhat, result.y, weight, bias, eps)

    def by_hand(self, element: Element) -> list[str]:
        """How one element becomes y, with everything that is added up on the way."""
        at = element.at
        lines = [line for step in self.steps for line in self._statistics(step, element)]
        mean, var = self.mean[at], self.var[at]
        if len(self.steps) > 1:
            means, variances = ([t[at] for t in kind] for kind in zip(*self._moments, strict=True))
            lines.append(f"mean = {_blended(means)} = {short(mean)}, shares of a fresh layer")
            lines.append(f"var = {_blended(variances)} = {short(var)}")
        top = f"({short(self.x[at])} - {short(mean)})" if self._center else short(self.x[at])
        lines.append(f"xhat = {top} / sqrt({short(var)} + {self.eps:.2g}) = {short(self.xhat[at])}")
        bias = "" if self.bias is None else f" + {short(self.bias[at])}"
        times = f"{short(self.weight[at])} * {short(self.xhat[at])}"
        lines.append(f"y = {times}{bias} = {short(self.y[at])}")
        return lines

    def _statistics(self, step: Step, element: Element) -> list[str]:
        """Mean and variance of the element's set, from the elements of the set."""
        sets, at = step.sets, element.at
        own = sets.set_of(element)
        values = np.array([self.x[e.at] for e in sets.elements() if sets.set_of(e) == own])
        mark, n = sets.marks()[own], len(values)
        listed = " ".join(short(v) for v in values)
        where = f", {sets.recipe}" if len(self.steps) > 1 else ""
        lines = [f"set {mark}{where}: {listed}"]
        if not self._center:
            total = short((values**2).sum())
            return [*lines, f"mean square = {total} / {n} = {short(step.var[at])}"]
        squares = short(((values - step.mean[at]) ** 2).sum())
        lines.append(f"mean = {short(values.sum())} / {n} = {short(step.mean[at])}")
        return [*lines, f"var = squared differences {squares} / {n} = {short(step.var[at])}"]

    @property
    def _moments(self) -> list[tuple[Array, Array]]:
        return [(step.mean, step.var) for step in self.steps]

    @property
    def _center(self) -> bool:
        return self.steps[0].sets.recipe.center


def short(value: float) -> str:
    """A number with at most four decimals.

    >>> [short(value) for value in (4.0, -0.00001, 1.23456, 12.5)]
    ['4', '0', '1.2346', '12.5']
    """
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _blended(values: Sequence[float]) -> str:
    return f"({' + '.join(map(short, values))}) / {len(values)}"


def _spread(values: Array, x: Array) -> Array:
    return np.broadcast_to(values, x.shape)
