"""The folder of a comparison: nothing finished is lost, nothing foreign is touched."""

import dataclasses
import json
import os

import numpy as np
import pytest

from normalform.lab.records import Writer, read
from normalform.lab.rows import Row, read_rows, to_csv

DETAILS = {"correct": np.array([True, False]), "train_loss": np.array([0.1, np.nan])}


def row(run_id="a", **changes) -> Row:
    plain = Row(
        run_id=run_id, data="fashion", metric="error", network="stride8", last_map="4x4",
        arm="batch 2, SGD batch 2", norm="batch", nbs=2, sgd_batch=2, seed=0, epochs=6,
        lr=0.1 / 3, status="ok", reason="", test_error=0.1 + 0.2, test_error_recalibrated=None,
        train_error=1 / 3, train_loss=1e-300, seconds=1.5, train_images=2000, test_images=2000,
        parameters=14458, values_per_statistic_min=None, python="3.11", torch="2.13", numpy="2.4",
        normalform="0.1", machine='a "fast", one', cores=2, platform="Linux", commit="",
        date="2026-11-21T00:00:00Z",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def meta(*runs):
    return {"name": "x", "runs": list(runs)}


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    """A comparison with two runs of its plan finished and one of another plan."""
    with Writer(tmp_path / "run", meta("a", "b", "c", "i")) as writer:
        writer.add(row("old", epochs=1), DETAILS)
        writer.add(row("a"), DETAILS)
        writer.add(row("i", status="impossible", reason="why", test_error=None), {})
        writer.add(row("b", seed=1), DETAILS)
    return tmp_path / "run"


def test_rows_survive_the_table_to_the_last_bit(tmp_path):
    rows = [row("a"), row("b", nbs=None, reason="x, y", train_loss=float("inf"), test_error=None)]
    path = tmp_path / "results.csv"
    path.write_text(to_csv(rows), encoding="utf-8")
    assert list(read_rows(path).values()) == rows
    header = path.read_text().splitlines()[0].split(",")
    assert header == [field.name for field in dataclasses.fields(Row)]


def test_what_is_added_is_read(folder):
    run = read(folder)
    assert [r.run_id for r in run.rows] == ["a", "b", "i"]
    assert [r.run_id for r in run.all_rows] == ["old", "a", "i", "b"]
    assert run.rows[0] == row("a")
    details = run.details(run.rows[0])
    assert {key: value.tobytes() for key, value in details.items()} == {
        key: value.tobytes() for key, value in DETAILS.items()
    }
    assert run.details(run.rows[2]) == {}
    assert run.meta["format"] == "normalform compare"


def test_finished_runs_are_not_planned_again_and_other_plans_keep_theirs(folder):
    with Writer(folder, meta("b", "d", "i")) as writer:
        assert writer.finished == {"b", "i"}
        writer.add(row("d"), DETAILS)
        assert writer.finished == {"b", "i", "d"}
    run = read(folder)
    assert [r.run_id for r in run.rows] == ["b", "d", "i"]
    assert [r.run_id for r in run.all_rows] == ["old", "a", "i", "b", "d"]


def test_killed_between_details_and_row(folder):
    """The row is in the details: the run counts as finished and its row comes back."""
    table = (folder / "results.csv").read_bytes()
    with Writer(folder, meta("a", "c")) as writer:
        writer.add(row("c", seed=2), DETAILS)
    (folder / "results.csv").write_bytes(table)
    with Writer(folder, meta("a", "c")) as writer:
        assert writer.finished == {"a", "c"}
    assert read(folder).rows[1] == row("c", seed=2)


def test_lost_table_is_rebuilt(folder):
    (folder / "results.csv").unlink()
    with Writer(folder, meta("a", "b", "i")) as writer:
        assert writer.finished == {"a", "b"}  # of an impossible run there is nothing to rebuild
    assert {r.run_id for r in read(folder).all_rows} == {"old", "a", "b"}


@pytest.mark.parametrize("moment", ["write", "move"])
def test_killed_in_the_middle_of_a_write(folder, monkeypatch, moment):
    """The old table stays whole, the next start goes on from it."""
    before = (folder / "results.csv").read_bytes()

    def killed(*_):
        raise SystemExit("killed")

    with Writer(folder, meta("c")) as writer:
        monkeypatch.setattr(os, "fsync" if moment == "write" else "replace", killed)
        with pytest.raises(SystemExit):
            writer.add(row("c"), DETAILS)
        monkeypatch.undo()
    assert (folder / "results.csv").read_bytes() == before
    with Writer(folder, meta("a", "c")) as writer:
        assert writer.finished == {"a"}
        writer.add(row("c"), DETAILS)
    assert len(read(folder).rows) == 2


def test_every_file_is_on_the_disk_before_it_is_in_place(folder, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (done.append("fsync"), fsync(f))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(b.name), replace(a, b))[1])
    with Writer(folder, meta("a")) as writer:
        done.clear()
        writer.add(row("c"), DETAILS)
    assert done == ["fsync", "c.npz", "fsync", "fsync", "results.csv", "fsync"]


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = content.index(b"train_loss.npy") + 60
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [torn, flipped, lambda content: b"", None])
def test_damaged_details_are_noticed_and_the_run_repeated(folder, damage):
    path = folder / "details" / "a.npz"
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    run = read(folder)
    with pytest.raises(ValueError, match=r"a\.npz is missing or damaged"):
        run.details(run.rows[0])
    with Writer(folder, meta("a", "b")) as writer:
        assert (writer.damaged, writer.finished) == (["a"], {"b"})
        assert row("a") in read(folder).all_rows  # kept until it is replaced
        writer.add(row("a", seconds=9.0), DETAILS)
    assert [r.seconds for r in read(folder).all_rows if r.run_id == "a"] == [9.0]


def test_details_of_another_run_are_not_taken_for_ones_own(folder):
    (folder / "details" / "a.npz").write_bytes((folder / "details" / "b.npz").read_bytes())
    with Writer(folder, meta("a", "b")) as writer:
        assert (writer.damaged, writer.finished) == (["a"], {"b"})


@pytest.mark.parametrize(
    "content",
    [
        {"thesis.tex": "years of work"},
        {"run.json": '{"format": "other"}', "results.csv": "1,2"},
        {"run.json": "[1]"},
        {"run.json": "{"},
        {"results.csv": "mine"},
        {"details/a.npz": "mine"},
    ],
)
def test_a_folder_that_is_not_ours_is_refused_untouched(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"\A[^\n]*not (a|the folder of a) comparison[^\n]*\Z"):
        Writer(tmp_path, meta("a"))
    assert snapshot(tmp_path) == before
    with pytest.raises(ValueError, match="not the folder of a comparison"):
        read(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        Writer(path, meta("a"))
    assert path.read_text() == "mine"


def test_a_folder_left_before_its_first_file_is_ours(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.tmp").write_text("{")
    with Writer(tmp_path, meta("a")) as writer:
        writer.add(row("a"), DETAILS)
    assert len(read(tmp_path).rows) == 1


def test_newer_format_is_refused(folder):
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"version": 2}))
    before = snapshot(folder)
    with pytest.raises(ValueError, match="written in format 2, this normalform reads 1"):
        Writer(folder, meta("a"))
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[: text.rindex(",")],  # torn inside the last row
        lambda text: text[: text.rindex(",1.5,")],
        lambda text: text.replace(",14458,", ",many,"),
        lambda text: text.replace("run_id,", "id,"),
        lambda text: text.replace("float32\n", "float32,more\n"),
        lambda text: "",
    ],
)
def test_a_table_that_is_damaged_is_refused_untouched(folder, edit):
    path = folder / "results.csv"
    path.write_text(edit(path.read_text()))
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"results\.csv: row \d is not ours"):
        Writer(folder, meta("a"))
    assert snapshot(folder) == before


def test_one_writer_at_a_time(folder):
    with Writer(folder, meta("a")):
        with pytest.raises(ValueError, match="another comparison is writing into"):
            Writer(folder, meta("b"))
        assert read(folder).meta["runs"] == ["a"]
    with Writer(folder, meta("b")):
        assert read(folder).meta["runs"] == ["b"]
