"""``normalform compare`` as a whole: planned, interrupted, killed, continued, shown."""

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

from normalform.lab import comparison as engine
from normalform.lab import report
from normalform.lab.arms import Arm
from normalform.lab.data import load
from normalform.lab.environment import environment
from normalform.lab.networks import STRIDE32
from normalform.lab.plan import (
    Options,
)
from normalform.lab.records import read
from normalform.lab.train import Images, Run, train
from normalform.lab.workers import Done, train_all

SCRIPT = """
if __name__ == "__main__":  # the workers import this file too
    import signal
    import sys
    from pathlib import Path
    from normalform.lab import report
    from normalform.lab.comparison import compare
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


def ignores_interrupts(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> signal.SIGINT - 1 & 1)


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
    assert len(workers) >= 2
    assert all(ignores_interrupts(pid) for pid in workers)  # else they print tracebacks
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
    assert [row.values_per_statistic_min for row in first.rows] == [2, 32, 64, 2, 512, 32]
    assert [row.lr for row in first.rows] == [0.003125, 0.003125, 0.05, 0.05, 0.05, 0.05]
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
