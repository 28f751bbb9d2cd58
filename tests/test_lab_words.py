"""What a comparison says: the paired differences behind the words, and the words."""

import json
from pathlib import Path

import pytest

from normalform.lab.report import words
from normalform.lab.report.findings import load
from normalform.lab.report.questions import questions
from synthetic_run import write_run, wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "fashion", images=400, epochs=1)


def comparison(folder: Path, network: str, a: str, b: str):
    asked = questions(load(folder))
    found = [c for q in asked for c in q.comparisons if (c.a.label, c.b.label) == (a, b)]
    return next(c for c in found if c.network.name == network)


def test_pairs_only_seeds_that_both_have(tmp_path: Path) -> None:
    gaps = [("stride8", "batch 2", 0), ("stride8", "batch 32", 2)]
    made = write_run(tmp_path / "gaps", seeds=range(4), images=200, epochs=1, skip=gaps)
    found = comparison(made, "stride8", "batch 2", "batch 32")
    assert found.estimate.seeds == 2
    a, b = wrong(made, "stride8", "batch 2", 200), wrong(made, "stride8", "batch 32", 200)
    # seeds 1, 2, 3 of the one and 0, 1, 3 of the other
    expected = a[[0, 2]].mean() - b[[1, 2]].mean()
    assert found.estimate.mean == pytest.approx(expected, abs=1e-12)
    assert "Only 2 of 4 seeds are finished for both." in words.sentence(found)


def test_two_networks_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    made = write_run(tmp_path / "digits", seeds=[0], images=20, epochs=1)
    meta = json.loads((made / "run.json").read_text())
    for network in meta["networks"]:
        network["last_map"] = "1x1"
    (made / "run.json").write_text(json.dumps(meta))
    ends = [network.ends for network in load(made).networks]
    assert ends == ["1x1 (16-32-32)", "1x1 (16-32-64-64-64)"]


def test_numbers_in_words() -> None:
    assert words.points(0.0004) == "0.0"
    assert words.points(-0.0004, sign=True) == "0.0"
    assert words.points(-0.0461, sign=True) == "\N{MINUS SIGN}4.6"
    assert words.percent(0.245) == "24.5 %"
    assert words.points(0.318) == "31.8"


def test_planted_effects_are_reported(folder: Path) -> None:
    for network, a, b, word in (
        ("stride32", "batch 2", "batch 32", "worse"),
        ("stride32", "switch 2", "batch 2", "better"),
        ("stride8", "none", "batch 32", "worse"),
        ("stride8", "batch 32", "layer", "better"),
    ):
        found = comparison(folder, network, a, b)
        difference = wrong(folder, network, a).mean() - wrong(folder, network, b).mean()
        assert found.estimate.mean == pytest.approx(difference, abs=1e-12)
        assert found.estimate.low * found.estimate.high > 0
        size = f"{abs(100 * found.estimate.mean):.1f} points"
        assert words.verdict(found) == f"{size} {word}"
        sign = "+" if word == "worse" else "\N{MINUS SIGN}"
        said = words.sentence(found)
        assert f"Difference {sign}{size}, 95 % interval {sign}" in said
        assert f"this run could have detected {100 * found.estimate.detectable:.1f}." in said


def test_planted_null_says_what_could_be_seen(folder: Path) -> None:
    found = comparison(folder, "stride8", "batch 8", "batch 32")
    assert found.estimate.low < 0 < found.estimate.high
    seen = f"{100 * found.estimate.detectable:.1f}"
    assert words.verdict(found) == f"no difference seen (detectable: {seen} points)"


def test_how_many_seeds_decides_what_may_be_said(tmp_path: Path) -> None:
    for seeds, plain, doubt in (
        (1, "no difference seen with this one seed", "not about other seeds"),
        (2, "two seeds cannot tell", "Two seeds say little"),
        (3, "no difference seen", ""),
    ):
        made = write_run(tmp_path / str(seeds), seeds=range(seeds), images=80, epochs=1)
        found = comparison(made, "stride8", "switch 32", "batch 32")
        seen = f"{100 * found.estimate.detectable:.1f}"
        assert words.verdict(found) == f"{plain} (detectable: {seen} points)"
        assert doubt in words.sentence(found)
        assert ("seed" in words.sentence(found)) == (seeds < 3)


def test_refuses_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not the folder of a comparison"):
        load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
