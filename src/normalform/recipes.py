"""The idea: a norm is the choice of which elements share a mean and a variance.

A *recipe* writes that choice down. ``n`` is the samples, ``c`` the channels, ``s`` all remaining
axes (none, one or many), in the order of the tensor. Brackets mark what is averaged; parentheses
split an axis into contiguous blocks::

    [n] c [s]         batch      one mean per channel
    n [c s]           layer      one mean per sample
    n c [s]           instance   one mean per sample and channel
    n (g [c]) [s]     group      one mean per sample and group of channels
    (b [n]) c [s]     ghost      one mean per block of samples and channel

The elements that share statistics are a *cell*. This file knows what the notation means, which
named norm is which recipe, and how a recipe falls on a shape. It computes nothing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from normalform.cells import Cells, Run
from normalform.notation import BLOCKS, MEANING, Axis, parse


@dataclass(frozen=True)
class Recipe:
    """Which axes share statistics, and whether the mean is subtracted. ``str()`` is the notation.

    Make one with :func:`recipe`; two recipes that mean the same are equal.

    >>> recipe("n [c] [s]")
    recipe("n [c s]")
    >>> recipe("n (g [c]) [s]", g=8)
    recipe("n (g [c]) [s]", g=8)
    >>> recipe("n (g [c]) [s]", g=8).cells((2, 32, 7, 7)).counts   # values behind each mean
    (196,)
    """

    axes: tuple[Axis, ...]
    center: bool = True

    @cached_property
    def _hash(self) -> int:
        """Looked up at every call, so it is computed once: in a graph, which needs none, never."""
        return hash((self.axes, self.center))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Recipe], tuple[tuple[Axis, ...], bool]]:
        return Recipe, (self.axes, self.center)  # a hash holds in one process

    def __str__(self) -> str:
        words: list[str] = []
        for axis in self.axes:
            joins = words and axis.averaged and not axis.split and words[-1].startswith("[")
            if joins:
                words[-1] = f"{words[-1][:-1]} {axis.name}]"
            else:
                words.append(str(axis))
        return " ".join(words)

    def __repr__(self) -> str:
        sizes = "".join(f", {letter}={size}" for letter, size in self.sizes.items())
        center = "" if self.center else ", center=False"
        return f'recipe("{self}"{sizes}{center})'

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes given for split axes, by letter: ``{"g": 8}``."""
        found: dict[str, int] = {}
        for axis in self.axes:
            if axis.blocks is not None:
                found[BLOCKS[axis.name]] = axis.blocks
            if axis.size is not None:
                found[axis.name] = axis.size
        return found

    @property
    def over(self) -> str:
        """The letters that are averaged, in the order of the tensor: ``"ns"`` for batch norm."""
        return "".join(axis.name for axis in self.axes if axis.averaged)

    def axis(self, name: str) -> Axis | None:
        """The axis called ``name``, or None where the recipe has no such axis."""
        found = [axis for axis in self.axes if axis.name == name]
        return found[0] if found else None

    def bind(self, **sizes: int) -> Recipe:
        """The same recipe with the sizes of its split axes filled in.

        >>> recipe("n (g [c]) [s]").bind(c=16)      # groups of 16 channels
        recipe("n (g [c]) [s]", c=16)
        """
        axes = list(self.axes)
        for letter, size in sizes.items():
            whole = isinstance(size, int) and not isinstance(size, bool)
            for i, axis in enumerate(axes):
                if axis.split and letter == axis.name:
                    axes[i] = replace(axis, size=size)
                    break
                if axis.split and letter == BLOCKS[axis.name]:
                    axes[i] = replace(axis, blocks=size)
                    break
            else:
                known = [f"{BLOCKS[a.name]}= or {a.name}=" for a in self.axes if a.split]
                takes = f"it takes {' and '.join(known)}" if known else "it takes no sizes"
                given = f"size {letter}={size}" if whole else f"argument {letter}"
                raise TypeError(f'recipe "{self}": unexpected {given}; {takes}')
            if not whole or size < 1:
                raise ValueError(f'recipe "{self}": {letter}={size!r} is not a positive integer')
        return replace(self, axes=tuple(axes))

    def cells(self, shape: Sequence[int]) -> Cells:
        """How the recipe falls on a tensor of this ``shape``.

        >>> recipe("(b [n]) c [s]", n=2).cells((5, 3, 4, 4)).runs   # two blocks of 2, a tail of 1
        (Run(start=0, stop=4, block=2), Run(start=4, stop=5, block=1))
        """
        order = self._order(len(shape))
        canonical = tuple(shape[d] for d in order)
        spatial = "s" in self.over
        groups = self._groups(canonical[1])
        values = canonical[1] // groups if groups else 0
        runs = self._runs(canonical[0], values * (math.prod(canonical[2:]) if spatial else 1))
        return Cells(canonical, order, runs, groups, spatial, self.center)

    def param_dims(self, ndim: int, params: str) -> tuple[int, ...]:
        """The tensor's dimensions that weight and bias vary over, for ``params`` such as ``"c"``.

        >>> recipe("n s [c]").param_dims(4, "s c")
        (1, 2, 3)
        """
        letters = params.split()
        known = [axis.name for axis in self.axes]
        for letter in letters:
            if letter not in known:
                raise ValueError(
                    f'params={params!r}: {letter!r} is not an axis of recipe "{self}"; '
                    f"name some of {', '.join(known)}, separated by spaces"
                )
        if len(set(letters)) != len(letters):
            raise ValueError(f"params={params!r} names an axis twice")
        dims = self._dims(ndim)
        return tuple(d for axis in self.axes if axis.name in letters for d in dims[axis.name])

    def _dims(self, ndim: int) -> dict[str, tuple[int, ...]]:
        """The tensor's dimensions that each letter stands for."""
        fixed = len(self.axes) - (self.axis("s") is not None)
        positions = ndim - fixed
        if positions < 0 or (positions > 0 and self.axis("s") is None):
            at_least = "at least " if self.axis("s") is not None else ""
            raise ValueError(
                f'recipe "{self}" needs {at_least}{fixed} dimensions, the tensor has {ndim}'
            )
        dims: dict[str, tuple[int, ...]] = {}
        start = 0
        for axis in self.axes:
            length = positions if axis.name == "s" else 1
            dims[axis.name] = tuple(range(start, start + length))
            start += length
        return dims

    def _order(self, ndim: int) -> tuple[int, ...]:
        dims = self._dims(ndim)
        return dims["n"] + dims["c"] + dims.get("s", ())

    def _groups(self, channels: int) -> int:
        axis = self.axis("c")
        assert axis is not None
        if not axis.averaged:
            return channels
        if not axis.split:
            return 1
        return self._count(axis, channels)

    def _count(self, axis: Axis, length: int) -> int:
        """How many blocks a split axis of this length has, where the blocks must be equal."""
        counter, what = BLOCKS[axis.name], MEANING[axis.name]
        if axis.blocks is None and axis.size is None:
            raise ValueError(
                f'recipe "{self}" needs a size: {counter}= (how many blocks) '
                f"or {axis.name}= ({what} in a block); a name has it at its end, "
                '"group:8" or "ghost:8"'
            )
        if axis.blocks is not None and axis.size is not None and axis.blocks * axis.size != length:
            raise ValueError(
                f'recipe "{self}": {counter}={axis.blocks} blocks of {axis.name}={axis.size} '
                f"do not make {length} {what}"
            )
        parts = axis.blocks if axis.blocks is not None else axis.size
        assert parts is not None
        if length % parts:
            divisors = [d for d in range(1, length + 1) if length % d == 0]
            nearest = sorted(sorted(divisors, key=lambda d: abs(d - parts))[:3])
            letter = counter if axis.blocks is not None else axis.name
            raise ValueError(
                f'recipe "{self}": {length} {what} do not divide by {letter}={parts}; '
                f"nearest that divide: {', '.join(map(str, nearest))}"
            )
        return parts if axis.blocks is not None else length // parts

    def _runs(self, samples: int, values: int) -> tuple[Run, ...]:
        """Blocks of samples that share statistics; ``values`` is how many one sample adds."""
        axis = self.axis("n")
        assert axis is not None
        if not axis.averaged:
            return (Run(0, samples, 1),)
        if not axis.split:
            return (Run(0, samples, samples),)
        if axis.size is None or axis.blocks is not None:
            block = samples // self._count(axis, samples)
            return (Run(0, samples, block),)
        block = min(axis.size, samples)
        tail = samples % block if block else 0
        if tail * values == 1:  # one value has no variance: it joins the block before
            tail += block
        runs = (Run(0, samples - tail, block), Run(samples - tail, samples, tail))
        return tuple(run for run in runs if run.stop > run.start) or (Run(0, 0, 0),)


def recipe(notation: str | Recipe, *, center: bool = True, **sizes: int) -> Recipe:
    """Read the bracket notation into a :class:`Recipe`.

    Args:
        notation: axes ``n``, ``c`` and optionally ``s`` in the order of the tensor, brackets round
            what is averaged, ``(g [c])`` and ``(b [n])`` for blocks of channels and samples.
        center: subtract the mean. False gives the root mean square norms.
        sizes: for a split axis, how many blocks (``g=``, ``b=``) or how long each is (``c=``,
            ``n=``). They may also be given later, with :meth:`Recipe.bind`.

    Raises:
        ValueError: the notation cannot be read; a caret points at the fault.

    >>> recipe("[n] c [s]").over
    'ns'
    >>> recipe("n (g [c] [s]", g=4)
    Traceback (most recent call last):
    ValueError: recipe: a split axis ends with ")"
      n (g [c] [s]
               ^
    """
    if isinstance(notation, str) and notation.partition(":")[0] in NORMS:
        raise ValueError(
            f"recipe reads notation, and {notation!r} is the name of a norm: nf.norm takes it "
            "as it is, nf.explain says its notation"
        )
    parsed = notation if isinstance(notation, Recipe) else Recipe(parse(notation))
    if not center:
        parsed = replace(parsed, center=False)
    return parsed.bind(**sizes) if sizes else parsed


@dataclass(frozen=True)
class Norm:
    """A row of the table: a norm that has a name.

    Attributes:
        recipe: which elements share statistics; None for norms that have none or blend several.
        params: the axes weight and bias vary over. They are independent of what is averaged:
            batch, instance and group norm have one weight a channel although their cells differ.
        size: the letter of the recipe that the number in a name such as ``group:8`` sets.
        over: the recipes a switchable norm blends.
        running: keeps running statistics for inference.
        torch: the layer of PyTorch that computes the same, None where it has none.
        summary: what shares a mean, in words.
        paper: where it comes from.
    """

    recipe: str | None
    params: str
    summary: str
    paper: str
    center: bool = True
    size: str | None = None
    over: tuple[str, ...] = ()
    running: bool = False
    torch: str | None = None


NORMS: Mapping[str, Norm] = {
    "batch": Norm(
        "[n] c [s]",
        params="c",
        running=True,
        torch="BatchNorm2d(C)",
        summary="one mean per channel, over the samples and positions of the batch",
        paper="Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    "layer": Norm(
        "n [c s]",
        params="c",
        # nn.LayerNorm([C, H, W]) has these cells too, but one weight an element (params "c s"),
        # which ties it to one image size. One weight a channel does not.
        torch="GroupNorm(1, C)",
        summary="one mean per sample, over all its channels and positions",
        paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450; per sample as in arXiv:1803.08494",
    ),
    "instance": Norm(
        "n c [s]",
        params="c",
        torch="InstanceNorm2d(C)",
        summary="one mean per sample and channel, over its positions",
        paper="Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022",
    ),
    "group": Norm(
        "n (g [c]) [s]",
        params="c",
        size="g",
        torch="GroupNorm(G, C)",
        summary="one mean per sample and group of channels",
        paper="Wu & He 2018, arXiv:1803.08494",
    ),
    "switch": Norm(
        None,
        params="c",
        over=("instance", "layer", "batch"),
        running=True,
        summary="a learned blend of instance, layer and batch statistics",
        paper="Luo et al. 2018, arXiv:1806.10779",
    ),
    "ghost": Norm(
        "(b [n]) c [s]",
        params="c",
        size="n",
        running=True,
        summary="batch norm over blocks of the batch instead of all of it",
        paper="Hoffer, Hubara & Soudry 2017, arXiv:1705.08741",
    ),
    "token": Norm(
        "n s [c]",
        params="c",
        torch="LayerNorm(C)",
        summary="one mean per sample and position, channels last: a transformer's layer norm",
        paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450",
    ),
    "position": Norm(
        "n [c] s",
        params="c",
        summary="one mean per sample and position, channels first",
        paper="Li, Wu, Weinberger & Belongie 2019, arXiv:1907.04312",
    ),
    "rms": Norm(
        "n s [c]",
        params="c",
        center=False,
        torch="RMSNorm(C)",
        summary="as token, divided by the root mean square; nothing is subtracted",
        paper="Zhang & Sennrich 2019, arXiv:1910.07467",
    ),
}


def meant(word: str, known: Iterable[str], also: Mapping[str, str] | None = None) -> str:
    """The known word that is nearest, as a question; nothing where none is near.

    ``also`` says what other words stand for.

    >>> meant("grup", ["batch", "group"])
    "did you mean 'group'? "
    """
    words = {name: name for name in known} | dict(also or {})
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {words[near[0]]!r}? " if near else ""


def split_name(name: str) -> tuple[str, dict[str, int]]:
    """Split the name of a norm from its size: ``"group:8"`` is ``("group", {"g": 8})``.

    >>> split_name("ghost:2")
    ('ghost', {'n': 2})
    """
    stem, colon, number = name.partition(":")
    row = NORMS.get(stem)
    if row is None:
        raise ValueError(f"unknown norm {name!r}; {meant(stem, NORMS)}known: {', '.join(NORMS)}")
    if not colon:
        return stem, {}
    if row.size is None:
        raise ValueError(f"norm {stem!r} takes no number, got {name!r}")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"norm {name!r}: {number!r} is not a positive integer")
    return stem, {row.size: int(number)}


def named(name: str | Recipe) -> Recipe:
    """The recipe of a norm given by name (``"group:8"``), by notation, or as a recipe already.

    >>> named("ghost:2")
    recipe("(b [n]) c [s]", n=2)
    >>> named("n c [s]") == named("instance")
    True
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a norm is a name, a notation or a Recipe, not {type(name).__name__}")
    if any(mark in name for mark in "[( "):
        return recipe(name)
    stem, sizes = split_name(name)
    row = NORMS[stem]
    if row.recipe is None:
        raise ValueError(f"norm {stem!r} blends {', '.join(row.over)}: it has no recipe of its own")
    return recipe(row.recipe, center=row.center, **sizes)
