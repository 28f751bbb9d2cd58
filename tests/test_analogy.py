"""The books of the source articles, against sentences that were counted by hand."""

import itertools
import math
import re

import pytest

from normalform.drawing import Sets
from normalform.lab.explain import analogy
from normalform.recipes import named, recipe

WORDS = {  # counted by hand
    ("batch", (2, 4, 3, 5)): "Add up all characters with the same page number in the 2 books "
    "(page 1 of book 1, page 1 of book 2) and divide by their number, N x H x W = 2 x 3 x 5 = 30: "
    "an average book of 4 pages, with one character each.",
    ("batch", (3, 4, 5)): "Add up all characters with the same page number in the 3 books (page 1 "
    "of book 1, page 1 of book 2, ...) and divide by their number, N x L = 3 x 5 = 15: an average "
    "book of 4 pages, with one character each.",
    ("batch", (1, 1)): "Add up all characters with the same page number in the one book and divide "
    "by their number, N = 1: an average book of 1 page, with one character each.",
    ("layer", (2, 4, 3, 5)): "Add up all characters of a book and divide by their number, "
    "C x H x W = 4 x 3 x 5 = 60: the average character of each of the 2 books.",
    ("instance", (2, 4, 3, 5)): "Add up all characters of a page and divide by their number, "
    "H x W = 3 x 5 = 15: the average character of each of the 8 pages.",
    ("group:2", (3, 8, 2, 3, 5)): "Cut each book into 2 booklets of 4 pages. Add up all characters "
    "of a booklet and divide by their number, (C/G) x D x H x W = 4 x 2 x 3 x 5 = 120: the average "
    "character of each of the 6 booklets.",
    ("ghost:2", (4, 3, 5)): "Split the pile into 2 small piles of 2 books. Add up all characters "
    "with the same page number in the books of a small pile (page 1 of book 1, page 1 of book 2) "
    "and divide by their number, n x L = 2 x 5 = 10: for each of the 2 small piles an average book "
    "of 3 pages, with one character each.",
    ("ghost:2", (5, 3, 5)): "Split the pile into 3 small piles of 2 books, the last of 1. Add up "
    "all characters with the same page number in the books of a small pile (page 1 of book 1, page "
    "1 of book 2) and divide by their number, n x L = 2 x 5 = 10 (in the last small pile n x L = "
    "1 x 5 = 5): for each of the 3 small piles an average book of 3 pages, with one character "
    "each.",
    ("token", (2, 3, 5, 4)): "Add up the characters at the same place on every page of a book and "
    "divide by their number, C = 4: one average page for each of the 2 books.",
    ("position", (2, 4, 3, 5)): "Add up the characters at the same place on every page of a book "
    "and divide by their number, C = 4: one average page for each of the 2 books.",
    ("rms", (2, 3, 5, 4)): "Add up the squares of the characters at the same place on every page "
    "of a book and divide by their number, C = 4: one page of mean squares for each of the 2 "
    "books.",
    ("[n] c s", (2, 4, 3, 5)): "Add up the characters at the same place with the same page number "
    "in the 2 books (page 1 of book 1, page 1 of book 2) and divide by their number, N = 2: an "
    "average book of 4 pages.",
    ("[n c s]", (2, 4, 3, 5)): "Add up all characters in the 2 books and divide by their number, "
    "N x C x H x W = 2 x 4 x 3 x 5 = 120: the average character of the pile.",
    ("[n c] s", (2, 4, 3, 5)): "Add up the characters at the same place on every page in the 2 "
    "books and divide by their number, N x C = 2 x 4 = 8: one average page for the pile.",
    ("n c s", (2, 4, 3, 5)): "Nothing is added up: each character is its own mean.",
}  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), WORDS)
def test_the_books(name, shape):
    assert analogy.average(Sets.of(named(name), shape)) == WORDS[name, shape]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [(" ".join(axes), {}) for axes in itertools.product(
        ["n", "[n]", "(b [n])"], ["c", "[c]", "(g [c])"], ["s", "[s]"])],
)  # fmt: skip
def test_the_books_count_what_is_averaged(text, sizes):
    sizes = {letter: 3 for letter, mark in (("n", "(b"), ("g", "(g")) if mark in text}
    sets = Sets.of(recipe(text, **sizes), (6, 9, 2, 5))
    said = analogy.average(sets)
    if sets.recipe.over == "":
        assert said.startswith("Nothing")
        return
    product = re.search(r"their number, [^=]+= ([\dx ]+)", said)[1]
    assert math.prod(map(int, product.split(" x "))) == sets.counts[0]
    assert ("booklet" in said) == ("(g" in text)
    assert ("small pile" in said) == ("(b" in text)


def test_the_pile():
    pile = {shape: analogy.pile(Sets.of(named("instance"), shape)) for shape in [
        (2, 4, 3, 5), (1, 1, 1), (2, 3), (2, 3, 4, 5, 1)]}  # fmt: skip
    assert list(pile.values()) == [
        "A pile of 2 books of 4 pages, each page of 3 lines of 5 characters: 120 characters.",
        "A pile of 1 book of 1 page, each page of 1 character: 1 character.",
        "A pile of 2 books of 3 pages, each page of 1 character: 6 characters.",
        (
            "A pile of 2 books of 3 pages, each page of 4 paragraphs of 5 lines of 1 character: "
            "120 characters."
        ),
    ]
