"""One arm over two processes: what must equal a single process with blocks of the same size."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normalform import cli
from normalform.lab import distributed
from normalform.lab.arms import Arm
from normalform.lab.data import load
from normalform.lab.networks import STRIDE8
from normalform.lab.plan import Options, planned, settle
from normalform.lab.records import read
from normalform.lab.train import Images, Run, build, epochs, train

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import distributed as dist
from normalform import cli
from normalform.lab import distributed, report
from normalform.lab.arms import Arm
from normalform.lab.data import load
from normalform.lab.networks import STRIDE8
from normalform.lab.train import Images, Run, build

report.write = lambda folder: folder / "report.html"
data, out = sys.argv[1:]
command = ["compare", "--data", data, "--norms", "batch", "--seeds", "1", "--epochs", "2"]
with distributed.group():  # one for all: a second one may meet what the first has left
    assert cli.main([*command, "--out", out]) == 0
    images = Images(load(data))
    for nbs in (16, 4):
        run = Run(STRIDE8, Arm("switch", nbs), 1, 2, 0.05)
        network = build(run, images)
        curve = list(distributed.epochs_together(run, network, images))
        if dist.get_rank() == 0:
            torch.save((curve, network.state_dict()), Path(out) / f"{nbs}.pt")
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], "they abort when Python ends"
"""


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(104) % 3
    x = rng.standard_normal((104, 28, 28)) + y[:, None, None]
    path = tmp_path_factory.mktemp("data") / "made.npz"
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return path


@pytest.fixture(scope="module")
def by_two(data_file, tmp_path_factory) -> Path:
    """The folder that two processes wrote into."""
    out = tmp_path_factory.mktemp("two")
    program = out / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    started = subprocess.Popen(
        [*torchrun, "--nproc-per-node", "2", program, data_file, out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = started.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, said
    assert said.count("Test error in % on made.npz") == 1
    return out


def test_two_processes_record_what_one_with_blocks_records(by_two, data_file):
    kept = read(by_two / "made-2-processes")
    assert kept.meta["config"]["processes"] == 2
    assert [(row.arm, row.nbs, row.sgd_batch) for row in kept.rows] == [("batch 16", 16, 32)] * 2
    (row,) = [row for row in kept.rows if row.network == "stride8"]
    data = load(data_file)
    runs = planned(settle(Options(nbs=[16], norms=["batch"], seeds=1, epochs=2)), data)[1]
    (run,) = [run for run in runs.values() if (run.network, run.arm.nbs) == (STRIDE8, 16)]
    alone = train(run, Images(data))
    assert alone.train_loss is not None
    assert row.train_loss == pytest.approx(alone.train_loss, rel=1e-5)
    assert row.train_error == alone.train_error
    assert row.test_error_recalibrated == alone.test_error_recalibrated
    for name in ("train_loss", "act_std"):
        np.testing.assert_allclose(kept.details(row)[name], alone.details[name], rtol=1e-4)


@pytest.mark.parametrize("nbs", [16, 4])
def test_weights_are_equal_to_rounding_and_running_statistics_are_not(by_two, data_file, nbs):
    images = Images(load(data_file))
    run = Run(STRIDE8, Arm("switch", nbs), 1, 2, 0.05)
    network = build(run, images)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    curve = list(epochs(run, network, images))
    there_curve, there = torch.load(by_two / f"{nbs}.pt")
    np.testing.assert_allclose(there_curve, curve, rtol=1e-5)
    for name, value in network.state_dict().items():
        moved = (value - start[name]).abs().max()
        apart = (value - there[name]).abs().max()
        if "running" in name:
            assert apart > 1e-3 * moved  # process 0 has seen half of the samples
        else:
            assert apart <= 1e-4 * moved + 1e-6 * value.abs().max()


def test_runs_by_two_processes_are_other_runs(data_file):
    data = load(data_file)
    one = settle(Options(nbs=[16], norms=["batch"]))
    two = settle(replace(distributed.divided(Options(norms=["batch"]), 2)))
    assert not planned(one, data)[1].keys() & planned(two, data)[1].keys()
    assert {run.arm for run in planned(two, data)[1].values()} == {Arm("batch", 16)}


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({}, 3, "3 processes: the SGD batch of 32 must divide"),
        ({"nbs": (32,)}, 2, "nbs 32: each of 2 processes has 16 samples"),
        ({"nbs": (0,)}, 2, "nbs 0"),
        ({"workers": 2}, 2, "--workers does not go with torchrun"),
        ({"lr": (0.1, 0.01)}, 2, "--lr: under torchrun one learning rate"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, processes, words):
    with pytest.raises(ValueError, match=words):
        distributed.divided(Options(**changes), processes)


def test_without_torch_distributed_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(distributed.dist, "is_available", lambda: False)
    assert cli.main(["compare"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "built without torch.distributed" in said
