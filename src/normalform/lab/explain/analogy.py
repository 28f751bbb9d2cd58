"""The books of the source articles: what a norm averages, in words computed from the shape.

A batch is a pile of books: a sample is a book, a channel a page, and the positions are the lines of
a page and the characters of a line. A norm puts one average in the place of many characters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from normalform.drawing import Sets


class _Factor(NamedTuple):
    """How many characters one average is taken over along an axis, and what the papers call it."""

    number: int
    letter: str


def pile(sets: Sets) -> str:
    """The tensor as a pile of books.

    >>> from normalform.drawing import Sets
    >>> pile(Sets.of(nf.recipe("[n] c [s]"), (2, 4, 3, 5)))
    'A pile of 2 books of 4 pages, each page of 3 lines of 5 characters: 120 characters.'
    """
    books, pages, *positions = sets.cells.shape
    nouns = ("character", "line", "paragraph")[: len(positions)]
    page = " of ".join(map(_count, positions, reversed(nouns))) or "1 character"
    total = _count(math.prod(sets.shape), "character")
    return (
        f"A pile of {_count(books, 'book')} of {_count(pages, 'page')}, each page of {page}: "
        f"{total}."
    )


def average(sets: Sets) -> str:
    """What is added up for one mean, by how much it is divided, and what that leaves.

    >>> from normalform.drawing import Sets
    >>> average(Sets.of(nf.recipe("n [c s]"), (2, 4, 3, 5)))
    'Add up all characters of a book and divide by their number, C x H x W = 4 x 3 x 5 = 60: the
    average character of each of the 2 books.'
    """
    if sets.counts == (1,) and not sets.recipe.over:
        return "Nothing is added up: each character is its own mean."
    verb = "Add up" if sets.recipe.center else "Add up the squares of"
    said = f"{_cuts(sets)}{verb} {_what(sets)} and divide by their number, {_number(sets)}: "
    return f"{said}{_left(sets)}."


def _cuts(sets: Sets) -> str:
    """How books and piles are cut first."""
    said = ""
    if _splits(sets, "n"):
        piles, runs = _piles(sets), sets.cells.runs
        size = _count(runs[0].block, "book")
        last = f", the last of {runs[-1].block}" if len(runs) > 1 else ""
        said += f"Split the pile into {_count(piles, 'small pile')} of {size}{last}. "
    if _splits(sets, "c"):
        groups = sets.cells.groups
        size = _count(sets.cells.shape[1] // groups, "page")
        said += f"Cut each book into {_count(groups, 'booklet')} of {size}. "
    return said


def _what(sets: Sets) -> str:
    """The characters that are added up for one average."""
    unit = _unit(sets)
    said = "all characters" if _whole(sets) else "the characters at the same place"
    every = "" if _whole(sets) or unit == "page" else " on every page"
    if not _averages(sets, "n"):
        return f"{said}{every} of a {unit}"
    books = sets.cells.runs[0].block
    where = "in the one book" if books == 1 else f"in the {books} books"
    if _splits(sets, "n"):
        where = "in the books of a small pile"
    if unit == "book":
        return f"{said}{every} {where}"
    if unit == "booklet":
        return f"{said}{every} of the same booklet {where}"
    if books > 1:
        more = "" if books == 2 else ", ..."
        where += f" (page 1 of book 1, page 1 of book 2{more})"
    return f"{said} with the same page number {where}"


def _number(sets: Sets) -> str:
    """How many they are, as a product: ``N x H x W = 2 x 3 x 3 = 18``."""
    said = [_product(sets, run.block) for run in sets.cells.runs]
    if len(said) == 1:
        return said[0]
    return f"{said[0]} (in the last small pile {said[1]})"


def _product(sets: Sets, block: int) -> str:
    pages, positions = sets.cells.shape[1], sets.cells.shape[2:]
    factors: list[_Factor] = []
    if _averages(sets, "n"):
        factors.append(_Factor(block, "n" if _splits(sets, "n") else "N"))
    if _averages(sets, "c"):
        size = pages // sets.cells.groups
        factors.append(_Factor(size, "(C/G)" if _splits(sets, "c") else "C"))
    if sets.cells.spatial:
        letters = ("L",) if len(positions) == 1 else ("D", "H", "W")[3 - len(positions) :]
        factors += map(_Factor, positions, letters)
    if not factors:
        return "1"
    letters = " x ".join(each.letter for each in factors)
    product = " x ".join(str(each.number) for each in factors)
    total = math.prod(each.number for each in factors)
    return f"{letters} = {product}" + (f" = {total:,}" if len(factors) > 1 else "")


def _left(sets: Sets) -> str:
    """What is left of the books when each character is the average it belongs to."""
    books, pages, *_ = sets.cells.shape
    unit, groups, whole = _unit(sets), sets.cells.groups, _whole(sets)
    kinds = ("average character", "average page", "average book")
    if not sets.recipe.center:
        kinds = ("mean square", "page of mean squares", "book of mean squares")
    character, page, book = kinds
    piles = _piles(sets)
    owners = {"page": books * pages, "booklet": books * groups, "book": books}[unit], unit
    if _averages(sets, "n"):
        owners = piles, "small pile" if _splits(sets, "n") else "pile"
    number, owner = owners
    each = f"each of the {number:,} {owner}s" if number > 1 else f"the {owner}"
    if not _averages(sets, "n") or unit == "book":
        return f"the {character} of {each}" if whole else f"one {page} for {each}"
    parts = _count(pages, "page") if unit == "page" else _count(groups, "booklet")
    if whole:
        parts += ", with one character each"
    elif unit == "booklet":
        parts += ", with one page each"
    article = "an" if book.startswith("average") else "a"
    return f"{f'for {each} ' if number > 1 else ''}{article} {book} of {parts}"


def _unit(sets: Sets) -> str:
    """What of a book goes into one average."""
    if not _averages(sets, "c"):
        return "page"
    return "booklet" if _splits(sets, "c") else "book"


def _whole(sets: Sets) -> bool:
    """All characters of a page go into one average."""
    return sets.cells.spatial or not sets.positions


def _averages(sets: Sets, name: str) -> bool:
    return name in sets.recipe.over


def _splits(sets: Sets, name: str) -> bool:
    axis = sets.recipe.axis(name)
    return axis is not None and axis.split


def _piles(sets: Sets) -> int:
    return sum((run.stop - run.start) // run.block for run in sets.cells.runs)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
