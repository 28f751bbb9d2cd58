"""The page of the experiments: says what the rule said, shows what the table holds."""

import dataclasses
import json
import re
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import altair as alt
import pytest
import vl_convert
from PIL import Image

import planted_experiments as planted
from normalform.lab.environment import environment
from normalform.lab.experiments import page as experiments_page
from normalform.lab.experiments.experiment import Verdict
from normalform.lab.experiments.plan import Options, planned
from normalform.lab.experiments.store import Finished, Writer, read
from normalform.lab.report.document import document
from normalform.lab.report.pictures import picture
from parsed_page import Page

COLOURS = {"low": "#0072B2", "high": "#D55E00"}


def drawn(results):
    """Two panels of points, coloured by arm, with its legend; one value is not a number."""
    rows = [{"arm": r["arm"], "seed": r["seed"], "error": r["error"]} for r in results.runs]
    rows.append({"arm": "low", "seed": 0, "error": float("nan")})
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    points = alt.Chart(alt.Data(values=rows)).mark_point()
    points = points.encode(x="seed:O", y="error:Q", color=alt.Color("arm:N", scale=scale))
    rule = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule().encode(y="y:Q")
    return alt.vconcat(points + rule, points)


def experiment(name, met=True, **changed):
    """An experiment whose rule finds what it is told."""
    arms = {"low": (planted.draw, {"level": 0.0}), "high": (planted.draw, {"level": 2.0})}
    made = planted.experiment(name, arms)
    numbers = (f"2.0 <points> apart, more than 1 needed: {'met' if met else 'not met'}",)
    told = {"judge": lambda results: Verdict(met, numbers), "picture": drawn}
    return dataclasses.replace(made, **{**told, **changed})


def broken(results):
    raise ValueError("no run of the arm 'high' is finished")


TABLE = planted.table(
    experiment("holds"),
    experiment("fails", met=False, claim="Low is <above> high & more (Source, 2020)."),
    experiment("partial"),
    experiment("undrawn", picture=broken),
)


def keep(folder: Path, table=None, skip=(), **options) -> Path:
    """A folder of finished runs, without those of (experiment, arm, seed) in ``skip``."""
    table = TABLE if table is None else table
    plans = planned(Options(["all"], **options), table)
    meta = {"name": folder.name, "created": "2026-11-21T20:00:00Z", "command": "normalform again"}
    where = {**environment(), "machine": "A <machine>", "date": "2026-11-21T20:03:00Z"}
    with Writer(folder, meta, {name: plan.describe() for name, plan in plans.items()}) as writer:
        for name, plan in plans.items():
            for run_id, trial in plan.trials.items():
                if (name, trial.arm, trial.seed) in skip:
                    writer.fail(name, run_id, "out of <memory>")
                    continue
                level = trial.settings["level"]
                values = {"error": level + 0.123456 * (trial.seed + 1), "kind": f"{trial.arm} one"}
                steps = {"step": [0, 1], "loss": [1.0, 0.5]}
                run = Finished(run_id, name, trial.arm, trial.seed, values, steps, 1.25, where)
                writer.add(run)
    return folder


def shown(folder: Path, table=None) -> Page:
    """The page of a folder, from a table of our own."""
    part = experiments_page.part(read(folder), table=TABLE if table is None else table)
    return Page(document("title", part.body, part.charts).decode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    skip = [("partial", "high", 2)]
    return keep(tmp_path_factory.mktemp("runs") / "experiments", skip=skip)


@pytest.fixture(scope="module")
def page(folder):
    return shown(folder)


def test_well_formed_and_without_network(folder, page):
    assert page.open == []
    assert page.outside == []
    policy = next(a["content"] for a in page.all("meta") if "src" in a.get("content", ""))
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} == set(TABLE)
    assert set(TABLE) <= set(ids)
    assert all(a.get("alt") for a in page.all("img"))
    assert "Low is <above> high & more (Source, 2020)." in page.parts
    assert "A <machine>" in page.parts
    assert any("failed: out of <memory>" in part for part in page.parts)


def test_every_number_is_that_of_the_table(page):
    rows = page.csv("runs.csv")
    assert len(rows) == 4 * 3 * 2 - 1
    every = [table for table in page.tables if table.caption == "Every run"]
    means = [table for table in page.tables if table.caption == "Means over the seeds"]
    for name, runs, over in zip(TABLE, every, means, strict=True):
        own = [row for row in rows if row["experiment"] == name]
        assert runs.rows[0] == ["arm", "seed", "error", "kind", "seconds"]
        expected = [
            [r["arm"], r["seed"], four(r["error"]), r["kind"], four(r["seconds"])] for r in own
        ]
        assert sorted(runs.rows[1:]) == sorted(expected)
        for arm, seeds, error, kind in over.rows[1:]:
            errors = [float(r["error"]) for r in own if r["arm"] == arm]
            assert (seeds, error) == (str(len(errors)), f"{fmean(errors):.4g}")
            assert kind == f"{arm} one"
    claims = page.table("Claims and verdicts")
    assert [row["runs"] for row in claims] == ["6 of 6", "6 of 6", "5 of 6", "6 of 6"]
    assert claims[0]["seconds, all runs"] == f"{sum(float(r['seconds']) for r in rows[:6]):.0f}"
    assert len(page.csv("steps.csv")) == 2 * len(rows)


def four(cell):
    """A number of the table with four digits."""
    return f"{float(cell):.4g}"


def test_words_follow_the_verdict(folder, page):
    said = {row["experiment"]: row["verdict"] for row in page.table("Claims and verdicts")}
    assert said == {"Holds": "met", "Fails": "not met", "Partial": "met so far", "Undrawn": "met"}
    assert "4 claims, each with a rule that was fixed before its first run: 2 met, 1 not met, " in (
        page.text
    )
    turned = {
        name: dataclasses.replace(one, judge=lambda results: Verdict(False, ("no: not met",)))
        for name, one in TABLE.items()
    }
    other = shown(folder, {**turned, "fails": experiment("fails", met=True)})
    said = [row["verdict"] for row in other.table("Claims and verdicts")]
    assert said == ["not met", "met", "not met so far", "not met"]
    assert "1 met, 2 not met, 1 not finished." in other.text
    for where in (page, other):
        word = "((?:not )?met(?: so far)?)"
        badges = re.findall(f"(?:Holds|Fails|Partial|Undrawn): +{word}", where.text)
        verdicts = re.findall(f"Verdict: {word}", where.text)
        rows = where.table("Claims and verdicts")
        assert badges == verdicts == [row["verdict"] for row in rows]
    assert page.text.count("2.0 <points> apart, more than 1 needed: met") >= 3


def test_what_is_not_there_is_said(page):
    assert "1 run not finished. This page is partial." in page.text
    assert "1 runs are missing in these numbers" in page.text
    assert "No figure: ValueError: no run of the arm 'high' is finished" in page.text
    assert "quick settings" not in page.text
    assert "Not tried" not in page.text


def test_only_some_and_quick(tmp_path):
    quick = shown(keep(tmp_path / "quick", {"holds": TABLE["holds"]}, quick=True))
    assert "Not tried in this folder: Fails, Partial, Undrawn." in quick.text
    assert "All of them: quick settings" in quick.text
    assert quick.table("Claims and verdicts")[0]["verdict"] == "met at quick settings"
    assert "normalform compare --experiment holds --quick" in quick.parts
    assert "Here with quick settings: seeds 1." in quick.text
    seeds = shown(keep(tmp_path / "seeds", {"holds": TABLE["holds"]}, seeds=4))
    assert "normalform compare --experiment holds --seeds 4" in seeds.parts
    assert seeds.table("Claims and verdicts")[0]["verdict"] == "met"


def test_an_experiment_that_is_not_known(tmp_path):
    unknown = shown(keep(tmp_path / "old", {"gone": experiment("gone")}))
    assert unknown.table("Claims and verdicts")[0]["verdict"] == "not met"
    assert "cannot be judged: this version knows no experiment of that name" in unknown.text
    assert len(unknown.tables) == 3


def test_a_rule_that_was_changed_is_said(folder, page):
    table = {**TABLE, "holds": experiment("holds", rule="More than 2 apart.")}
    changed = shown(folder, table)
    said = "The rule was another when these runs were planned, and was fixed anew since:"
    assert f"Rule More than 2 apart. {said} More than 1 apart." in changed.text
    assert changed.text.count("The rule was another") == 1
    assert "The rule was another" not in page.text


def test_figures(folder, page):
    assert list(page.drawn["specs"]) == [slot["spec"] for slot in page.slots]
    assert list(page.drawn["specs"]) == ["holds", "fails", "partial"]
    for name, spec in page.drawn["specs"].items():
        assert vl_convert.vegalite_to_vega(spec)["marks"], name
        colours = re.findall(r'"color": \{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}', json.dumps(spec))
        assert len(colours) == 2
        assert all('"legend": null' in colour for colour in colours)  # the buttons are the legend
    buttons = [(a["data-field"], a["data-value"]) for a in page.all("button")]
    assert buttons == 3 * [("arm", "low"), ("arm", "high")]
    assert all(a["aria-pressed"] == "true" for a in page.all("button"))
    groups = [a["data-of"] for a in page.all("div") if "data-of" in a]
    assert groups == ["holds", "fails", "partial"]
    swatches = {a["fill"] for a in page.all("path")}
    assert swatches == set(COLOURS.values())
    for name in ("holds", "fails", "partial"):
        with Image.open(folder / "plots" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
        root = ElementTree.parse(folder / "plots" / f"{name}.svg").getroot()
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"low", "high"} <= set(texts)  # the file has its legend
    assert not (folder / "plots" / "undrawn.svg").exists()


@pytest.mark.parametrize(
    "more",
    [{"legend": alt.Legend(labelExpr="datum.label + ' (dashed)'")}, {"legend": None}, "dash"],
)
def test_a_legend_that_says_more_stays(more):
    """Buttons take the place of a legend only where they say the same."""
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    rows = [{"arm": arm, "x": 1, "y": 2} for arm in COLOURS]
    chart = alt.Chart(alt.Data(values=rows)).mark_line().encode(x="x:Q", y="y:Q")
    plain = picture(chart.encode(color=alt.Color("arm:N", scale=scale)))
    assert [key.value for key in plain.keys] == list(COLOURS)
    assert plain.spec["encoding"]["color"]["legend"] is None
    if more == "dash":
        chart, more = chart.encode(strokeDash="arm:N"), {}
    kept = picture(chart.encode(color=alt.Color("arm:N", scale=scale, **more)))
    assert kept.keys == ()
    legend = kept.spec["encoding"]["color"].get("legend", "stays")
    assert (legend is None) == ("legend" in more and more["legend"] is None)


def test_the_page_is_written_beside_the_results(folder, monkeypatch):
    monkeypatch.setattr(experiments_page, "EXPERIMENTS", TABLE)
    path = experiments_page.write(folder)
    assert path == folder / "report.html"
    assert path.stat().st_size < 3_000_000
    assert "2 met, 1 not met, 1 not finished." in Page(path.read_text("utf-8")).text
    with pytest.raises(ValueError, match="is not the folder of a set of experiments"):
        experiments_page.write(folder / "plots")
