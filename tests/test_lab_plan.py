"""What a comparison is going to do, what it is called, and the table of what came out."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from normalform.lab.arms import FAMILIES, Arm
from normalform.lab.data import load
from normalform.lab.environment import _commit, environment
from normalform.lab.networks import NETWORKS
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
from normalform.lab.records import RunFolder
from normalform.lab.train import Run
from test_lab_records import row


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


def test_names_of_folders():
    data = load("fashion")
    assert folder_of(Options(), data) == Path("runs/fashion")
    assert folder_of(Options(quick=True), data) == Path("runs/fashion-quick")
    assert folder_of(Options(name="mine", out=Path("/x")), data) == Path("/x/mine")


def test_a_runs_name_changes_with_everything_that_decides_its_result(monkeypatch):
    data = load("digits")
    run = Run(NETWORKS[0], Arm("batch", 8), 0, 6, 0.05)
    names = {
        run_id(run, data),
        run_id(run, load("fashion")),
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
