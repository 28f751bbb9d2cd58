"""The command line: one line where something cannot be done, and what the exit status says."""

import os
import runpy
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from normalform import cli
from normalform.lab import check, report
from normalform.lab.experiments import EXPERIMENTS, command
from normalform.lab.experiments.plan import Options

EXAMPLE = Path(__file__).parent.parent / "examples" / "cyclegan_generator.py"


def run(capsys, *arguments):
    status = cli.main(arguments)
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "--input", "nowhere.npy"], "input nowhere.npy: no such file"),
        (["check", "--norms", "bacth"], "unknown 'bacth'; known: batch"),
        (["check", "--dtypes", "int8"], "int8"),
        (
            ["check", "--kernel", "magic", "--quick"],
            "unknown kernel 'magic'; known: auto, cpu, eager",
        ),
        (["compare", "--data", "nowhere"], "data 'nowhere': no such file or folder"),
        (["compare", "--norms", "bacth"], "'bacth' is not one to compare"),
        (["compare", "--seeds", "0"], "seeds 0: at least 1"),
        (["compare", "--lr", "nan"], "lr nan"),
        (["compare", "--name", "../up"], "not a folder's name"),
        (["compare", "--full"], "--full is for the experiments"),
        (
            ["compare", "--experiment", "smal"],
            "experiment 'smal': unknown; there are small-batches",
        ),
        (["compare", "--experiment", "all", "--seeds", "0"], "seeds 0: at least 1"),
        (["compare", "--experiment", "all", "--nbs", "2"], "--nbs does not go with --experiment"),
        (["compare", "--experiment", "depth", "--data", "x"], "depth has no such setting"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, words, capsys):
    status, printed = run(capsys, *arguments)
    assert status == 2
    assert words in printed.err
    assert printed.err.startswith(f"normalform {arguments[0]}: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["train"], ["compare", "--nbs", "two"]])
def test_what_cannot_be_read_is_said_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.count("\n") == 1
    assert "--help" in printed.err


def test_the_experiments_are_listed_with_what_they_are_about(capsys):
    status, printed = run(capsys, "compare", "--experiment", "list")
    assert status == 0
    listed = [line.split(maxsplit=1) for line in printed.out.splitlines()]
    assert listed == [[name, experiment.title] for name, experiment in EXPERIMENTS.items()]


def test_experiments_are_not_for_torchrun(capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    status, printed = run(capsys, "compare", "--experiment", "all")
    assert status == 2
    assert "--experiment does not go with torchrun" in printed.err


def test_the_experiments_that_are_asked_for_are_run(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "run", asked.append)
    arguments = ("compare", "--experiment", "a,b", "--quick", "--seeds", "2", "--workers", "1")
    assert run(capsys, *arguments, "--out", "x", "--name", "y")[0] == 0
    typed = shlex.join(["normalform", *arguments, "--out", "x", "--name", "y"])
    (options,) = asked
    assert options == Options(
        ("a", "b"), quick=True, seeds=2, workers=1, out=Path("x"), name="y", command=typed
    )


def test_folders_are_reported_on_together(capsys, monkeypatch):
    monkeypatch.setattr(report, "merge", lambda folders, out: (folders, out))
    assert run(capsys, "report", "a", "b", "--out", "c.html") == (
        0,
        ("Report: ([PosixPath('a'), PosixPath('b')], PosixPath('c.html'))\n", ""),
    )


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    status, printed = run(capsys, "compare", "--quick", "--out", str(tmp_path), "--name", "mine")
    assert status == 2
    assert "not a comparison's folder" in printed.err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("words")
    status, printed = run(capsys, "compare", "--quick", "--out", str(tmp_path / "file"))
    assert status == 2
    assert "no comparison can be written into" in printed.err
    assert "not a directory; --out says where it is made" in printed.err


def test_check_says_by_its_status_whether_the_promise_is_kept(capsys, monkeypatch):
    arguments = ("check", "--quick", "--norms", "rms", "--dtypes", "float32")
    status, printed = run(capsys, *arguments)
    assert status == 0
    assert "inside the promise" in printed.out
    monkeypatch.setattr(check, "run", lambda options: 1 if options.quick else 0)
    assert run(capsys, *arguments)[0] == 1


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupt)
    status, printed = run(capsys, "check")
    assert status == 130
    assert printed.err == ""


def test_a_reader_that_has_seen_enough():
    command = f"{sys.executable} -m normalform.cli check --quick --norms rms | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )
    assert "Traceback" not in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == version("normalform")


@pytest.mark.parametrize(
    ("norm", "biased"),
    [("instance", 10), ("none", 10), ("batch", 1), ("group:8", 1), ("layer", 1), ("switch", 1)],
)
def test_the_example_takes_any_norm_and_decides_on_the_bias(norm, biased, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), norm])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert f"{biased} biased convolutions; image (1, 3, 64, 64)" in capsys.readouterr().out
