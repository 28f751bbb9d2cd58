"""What ``normalform explain`` was asked about: a name or a notation, sizes, a shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

import normalform as nf
from normalform.cells import Cells
from normalform.drawing import Sets, example_shape, sized
from normalform.explain import Explanation
from normalform.lab.explain import analogy
from normalform.recipes import NORMS, Norm, Recipe, meant, named, recipe

_ALSO = {"bn": "batch", "ln": "layer", "in": "instance", "gn": "group", "sn": "switch"}
_SUFFIX = re.compile(r"[-_ ]?(norm|normalization)?(\dd)?$")


@dataclass(frozen=True)
class Subject:
    """A norm on a shape.

    Attributes:
        name: with its size, as ``group:2``; or the notation.
        said: the norm in words, its sets, and the kernel.
        row: its row in the table of norms, None for a recipe that has no name.
        refused: why its layer does not take this shape, or nothing.
    """

    name: str
    said: Explanation
    row: Norm | None
    refused: str = ""

    @property
    def sets(self) -> list[Sets]:
        """Which elements share a mean, for each recipe; several are blended."""
        return self.said.sets

    @property
    def notes(self) -> list[str]:
        """What there is to say beside ``said``: PyTorch's layer, the paper, a refusal."""
        notes: list[str] = []
        if self.refused:
            notes.append(f"on {self.said.shape}: refused. {self.refused}")
        if self.row is not None:
            same = f"torch.nn.{self.row.torch}" if self.row.torch else "not in torch.nn"
            notes.append(f"{same}; {self.row.paper}")
        return notes

    @property
    def books(self) -> list[str]:
        """What it averages, in the source articles' books."""
        said = [analogy.average(sets) for sets in self.sets]
        mixed = ["Then these are mixed, in shares that are learned."] if len(said) > 1 else []
        return [*said, *mixed]

    def svg(self) -> str:
        """Everything as a picture."""
        return self.said.svg(*self.notes, analogy.pile(self.sets[0]), *self.books)


def read(
    name: str, shape: Sequence[int] | None = None, sizes: Mapping[str, int] | None = None
) -> Subject:
    """The norm that a name or a notation stands for, on a shape.

    Args:
        name: a name of the table, as ``group:2``, or notation, as ``n (g [c]) [s]``.
        shape: of the tensor, in its own order; None for a small one.
        sizes: those of split axes, as ``{"g": 2}``; 2 where none is given.

    Raises:
        ValueError: an unknown name, notation that cannot be read, sizes or a shape that do not fit.

    >>> group = read("group", (2, 4, 3, 3))
    >>> group.name, group.said.norm
    ('group:2', 'GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)')
    """
    name = name.strip()
    if any(mark in name for mark in "[( "):
        found = _sized(_notation(name), sizes or {}, name)
        alike = [stem for stem, row in NORMS.items() if row.recipe == str(found) and row.center]
        return _on(name, (found,), shape, NORMS[alike[0]] if alike else None, None)
    stem = name.partition(":")[0]
    if stem not in NORMS:
        raise ValueError(_unknown(name))
    row = NORMS[stem]
    if not row.over:
        found = _sized(named(name), sizes or {}, name)
        number = found.sizes.get(row.size or "")
        return _on(f"{stem}:{number}" if number else stem, (found,), shape, row, stem)
    if sizes or ":" in name:
        raise ValueError(f"norm {name!r}: {stem} takes no sizes, it blends {', '.join(row.over)}")
    return _on(name, tuple(map(named, row.over)), shape, row, stem)


def _on(
    name: str,
    recipes: tuple[Recipe, ...],
    shape: Sequence[int] | None,
    row: Norm | None,
    stem: str | None,
) -> Subject:
    """The subject; ``stem`` is the name of its layer, if it may have one."""
    shape = example_shape(recipes) if shape is None else tuple(shape)
    cells, *_ = [Sets.of(each, shape).cells for each in recipes]  # all are to fit
    layer = None if stem is None else _layer(stem, recipes[0], cells)
    norm = layer or recipes[0]
    refused = ""
    try:
        said = nf.explain(norm, torch.empty(shape))
    except (ValueError, RuntimeError) as error:
        said, refused = nf.explain(norm), " ".join(str(error).split())
    if layer is None:  # what nf.norm takes
        kinds = ("weight", "bias") if recipes[0].center else ("weight",)
        said = replace(said, norm=name, tensors=tuple((k, (cells.shape[1],)) for k in kinds))
    said = replace(said, title=name, recipes=recipes, laid=recipes, shape=shape)
    return Subject(name, said, row, refused)


def _layer(stem: str, recipe: Recipe, cells: Cells) -> torch.nn.Module | None:
    """The layer of this name for input of this shape; None where there is none."""
    channels, positions = cells.shape[1], len(cells.shape) - 2
    if stem == "group":
        return nf.GroupNorm(cells.groups, channels)
    if stem == "ghost":
        block = recipe.sizes.get("n")
        return None if block is None else _by_name(f"ghost:{block}", positions)(channels)
    if stem == "position" or (stem == "instance" and not positions):
        return None
    return _by_name(stem, positions)(channels)


def _by_name(name: str, positions: int) -> Callable[[int], torch.nn.Module]:
    return nf.get_norm_layer(name, max(1, positions))


def _notation(name: str) -> Recipe:
    try:
        return recipe(name)
    except ValueError as error:  # three lines, the last with a caret below the fault
        said, _, caret = str(error).split("\n")
        at = caret.index("^") - 2
        where = f"at {name[at:]!r}" if at < len(name) else "at its end"
        raise ValueError(f"{said}, in {name!r} {where}") from None


def _sized(found: Recipe, sizes: Mapping[str, int], name: str) -> Recipe:
    """The recipe with its sizes: those of the name, those given, or the usual ones."""
    for letter in sizes.keys() & found.sizes.keys():
        raise ValueError(
            f"norm {name!r} says {letter}={found.sizes[letter]} by itself; leave the other size out"
        )
    try:
        found = found.bind(**sizes)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return sized(found)


def _unknown(name: str) -> str:
    """An unknown name, and the one that may be meant: also BN, BatchNorm2d and the like."""
    if name == "none":
        return "norm 'none' computes nothing: there is nothing to explain"
    key = _SUFFIX.sub("", name.partition(":")[0].lower())
    near, listed = meant(key, NORMS, _ALSO), ", ".join(NORMS)
    return f"unknown norm {name!r}; {near}known: {listed}, and notation as 'n (g [c]) [s]'"
