"""Which elements of a tensor share a mean and a variance, as far as a picture has room for them.

In pictures what the rest of the library calls a cell is a *set*: a cell there would be one square.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from normalform.cells import Cells
from normalform.recipes import Recipe

MARKS = string.ascii_uppercase + string.ascii_lowercase + string.digits
Drawn = tuple[int | None, ...]  # the indices of an axis that are drawn, None for a gap


class Most(NamedTuple):
    """How many elements of an axis are drawn before some are left out; each axis of positions."""

    samples: int = 4
    channels: int = 8
    positions: int = 4


class Set(NamedTuple):
    """Elements that share a mean: which block of samples, group of channels, and position."""

    block: int
    group: int
    position: int


class Element(NamedTuple):
    """One element: its sample, channel and position, and its index in the tensor's own order."""

    sample: int
    channel: int
    position: tuple[int, ...]
    at: tuple[int, ...]


@dataclass(frozen=True)
class Sets:
    """A recipe on a tensor, as it is drawn. Make one with :meth:`of`.

    Attributes:
        recipe: which elements share a mean.
        shape: of the tensor, in its own order.
        cells: the recipe laid over the shape.
        samples: the indices of samples that are drawn.
        channels: those of channels.
        positions: those of each axis of positions.
    """

    recipe: Recipe
    shape: tuple[int, ...]
    cells: Cells
    samples: Drawn
    channels: Drawn
    positions: tuple[Drawn, ...]

    @classmethod
    def of(cls, recipe: Recipe, shape: Sequence[int], most: Most | None = None) -> Sets:
        """Lay a recipe over a shape and choose what is drawn of it.

        Raises:
            ValueError: the recipe does not fit the shape, or the tensor cannot be drawn.

        >>> from normalform.drawing import Sets
        >>> sets = Sets.of(nf.recipe("n (g [c]) [s]", g=2), (2, 64, 3))
        >>> sets.channels                                # where the groups meet, and the ends
        (0, 1, None, 31, 32, None, 63)
        >>> sets.number, sets.counts                     # sets, and the elements of each
        (4, (96,))
        """
        if not 2 <= len(shape) <= 5 or min(shape) < 1:
            raise ValueError(
                f"a tensor of shape {tuple(shape)} cannot be drawn: pictures have 2 to 5 axes, and "
                "at least one element"
            )
        most, cells = most or Most(), recipe.cells(shape)
        samples, channels, *positions = cells.shape
        return cls(
            recipe,
            tuple(shape),
            cells,
            _drawn(samples, cells.runs[0].block, most.samples),
            _drawn(channels, channels // cells.groups, most.channels),
            tuple(_drawn(length, length, most.positions) for length in positions),
        )

    @property
    def number(self) -> int:
        """How many sets the whole tensor has."""
        blocks = sum((run.stop - run.start) // run.block for run in self.cells.runs)
        return blocks * self.cells.groups * (1 if self.cells.spatial else self.cells.positions)

    @property
    def counts(self) -> tuple[int, ...]:
        """Elements of a set; two numbers where the last block of samples is another size."""
        return self.cells.counts

    @property
    def abbreviated(self) -> bool:
        """Some elements are left out of the picture."""
        return any(None in drawn for drawn in (self.samples, self.channels, *self.positions))

    def __str__(self) -> str:
        what = "mean and variance" if self.recipe.center else "mean square"
        total, counts = math.prod(self.shape), " or ".join(f"{n:,}" for n in self.counts)
        if self.counts == (1,):
            said = f"each of the {total:,} elements is alone and shares its {what} with no other"
        elif self.number == 1:
            said = f"all {total:,} elements share one {what}"
        else:
            said = f"{self.number:,} sets of {counts} elements; the same letter shares one {what}"
        if len(self.marks()) > len(MARKS):
            said += f"; the letters begin again after {len(MARKS)} sets"
        if self.abbreviated:
            said += "; where there are dots, elements are left out"
        return f"{self.recipe} on {'x'.join(map(str, self.shape))}: {said}."

    def set_of(self, element: Element) -> Set:
        """The set that an element belongs to."""
        block = 0
        for run in self.cells.runs:
            block += (min(element.sample, run.stop) - run.start) // run.block
            if element.sample < run.stop:
                break
        group = element.channel // (self.cells.shape[1] // self.cells.groups)
        position = 0
        if not self.cells.spatial:
            for index, length in zip(element.position, self.cells.shape[2:], strict=True):
                position = position * length + index
        return Set(block, group, position)

    def count_of(self, element: Element) -> int:
        """How many elements share the element's mean, itself among them."""
        runs = zip(self.cells.runs, self.cells.counts, strict=True)
        return next(count for run, count in runs if element.sample < run.stop)

    def element(self, sample: int, channel: int, position: Sequence[int]) -> Element:
        """The element at a place, with its index in the tensor's own order."""
        place = (sample, channel, *position)
        index = tuple(place[self.cells.order.index(axis)] for axis in range(len(place)))
        return Element(sample, channel, tuple(position), index)

    def elements(self) -> Iterator[Element]:
        """Every element that is drawn, sample by sample, channel by channel, line by line."""
        axes = (self.samples, self.channels, *self.positions)
        for sample, channel, *position in itertools.product(*map(kept, axes)):
            yield self.element(sample, channel, position)

    def example(self) -> Element:
        """The element whose set a picture shows first: of the first sample and second channel."""
        channel = min(1, self.cells.shape[1] - 1)
        return self.element(0, channel, [0] * len(self.positions))

    def marks(self) -> dict[Set, str]:
        """A letter or digit for each set that is drawn, in the order in which they are met.

        They begin again where there are more sets than letters and digits.
        """
        met = dict.fromkeys(map(self.set_of, self.elements()))
        return dict(zip(met, itertools.cycle(MARKS), strict=False))


def example_shape(recipes: Sequence[Recipe], channels: int | None = None) -> tuple[int, ...]:
    """A small shape that shows what the recipes do: 2 samples, 4 channels and 3x3 positions.

    An axis that is split has room for two blocks.

    >>> from normalform.drawing import example_shape
    >>> example_shape([nf.recipe("(b [n]) c [s]", n=2)]), example_shape([nf.recipe("n s [c]")])
    ((4, 4, 3, 3), (2, 3, 3, 4))
    """
    lengths = {"n": 2, "c": 4}
    for name, usual in lengths.items():
        split = [axis for recipe in recipes for axis in recipe.axes if axis.name == name]
        needed = math.lcm(*((a.blocks or 2) * (a.size or 2) for a in split if a.split))
        lengths[name] = needed if usual % needed else usual
    lengths["c"] = channels or lengths["c"]
    sizes = {name: (length,) for name, length in lengths.items()} | {"s": (3, 3)}
    return tuple(size for axis in recipes[0].axes for size in sizes[axis.name])


def sized(recipe: Recipe) -> Recipe:
    """The recipe with 2 groups of channels, and blocks of 2 samples, where it has no sizes yet."""
    for axis in recipe.axes:
        if axis.split and axis.blocks is None and axis.size is None:
            recipe = recipe.bind(**({"g": 2} if axis.name == "c" else {"n": 2}))
    return recipe


def kept(drawn: Drawn) -> tuple[int, ...]:
    """The indices without the gaps."""
    return tuple(index for index in drawn if index is not None)


def _drawn(length: int, block: int, most: int) -> Drawn:
    """The indices of an axis that are drawn: all, or its ends and where its first blocks meet."""
    if length <= most:
        return tuple(range(length))
    wanted = {0, 1, block - 1, block, length - 1}
    indices = sorted(index for index in wanted if 0 <= index < length)
    drawn: list[int | None] = []
    for index, following in itertools.zip_longest(indices, indices[1:]):
        drawn.append(index)
        if following is not None and following == index + 2:
            drawn.append(index + 1)  # dots would take as much room
        elif following is not None and following > index + 2:
            drawn.append(None)
    return tuple(drawn)
