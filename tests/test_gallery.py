"""The page of all norms: says and lights what the norms do, and needs no network."""

import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from contrast import contrast
from normalform import cli, reference
from normalform.drawing.style import DARK, LIGHT
from normalform.lab.explain import gallery, relations
from normalform.lab.explain.relations import RELATIONS, SETUP, Outcome, Relation
from normalform.recipes import NORMS, named
from parsed_page import Page
from sharing import partition

LAST = ("token", "rms")  # have the channels last
SHAPES = {name: (4, 2, 2, 6) if name in LAST else (4, 6, 2, 2) for name in NORMS}
TITLES = {"group": "group:2", "ghost": "ghost:2"}
BROWSERS = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
BROWSER = next(BROWSERS, "")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    assert cli.main(["explain", "--all", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text("utf-8"))


@pytest.fixture(scope="module")
def figures(file):
    """Elements of each branch of each norm: where, which set, which class, in order."""
    found = {}
    for norm, figure in re.findall(
        r'<figure data-norm="([^"]+)".*?>(.*?)</figure>', file.read_text("utf-8"), re.DOTALL
    ):
        found[norm] = [
            re.findall(r'<g class="([^"]+)" data-set="(\d+)" data-at="([\d,]+)">', branch)
            for branch in figure.split("data-branch")[1:]
        ]
    return found


def truth_of(name):
    """The partition of each recipe that a norm blends, from the reference."""
    recipes = [named(branch) for branch in NORMS[name].over or (TITLES.get(name, name),)]
    return [
        partition(lambda x, r=r: reference.norm(x, r, center=r.center).xhat, SHAPES[name])
        for r in recipes
    ]


@pytest.mark.parametrize("name", NORMS)
def test_the_sets_of_every_figure(name, figures):
    branches, truth = figures[TITLES.get(name, name)], truth_of(name)
    assert len(branches) == len(truth)
    example = (0, 0, 0, 1) if name in LAST else (0, 1, 0, 0)
    for elements, found in zip(branches, truth, strict=True):
        groups = {}
        for kind, number, at in elements:
            index = tuple(map(int, at.split(",")))
            groups.setdefault(number, set()).add(index)
            assert ("lit" in kind.split()) == (index in found[example])
        assert {frozenset(group) for group in groups.values()} == set(found.values())
        assert len(elements) == 96 + 6 * 4 + 4 * 6 + 4 * 4  # flat, and three sides of the block


@pytest.mark.parametrize("name", NORMS)
def test_what_is_said_of_every_element(name, page):
    said = json.loads(page.scripts[0])[TITLES.get(name, name)]
    x = np.random.default_rng(0).integers(1, 10, SHAPES["batch"]).astype(float)
    x = np.moveaxis(x, 1, -1) if name in LAST else x
    truth, center = truth_of(name), NORMS[name].center
    assert len(said) == 96
    for at, sentence in said.items():
        index = tuple(map(int, at.split(",")))
        shared = [np.array([x[other] for other in found[index]]) for found in truth]
        middles = [values.mean() if center else 0.0 for values in shared]
        mean = np.mean(middles)
        var = np.mean([((v - m) ** 2).mean() for v, m in zip(shared, middles, strict=True)])
        n, c, h, w = (index[axis] for axis in ((0, 3, 1, 2) if name in LAST else range(4)))
        where = f"Sample {n + 1}, channel {c + 1}, row {h + 1}, column {w + 1}"
        assert sentence.startswith(f"{where}: x[{', '.join(map(str, index))}] = {x[index]:g}. Set")
        assert re.findall(r"\((\d+) elements\)", sentence) == [str(len(v)) for v in shared]
        assert number(r"(?:variance|mean square) ([\d.]+)\. ", sentence) == near(var)
        if center:
            assert number(r"mean ([\d.]+), ", sentence) == near(mean)
        xhat = (x[index] - mean) / np.sqrt(var + 1e-5)
        assert number(r"\) = (-?[\d.]+); ", sentence) == near(xhat)
        assert number(r"= (-?[\d.]+)\.$", sentence) == near((1 + c % 2) * xhat + 10 * c * center)


def number(pattern, sentence):
    return float(re.search(pattern, sentence)[1])


def near(value):
    """As far as four decimals say it, of numbers that were rounded once or twice."""
    return pytest.approx(value, abs=2e-4)


def test_needs_no_network(file, page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"
    assert not any("src" in script for script in page.all("script"))
    policy = next(a["content"] for a in page.all("meta") if "src" in a.get("content", ""))
    assert policy.startswith("default-src 'none'")
    text = file.read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)
    assert file.stat().st_size < 1_500_000


def test_html_is_well_formed_and_accessible(page):
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a")}
    assert targets == {*NORMS, "equal"}
    assert targets <= set(ids)
    pictures = page.all("svg")
    assert all(a.get("aria-label") and a.get("role") in ("img", "application") for a in pictures)
    walked = [a for a in pictures if a["role"] == "application"]
    assert len(walked) == len(NORMS)
    assert all(a["tabindex"] == "0" and "Arrow keys" in a["aria-label"] for a in walked)
    live = [a for a in page.all("p") if a.get("role") == "status"]
    assert len(live) == len(NORMS)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_norm_is_said(page):
    for row in NORMS.values():
        assert row.summary[1:] in page.text
        assert row.paper in page.text
        assert row.torch is None or f"torch.nn.{row.torch}" in page.text
    assert page.text.count("As books.") == len(NORMS)
    assert page.text.count("cpu (") >= 7
    assert "C x H x W = 6 x 2 x 2 = 24: the average character of each of the 4 books" in page.text
    assert "Cut each book into 2 booklets of 3 pages." in page.text


def test_contrast_on_the_page(file):
    css = re.findall(r"--(\w+): (#\w{6})", file.read_text("utf-8"))
    themes = dict(css[: len(css) // 2]), dict(css[len(css) // 2 :])
    for theme, drawn in zip(themes, (LIGHT, DARK), strict=True):
        for ground in ("paper", "card"):
            for words in ("ink", "soft", "link", "worse"):
                assert contrast(theme[words], theme[ground]) >= 4.5, (words, ground)
            assert contrast(drawn["quiet"], theme[ground]) >= 4.5
            assert contrast(drawn["lit"], theme[ground]) >= 3


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.claim)
def test_relations_hold(relation, page):
    outcome = relations.run(relation)
    assert outcome.holds
    assert relation.claim in page.text
    assert re.sub(r"\s+", " ", gallery.verdict(outcome)) in page.text
    for code in (relation.left, relation.right):
        assert any(code in html.unescape(part) for part in page.parts)
    assert SETUP in page.parts


def test_drawn_sides_of_an_equality_have_the_same_sets():
    for relation in RELATIONS:
        if len(relation.norms) == 2:
            left, right = (canonical(name, shape) for name, shape in relation.norms)
            alike = left == right or "channels of all" in relation.claim
            assert alike == relation.same, relation.claim


def canonical(name, shape):
    """The partition of (n, c, *s), whatever the order of the tensor's axes."""
    norm = named(name)
    order = norm.cells(shape).order
    found = partition(lambda x: reference.norm(x, norm, center=norm.center).xhat, shape)
    return {frozenset(tuple(at[d] for d in order) for at in group) for group in found.values()}


WRONG = [
    Relation("as the article has it", "nf.GroupNorm(6, 6)(x)", "nf.GroupNorm(1, 6)(x)", ""),
    Relation("n - 1", "(x - x.mean((2, 3), True)) / x.std((2, 3), keepdim=True)",
             "nf.InstanceNorm2d(6)(x)", ""),
    Relation("y alone", "nf.GroupNorm(1, 6)(x.detach()) + 0 * x", "nf.GroupNorm(1, 6)(x)", ""),
    Relation("nan", "x * float('nan')", "x", ""),
    Relation("said to differ", "nf.GroupNorm(1, 6)(x)", "nf.norm(x, 'layer')", "", same=False),
]  # fmt: skip


@pytest.mark.parametrize("relation", WRONG, ids=lambda r: r.claim)
def test_a_wrong_relation_is_caught(relation, tmp_path, capsys, monkeypatch):
    assert not relations.run(relation).holds
    assert relations.run(replace(relation, same=not relation.same)).holds == (
        relation.claim in ("as the article has it", "n - 1", "said to differ")
    )
    monkeypatch.setattr(gallery, "RELATIONS", [relation])
    path = tmp_path / "page.html"
    assert cli.main(["explain", "--all", "--out", str(path)]) == 1
    assert "1 of 1 do not hold" in capsys.readouterr().out
    assert "This does not hold" in Page(path.read_text("utf-8")).text


def test_outcomes_in_words():
    same, other = RELATIONS[0], replace(RELATIONS[0], same=False)
    assert gallery.verdict(Outcome(same, 0.0, 0.0)).startswith("The same bits")
    assert "the rounding of float32" in gallery.verdict(Outcome(same, 5e-7, 0.0))
    wrong = gallery.verdict(Outcome(same, 0.1, 0.0))
    assert wrong == "This does not hold: the largest difference is 0.1 in y and 0 in dx."
    assert gallery.verdict(Outcome(other, 0.5, 1)) == "They differ by up to 0.5 in y and 1 in dx."
    assert "does not hold" in gallery.verdict(Outcome(other, 0.0, 0.0))


def test_running_a_relation_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    relations.run(RELATIONS[0])
    assert torch.equal(torch.rand(3), expected)


def test_the_usual_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["explain", "--all"]) == 0
    assert "The page is runs/gallery.html." in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["gallery.html"]
    (tmp_path / "runs" / "gallery.html").write_text("<!DOCTYPE html> my gallery")
    assert cli.main(["explain", "--all"]) == 2
    assert "another file stands there" in capsys.readouterr().err


ACT = """
const seen = {};
for (const figure of document.querySelectorAll("[data-norm]")) {
  const lit = () => [...figure.querySelectorAll("[data-branch]")].map((b) =>
    [...new Set([...b.querySelectorAll(".lit")].map((e) => e.dataset.at))].sort().join(" "));
  const status = () => figure.querySelector("[role=status]").textContent;
  const last = [...figure.querySelectorAll("[data-at]")].at(-1);
  last.querySelector("path").dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  const hover = { at: last.dataset.at, lit: lit(), said: status() };
  const picture = figure.querySelector("[tabindex]");
  picture.focus();
  const at = [];
  for (const key of ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown", "Home"]) {
    picture.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    at.push(figure.querySelector(".here").dataset.at);
  }
  seen[figure.dataset.norm] = { hover, at, lit: lit(), said: status() };
}
const wide = document.documentElement.scrollWidth - window.innerWidth;
document.body.textContent = JSON.stringify({ seen, wide });
"""


def acted(file, tmp_path, width):
    """What the page does in a browser when somebody points and presses keys; "" without one."""
    if not BROWSER:
        return ""
    text = file.read_text("utf-8")
    acting = text.replace("</body>", f"<script>{ACT}</script></body>")
    (tmp_path / "acting.html").write_text(acting)
    frame = f'<iframe id="f" src="acting.html" style="width:{width}px;height:800px"></iframe>'
    done = "document.body.dataset.seen = f.contentDocument.body.textContent"
    frame += f"<script>f.onload = () => {{ {done}; }}</script>"
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><body>{frame}</body>")
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files "
        "--virtual-time-budget=5000 --dump-dom"
    )
    profile, start = f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/frame.html"
    command = [BROWSER, *options.split(), profile, start]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return html.unescape(re.search(r'data-seen="([^"]*)"', shown.stdout)[1])


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width, file, page, tmp_path):
    """The script itself where there is a browser; what it reads is tested above without one."""
    script = page.scripts[1]
    assert all(part in script for part in ("pointerover", "focusin", "keydown", "data-at"))
    answer = acted(file, tmp_path, width)
    if not answer:
        return
    said = json.loads(page.scripts[0])
    answer = json.loads(answer)
    assert answer["wide"] <= 0
    for name in NORMS:
        seen, truth = answer["seen"][TITLES.get(name, name)], truth_of(name)
        at = seen["at"]
        walk = ["3,5,1,0", "3,5,0,0", "3,5,0,1", "3,5,0,1", "3,5,1,1", "3,5,1,1"]
        if name in LAST:
            walk = [",".join((a[0], *a[2:], a[1])) for a in (b.split(",") for b in walk)]
        assert at == walk
        for one in (seen["hover"], {**seen, "at": at[-1]}):
            index = tuple(map(int, one["at"].split(",")))
            assert one["said"] == said[TITLES.get(name, name)][one["at"]]
            lit = [{tuple(map(int, a.split(","))) for a in branch.split()} for branch in one["lit"]]
            assert lit == [set(found[index]) for found in truth]
