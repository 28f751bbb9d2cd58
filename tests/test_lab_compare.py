"""``normalform compare`` as a whole: planned, interrupted, killed, continued, shown."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from normalform.lab import compare as engine
from normalform.lab import report
from normalform.lab.arms import FAMILIES, Arm
from normalform.lab.data import load
from normalform.lab.environment import _commit, environment
from normalform.lab.networks import NETWORKS, STRIDE32
from normalform.lab.plan import (
    DEFAULT,
    QUICK,
    Options,
    describe,
    folder_of,
    planned,
    run_id,
    settle,
)
from normalform.lab.progress import error_cell, results_table
from normalform.lab.records import RunFolder, read
from normalform.lab.train import Images, Run, train
from normalform.lab.workers import Done, train_all
from test_lab_records import row

SCRIPT = """
if __name__ == "__main__":  # the workers import this file too
    import signal
    import sys
    from pathlib import Path
    from normalform.lab import report
    from normalform.lab.compare import compare
    from normalform.lab.plan import Options

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    report.write = lambda folder: folder / "report.html"
    compare(Options(sys.argv[1], out=Path(sys.argv[2]), seeds=2, epochs=1, nbs=[32, 2],
                    norms=["none", "batch", "instance"], workers=2))
"""


@pytest.fixture
def data_file(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(104) % 3
    x = rng.standard_normal((104, 28, 28)) + y[:, None, None]
    path = tmp_path / "made.npz"
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return path


@pytest.fixture
def options(data_file, tmp_path, monkeypatch) -> Options:
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")
    return Options(
        str(data_file),
        out=tmp_path / "runs",
        seeds=1,
        epochs=1,
        nbs=[2],
        norms=["layer", "batch"],
        workers=1,
    )


@pytest.fixture
def started(data_file, tmp_path):
    """The same comparison in a process of its own, and the folder it writes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    processes = []

    def start():
        processes.append(
            subprocess.Popen(
                [sys.executable, script, data_file, tmp_path / "runs"],
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1], tmp_path / "runs" / "made"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def rows_in(folder: Path) -> list[str]:
    table = folder / "results.csv"
    return table.read_text().splitlines()[1:] if table.exists() else []


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_default_plan_has_both_networks_every_arm_and_whole_pairs():
    data = load("fashion")
    arms, runs = planned(settle(Options()), data)
    assert {arm.norm for arm in arms} == set(FAMILIES)
    ordinary = {(n.name, a.label) for n in NETWORKS for a in arms if a.sgd_batch == 32}
    special = {(n.name, a.label) for n in NETWORKS for a in arms if a.sgd_batch == 2}
    assert (len(ordinary), len(special)) == (20, 2)
    by_seed = [
        {(run.network.name, run.arm.label) for run in runs.values() if run.seed == seed}
        for seed in range(DEFAULT.seeds)
    ]
    few = DEFAULT.small_batch_seeds
    assert by_seed[:few] == [ordinary | special] * few
    assert by_seed[few:] == [ordinary] * (DEFAULT.seeds - few)
    seeds = [run.seed for run in runs.values()]
    assert seeds == sorted(seeds)
    assert DEFAULT.seeds >= 3


def test_quick_plan_has_both_networks_and_every_norm():
    arms, runs = planned(settle(Options(quick=True)), load("fashion"))
    assert {(run.network.name, run.arm.norm) for run in runs.values()} == {
        (network.name, norm) for network in NETWORKS for norm in FAMILIES
    }
    assert {arm.sgd_batch for arm in arms} == {32}


def test_options_go_further():
    settings = settle(Options(seeds=9, epochs=20, nbs=[16], norms=["switch"], lr=0.1))
    assert (settings.seeds, settings.small_batch_seeds, settings.epochs) == (9, 9, 20)
    assert (settings.nbs, settings.norms, settings.lr) == ((16,), ("switch",), 0.1)
    assert settle(Options(quick=True)) == QUICK
    assert settle(Options()) == DEFAULT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds 0: at least 1"),
        ({"epochs": -1}, "epochs -1: at least 1"),
        ({"workers": 0}, "workers 0: at least 1"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"name": "a/b"}, "'a/b' is not a folder's name"),
        ({"name": ""}, "'' is not a folder's name"),
        ({"name": ".."}, "is not a folder's name"),
        ({"norms": ["group:5"]}, "group:5 does not fit 16-32-32 channels"),
        ({"nbs": [3]}, "nbs 3"),
        ({"norms": ["bach"]}, "'bach'"),
    ],
)
def test_options_that_are_refused_write_nothing(options, changes, words):
    with pytest.raises(ValueError, match=words):
        engine.compare(replace(options, **changes))
    assert not options.out.exists()


def test_names_of_folders():
    data = load("fashion")
    assert folder_of(Options(), data) == Path("runs/fashion")
    assert folder_of(Options(quick=True), data) == Path("runs/fashion-quick")
    assert folder_of(Options(name="mine", out=Path("/x")), data) == Path("/x/mine")


def test_a_runs_name_changes_with_everything_that_decides_its_result(data_file, monkeypatch):
    data = load("digits")
    run = Run(NETWORKS[0], Arm("batch", 8), 0, 6, 0.05)
    names = {
        run_id(run, data),
        run_id(run, load(data_file)),
        run_id(replace(run, network=NETWORKS[1]), data),
        run_id(replace(run, arm=Arm("switch", 8)), data),
        run_id(replace(run, arm=Arm("batch", 2)), data),
        run_id(replace(run, arm=Arm("batch", 2, 2)), data),
        run_id(replace(run, seed=1), data),
        run_id(replace(run, epochs=7), data),
        run_id(replace(run, lr=0.1), data),
    }
    assert len({name[-8:] for name in names}) == 9
    assert run_id(run, data) == run_id(replace(run), load("digits"))
    monkeypatch.setattr("normalform.lab.plan.version", lambda package: "next")
    assert run_id(run, data) not in names


def test_killed_and_continued(started, data_file):
    """SIGKILL in the middle: no row lost or run twice, no worker left, the numbers right."""
    process, folder = started()
    wait_for(lambda: len(rows_in(folder)) >= 4)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = rows_in(folder)
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=60)
    total = len(read(folder).meta["runs"])
    assert total == 2 * 2 * 5
    assert 4 <= len(kept) < total
    details = {path.name: path.stat().st_mtime_ns for path in (folder / "details").glob("*.npz")}

    again, _ = started()
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "runs are finished; going on." in said
    lines = rows_in(folder)
    assert lines[: len(kept)] == kept
    assert len({line.split(",")[0] for line in lines}) == len(lines) == total
    now = {path.name: path.stat().st_mtime_ns for path in (folder / "details").glob("*.npz")}
    assert {name: now[name] for name in details} == details
    assert len(now) == sum(row.status == "ok" for row in read(folder).rows) == total - 2

    run = read(folder)
    images = Images(load(data_file))
    for label, seed in (("batch 2", 0), ("batch 32", 1)):
        norm, nbs = label.split()
        here = train(Run(STRIDE32, Arm(norm, int(nbs)), seed, 1, 0.05), images)
        (there,) = [
            row for row in run.rows
            if (row.network, row.arm, row.seed) == ("stride32", label, seed)
        ]  # fmt: skip
        assert (there.test_error, there.train_loss) == (here.test_error, here.train_loss)
        assert np.array_equal(run.details(there)["act_std"], here.details["act_std"])


def test_interrupted_by_the_keyboard(started):
    process, folder = started()
    wait_for(lambda: len(rows_in(folder)) >= 2)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    kept = len(rows_in(folder))
    assert process.returncode != 0
    said = " ".join(said.split())
    assert f"Interrupted: {kept} of 20 runs are finished and kept" in said
    assert "The same command continues." in said
    assert said.count("Traceback") == 1  # the command line turns this one into an exit status
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=60)


def test_continued_with_other_settings_and_then_complete(options, capsys):
    engine.compare(options)
    folder = options.out / "made"
    first = read(folder)
    assert [row.run_id for row in first.rows] == first.meta["runs"]
    assert [(row.network, row.arm) for row in first.rows] == [
        ("stride32", "batch 2, SGD batch 2"),
        ("stride8", "batch 2, SGD batch 2"),
        ("stride32", "layer"),
        ("stride32", "batch 2"),
        ("stride8", "layer"),
        ("stride8", "batch 2"),
    ]
    assert all(row.epochs == 1 and row.machine and row.torch for row in first.rows)
    capsys.readouterr()

    engine.compare(replace(options, norms=["layer"], seeds=2))
    said = capsys.readouterr().out
    assert "2 of 4 runs are finished; going on." in said
    assert "Test error in % on made.npz" in said
    second = read(folder)
    assert second.all_rows[:6] == first.all_rows
    assert [(row.arm, row.seed) for row in second.rows] == [("layer", s) for s in (0, 0, 1, 1)]
    assert second.meta["created"] == first.meta["created"]

    path = engine.compare(options)
    said = capsys.readouterr().out
    assert "All 6 runs are finished" in said
    assert path == folder / "report.html"
    assert read(folder).rows == first.rows
    assert len(read(folder).all_rows) == 8


def test_runs_of_other_sources_are_pointed_out(options, capsys, monkeypatch):
    options = replace(options, norms=["layer"])
    engine.compare(options)
    assert "other sources" not in capsys.readouterr().out
    elsewhere = environment() | {"commit": "c0ffee"}
    monkeypatch.setattr(engine, "environment", lambda: elsewhere)
    engine.compare(options)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 finished runs were made with other sources than these" in said


def test_damaged_details_are_repeated(options, capsys):
    options = replace(options, norms=["layer"])
    engine.compare(options)
    before = read(options.out / "made")
    path = options.out / "made" / "details" / f"{before.rows[0].run_id}.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    engine.compare(options)
    assert f"{before.rows[0].run_id} are damaged" in " ".join(capsys.readouterr().out.split())
    after = read(options.out / "made")
    for old, new in zip(before.rows, after.rows, strict=True):
        assert (new.test_error, new.train_loss) == (old.test_error, old.train_loss)
    assert set(after.details(after.rows[0])) == set(after.details(after.rows[1]))


def test_without_the_extra(options, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name != "rich" or None)
    with pytest.raises(ModuleNotFoundError, match=r'needs rich: pip install "normalform\[lab\]"'):
        engine.compare(options)
    assert not options.out.exists()


def test_a_worker_that_dies_is_reported_and_what_is_done_is_kept(data_file):
    runs = {str(seed): Run(STRIDE32, Arm("layer"), seed, 50, 0.05) for seed in range(2)}
    messages = train_all(runs, load(data_file), workers=1)
    next(messages)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError, match=r"a worker ended during 0 \(exit code -9"):
        list(messages)
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_is_shown(data_file):
    runs = {"bad": Run(STRIDE32, Arm("group:5"), 0, 1, 0.05)}
    with pytest.raises(RuntimeError, match=r"(?s)bad failed:\n.*16 channels do not divide"):
        list(train_all(runs, load(data_file), workers=1))
    assert not multiprocessing.active_children()


def test_workers_stop_when_nobody_listens_any_more(data_file):
    runs = {str(seed): Run(STRIDE32, Arm("layer"), seed, 2, 0.05) for seed in range(9)}
    messages = train_all(runs, load(data_file), workers=1)
    while not isinstance(next(messages), Done):
        assert len(multiprocessing.active_children()) == 1
    messages.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "not run"),
        ([row(test_error=0.25)], "25.0"),
        ([row(test_error=0.2), row(test_error=0.3)], "25.0 ± 7.1"),
        ([row(status="impossible", test_error=None)] * 2, "impossible"),
        ([row(status="diverged", test_error=0.9)] * 2, "2 of 2 diverged"),
        (
            [row(test_error=0.2), row(status="diverged", test_error=0.9)],
            "20.0 (1 of 2 diverged)",
        ),
    ],
)
def test_error_in_the_table(rows, expected):
    assert error_cell(rows) == expected


def test_table_shows_every_arm_on_both_networks(tmp_path):
    data = load("fashion")
    settings = settle(Options())
    arms, runs = planned(settings, data)
    meta = describe(settings, arms, runs, data, "fashion")
    rows = [
        row(
            name, network=run.network.name, last_map=run.network.last_map(28, 28),
            arm=run.arm.label, test_error=0.2 + 0.01 * run.seed, values_per_statistic_min=77,
        )
        for name, run in runs.items()
    ]  # fmt: skip
    for i, found in enumerate(rows):
        if (found.arm, found.network) == ("instance", "stride32"):
            rows[i] = replace(found, status="impossible", reason="one value", test_error=None)
    text = io.StringIO()
    Console(width=80, file=text).print(results_table(RunFolder(tmp_path, meta, rows)))
    lines = text.getvalue().splitlines()
    for arm in arms:
        (line,) = [line for line in lines if line.startswith(f"│ {arm.label} ")]
        seeds = DEFAULT.seeds if arm.sgd_batch == 32 else DEFAULT.small_batch_seeds
        errors = 20 + np.arange(seeds)
        cell = f"{errors.mean():.1f} ± {errors.std(ddof=1):.1f}"
        assert line.count(cell) == (1 if arm.label == "instance" else 2)
        assert line.count("impossible") == (arm.label == "instance")
        assert line.rstrip("│ ").endswith(str(seeds))
    assert any("instance, last map 1x1: impossible, one value." in line for line in lines)
    assert any("16-32-64-64-64" in line for line in lines)


def test_commit_is_of_our_sources_only(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True
        )

    assert _commit(tmp_path) == ""
    git("init")
    (tmp_path / "__init__.py").touch()
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "theirs")
    assert _commit(tmp_path) == ""  # an environment inside somebody's checkout
    git("add", "__init__.py")
    git("commit", "-m", "ours")
    commit = _commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "__init__.py").write_text("changed")
    assert _commit(tmp_path) == f"{commit}-dirty"


def test_environment_names_the_machine():
    found = environment()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["python"] == sys.version.split()[0]
    assert found["torch"] == __import__("torch").__version__
    assert found["machine"]
