"""The notation: what it means, what it refuses, and how a recipe falls on a shape."""

import importlib.util
import itertools
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normalform as nf
import programs
from normalform.cells import Run
from normalform.recipes import NORMS, named, recipe, split_name

CARETS = {
    "n (g [c] [s]": (9, "a split axis ends with"),
    "n [c [s]": (5, "do not nest"),
    "n c [h]": (5, "unknown axis 'h'"),
    "n c n": (4, "n stands twice"),
    "n (h [c])": (3, "a split axis is"),
    "n (g c)": (5, "bracket the inner letter"),
    "n (g [n])": (6, "g counts blocks of c"),
    "n (g [c)": (7, "the bracket is not closed"),
    "n []": (3, "empty brackets"),
    "n c)": (3, "nothing open"),
    "n s [c": (6, "the bracket is not closed"),
    "[s] c": (5, "does not name n"),
    "": (0, "does not name n (samples) or c (channels)"),
}


@pytest.mark.parametrize("text", CARETS)
def test_a_caret_points_at_the_fault(text):
    column, words = CARETS[text]
    with pytest.raises(ValueError, match="recipe: ") as caught:
        recipe(text)
    message, line, caret = str(caught.value).split("\n")
    assert words in message
    assert line == "  " + text
    assert caret == "  " + " " * column + "^"


def test_recipe_wants_text():
    with pytest.raises(TypeError, match="not int"):
        recipe(3)


def notations():
    """Every recipe there is over n, c and s, in every order of the axes."""
    n, c, s = ["n", "[n]", "(b [n])"], ["c", "[c]", "(g [c])"], ["s", "[s]"]
    for parts in itertools.product(n, c, s):
        for order in itertools.permutations(parts):
            yield " ".join(order)
    yield from ("n [c]", "[n] c", "n c", "c [n]")


@pytest.mark.parametrize("text", list(notations()))
def test_notation_round_trips(text):
    assert recipe(str(recipe(text))) == recipe(text)
    bound = recipe(text)
    for axis in bound.axes:
        if axis.split:
            bound = bound.bind(**{axis.name: 2})
    assert eval(repr(bound)) == bound
    averaged = "".join(re.findall(r"\[(\w)\]", text))
    assert bound.over == averaged


def test_spaces_and_brackets_are_free():
    assert recipe("n[c][s]") == recipe("n [ c s ]")
    assert recipe("n [c s]") != recipe("n [c s]", center=False)


def cells_by_hand(text, shape, sizes):
    """Group the elements of a tensor by reading the notation directly."""
    groups = {}
    averaged = "".join(re.findall(r"\[(.*?)\]", text))
    n_block = sizes.get("n", shape[0])
    channels = shape[1] // sizes["g"] if "g" in sizes else sizes.get("c", 1)
    for index in itertools.product(*map(range, shape)):
        n, c, s = index[0], index[1], index[2:]
        key = (
            n // n_block if "(b" in text else (None if "n" in averaged else n),
            c // channels if "(g" in text else (None if "c" in averaged else c),
            None if "s" in averaged else s,
        )
        groups.setdefault(key, set()).add(index)
    return set(map(frozenset, groups.values()))


def cells_by_recipe(text, shape, sizes):
    cells = recipe(text, **sizes).cells(shape)
    groups = {}
    for index in itertools.product(*map(range, shape)):
        for k, run in enumerate(cells.runs):
            if run.start <= index[0] < run.stop:
                block = k, (index[0] - run.start) // run.block
        group = index[1] // (shape[1] // cells.groups)
        key = block, group, None if cells.spatial else index[2:]
        groups.setdefault(key, set()).add(index)
    assert sorted({len(g) for g in groups.values()}) == sorted(set(cells.counts))
    return set(map(frozenset, groups.values()))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("[n] c [s]", {}),
        ("n [c s]", {}),
        ("n c [s]", {}),
        ("n [c] s", {}),
        ("[n] c s", {}),
        ("[n c s]", {}),
        ("n c s", {}),
        ("n (g [c]) [s]", {"g": 3}),
        ("n (g [c]) s", {"c": 3}),
        ("(b [n]) c [s]", {"n": 2}),
        ("(b [n]) (g [c]) [s]", {"n": 3, "g": 2}),
    ],
)
def test_cells_are_what_the_notation_says(text, sizes):
    shape = (5, 6, 2, 2)
    assert cells_by_recipe(text, shape, sizes) == cells_by_hand(text, shape, sizes)


@given(samples=st.integers(1, 20), block=st.integers(1, 8), values=st.integers(1, 3))
def test_ghost_blocks_cover_the_batch(samples, block, values):
    runs = recipe("(b [n]) c [s]", n=block).cells((samples, 3, values)).runs
    sizes = [run.block for run in runs for _ in range((run.stop - run.start) // run.block)]
    assert sum(sizes) == samples
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    tail = samples % block
    if samples >= block and tail * values == 1:  # one value joins the block before
        assert sizes == [block] * (samples // block - 1) + [block + 1]
    elif samples >= block:
        assert sizes == [block] * (samples // block) + [tail] * (tail > 0)
    else:
        assert sizes == [samples]


def test_blocks_by_number_must_divide():
    assert recipe("(b [n]) c [s]", b=2).cells((6, 1, 1)).runs == (Run(0, 6, 3),)
    with pytest.raises(ValueError, match=r"4 samples do not divide by b=3; nearest .* 1, 2, 4"):
        recipe("(b [n]) c [s]", b=3).cells((4, 1, 1))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: recipe("n (g [c]) [s]").cells((2, 4, 3)), ValueError, r"needs a size: g= .*or c="),
        (lambda: recipe("group:4"), ValueError, "'group:4' is the name of a norm: nf.norm takes"),
        (lambda: recipe("n (g [c]) [s]", g=3).cells((2, 32, 3)), ValueError, "divide: 1, 2, 4"),
        (lambda: recipe("n (g [c]) [s]", g=2, c=3).cells((2, 8, 3)), ValueError, "do not make 8"),
        (lambda: recipe("n [c s]", g=3), TypeError, "it takes no sizes"),
        (lambda: recipe("n (g [c])", b=3), TypeError, "it takes g= or c="),
        (lambda: recipe("n (g [c])", g=0), ValueError, "not a positive integer"),
        (lambda: recipe("n (g [c])", g=2.0), ValueError, "not a positive integer"),
        (lambda: recipe("n (g [c])", g=True), ValueError, "not a positive integer"),
        (lambda: recipe("n [c]").cells((2, 3, 4)), ValueError, "needs 2 dimensions, .* has 3"),
        (lambda: recipe("n c [s]").cells((2,)), ValueError, "needs at least 2 dimensions"),
        (lambda: recipe("n [c]").param_dims(2, "s"), ValueError, "'s' is not an axis"),
        (lambda: recipe("n [c]").param_dims(2, "c c"), ValueError, "twice"),
        (
            lambda: named("gruop"),
            ValueError,
            "unknown norm 'gruop'; did you mean 'group'[?] known: batch",
        ),
        (lambda: named("batch:3"), ValueError, "takes no number"),
        (lambda: named("group:x"), ValueError, "'x' is not a positive integer"),
        (lambda: named("group:0"), ValueError, "'0' is not a positive integer"),
        (lambda: named("switch"), ValueError, "blends instance, layer, batch"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_parameter_axes_are_independent_of_the_cells():
    token = recipe("n s [c]")
    assert token.param_dims(4, "c") == (3,)
    assert token.param_dims(4, "s c") == token.param_dims(4, "c s") == (1, 2, 3)
    assert recipe("n c [s]").param_dims(3, "n c") == (0, 1)


@pytest.mark.parametrize("name", [name for name, row in NORMS.items() if row.torch])
def test_the_table_names_the_layer_of_torch_that_computes_the_same(name):
    row = NORMS[name]
    namespace = {k: getattr(torch.nn, k) for k in row.torch.split("(")[:1]}
    layer = eval(row.torch, namespace | {"C": 6, "G": 3}).double()
    shape = (4, 6, 3, 5) if row.recipe.endswith("[s]") or "s]" in row.recipe else (4, 3, 5, 6)
    x = torch.randn(shape, dtype=torch.float64)
    sizes = {row.size: 3} if row.size else {}
    got = nf.norm(x, row.recipe, center=row.center, eps=layer.eps or 2.0**-52, **sizes)
    torch.testing.assert_close(got, layer(x), rtol=1e-12, atol=1e-12)
    if layer.weight is not None:
        dims = named(row.recipe).param_dims(4, row.params)
        assert tuple(layer.weight.shape) == tuple(x.shape[d] for d in dims) == (6,)


def test_names():
    assert split_name("switch") == ("switch", {})
    assert named("group:4") == recipe("n (g [c]) [s]", g=4)
    assert named(named("rms")) == recipe("n s [c]", center=False)


def test_the_picture_in_the_readme_is_drawn_from_this_table():
    path = Path(__file__).parent.parent / "scripts" / "draw_norms.py"
    spec = importlib.util.spec_from_file_location("draw_norms", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_norms"] = module
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.draw(), "run scripts/draw_norms.py"


def test_a_recipe_from_another_process():
    """Hashes of text differ from process to process; it must be found all the same."""
    said = programs.run(
        "import json, pickle; from normalform.recipes import recipe\n"
        "r = recipe('n (g [c]) [s]', g=8); hash(r)\n"
        "print(json.dumps({'recipe': pickle.dumps(r).hex()}))",
        PYTHONHASHSEED="1",
    )
    found, here = pickle.loads(bytes.fromhex(said["recipe"])), recipe("n (g [c]) [s]", g=8)
    assert found == here
    assert {here: "known"}[found] == "known"
