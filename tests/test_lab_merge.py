"""``normalform report``: several folders on one page, and what may be compared between them."""

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import vl_convert

from normalform import cli
from normalform.lab import report
from normalform.lab.report import merging
from normalform.lab.report.findings import compare, load
from normalform.lab.report.joined import Named, elsewhere, join, strangers
from normalform.lab.report.questions import questions
from parsed_page import Page
from synthetic_run import ARMS, results, take_part, write_run
from test_experiments_page import keep

BATCH = [arm for arm in ARMS if arm.startswith("batch")]
OTHERS = ["none", "layer", "instance", "group:4", "switch 32", "switch 2", "batch 32"]
CAPTION = "Fashion-MNIST cut, 2,000 + 2,000, network that ends at {} ({})"
ENDS = {
    "stride8": CAPTION.format("4x4", "16-32-32, stride 8, last map 4x4"),
    "stride32": CAPTION.format("1x1", "16-32-64-64-64, stride 32, last map 1x1"),
}


def change(folder: Path, **changed) -> Path:
    """Change entries of run.json, one level deep."""
    path = folder / "run.json"
    meta = json.loads(path.read_text("utf-8"))
    for name, value in changed.items():
        meta[name] = meta[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole") / "all", seeds=range(4), images=300, epochs=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, whole):
    """Two parts of one comparison, one that trained longer, experiments, and what is neither."""
    runs = tmp_path_factory.mktemp("runs")
    take_part(whole, runs / "batch", arms=BATCH)
    take_part(whole, runs / "others", arms=OTHERS, machine="Another", torch="2.14.0")
    longer = take_part(whole, runs / "longer", arms=["batch 32", "batch 2"], seeds=[0, 1])
    change(longer, config={"epochs": 9})
    keep(runs / "experiments")
    (runs / "bench").mkdir()
    return runs


@pytest.fixture(scope="module")
def page(runs):
    folders = [runs / name for name in ("batch", "others", "longer", "experiments", "bench")]
    return Page(report.merge(folders).read_text("utf-8"))


def named(*folders: Path) -> list[Named]:
    return [Named(folder.name, load(folder)) for folder in folders]


def same_estimates(joined, expected) -> int:
    """How many paired differences are the same in both, to the last bit."""
    found = {
        (c.network.name, c.a.label, c.b.label): c.estimate
        for q in questions(joined)
        for c in q.comparisons
    }
    wanted = [c for q in questions(expected) for c in q.comparisons]
    assert len(found) == len(wanted)
    for c in wanted:
        assert found[c.network.name, c.a.label, c.b.label] == c.estimate
    return len(wanted)


@pytest.mark.parametrize("by", ["arms", "seeds"])
def test_two_halves_are_the_whole(by, whole, tmp_path):
    halves = {
        "arms": ({"arms": list(ARMS)[:5]}, {"arms": list(ARMS)[5:]}),
        "seeds": ({"seeds": [0, 1]}, {"seeds": [2, 3]}),
    }[by]
    parts = [take_part(whole, tmp_path / f"{i}", **half) for i, half in enumerate(halves)]
    (joined,) = join(named(*parts))
    expected = load(whole)
    for network, wanted in zip(joined.findings.networks, expected.networks, strict=True):
        assert [arm.label for arm in network.arms] == [arm.label for arm in wanted.arms]
        for arm, other in zip(network.arms, wanted.arms, strict=True):
            assert arm.rows == other.rows
            assert arm.planned == other.planned == 4
            assert arm.estimate == other.estimate
    assert same_estimates(joined.findings, expected) == 24
    assert joined.repeated == ()


def test_runs_in_both_folders_count_once(whole, tmp_path):
    one = take_part(whole, tmp_path / "one", seeds=[0, 1, 2])
    other = take_part(whole, tmp_path / "other", seeds=[1, 2, 3], machine="Another")
    (joined,) = join(named(one, other))
    assert same_estimates(joined.findings, load(whole)) == 24
    said = "Runs that lie in more than one of these folders and count once: 44."
    assert joined.repeated == (said,)
    assert {arm.planned for network in joined.findings.networks for arm in network.arms} == {4}
    machines = {row.seed: row.machine for row in joined.findings.rows}
    assert machines[1] != "Another" == machines[3]


def test_runs_that_do_not_agree_are_said(whole, tmp_path):
    one = take_part(whole, tmp_path / "one", seeds=[0])
    other = take_part(whole, tmp_path / "other", seeds=[0], test_error="0.5")
    (joined,) = join(named(one, other))
    assert joined.repeated[0].endswith("and count once: 22.")
    assert joined.repeated[1:] == ("With another result in each folder: 22 of these.",)
    assert same_estimates(joined.findings, load(one)) == 24
    for name in ("run.json", "results.csv"):
        path = one / name
        path.write_text(path.read_text("utf-8").replace("stride8_layer_s0", "new"), "utf-8")
    (joined,) = join(named(other, one))
    said = "other versions in each folder: 1 of these; the first that lies in other, one counts."
    assert said in joined.repeated[1]


def test_damaged_details_are_taken_from_the_other_folder(whole, tmp_path):
    one, other = (take_part(whole, tmp_path / name) for name in ("one", "other"))
    for path in one.glob("details/stride8_batch-2_*"):
        path.write_bytes(b"torn")
    (joined,) = join(named(one, other))
    assert same_estimates(joined.findings, load(whole)) == 24


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {"sha256": "1" * 64}},
        {"config": {"epochs": 9}},
        {"config": {"lr": 0.1}},
        {"config": {"choices": [0.1, 0.2]}},
        {"metric": "mse"},
    ],
    ids=str,
)
def test_what_differs_is_not_compared(changed, whole, tmp_path):
    one = take_part(whole, tmp_path / "one", arms=["batch 2"])
    other = change(take_part(whole, tmp_path / "other", arms=["batch 32"]), metric="error")
    assert len(join(named(one, other))) == 1
    groups = join(named(one, change(other, **changed)))
    assert [group.name for group in groups] == ["one", "other"]
    assert all(not questions(group.findings) for group in groups)


def test_the_same_arm_elsewhere(whole, tmp_path):
    one = take_part(whole, tmp_path / "one", arms=["batch 2", "layer"])
    other = take_part(whole, tmp_path / "other", arms=["batch 32", "batch 2"], seeds=[0, 1])
    ((later, first, found),) = elsewhere(join(named(one, change(other, config={"epochs": 9}))))
    assert (later.name, first.name) == ("other", "one")
    assert [(c.network.name, c.a.label) for c in found] == [
        ("stride8", "batch 2"),
        ("stride32", "batch 2"),
    ]
    assert all(c.estimate.seeds == 2 and c.estimate.identical for c in found)


def test_networks_of_one_name_are_told_apart(whole, tmp_path):
    entry = {"name": "net:build", "title": "net:build", "widths": [8], "last_map": "4x4"}
    folders = []
    for name in ("one", "other"):
        folder = take_part(whole, tmp_path / name, arms=["batch 2"])
        change(folder, networks=[{**entry, "own": True}])
        rows = [{**r, "network": "net:build"} for r in results(folder) if r["network"] == "stride8"]
        with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        folders.append(folder)
    assert len(join(named(*folders))) == 1
    assert list(strangers(named(*folders))) == []
    for path in folders[1].glob("details/stride8*"):
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, "conv_std": 1.01 * arrays["conv_std"]})
    assert len(join(named(*folders))) == 2
    (said,) = strangers(named(*folders))
    assert said.startswith("net:build: in one and other the first norm was given other values")


def test_every_number_is_that_of_the_table(runs, page):
    rows = page.csv("results.csv")
    assert len(rows) == sum(len(results(runs / name)) for name in ("batch", "others", "longer"))
    for network, caption in ENDS.items():
        table = page.table(caption)
        assert len(table) == len(BATCH) + len(OTHERS) + 2
        for line in table:
            same = [
                r
                for r in rows
                if (r["network"], r["arm"], r["folder"]) == (network, line["arm"], line["folder"])
            ]
            errors = [100 * float(r["test_error"]) for r in same if r["test_error"]]
            assert line["seeds"].split(" of ")[0] == str(len(same))
            assert line["test error, %"] == (f"{np.mean(errors):.1f}" if errors else "")
            if errors:
                assert line["seeds from, to"] == f"{min(errors):.1f} to {max(errors):.1f}"
                low, high = map(float, line["95 % interval"].split(" to "))
                assert low <= float(line["test error, %"]) <= high


def test_equal_arms_stand_together(page):
    arms = [row["arm"] for row in page.table(ENDS["stride8"])]
    assert arms[:3] == ["batch 32", "batch 32", "batch 32"]
    assert [a for i, a in enumerate(arms) if a not in arms[:i]] == list(dict.fromkeys(arms))
    assert all(arms[i] == arms[i - 1] for i, a in enumerate(arms) if a in arms[:i])


def test_what_differs_is_said(page):
    table = {row[""]: row for row in page.table("Only what is not the same in all")}
    assert table["machine"]["others"] == "Another"
    assert table["machine"]["batch"] == "A machine <with> & marks"
    assert table["torch"] == {
        "": "torch",
        "batch": "2.13.0",
        "others": "2.14.0",
        "longer": "2.13.0",
    }
    assert "9 epochs" in table["training"]["longer"]
    assert set(table) == {"training", "seeds", "machine", "torch"}
    assert "The same in all: data, networks, cores, system, normalform, numpy" in page.text
    assert "Runs that lie in more than one of these folders and count once: 8." in page.text


def test_differences_are_those_of_the_whole(whole, page):
    """Batch norm lies in one folder, what it is compared with in the other."""
    networks = load(whole).networks
    for network in networks:
        arms = {arm.label: arm for arm in network.arms}
        found = compare(arms["batch 2"], arms["group:4"])
        assert found is not None
        said = f"Difference {100 * found.mean:+.1f} points, 95 % interval "
        assert said.replace("-", "\N{MINUS SIGN}") in page.text.replace("\N{NO-BREAK SPACE}", " ")
    table = page.table("longer against batch + others, network that ends at 4x4")
    assert [row["arm"] for row in table] == ["batch 32", "batch 2"]
    assert all(row["in words"] == "the same mistakes" for row in table)
    every = page.csv("results.csv")
    for row in table:  # the numbers are of the two seeds that both have
        own = ("longer", "stride8", row["arm"])
        rows = [r for r in every if (r["folder"], r["network"], r["arm"]) == own]
        errors = [100 * float(r["test_error"]) for r in rows]
        assert row["seeds"] == "2" == str(len(errors))
        shown = f"{np.mean(errors):.1f}\N{NO-BREAK SPACE}%"
        assert row["longer"] == row["batch + others"] == shown


def test_the_page_is_whole(page):
    assert page.open == []
    assert page.outside == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert targets == {f"experiments/{name}" for name in ("holds", "fails", "partial", "undrawn")}
    drawn = page.drawn
    slots = [slot["spec"] for slot in page.slots]
    assert sorted(slots) == sorted(drawn["specs"])
    comparisons = [name for name in slots if ":" in name]
    assert len(comparisons) == 2 * (3 + 2)
    for name in comparisons:
        data = {table: drawn["data"][key] for table, key in drawn["tables"][name].items()}
        assert vl_convert.vegalite_to_vega({**drawn["specs"][name], "datasets": data})["marks"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_one_norm_has_one_colour_and_one_group_one_scale(page):
    colours, scales = set(), {}
    for name, spec in page.drawn["specs"].items():
        if ":" not in name:
            continue
        for mark in spec["layer"]:
            encoding = mark["encoding"]
            if encoding.get("color", {}).get("field") == "key":
                colours.add(json.dumps(encoding["color"]["scale"]))
            if "error:" in name and "scale" in encoding.get("y", {}):
                scales.setdefault(name[:2], set()).add(json.dumps(encoding["y"]["scale"]))
    assert len(colours) == 1
    assert {name: len(found) for name, found in scales.items()} == {"0/": 1, "1/": 1}


def test_command(runs, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(merging, "_compared", lambda *_: ("", merging.Charts()))
    found = [str(path) for path in sorted(runs.iterdir())]
    assert cli.main(["report", *found]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"Report: {runs / 'report.html'}\n"
    assert printed.err.splitlines() == [
        f"Left out: {runs / 'bench'} is not the folder of a comparison: no run.json of ours in it"
    ]
    assert cli.main(["report", found[-1], str(runs / "batch"), str(whole)]) == 0
    assert capsys.readouterr().out == "Report: report.html\n"
    assert (tmp_path / "report.html").exists()
    assert cli.main(["report", str(runs / "bench"), str(runs / "report.html")]) == 2
    assert "none of these is a folder of a comparison" in capsys.readouterr().err
    (tmp_path / "mine.html").write_text("<!DOCTYPE html> my page")
    assert cli.main(["report", *found, "--out", "mine.html"]) == 2
    assert "another file stands there" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<!DOCTYPE html> my page"
    assert cli.main(["report", *found, "--out", "nowhere/page.html"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_one_folder_gets_its_own_report_anew(runs, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(merging.page, "write", lambda *given: written.append(given) or given[0])
    batch, out = runs / "batch", tmp_path / "page.html"
    report.merge([batch, batch, runs / "bench"])
    report.merge([batch], out)
    assert written == [(batch, None), (batch, out)]
    assert report.merge([runs / "experiments"]) == runs / "experiments" / "report.html"


def test_folders_of_one_name(whole, tmp_path):
    folders = [tmp_path / "a" / "fashion", tmp_path / "b" / "fashion", tmp_path / "b" / "other"]
    names = merging._names(folders)
    assert list(names.values()) == [str(folders[0]), str(folders[1]), "other"]
