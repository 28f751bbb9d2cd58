"""``normalform explain NAME``: letters, words and numbers are those of the norm."""

import re
from io import StringIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from normalform import cli, reference
from normalform.drawing.svg import MARK, NAMESPACE
from normalform.lab.explain import Options, run, subject
from normalform.lab.explain.numbers import LIMIT, Numbers
from normalform.recipes import NORMS, named
from sharing import partition


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def explain(capsys, *arguments):
    status = cli.main(["explain", *arguments])
    return status, capsys.readouterr()


def printed(options, **console):
    file = StringIO()
    assert run(options, Console(file=file, highlight=False, width=80, **console)) == 0
    return file.getvalue()


def boxes(text):
    """The letters of the first picture in a text: ``found[sample][channel]`` is rows of letters."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("  channel"))
    starts = [m.start() for m in re.finditer(r" \d+", lines[start])]
    samples, box = [], None
    for line in lines[start + 1 :]:
        if line.startswith("  sample"):
            box = [[] for _ in starts]
            samples.append(box)
        elif line and not line.startswith(" " * 10):
            break
        if line.strip() and box is not None:
            for i, (a, b) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
                box[i].append(line[a:b].split())
    return samples


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (["batch", "--shape", "2,4,3,3"], (2, 4, 3, 3)),
        (["layer", "--shape", "3,2,2,4"], (3, 2, 2, 4)),
        (["instance", "--shape", "3,4,3"], (3, 4, 3)),
        (["group:2", "--shape", "2,6,2,2"], (2, 6, 2, 2)),
        (["group", "--groups", "3", "--shape", "2,6,2,2"], (2, 6, 2, 2)),
        (["n (g [c]) [s]", "--groups", "3", "--shape", "2,6,2,2"], (2, 6, 2, 2)),
        (["ghost:2", "--shape", "4,3,2,2"], (4, 3, 2, 2)),
        (["(b [n]) c [s]", "--size", "n=2", "--shape", "4,3,2,2"], (4, 3, 2, 2)),
        (["(b [n]) c [s]", "--size", "b=2", "--shape", "4,3,2,2"], (4, 3, 2, 2)),
        (["position", "--shape", "2,3,2,2"], (2, 3, 2, 2)),
    ],
)
def test_letters_are_the_sets(arguments, shape, capsys):
    status, said = explain(capsys, *arguments)
    assert status == 0
    found = boxes(said.out)
    letters = {}
    for n, sample in enumerate(found):
        for c, box in enumerate(sample):
            array = np.array(box)
            for s in np.ndindex(*array.shape):
                position = s if len(shape) == 4 else s[1:]
                letters.setdefault(str(array[s]), set()).add((n, c, *position))
        sizes = dict(re.findall(r"([nbgc])=(\d)", " ".join(arguments)))
    if "--groups" in arguments:
        sizes["g"] = arguments[arguments.index("--groups") + 1]
    norm = named(arguments[0]).bind(**{k: int(v) for k, v in sizes.items()})
    truth = partition(lambda x: reference.norm(x, norm).xhat, shape)
    assert {frozenset(group) for group in letters.values()} == set(truth.values())


def test_channels_last_is_drawn_as_the_others(capsys):
    last = explain(capsys, "token", "--shape", "2,3,3,4")[1].out
    first = explain(capsys, "position", "--shape", "2,4,3,3")[1].out
    assert boxes(last) == boxes(first)
    assert len(boxes(last)[0]) == 4


@pytest.mark.parametrize("name", [*NORMS, "group:32", "ghost:8", "[n c s]", "(b [n]) (g [c]) s"])
@pytest.mark.parametrize("shape", [None, (64, 256, 56, 56), (8, 128, 4, 16, 16)])
def test_eighty_columns(name, shape):
    if shape and name in ("token", "rms"):
        shape = (*shape[:1], *shape[2:], shape[1])
    text = printed(Options(name, shape=shape))
    assert max(map(len, text.split("\n"))) <= 80
    assert text.isascii()
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert ("dots" in text) == (".." in re.sub(r"\.\.\.", "", text))
    assert ("dots" in text) == (shape is not None or name in ("group:32", "ghost:8"))


def test_a_narrow_terminal_puts_boxes_below_each_other():
    file = StringIO()
    run(Options("batch", shape=(2, 8, 3, 4)), Console(file=file, width=40, highlight=False))
    lines = file.getvalue().split("\n")
    assert max(map(len, lines)) <= 40
    assert sum(line.startswith("  channel  ") for line in lines) == 2


def test_colours_only_where_they_are(capsys):
    plain = printed(Options("group"))
    assert "\x1b" not in plain
    assert "\x1b" not in explain(capsys, "group")[1].out
    coloured = printed(Options("group"), force_terminal=True, color_system="truecolor")
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).replace(" \n", "\n") == plain
    grounds = dict.fromkeys(re.findall(r"48;2;([\d;]+)m ([A-Z]) ", coloured))
    assert {mark for _, mark in grounds} == {"A", "B", "C", "D"}
    assert len({colour for colour, _ in grounds}) == 4
    without = printed(Options("group"), force_terminal=True, no_color=True)
    assert "48;" not in without


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = StringIO()
    run(Options("group"), Console(file=file, force_terminal=True, width=80))
    assert "38;" not in file.getvalue()
    assert "48;" not in file.getvalue()


def test_what_is_said_of_a_layer(capsys):
    out = explain(capsys, "switch", "--shape", "2,6,3,3")[1].out
    flat = re.sub(r"\s+", " ", out)
    assert flat.startswith("SwitchNorm2d(6, eps=1e-05")
    for part in (
        "weight (6,), bias (6,), mean_weight (3,), var_weight (3,), running_mean (6,)",
        "mean and var are blends of these, weighted by two softmaxes",
        "on (2, 6, 3, 3) float32, contiguous: kernel cpu (planes)",
        "Luo et al. 2018, arXiv:1806.10779",
        "n [c s] on 2x6x3x3: 2 sets of 54 elements",
        "Then these are mixed, in shares that are learned.",
    ):
        assert part in flat
    assert flat.count("A pile of 2 books") == 1


@pytest.mark.parametrize(
    ("name", "shape", "layer"),
    [
        ("batch", (2, 4), "BatchNorm1d(4,"), ("batch", (2, 4, 3, 3, 3), "BatchNorm3d(4,"),
        ("instance", (2, 4, 3), "InstanceNorm1d(4,"), ("instance", (2, 4), "instance"),
        ("layer", (2, 4), "GroupNorm(1, 4,"), ("token", (2, 3, 3, 4), "LayerNorm((4,),"),
        ("rms", (2, 4), "RMSNorm((4,),"), ("ghost:2", (4, 4, 3), "GhostBatchNorm1d(4, block=2,"),
        ("position", (2, 4, 3), "position"), ("n c [s]", (2, 4, 3), "n c [s]"),
    ],
)  # fmt: skip
def test_names_are_layers_where_there_is_one(name, shape, layer):
    found = subject.read(name, shape)
    assert found.said.norm.startswith(layer)
    assert found.said.shape == shape
    assert found.said.choice is not None
    assert not found.refused
    parameters = dict(found.said.tensors)
    if layer == name:  # the function, which takes a weight a channel
        assert parameters == {"weight": (4,), "bias": (4,)}


def test_groups_of_so_many_channels():
    found = subject.read("group", (2, 12, 3), {"c": 3})
    assert found.said.norm.startswith("GroupNorm(4, 12,")
    assert subject.read("ghost", (6, 2, 3), {"b": 2}).said.norm == "ghost"


def test_what_a_layer_refuses_is_drawn_all_the_same(capsys):
    status, said = explain(capsys, "batch", "--shape", "1,4,1,1")
    flat = re.sub(r"\s+", " ", said.out)
    assert status == 0
    assert "on (1, 4, 1, 1): refused. Expected more than 1 value per channel" in flat
    assert "each of the 4 elements is alone" in flat
    assert boxes(said.out) == [[[["A"]], [["B"]], [["C"]], [["D"]]]]


def test_values_are_printed(capsys):
    out = explain(capsys, "group:2", "--values", "--shape", "2,4,2,2")[1].out
    numbers = Numbers.of([named("group:2")], (2, 4, 2, 2))
    after = out.split("check by hand:")[1]
    x = [[[list(map(int, row)) for row in box] for box in s] for s in boxes("\n" + after)]
    np.testing.assert_array_equal(np.array(x), numbers.x)
    y = boxes("\n" + out.split("y, with")[1].split(":\n")[1])
    np.testing.assert_allclose(np.array(y).astype(float), numbers.y, atol=0.00501)
    listed = re.sub(r"\s+", " ", out).split("its mean and var: ")[1].split(" xhat")[0]
    means = {mark: float(mean) for mark, mean, _ in map(str.split, listed.split(","))}
    marks = subject.read("group:2", (2, 4, 2, 2)).sets[0]
    for element in marks.elements():
        mark = marks.marks()[marks.set_of(element)]
        assert means[mark] == pytest.approx(numbers.mean[element.at], abs=5e-5)


ERRORS = [
    (["bacth"], "unknown norm 'bacth'; did you mean 'batch'?"),
    (["BatchNorm2d"], "did you mean 'batch'?"),
    (["LN"], "did you mean 'layer'?"),
    (["switchable"], "did you mean 'switch'?"),
    (["rmsnorm"], "did you mean 'rms'?"),
    (["xyzzy"], "unknown norm 'xyzzy'; known: batch"),
    (["none"], "nothing to explain"),
    (["n [c s"], "the bracket is not closed, in 'n [c s' at its end"),
    (["n (g c)"], "bracket the inner letter, in 'n (g c)' at 'c)'"),
    (["batch", "--shape", "4"], "2 to 5 axes"),
    (["batch", "--shape", "2,0,3"], "at least one element"),
    (["group", "--groups", "3", "--shape", "2,4,3,3"], "4 channels do not divide by g=3; nearest"),
    (["group", "--groups", "0"], "g=0 is not a positive integer"),
    (["group:2", "--groups", "4"], "'group:2' says g=2 by itself"),
    (["batch", "--groups", "2"], "it takes no sizes"),
    (["switch", "--groups", "2"], "switch takes no sizes"),
    (["n c", "--shape", "2,4,3"], "needs 2 dimensions, the tensor has 3"),
    (["batch", "--values", "--shape", "2,64,8,8"], f"a shape of at most {LIMIT}"),
    (["batch", "--out", "nowhere/norm.svg"], "there is no folder nowhere"),
    (["batch", "--out", "norm.gif"], "its name ends in .svg or .png"),
    ([], "name a norm (batch, layer"),
    (["batch", "--all"], "it takes --out and nothing else"),
    (["--all", "--values"], "it takes --out and nothing else"),
    (["--all", "--out", "page.txt"], "its name ends in .html"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS)
def test_errors_are_one_line(arguments, words, capsys):
    status, said = explain(capsys, *arguments)
    assert status == 2
    assert words in said.err
    assert said.err.startswith("normalform explain: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    "arguments", [["batch", "--shape", "2x4"], ["batch", "--size", "n"], ["batch", "--groups", "x"]]
)
def test_what_cannot_be_read_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        explain(capsys, *arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_as_files(tmp_path, capsys):
    svg, png = tmp_path / "norm.svg", tmp_path / "norm.png"
    for path in (svg, png, svg, png):  # a second time they replace themselves
        status, said = explain(capsys, "group:2", "--out", str(path))
        assert status == 0
        assert f"Drawn in {path}." in said.out.replace("\n", " ").replace("  ", " ")
    texts = [t.text for t in ElementTree.parse(svg).getroot().iter(f"{{{NAMESPACE}}}text")]
    assert "group:2" in texts
    assert any(text.startswith("A pile of 2 books") for text in texts)
    with Image.open(png) as picture:
        assert picture.width > 1000
        assert picture.text == {"Software": MARK}
        colours = {colour: n for n, colour in picture.convert("RGB").getcolors(1 << 24)}
        assert colours[0, 114, 178] > 18 * 20 * 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["norm.png", "norm.svg"]


def test_files_of_others_are_left_alone(tmp_path, capsys):
    mine = tmp_path / "mine.svg"
    mine.write_text("<svg>my drawing</svg>")
    status, said = explain(capsys, "batch", "--out", str(mine))
    assert status == 2
    assert "another file stands there" in said.err
    assert mine.read_text() == "<svg>my drawing</svg>"
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    assert "a folder; give the name" in explain(capsys, "batch", "--out", str(folder))[1].err


def test_the_sheet_of_all(tmp_path, capsys):
    path = tmp_path / "norms.svg"
    assert explain(capsys, "--all", "--out", str(path))[0] == 0
    names = [t.text for t in ElementTree.parse(path).getroot().iter(f"{{{NAMESPACE}}}text")]
    assert set(NORMS) <= set(names)
