"""How experiments are run: kept, killed, continued, judged. What they find is not asked here."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

import planted_experiments as planted
from normalform.lab.experiments import EXPERIMENTS, command
from normalform.lab.experiments.experiment import Measured, Results, Trial
from normalform.lab.experiments.measure import measure
from normalform.lab.experiments.plan import Options, id_of, planned
from normalform.lab.experiments.store import TAKEN, Writer, read
from test_lab_compare import alive, children, wait_for

WHEN = ("seconds", "date")
ROOT = Path(__file__).parent
PROGRAM = """
if __name__ == "__main__":  # the workers import this file too
    import sys
    from pathlib import Path
    import planted_experiments as planted
    from normalform.lab.experiments.command import run
    from normalform.lab.experiments.plan import Options

    arms = {"quick": (planted.draw, {"level": 0.0}),
            "slow": (planted.draw, {"level": 1.0, "pause": 600.0})}
    run(Options(["all"], seeds=1, out=Path(sys.argv[1]), workers=1, report=False),
        planted.table(planted.experiment("x", arms, log=sys.argv[2])))
"""


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(command, "work_all", planted.in_this_process)


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(["all"], out=tmp_path / "runs", workers=1, report=False)


def rows(folder, name="runs.csv"):
    """A table, without what differs from one time to the next."""
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return [
            {name: cell for name, cell in row.items() if name not in WHEN}
            for row in csv.DictReader(file)
        ]


def details(folder):
    return {path.name: path.read_bytes() for path in (folder / "details").iterdir()}


def test_a_run_is_kept_to_the_last_bit_and_judged(here, options, capsys):
    table = planted.table(planted.sound(), planted.other())
    folder = command.run(options, table)
    kept = read(folder)
    assert kept.names == ["sound", "other"]
    results = kept.results("sound")
    again = measure(planted.sound().trials({"seeds": 2})[3])  # high, seed 1
    (there,) = [run for run in results.of("high") if run["seed"] == 1]
    assert there["error"] == again.values["error"]
    assert [row["loss"] for row in results.steps_of("high")[3:6]] == again.steps["loss"]
    assert set(there) == {"arm", "seed", "error", "word", "count", "nothing"}
    assert there["nothing"] != there["nothing"]
    assert len(rows(folder)) == 6 + 3
    assert len(rows(folder, "steps.csv")) == 6 * 3
    said = capsys.readouterr().out
    assert "sound: met\n  High is above low, says sound.\n  at least 2.0 apart" in said
    assert "other: met\n  High is above low, says other.\n  3 runs" in said
    assert kept.meta["experiments"]["sound"]["settings"] == {"seeds": 3}


@pytest.mark.parametrize("size", ["quick", "default", "full"])
def test_every_experiment_that_ships_can_be_planned(size):
    options = Options(["all"], **({} if size == "default" else {size: True}))
    plans = planned(options, EXPERIMENTS)
    assert list(plans) == list(EXPERIMENTS)
    for name, plan in plans.items():
        assert plan.experiment.name == name
        seeds = {trial.seed for trial in plan.trials.values()}
        assert len(seeds) == plan.settings["seeds"]
        assert json.loads(json.dumps(plan.describe()))["settings"].keys() == plan.settings.keys()


def test_what_is_below_the_rule_is_not_met(here, options, capsys):
    command.run(options, planted.table(planted.sound(high=0.9)))
    said = capsys.readouterr().out
    assert "sound: NOT MET" in said
    assert "at least 0.9 apart, more than 1 needed: not met" in said


def test_the_tables_have_the_columns_of_all(here, options):
    folder = command.run(options, planted.table(planted.sound(), planted.other()))
    header, *lines = (folder / "runs.csv").read_text().splitlines()
    columns = header.split(",")
    assert columns[:4] == ["experiment", "arm", "seed", "accuracy"]
    assert set(columns) == TAKEN | {"accuracy", "error", "word", "count", "nothing"}
    assert columns[-1] == "run"
    first = next(csv.DictReader([header, *lines]))
    assert (first["experiment"], first["accuracy"], first["error"]) == ("other", "0.75", "")
    assert len({line.split(",")[-1] for line in lines}) == 9


def test_only_what_is_missing_is_measured(here, options, tmp_path, capsys):
    log = tmp_path / "log"
    table = planted.table(planted.sound(log=str(log)), planted.other())
    few = dataclasses.replace(options, seeds=2)
    folder = command.run(dataclasses.replace(few, experiment=["sound"]), table)
    before = details(folder)
    assert len(log.read_text().splitlines()) == 4
    command.run(options, table)
    said = capsys.readouterr().out
    assert "4 of 9 runs are finished; going on." in said
    assert len(log.read_text().splitlines()) == 6
    assert details(folder).items() > before.items()
    assert len(read(folder).runs("sound")) == 6
    command.run(few, table)  # fewer seeds: those of the plan alone are judged, all are kept
    assert "All 6 runs are finished" in capsys.readouterr().out
    assert [run.seed for run in read(folder).runs("sound")] == [0, 0, 1, 1]
    assert len(rows(folder)) == 9


def test_other_experiments_join_the_folder(here, options):
    table = planted.table(planted.sound(), planted.other())
    folder = command.run(dataclasses.replace(options, experiment=["other"]), table)
    command.run(dataclasses.replace(options, experiment=["sound"]), table)
    kept = read(folder)
    assert sorted(kept.names) == ["other", "sound"]
    assert len(kept.runs("other")) == 3


@pytest.mark.parametrize(
    ("size", "name", "seeds"),
    [({"quick": True}, "experiments-quick", 1), ({}, "experiments", 3),
     ({"full": True}, "experiments-full", 5), ({"full": True, "name": "mine"}, "mine", 5),
     ({"quick": True, "seeds": 4}, "experiments-quick", 4)],
)  # fmt: skip
def test_sizes(here, options, size, name, seeds):
    folder = command.run(dataclasses.replace(options, **size), planted.table(planted.other()))
    assert folder == options.out / name
    assert len(rows(folder)) == seeds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"experiment": ["sonud"]},
            r"experiment 'sonud': unknown; there are sound, other, and all",
        ),
        ({"seeds": 0}, "seeds 0: at least 1"),
        ({"workers": 0}, "workers 0: at least 1"),
        ({"quick": True, "full": True}, "choose one"),
        ({"name": "a/b"}, "'a/b' is not a folder's name"),
    ],
)
def test_what_is_refused_writes_nothing(options, changes, words):
    table = planted.table(planted.sound(), planted.other())
    with pytest.raises(ValueError, match=words):
        command.run(dataclasses.replace(options, **changes), table)
    assert not options.out.exists()


def local(seed):
    return Measured({})


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"a": (lambda seed: Measured({}), {})}, "a cannot be sent to a worker"),
        ({"a": (local, {"set": {1, 2}})}, "a cannot be sent to a worker"),
    ],
)
def test_a_trial_that_cannot_be_kept_is_refused(options, arms, words):
    with pytest.raises(ValueError, match=words):
        command.run(options, planted.table(planted.experiment("x", arms)))
    assert not options.out.exists()


def test_a_trial_planned_twice_is_refused(options):
    twice = dataclasses.replace(
        planted.other(), trials=lambda settings: [Trial("a", 0, local, {})] * 2
    )
    with pytest.raises(ValueError, match="other: a, seed 0 is planned twice"):
        command.run(options, planted.table(twice))


@pytest.mark.parametrize(
    ("function", "words"),
    [(planted.uneven, "differ in length: step 2, loss 1"), (planted.taken, "'seconds' is a column"),
     (planted.no_number, "'error' is a NoneType, not a number")],
)  # fmt: skip
def test_what_cannot_stand_in_a_table_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        measure(Trial("a", 0, function, {}))


def test_equal_ids_are_equal_trials():
    trial = Trial("a", 0, planted.draw, {"level": 1.0})
    others = [
        ("x", dataclasses.replace(trial, arm="a?")),
        ("x", dataclasses.replace(trial, arm="a!")),
        ("x", dataclasses.replace(trial, seed=1)),
        ("x", dataclasses.replace(trial, measure=planted.fail)),
        ("x", dataclasses.replace(trial, settings={"level": 2.0})),
        ("x", dataclasses.replace(trial, settings={"level": 1.0, "pause": 0.0})),
        ("y", trial),
    ]
    ids = {id_of(name, other) for name, other in [("x", trial), *others]}
    assert len(ids) == 8
    swapped = dataclasses.replace(trial, settings={"pause": 0.0, "level": 1.0})
    assert id_of("x", swapped) == id_of(*others[5])


def test_a_rule_that_cannot_be_applied_is_not_met(here, options, capsys):
    arms = {"low": (planted.draw, {"level": 0.0})}
    command.run(options, planted.table(planted.experiment("half", arms)))
    said = " ".join(capsys.readouterr().out.split())
    assert "half: NOT MET" in said
    assert "cannot be judged: ValueError: no run of the arm 'high' is finished" in said


def test_the_results_are_asked_by_arm_and_seed():
    runs = [{"arm": arm, "seed": seed, "e": 10 * seed + (arm == "b")}
            for arm in "ab" for seed in (2, 0, 1) if (arm, seed) != ("b", 0)]  # fmt: skip
    results = Results(runs, [])
    assert [run["seed"] for run in results.of("a")] == [0, 1, 2]
    assert results.by_seed("b", "e") == {1: 11, 2: 21}
    assert results.mean("a", "e") == 10
    assert results.differences("b", "a", "e") == [1, 1]
    with pytest.raises(ValueError, match="'c' is finished"):
        results.of("c")


def test_torn_details_are_repeated_and_said(here, options, capsys):
    table = planted.table(planted.sound())
    folder = command.run(options, table)
    before = rows(folder)
    first, second, third, *_ = sorted((folder / "details").iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(third.read_bytes())
    third.write_bytes(b"[]")
    capsys.readouterr()
    command.run(options, table)
    said = capsys.readouterr().out
    assert said.count("are damaged; the run is repeated.") == 3
    assert rows(folder) == before


def test_tables_that_are_gone_are_made_from_the_details(here, options):
    table = planted.table(planted.sound())
    folder = command.run(options, table)
    before = {name: (folder / name).read_bytes() for name in ("runs.csv", "steps.csv")}
    for name in before:
        (folder / name).unlink()
    command.run(options, table)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_folder_of_somebody_else_is_left_alone(here, options):
    folder = options.out / "experiments"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": "normalform compare", "version": 1}))
    with pytest.raises(ValueError, match="is not the folder of a set of experiments"):
        command.run(options, planted.table(planted.sound()))
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_one_writer_at_a_time(tmp_path):
    with (
        Writer(tmp_path / "x", {}, {}),
        pytest.raises(ValueError, match="another set of experiments is writing"),
    ):
        Writer(tmp_path / "x", {}, {})


def test_runs_of_other_sources_are_pointed_out(here, options, capsys, monkeypatch):
    table = planted.table(planted.other())
    command.run(options, table)
    elsewhere = command.environment() | {"commit": "c0ffee"}
    monkeypatch.setattr(command, "environment", lambda: elsewhere)
    capsys.readouterr()
    command.run(options, table)
    said = " ".join(capsys.readouterr().out.split())
    assert "3 finished runs were made with other sources than these" in said


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """Sound and failing trials by one worker: what was said, the error, the folder."""
    out = tmp_path_factory.mktemp("one")
    return _with_workers(out, 1)


def _with_workers(out, workers):
    table = planted.table(planted.failing(), planted.sound())
    options = Options(["all"], seeds=1, out=out, workers=workers, report=False)
    with pytest.raises(RuntimeError, match="2 runs failed; the same command tries them again"):
        command.run(options, table)
    return out / "experiments"


def test_trials_that_fail_stop_no_other(one_worker, capsys):
    kept = read(one_worker)
    assert [run.arm for run in kept.runs("failing")] == ["low", "high"]
    assert kept.missing("failing") == 2
    assert len(kept.runs("sound")) == 2
    failed = {run_id.split("_")[1]: why for run_id, why in
              kept.meta["experiments"]["failing"]["failed"].items()}  # fmt: skip
    assert failed["raises"] == "OSError: no such file as level 7.0"
    assert "a worker ended" in failed["dies"]
    assert "exit code -9" in failed["dies"]


def test_two_workers_write_what_one_writes(one_worker, tmp_path, capsys):
    two = _with_workers(tmp_path, 2)
    for name in ("runs.csv", "steps.csv"):
        assert rows(two, name) == rows(one_worker, name)
    header = (two / "runs.csv").read_text().splitlines()[0]
    assert header == (one_worker / "runs.csv").read_text().splitlines()[0]
    said = capsys.readouterr().out
    assert "no such file as level 7.0" in said
    assert "failing: met" in " ".join(said.split())  # on the arms that did not fail
    assert "2 runs are missing in these numbers" in said


def test_a_worker_writes_what_this_process_writes(here, one_worker, options):
    folder = command.run(dataclasses.replace(options, seeds=1), planted.table(planted.sound()))
    there = [row for row in rows(one_worker) if row["experiment"] == "sound"]
    assert rows(folder) == there
    steps = [row for row in rows(one_worker, "steps.csv") if row["experiment"] == "sound"]
    assert rows(folder, "steps.csv") == steps


def _started(program, *arguments, output):
    """A process that can import what is planted."""
    return subprocess.Popen(
        [sys.executable, *map(str, (program, *arguments))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_at_any_moment_and_continued(here, options, tmp_path):
    """No finished run is lost, touched or measured again; at the end all is as if undisturbed."""
    program = _started(
        ROOT / "killed_again.py", tmp_path / "killed", tmp_path / "log", 15, output=subprocess.PIPE
    )
    said, _ = program.communicate(timeout=300)
    assert program.returncode == 0, said
    assert int(said) >= 5
    table = planted.table(planted.other(), planted.sound(log=str(tmp_path / "log")))
    undisturbed = command.run(dataclasses.replace(options, seeds=15), table)
    killed = tmp_path / "killed" / "experiments"
    for name in ("runs.csv", "steps.csv"):
        assert rows(killed, name) == rows(undisturbed, name)
    assert set(details(killed)) - set(details(undisturbed)) <= {
        f".{name}.tmp" for name in details(undisturbed)
    }
    assert len(rows(killed)) == len({row["run"] for row in rows(killed)}) == 45


def test_workers_end_with_their_parent_however_it_ends(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    log = tmp_path / "log"
    program = _started(tmp_path / "program.py", tmp_path / "out", log, output=subprocess.DEVNULL)
    workers = []
    try:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        workers += children(program.pid)
        assert workers
        program.kill()
        wait_for(lambda: not any(map(alive, workers)), seconds=20)  # in the middle of ten minutes
    finally:
        program.kill()
        program.wait()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
    assert [row["arm"] for row in rows(tmp_path / "out" / "experiments")] == ["quick"]


def test_interrupted_by_the_keyboard(options, capsys, monkeypatch):
    def interrupted(trials, begin, workers):
        yield from islice(planted.in_this_process(trials, begin, workers), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "work_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run(options, planted.table(planted.sound()))
    said = " ".join(capsys.readouterr().out.split())
    assert "Interrupted: 4 of 6 runs are finished and kept in" in said
    assert "The same command continues." in said
    assert len(rows(options.out / "experiments")) == 4
