"""``normalform bench``: what it runs, keeps and refuses. Times are made up but for one run."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench_rows import norm, rows
from normalform import cli
from normalform.lab.bench import command, measure, models, norms
from normalform.lab.bench.command import Options, bench
from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.folder import Folder
from normalform.lab.bench.measure import How
from normalform.lab.bench.rows import read_rows, results
from normalform.lab.bench.targets import TRAINING


@pytest.fixture
def quick(monkeypatch):
    """The command with made-up times; the cases that were asked for."""
    asked = []

    def fake(case, how):
        asked.append((case, how))
        return rows(case)

    monkeypatch.setattr(command, "measured", fake)
    return asked


def run(tmp_path, **options):
    console = Console(file=StringIO(), width=80)
    path = bench(Options(out=tmp_path, **options), console)
    return path, console.file.getvalue()


def test_what_is_measured_is_kept_and_shown(tmp_path, quick):
    path, text = run(tmp_path, norms=["batch", "rms"], max_elements=7000)
    assert path == tmp_path / "bench-part"
    cases = [case for case, _ in quick]
    assert [case for case in cases if isinstance(case, models.Case)] == cases[:12]
    kept = read_rows(path / "results.csv")
    assert kept == [row for case in cases for row in rows(case)]
    assert f"{len(cases)} of {len(cases)} cases measured" in text
    assert "Figures to reach" in text
    meta = json.loads((path / "bench.json").read_text())
    assert meta["format"] == "normalform bench"
    assert meta["cases"] == len(cases)
    console = Console(file=StringIO(), width=80)
    assert bench(Options(show=path), console) == path
    shown = console.file.getvalue()
    assert shown.strip() in text
    assert "Networks" in shown


def test_networks_run_with_the_memory_as_everybody_has_it(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(command, "keep_memory", lambda: True)
    run(tmp_path, norms=["rms"], models=["style"], max_elements=300)
    assert [(type(case), how.memory_kept) for case, how in quick] == [
        (models.Case, False), (models.Case, False), (norms.Case, True), (norms.Case, True)
    ]  # fmt: skip


def test_an_interrupt_keeps_and_shows_what_was_measured(tmp_path, monkeypatch, capsys):
    done = []

    def interrupted(case, how):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(case)
        return rows(case)

    monkeypatch.setattr(command, "measured", interrupted)
    arguments = ["bench", "--norms", "batch,group", "--no-models", "--out", str(tmp_path)]
    assert cli.main(arguments) == 130
    folder = tmp_path / "bench-part"
    assert read_rows(folder / "results.csv") == [row for case in done for row in rows(case)]
    assert (folder / "norms.svg").exists()
    text = capsys.readouterr().out
    assert "Interrupted: 3 of " in text
    assert "Figures to reach" in text


def test_a_part_does_not_replace_the_whole():
    parts = [
        {"norms": ["batch"]}, {"models": ["none"]}, {"shape": (2, 8, 4, 4)}, {"threads": 1},
        {"layout": "contiguous"}, {"max_elements": 10**6}, {"dtype": "bfloat16"},
        {"kernel": "eager"}, {"norms": ["batch"], "quick": True},
    ]  # fmt: skip
    assert {command.folder_of(Options(**part)).name for part in parts} == {"bench-part"}
    assert command.folder_of(Options()) == Path("runs/bench")
    assert command.folder_of(Options(quick=True)).name == "bench-quick"
    assert command.folder_of(Options(compile=True, seconds=1.0)).name == "bench"
    assert command.folder_of(Options(name="mine", norms=["batch"])).name == "mine"


def test_a_new_benchmark_replaces_the_old_one_in_its_folder(tmp_path, quick):
    path, _ = run(tmp_path, name="mine", norms=["batch"], max_elements=300)
    assert (path / "models.png").exists()
    run(tmp_path, name="mine", norms=["rms"], models=["none"], max_elements=300)
    assert {row.name for row in read_rows(path / "results.csv")} == {"rms"}
    assert not (path / "models.png").exists()


def test_two_benchmarks_do_not_write_into_one_folder(tmp_path, quick):
    with Folder(tmp_path / "mine", {}), pytest.raises(ValueError, match="another benchmark"):
        run(tmp_path, name="mine")
    run(tmp_path, name="mine", norms=["rms"], models=["none"], max_elements=300)


def test_threads_are_set_for_the_time_of_the_benchmark(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(
        command, "measured", lambda case, how: seen.append(torch.get_num_threads()) or rows(case)
    )
    run(tmp_path, norms=["rms"], models=["none"], max_elements=300, threads=before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norms", "bacth"], "norms: unknown 'bacth'; known: batch"),
        (["--models", "vgg"], "models: unknown 'vgg'; known: unet2d"),
        (["--layout", "nhwc"], "layouts: unknown 'nhwc'; known: contiguous, channels_last"),
        (["--dtype", "int8"], "dtype: unknown 'int8'; known: float32"),
        (["--shape", "4"], "shape 4: batch takes 2 to 5 axes"),
        (["--shape", "4,0,3"], "shape 4,0,3: batch takes 2 to 5 axes, none of them empty"),
        (["--max-elements", "10"], "max-elements 10: the smallest tensor has 256"),
        (["--threads", "0"], "threads 0: at least 1"),
        (["--seconds", "-1"], "seconds -1.0"),
        (["--norms", "none", "--models", "none"], "nothing is left to measure"),
        (["--norms", "batch", "--shape", "8,3", "--layout", "channels_last"], "nothing is left"),
        (["--name", "../up"], "not a folder's name"),
        (["--show", "nowhere"], "show nowhere: not the folder of a benchmark"),
        (["--kernel", "magic", "--models", "none"], "unknown kernel 'magic'; known: auto"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("normalform bench: ")
    assert words in said
    assert said.count("\n") == 1


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, quick):
    (tmp_path / "mine").mkdir()
    for name, content in (("thesis.txt", "words"), ("bench.json", '{"format": "other"}')):
        (tmp_path / "mine" / name).write_text(content)
        with pytest.raises(ValueError, match="not a benchmark's folder"):
            run(tmp_path, name="mine")
        assert [each.name for each in (tmp_path / "mine").iterdir()] == [name]
        (tmp_path / "mine" / name).unlink()
    (tmp_path / "file").write_text("words")
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path, name="file")
    assert not quick


def test_a_real_layer_and_a_real_network(tmp_path):
    path, text = run(
        tmp_path,
        norms=["instance"],
        models=["unet2d"],
        max_elements=300,
        layout="contiguous",
        quick=True,
        seconds=0.0,
    )
    found = results(read_rows(path / "results.csv"))
    assert [(each.ours.name, each.ours.what) for each in found] == [
        ("unet2d", TRAINING), ("unet2d", INFERENCE), ("instance", FORWARD), ("instance", STEP)
    ]  # fmt: skip
    for each in found:
        assert all(0 < row.us <= row.p50_us * 10 for row in each.rows.values())
        assert each.rows["torch"].difference < 1e-4
        assert each.ours.torch == torch.__version__
        assert each.ours.threads == torch.get_num_threads()
    assert "unet2d" in text
    assert "2x8x4x4" in text


def test_a_row_says_how_it_was_measured():
    ticks = iter(range(10_000))
    how = How("eager", seconds=0.0, memory_kept=True, clock=lambda: next(ticks) * 1e-3)
    found = {row.competitor: row for row in measure.measured(norm("layer", (2, 8, 4, 4)), how)}
    assert set(found) == {"ours", "torch", "copy"}
    for row in found.values():
        assert row.us == pytest.approx(1000.0)
        assert row.paired == pytest.approx(1.0)
        assert (row.rounds, row.calls, row.p99_us) == (7, 7, None)
        assert (row.kernel, row.memory_kept, row.floor) == ("eager", 1, 2.5)
    assert found["copy"].difference is None
    assert found["torch"].difference < 1e-5
