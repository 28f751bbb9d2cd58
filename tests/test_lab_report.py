"""The report: says what is in the results, needs no network, and copes with what is missing."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from PIL import Image

from contrast import contrast
from normalform.lab import report
from normalform.lab.report import style, words
from normalform.lab.report.findings import load
from normalform.lab.report.questions import questions
from parsed_page import Page
from synthetic_run import ARMS, IMPOSSIBLE, details, results, write_run, wrong

NAMES = ("error", "differences", "learning", "switch", "activations")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "fashion", images=400, epochs=3)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(report.write(folder).read_text("utf-8"))


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, an arm that has not run, one that diverged, one whose details are damaged."""
    made = write_run(
        tmp_path_factory.mktemp("runs") / "partial",
        seeds=[4],
        images=300,
        epochs=3,
        skip=[("stride8", "batch 2", 4)],
        diverged=[("stride32", "batch 2", 4)],
    )
    next(made.glob("details/stride8_switch-8_*.npz")).write_bytes(b"torn")
    return made


def test_every_arm_of_both_networks_is_there(page: Page) -> None:
    labels = [a["aria-label"] for a in page.all("div") if "data-chart" in a]
    for ends in ("4x4", "1x1"):
        main = next(t for t in labels if t.startswith(f"Test error, network that ends at {ends}"))
        assert main.count("%") + main.count("cannot run") == len(ARMS)
    tables = page.text.split("All numbers")[1]
    assert tables.count(" 5 of 5 ") == 2 * len(ARMS)
    assert page.row_names[-2 * len(ARMS) :] == [*ARMS, *ARMS]


def test_both_networks_have_one_scale(page: Page) -> None:
    domains = []
    for network in ("stride8", "stride32"):
        marks = page.drawn["specs"][f"error:{network}"]["layer"]
        domains += [
            m["encoding"]["y"]["scale"]["domain"]
            for m in marks
            if "y" in m["encoding"] and "scale" in m["encoding"]["y"]
        ]
    assert len(domains) >= 8
    assert all(domain == domains[0] for domain in domains)
    errors = [dot["error"] for dot in page.drawn["data"]["dots"]]
    assert domains[0][0] < min(errors) < max(errors) < domains[0][1]


def test_impossible_arm_is_said_in_words(page: Page) -> None:
    assert "instance against batch 32: cannot run" in page.text
    assert IMPOSSIBLE in page.text
    notes = [m["note"] for m in page.drawn["data"]["means"] if "note" in m]
    assert notes == ["instance: impossible, one value a mean"]


def test_dots_are_the_results(folder: Path, page: Page) -> None:
    expected = sorted(
        (r["network"], r["arm"], round(100 * float(r["test_error"]), 4))
        for r in results(folder)
        if r["test_error"]
    )
    dots = page.drawn["data"]["dots"]
    assert sorted((d["network"], d["arm"], d["error"]) for d in dots) == expected
    assert len(expected) == 105


def test_values_behind_each_mean(page: Page) -> None:
    for ends, counts in (("4x4", "512 128 32 32"), ("1x1", "32 8 2 2")):
        network = {"4x4": "stride8", "1x1": "stride32"}[ends]
        axes = [
            mark["encoding"]["x"]["axis"]["labelExpr"]
            for mark in page.drawn["specs"][f"error:{network}"]["layer"]
            if "axis" in mark["encoding"].get("x", {})
        ]
        labels = json.loads(axes[0].split(" : ")[1].split(")[")[0])
        assert [label for label, _ in labels[:4]] == ["32", "8", "2", "SGD 2"]
        assert " ".join(values for _, values in labels[:4]) == counts
    assert "batch 8 1,568 392 128" in page.text  # NBS times 14x14, 7x7 and 4x4


def test_needs_no_network(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            target = attributes.get(name, "data:")
            assert target.startswith("data:"), f"<{tag} {name}={target[:60]}>"
    assert not any("src" in script for script in page.all("script"))
    policy = next(
        a["content"] for a in page.all("meta") if "content" in a and "src" in a["content"]
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_html_is_well_formed(folder: Path, page: Page) -> None:
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") for a in page.all("div") if "data-chart" in a)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert "A machine <with> & marks" in page.text
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_csv_comes_back(folder: Path, page: Page) -> None:
    link = next(a for a in page.all("a") if a.get("download") == "results.csv")
    raw = base64.b64decode(link["href"].removeprefix("data:text/csv;base64,"))
    assert raw == (folder / "results.csv").read_bytes()
    assert len(list(csv.DictReader(io.StringIO(raw.decode())))) == 110


def test_charts_compile_and_every_place_has_one(page: Page) -> None:
    drawn = page.drawn
    for name, spec in drawn["specs"].items():
        assert drawn["tables"][name], f"{name} has no data"
        data = {table: drawn["data"][key] for table, key in drawn["tables"][name].items()}
        compiled = vl_convert.vegalite_to_vega({**spec, "datasets": data})
        assert compiled["marks"], name
    for slot in page.slots:
        names = (
            [slot["spec"]]
            if not slot["group"]
            else [
                f"{slot['spec']}:{a['value']}"
                for a in page.all("input")
                if a.get("name") == slot["group"]
            ]
        )
        assert names
        assert all(n in drawn["specs"] for n in names)
        for n in names:
            blanks = set(re.findall(r"@(\w+)", json.dumps(drawn["specs"][n])))
            assert blanks == set(slot["values"])
    # 2 main, 2 differences, 7 + 6 norms, mean and variance twice, 3 + 5 layers
    assert len(page.slots) == 2 + 2 + 13 + 4 + 8


def test_a_norm_has_one_colour_everywhere(page: Page) -> None:
    scales = set()

    def walk(node) -> None:
        if isinstance(node, dict):
            colour = node.get("color")
            if isinstance(colour, dict) and colour.get("field") == "key":
                scales.add(json.dumps(colour["scale"], sort_keys=True))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(page.drawn["specs"])
    assert len(scales) == 1
    scale = json.loads(scales.pop())
    assert len(set(scale["range"])) == len(scale["domain"]) == 7


def test_colours_can_be_seen_on_both_grounds(folder: Path, page: Page) -> None:
    css = (folder / "report.html").read_text("utf-8")
    light, dark = re.findall(r"--paper: (#\w{6})", css)
    keys = ["batch", "sgd", "switch", "group", "layer", "instance", "none", "a", "b", "c", "d"]
    assert len(set(style.colours(keys))) == 11
    for colour in style.colours(keys):
        assert contrast(colour, dark) >= 3, colour
        assert contrast(colour, light) >= 2.2, colour  # a shape goes with each, and words
    for name in ("ink", "soft", "link", "worse", "better"):
        for ground, text in zip(
            (light, dark), re.findall(rf"--{name}: (#\w{{6}})", css), strict=True
        ):
            assert contrast(text, ground) >= 4.5, name


def test_every_answer_is_on_the_page(folder: Path, page: Page) -> None:
    answers = [c for q in questions(load(folder)) for c in q.comparisons]
    assert len(answers) == 24
    for answer in answers:
        said = words.sentence(answer).replace(" %", "\N{NO-BREAK SPACE}%")
        assert said in page.parts
        assert f": {words.verdict(answer)}" in page.text
    unseen = page.text.count("no difference seen")
    assert unseen >= 3
    assert (
        len(re.findall(r"no difference seen \(detectable: \d+\.\d points\)", page.text)) == unseen
    )


def test_summary_leads_with_the_planted_cliff(folder: Path, page: Page) -> None:
    a, b = (wrong(folder, "stride32", arm) for arm in ("batch 2", "batch 32"))
    cliff = a.mean() - b.mean()
    short = page.text.split("In short")[1].split("Test error against")[0]
    assert f"{100 * cliff:.1f} points worse at 1x1" in short
    assert "32 values where the network ends at 4x4 and 2 values where" in short


def test_what_it_does_not_show(page: Page) -> None:
    limits = page.text.split("What this does not show")[1]
    for part in (
        "NBS x height x width",
        "2,000 images to train on, 400 to test on",
        "0.05",
        "from 5 seeds",
        "23 differences",
    ):
        assert part in limits
    for fact in (
        "0123abcd",
        "2.13.0",
        "3.11.7",
        "finished 2026-11-21T20:03:00Z",
        "SGD with momentum 0.9",
        "normalform compare --seeds 5",
    ):
        assert fact in limits


def test_switch_weights_are_stacked_to_one(folder: Path, page: Page) -> None:
    records = page.drawn["data"]["weights"]
    bars: dict[tuple, float] = {}
    for r in records:
        bar = tuple(r[k] for k in ("network", "kind", "nbs", "layer", "epoch"))
        bars[bar] = bars.get(bar, 0) + r["weight"]
    assert len(bars) == 2 * 3 * (3 + 5) * 4
    assert all(total == pytest.approx(1, abs=3e-4) for total in bars.values())
    ids = [p.stem for p in folder.glob("details/stride8_switch-2_*.npz")]
    last = np.mean([details(folder, i)["mean_weights"] for i in ids], axis=0)[-1, -1]
    shown = {
        r["branch"]: r["weight"]
        for r in records
        if (r["network"], r["kind"], r["nbs"], r["layer"], r["epoch"])
        == ("stride8", "mean", "2", 3, 3)
    }
    assert [shown[b] for b in ("instance", "layer", "batch")] == pytest.approx(last, abs=1e-4)
    assert "In layer 5 of the network that ends at 1x1 the instance branch is left out" in page.text


def test_plots_lie_beside_it(folder: Path, page: Page) -> None:
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("4x4" in (t or "") for t in texts)
        assert any("1x1" in (t or "") for t in texts)
    assert len(page.all("img")) == len(NAMES)


def test_partial_run(partial: Path) -> None:
    page = Page(report.write(partial).read_text("utf-8"))
    assert "1 of 22 runs are not finished" in page.text
    assert "batch 2 against batch 32: no result yet" in page.text
    assert "One seed is too few to say anything" in page.text
    assert "One seed: the interval is about other test images" in page.text
    assert "Of the runs of batch norm at NBS 2, 1 of 1 diverged" in page.text
    assert re.search(r"stride8_switch-8_s4_0000\.npz is missing or damaged", page.text)
    assert re.search(
        r"batch 2 against batch 32: \d+\.\d points worse with this one seed", page.text
    )
    assert "not run yet" in page.text
    assert page.open == []
    curves = page.drawn["data"]["curves"]
    broken = [c for c in curves if (c["network"], c["arm"]) == ("stride32", "batch 2")]
    assert [c["test_error"] is None for c in broken if c["seed"] == 4] == [False, False, True]


def test_nothing_finished_yet(tmp_path: Path) -> None:
    every = [(n, a, 0) for n in ("stride8", "stride32") for a in ARMS]
    empty = write_run(tmp_path / "empty", seeds=[0], images=50, epochs=1, skip=every)
    page = Page(report.write(empty).read_text("utf-8"))
    assert "22 of 22 runs are not finished" in page.text
    assert page.text.count("no result yet") == 24


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_data_that_are_not_images(
    seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svgs = dict.fromkeys(NAMES, "")
    monkeypatch.setattr("normalform.lab.report.plots.save", lambda *_: svgs)
    signals = write_run(tmp_path / "signals", seeds=range(seeds), images=60, epochs=1)
    meta = json.loads((signals / "run.json").read_text("utf-8"))
    meta["data"]["shape"] = [8, 100]
    (signals / "run.json").write_text(json.dumps(meta), "utf-8")
    page = Page(report.write(signals).read_text("utf-8"))
    assert "image" not in page.text + page.scripts[0]
    assert page.text.count("of the test samples, ") > 20
    assert "only fewer samples share each mean" in page.text
    assert "statistics inside one sample." in page.text


def test_only_norms_without_batch_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "normalform.lab.report.plots.save", lambda *_: {"error": "", "learning": ""}
    )
    plain = write_run(tmp_path / "plain", arms=["layer", "none"], images=60, epochs=1)
    findings = load(plain)
    assert questions(findings) == []
    page = Page(report.write(plain).read_text("utf-8"))
    assert "What the numbers say" not in page.text
    assert page.row_names[-4:] == ["layer", "none", "layer", "none"]
