"""What ``normalform bench`` makes of its rows: figures, targets, tables, pictures."""

import csv
import dataclasses
import re

import pytest

from bench_rows import US, everything, measured, norm, printed, rows
from normalform.lab.bench import models, norms, pictures, tables
from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.rows import Row, read_rows, results, to_csv
from normalform.lab.bench.targets import TARGETS, TRAINING, Target, outcomes


def test_figures_come_from_the_rows():
    [result] = measured(norm("batch"), us={"ours": 8.0, "torch": 20.0, "copy": 4.0}, floor=1.6)
    assert result.speedup() == 2.5
    assert result.copies() == 2.0
    assert result.copies("torch") == 5.0
    assert result.of_floor == pytest.approx(1.25)
    assert result.speedup("compiled") is None
    assert result.paired("compiled") is None
    [model] = measured(models.Case("style", TRAINING))
    assert model.copies() is None
    assert model.of_floor is None


def test_cases_are_told_apart():
    cases = [
        norm("batch"), norm("batch", layout="channels_last"), norm("batch", what=FORWARD),
        norm("group"), norm("batch", (2, 8, 4, 4)), models.Case("style", TRAINING),
        models.Case("style", INFERENCE),
    ]  # fmt: skip
    assert len(measured(*cases)) == len(cases)
    assert all(set(each.rows) >= {"ours", "torch"} for each in measured(*cases))


def test_rows_survive_the_table_to_the_last_bit(tmp_path):
    written = [
        *rows(norm("batch"), us={"ours": 0.1 + 0.2, "copy": 1 / 3}),
        *rows(models.Case("style", INFERENCE), p99_us=1e-300),
    ]
    path = tmp_path / "results.csv"
    path.write_text(to_csv(written), encoding="utf-8")
    assert read_rows(path) == written
    header = next(csv.reader([path.read_text().splitlines()[0]]))
    assert header == [field.name for field in dataclasses.fields(Row)]


@pytest.mark.parametrize("damage", [lambda s: s.replace("10.0", "ten"), lambda s: s[: len(s) - 40]])
def test_a_damaged_table_is_said_in_one_line(tmp_path, damage):
    path = tmp_path / "results.csv"
    path.write_text(damage(to_csv(rows(norm("batch")))))
    with pytest.raises(ValueError, match="is not ours") as raised:
        read_rows(path)
    assert "results.csv: row " in str(raised.value)
    assert "\n" not in str(raised.value)


STEPS = Target(4.0, ["instance"], [STEP], least=1e6, layouts=["channels_last"])


@pytest.mark.parametrize(
    ("torchs", "met"), [(39.9, False), (40.0, True), (41.0, True), (float("nan"), False)]
)
def test_a_target_is_met_from_its_limit_on(torchs, met):
    found = measured(
        norm("instance", layout="channels_last"), us={**US, "torch": torchs, "copy": 5.0}
    )
    [outcome] = outcomes(found, [STEPS])
    assert outcome.met == met
    assert outcome.missed == (not met)


def test_the_floor_is_a_limit_from_above():
    target = Target(1.35, ["batch"], [STEP], "floor")
    for copies, met in ((5.4, True), (5.5, False)):
        us = {"ours": copies, "torch": 9.0, "copy": 1.0}
        [outcome] = outcomes(measured(norm("batch"), us=us, floor=4.0), [target])
        assert outcome.met == met
        assert outcome.worst == pytest.approx(copies / 4)


def test_the_worst_of_the_floor_is_the_largest():
    target = Target(1.35, ["batch"], [STEP], "floor")
    near = measured(norm("batch"), us={**US, "ours": 6.0})
    far = measured(norm("batch", (32, 64, 112, 112)), us={**US, "ours": 9.0})
    [outcome] = outcomes([*near, *far], [target])
    assert outcome.worst == pytest.approx(1.8)
    assert (outcome.cases, outcome.missed) == (2, 1)


@pytest.mark.parametrize(
    "other",
    [
        norm("group", layout="channels_last"),
        norm("instance"),
        norm("instance", layout="channels_last", what=FORWARD),
        norm("instance", (8, 64, 28, 28), "channels_last"),
    ],
)
def test_a_target_speaks_about_its_own_cases_alone(other):
    [outcome] = outcomes(measured(other, us={**US, "torch": 1.0}), [STEPS])
    assert outcome.cases == 0
    assert not outcome.met
    assert outcome.worst is None


def test_one_case_that_misses_is_enough_and_the_worst_is_named():
    good = measured(norm("batch", (8, 64, 28, 28)))
    bad = measured(norm("group", (32, 512, 7, 7)), us={**US, "torch": 8.0})
    worse = measured(norm("batch", (2, 8, 4, 4), "channels_last"), us={**US, "torch": 7.0})
    [outcome] = outcomes([*good, *worse, *bad], [t for t in TARGETS if t.limit == 0.95])
    assert (outcome.cases, outcome.missed, outcome.worst) == (3, 2, 0.7)
    text = printed(tables.of_targets([outcome]))
    assert "2 of 3" in text
    assert "0.70" in text
    assert re.search(r"batch 2x8x4x4 fwd\+bwd NHWC", " ".join(text.split()))
    assert "0 of 1 measured figures are reached" in text


def test_the_whole_benchmark_measures_every_target_but_the_compiled_one():
    found = outcomes(everything())
    assert {each.target.against for each in found if not each.cases} == {"compiled"}
    speedups = [each for each in found if each.cases and each.target.against == "torch"]
    assert all(each.worst == 2.0 for each in speedups)
    assert [each.met for each in speedups] == [each.target.limit <= 2.0 for each in speedups]
    compiled = everything(us={**US, "compiled": 30.0})
    assert all(each.cases for each in outcomes(compiled))


def test_tables_fit_80_columns():
    us = {"ours": 123456.7, "torch": 1234567.8, "copy": 4321.0}
    for more in ({}, {"compiled": 234567.8}):
        found = everything(us=us | more)
        parts = [tables.of_models(found), tables.of_norms(found)]
        parts += [tables.of_targets(outcomes(found)), tables.where(found[0].ours)]
        for part in parts:
            assert "…" not in printed(part)  # columns are cut, not wrapped
            assert "…" in printed(part, 60) or part is parts[-1]


def test_tables_show_every_case():
    found = everything()
    text = printed(tables.of_norms(found))
    assert len(re.findall(r" (forward|fwd\+bwd|inference) +10\.0 +20\.0 +2\.00", text)) == len(
        [each for each in found if each.ours.kind == "norm"]
    )
    for shape in norms.IMAGES + norms.TOKENS:
        assert "x".join(map(str, shape)) in text
    text = printed(tables.of_models(found))
    assert len(re.findall(r"(training|inference) +\S+ +0\.01 +0\.02 +2\.00", text)) == 12


def test_a_result_that_differs_is_marked():
    right, wrong = rows(norm("batch")), rows(norm("instance"))
    assert not re.search(r"torch differs|differs:", printed(tables.of_norms(results(right))))
    for difference in (0.2, float("nan")):
        wrong = [
            dataclasses.replace(row, difference=difference) if row.competitor == "torch" else row
            for row in wrong
        ]
        text = printed(tables.of_norms(results([*right, *wrong])))
        assert "torch differs" in text
        assert "differs: a result is further from ours than 0.001" in text


def test_what_others_disturbed_is_marked():
    quiet, busy = measured(norm("batch"), others=0.1), measured(norm("group"), others=0.7)
    busy += measured(models.Case("style", TRAINING), others=1.2)
    text = printed(tables.of_norms([*quiet, *busy])) + printed(tables.of_models(busy))
    assert len(re.findall(r"fwd\+bwd ", text)) == 1
    assert len(re.findall(r"fwd\+bwd! ", text)) == 1
    assert "training! " in text
    text = " ".join(printed(tables.disturbed([*quiet, *busy])).split())
    assert "kept 0.7 to 1.2 cores busy during 2 of 3 cases, marked" in text
    assert "No other program was busy" in printed(tables.disturbed(quiet))


def test_what_was_measured_on_shared_cores_is_marked():
    apart, shared = measured(norm("batch"), together=1.4), measured(norm("group"), together=1.0)
    text = printed(tables.of_norms([*apart, *shared]))
    assert len(re.findall(r"fwd\+bwd ", text)) == len(re.findall(r"fwd\+bwd! ", text)) == 1
    text = " ".join(printed(tables.disturbed([*apart, *shared])).split())
    assert "Disturbed: threads shared cores during 1 of 2 cases, marked" in text
    busy = measured(norm("token", (8, 8, 64)), others=0.3, together=0.9)
    text = " ".join(printed(tables.disturbed([*apart, *shared, *busy])).split())
    assert "during 1 of 3 cases, and threads shared cores during 2 of 3 cases" in text
    assert "Disturbed" not in printed(tables.disturbed(apart))


def test_the_picture_of_the_norms_has_a_line_for_each_and_a_rule_at_one(tmp_path):
    paths = pictures.save(everything(), tmp_path)
    assert [path.name for path in paths] == ["norms.svg", "norms.png", "models.svg", "models.png"]
    svg = paths[0].read_text()
    rules = re.findall(r'<g class="mark-rule role-mark.*?</g>', svg)
    assert [rule.count("<line") for rule in rules] == [1] * 7
    assert svg.count('aria-roledescription="line mark"') == 5 * 4 + 2 * 2
    for title in ("layer, over the sample", "RMS", "Elements of the input", "PyTorch's time"):
        assert title in svg.replace("&#39;", "'")
    for path in paths[1::2]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000


def test_the_points_of_the_picture_are_the_speedups():
    cases = [norm("batch", (2, 8, 4, 4)), norm("batch", (2, 16, 14, 14))]
    found = measured(cases[0], us={**US, "torch": 5.0}) + measured(cases[1])
    values = pictures.norms(found).to_dict()["data"]["values"]
    assert [(each["elements"], each["speedup"]) for each in values] == [(256, 0.5), (6272, 2.0)]


def test_a_picture_of_disturbed_times_says_so():
    found = measured(norm("batch"), others=0.7) + measured(norm("group"), others=0.0)
    title = pictures.norms(found).to_dict()["title"]["subtitle"]
    assert title.endswith("; the machine was not ours alone during 1 of 2 cases")
    assert "alone" not in pictures.norms(found[1:]).to_dict()["title"]["subtitle"]


@pytest.mark.parametrize(("torchs", "ticks"), [(20.0, {0.5, 1, 2, 5}), (5e4, {0.1, 1, 10, 100})])
def test_a_long_scale_has_a_tick_a_decade(torchs, ticks):
    spec = pictures.norms(measured(norm("batch"), us={**US, "torch": torchs})).to_dict()
    values = spec["spec"]["layer"][1]["encoding"]["y"]["axis"]["values"]
    assert ticks <= set(values)
    assert (2 in values) == (torchs == 20.0)


def test_a_picture_of_one_case(tmp_path):
    paths = pictures.save(measured(norm("batch"), models.Case("style", TRAINING)), tmp_path)
    assert len(paths) == 4
    assert ">2.00<" in paths[2].read_text()
