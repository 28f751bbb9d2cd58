"""Pictures show the sets that a norm has, found here by changing one element at a time."""

import itertools
import math
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrast import contrast
from normalform import reference
from normalform.drawing import Sets, example_shape, sized
from normalform.drawing.card import card, sheet
from normalform.drawing.sets import MARKS, Most, kept
from normalform.drawing.style import DARK, LIGHT, css
from normalform.drawing.svg import NAMESPACE, live, still
from normalform.drawing.views import block, flat
from normalform.recipes import NORMS, named, recipe
from sharing import partition

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

CASES = [
    ("batch", {}, (3, 4, 2, 3)),
    ("layer", {}, (3, 4, 2, 3)),
    ("instance", {}, (3, 4, 2, 3)),
    ("group:2", {}, (2, 6, 3)),
    ("n (g [c]) [s]", {"c": 2}, (2, 6, 3)),
    ("ghost:2", {}, (5, 3, 2)),
    ("ghost:2", {}, (5, 3)),  # a tail of one value joins the block before it
    ("(b [n]) c [s]", {"b": 2}, (4, 3, 2)),
    ("(b [n]) (g [c]) [s]", {"n": 2, "g": 3}, (4, 6, 2)),
    ("token", {}, (2, 3, 2, 4)),
    ("position", {}, (2, 4, 3, 2)),
    ("rms", {}, (2, 3, 4)),
    ("[n] c s", {}, (3, 2, 3)),
    ("[n c s]", {}, (2, 3, 2)),
    ("[n] [c] s", {}, (2, 3, 2, 2)),
    ("s [n] c", {}, (2, 3, 3)),
    ("c [s] n", {}, (3, 2, 2, 4)),
    ("layer", {}, (2, 5)),
    ("batch", {}, (2, 3, 2, 2, 2)),
]
IDS = [f"{name} {shape}" for name, _, shape in CASES]
cases = pytest.mark.parametrize(("name", "sizes", "shape"), CASES, ids=IDS)


def whole(name, sizes, shape):
    return Sets.of(named(name).bind(**sizes), shape, Most(99, 99, 99))


def truth(name, sizes, shape):
    """The partition that the reference has."""
    norm = named(name).bind(**sizes)
    return partition(lambda x: reference.norm(x, norm, center=norm.center).xhat, shape)


def drawn_partition(sets):
    groups = {}
    for element in sets.elements():
        groups.setdefault(sets.set_of(element), set()).add(element.at)
    return {at: frozenset(group) for group in groups.values() for at in group}


@cases
def test_sets_are_what_the_reference_shares(name, sizes, shape):
    sets, found = whole(name, sizes, shape), truth(name, sizes, shape)
    assert drawn_partition(sets) == found
    assert sets.number == len(set(found.values()))
    assert set(sets.counts) == {len(group) for group in found.values()}


def test_the_search_tells_norms_apart():
    shape = (3, 4, 2, 3)
    for name, other in itertools.permutations(["batch", "layer", "instance", "group:2"], 2):
        assert drawn_partition(whole(name, {}, shape)) != truth(other, {}, shape)


@cases
def test_letters_of_the_svg_are_the_sets(name, sizes, shape):
    sets, found = whole(name, sizes, shape), truth(name, sizes, shape)
    example = sets.example()
    elements = elements_of(flat(sets), sets, example)
    letters = {}
    for element in elements:
        letters.setdefault(element["mark"], set()).add(element["at"])
    assert len(elements) == len(found)
    assert {frozenset(group) for group in letters.values()} == set(found.values())
    assert {e["at"] for e in elements if "lit" in e["class"].split()} == found[example.at]
    assert len({(e["set"], e["mark"]) for e in elements}) == len(letters)


@cases
def test_the_block_lights_what_is_in_sight(name, sizes, shape):
    sets, found = whole(name, sizes, shape), truth(name, sizes, shape)
    example = sets.example()
    elements = elements_of(block(sets), sets, example)
    for element in elements:
        assert ("lit" in element["class"].split()) == (element["at"] in found[example.at])
    n, c, *s = sets.cells.shape
    front = {sets.element(0, j, p).at for j in range(c) for p in itertools.product(*map(range, s))}
    top = {sets.element(i, j, (0,) * len(s)).at for i in range(n) for j in range(c)}
    side = {
        sets.element(i, c - 1, p).at for i in range(n) for p in itertools.product(*map(range, s))
    }
    seen = Counter(element["at"] for element in elements)
    assert seen == Counter(front) + Counter(top) + Counter(side)


@cases
def test_few_outlines_are_the_same_picture(name, sizes, shape):
    sets = whole(name, sizes, shape)
    lit = sets.set_of(sets.example())
    view = flat(sets)
    root = ElementTree.fromstring(f"<g>{''.join(still(view, sets, lit))}</g>")
    outlines = {
        path.get("class").split()[0]: path.get("d").count("M") for path in root.iter("path")
    }
    apart = Counter(e["class"].split()[-1] for e in elements_of(view, sets, sets.example()))
    assert outlines == dict(apart)


def elements_of(view, sets, example):
    """The elements of a live view as its SVG has them."""
    root = ElementTree.fromstring(f"<g>{''.join(live(view, sets, sets.set_of(example)))}</g>")
    return [
        {
            "at": tuple(map(int, g.get("data-at").split(","))),
            "set": g.get("data-set"),
            "class": g.get("class"),
            "mark": g.findtext("text"),
        }
        for g in root.iter("g")
        if g.get("data-at")
    ]


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (5, 9), (2, 3, 7), (2, 2, 2, 3, 2), (64,) * 4])
def test_squares_do_not_overlap(shape):
    view = flat(Sets.of(named("instance"), shape))
    places = [tuple(map(float, re.findall(r"[\d.]+", face.outline)[:2])) for face in view.faces]
    for (x, y), (u, v) in itertools.combinations(places, 2):
        assert max(abs(x - u), abs(y - v)) >= 18
    assert all(x + 18 <= view.width and y + 18 <= view.height for x, y in places)
    dots = [(word.x, word.y - 4) for word in view.words if word.text in "…⋮"]
    for (x, y), (u, v) in itertools.product(places, dots):
        assert not (x <= u <= x + 18 and y <= v <= y + 18)
    assert bool(dots) == (shape == (64,) * 4 or shape in [(5, 9), (2, 3, 7)])


@given(
    channels=st.integers(1, 200), groups=st.integers(1, 12), samples=st.integers(1, 40),
    block=st.integers(1, 12), height=st.integers(1, 30),
)  # fmt: skip
def test_what_is_left_out_is_said(channels, groups, samples, block, height):
    shape = (samples, channels * groups, height, 3)
    both = recipe("(b [n]) (g [c]) [s]", n=block, g=groups)
    sets = Sets.of(both, shape)
    axes = sets.samples, sets.channels, *sets.positions
    for drawn, length in zip(axes, sets.cells.shape, strict=True):
        indices = kept(drawn)
        assert indices[0] == 0
        assert indices[-1] == length - 1
        assert list(indices) == sorted(set(indices))
        for before, gap, after in zip(drawn, drawn[1:], drawn[2:], strict=False):
            if gap is None:
                assert after - before > 2
        assert (None in drawn) or len(indices) == length
    assert sets.abbreviated == (len(list(sets.elements())) < math.prod(shape))
    assert ("dots" in str(sets)) == sets.abbreviated
    if groups > 1:  # where two sets meet is in sight
        assert {channels - 1, channels} <= set(sets.channels)
    if block < samples and sets.cells.runs[0].block == block:
        assert {block - 1, block} <= set(sets.samples)


def test_more_sets_than_letters():
    sets = whole("n c s", {}, (2, 4, 3, 3))
    marks = sets.marks()
    assert len(marks) == 72
    assert list(marks.values())[:63] == [*MARKS, "A"]
    assert "begin again after 62 sets" in str(sets)
    assert "each of the 72 elements is alone" in str(sets)


def test_in_words():
    assert str(Sets.of(named("batch"), (2, 4, 3, 3))) == (
        "[n] c [s] on 2x4x3x3: 4 sets of 18 elements; the same letter shares one mean and variance."
    )
    assert "12 sets of 4 or 2 elements" in str(Sets.of(named("ghost:2"), (5, 4, 2)))
    one, squares = (str(Sets.of(r, (2, 4, 3))) for r in (recipe("[n c s]"), named("rms")))
    assert "all 24 elements share one mean and variance." in one
    assert "shares one mean square." in squares


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("batch", (4,), "2 to 5 axes"),
        ("batch", (2, 3, 1, 1, 1, 1), "2 to 5 axes"),
        ("batch", (2, 0, 3), "at least one element"),
        ("group:3", (2, 4, 3), "4 channels do not divide by g=3"),
        ("n c", (2, 4, 3), "needs 2 dimensions"),
    ],
)
def test_what_cannot_be_drawn(name, shape, words):
    with pytest.raises(ValueError, match=words):
        Sets.of(named(name), shape)


@pytest.mark.parametrize("sizes", [{}, {"g": 3}, {"c": 3}, {"g": 3, "c": 5}, {"n": 8}, {"b": 3}])
def test_a_small_shape_has_room_for_two_blocks(sizes):
    letters = set(sizes) or {"c"}
    text = "(b [n]) c [s]" if letters & {"n", "b"} else "n (g [c]) [s]"
    found = sized(recipe(text, **sizes))
    shape = example_shape([found])
    cells = found.cells(shape)
    blocks = cells.groups if "(g" in text else shape[0] // cells.runs[0].block
    assert blocks >= 2
    assert blocks == sizes.get("g", sizes.get("b", 2))
    assert example_shape([named(each) for each in NORMS["switch"].over]) == (2, 4, 3, 3)


def test_a_card_is_a_whole_file():
    sets = [Sets.of(named(name), (2, 4, 3, 3)) for name in NORMS["switch"].over]
    svg = card("a < b & c", "[n] < c", sets, ["one line", "words " * 60])
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter(f"{{{NAMESPACE}}}text")]
    assert {"a < b & c", "[n] < c", "one line"} <= set(texts)
    assert sum(text.startswith("words") for text in texts) == 5
    assert len(root.findall(".//*[@data-at='0,1,1,1']")) == 6  # flat, and in front of the block
    assert len(root.findall(".//*[@data-at='1,1,1,1']")) == 3  # inside of the block
    assert svg.count("http") == 1  # the name of the format, nothing that is fetched
    assert "prefers-color-scheme: dark" in svg


def test_the_sheet_lights_the_set_of_the_first_sample_and_second_channel():
    root = ElementTree.fromstring(sheet())
    cards = [g for g in root if g.tag.endswith("g")]
    assert len(cards) == len(NORMS)
    at = {"n": (0,), "c": (1,), "s": (0, 0)}
    lengths = {"n": (4,), "c": (6,), "s": (2, 2)}
    for group, (name, row) in zip(cards, NORMS.items(), strict=True):
        views = [g for g in group if g.tag.endswith("g")]
        if row.over:
            assert len(views) == 3
            continue
        norm = named(name + (":2" if row.size else ""))
        order = [axis.name for axis in norm.axes]
        shape = tuple(size for letter in order for size in lengths[letter])
        index = tuple(i for letter in order for i in at[letter])
        found = partition(lambda x, r=norm: reference.norm(x, r, center=r.center).xhat, shape)
        lit = [path.get("d").count("M") for path in views[0] if path.get("class") == "lit edge"]
        assert lit == [len(found[index])]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(theme):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for words, ground in [
        ("ink", "ground"), ("ink", "card"), ("quiet", "ground"), ("quiet", "card"),
        ("mark", "even"), ("mark", "odd"), ("on", "lit"),
    ]:  # fmt: skip
        assert contrast(theme[words], theme[ground]) >= 4.5, (words, ground)
    for other in ("even", "odd", "card", "ground"):  # lit is told from these without colour
        assert contrast(theme["lit"], theme[other]) >= 3, other
    assert all(colour in css() for colour in theme.values())
