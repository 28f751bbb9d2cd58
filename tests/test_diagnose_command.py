"""The command ``normalform diagnose``: what it says and returns; files of weights; the page."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normalform as nf
from normalform import cli
from normalform.diagnose import Diagnosis, page, plots
from parsed_page import Page

APP = """
import torch, torch.nn.functional as F
from torch import nn
import normalform as nf

def sound():
    torch.manual_seed(0)
    norm, drop = nn.BatchNorm1d(16), nn.Dropout(0.1)
    model = nn.Sequential(nn.Linear(6, 16, bias=False), norm, nn.ReLU(), drop, nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in 10 * loader():
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    nf.recalibrate(model, loader())
    return model

def stale():
    model = sound()
    model[1].running_mean += 4
    model[1].running_var *= 0.1
    return model

def loader():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 6, generator=generator)
    return list(zip(x.split(32), x.argmax(1).remainder(3).split(32)))

batches = loader()

def loss(output, y):
    return F.cross_entropy(output, y)

def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)

def fails():
    raise KeyError("no such width")

def number():
    return 3

def build(norm_layer):
    return norm_layer(3)

def nothing_at_all(output, y):
    return None
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theapp.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theapp", raising=False)
    return tmp_path


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["diagnose", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_sentence_comes_first_and_the_status_says_how_bad_it_is(app, capsys):
    status, out, err = run(
        capsys, "theapp:stale", "--data", "theapp:loader", "--loss", "theapp:loss"
    )
    assert (status, err) == (1, "")
    first = " ".join(out.split("\n\n")[0].split())
    assert first.startswith("eval loss ")
    assert "; with batch statistics " in first
    assert "; after recalibrating a copy " in first
    assert "100 % of the gap comes from 1, 32 values per statistic; mend it with: " in first
    assert first.endswith("nf.recalibrate(model, loader)")
    assert max(map(len, out.splitlines())) <= 100

    status, out, _ = run(
        capsys, "theapp:sound", "--data", "theapp:batches", "--loss", "cross_entropy"
    )
    assert status == 0
    assert "no gap to speak of; 1 norm: nothing wrong found" in " ".join(out.split())


def test_an_optimizer_is_looked_at(app, capsys):
    status, out, _ = run(capsys, "theapp:sound", "--optimizer", "theapp:sgd")
    assert status == 1
    assert "nf.param_groups(model, weight_decay=0.0001), lr=0.1)" in " ".join(out.split())


def test_everything_is_in_the_json(app, capsys):
    options = ["--data", "theapp:loader", "--loss", "theapp:loss", "--batches", "3"]
    run(capsys, "theapp:stale", *options, "--json", "all.json")
    written = json.loads(Path("all.json").read_text())
    assert written["status"] == 1
    assert set(written) == {"summary", "findings", "rows", "losses", "measured", "status"}
    finding = written["findings"][0]
    assert finding["where"] == ["1"]
    assert finding["tried"]["after"] < finding["tried"]["before"] == written["losses"]["evaluation"]
    assert written["rows"][0]["values"] == 32
    assert "3 batches, 96 samples" in written["measured"]


def test_json_and_page_take_what_is_not_finite(app, capsys):
    model = nn.Sequential(nn.BatchNorm1d(6))
    model[0].running_var[0] = math.nan
    diagnosis = nf.diagnose(model, [torch.randn(32, 6)], lambda output: output.square().mean())
    assert json.loads(json.dumps(diagnosis.as_dict(), allow_nan=False))["losses"]["evaluation"] == (
        "nan"
    )
    assert Page(diagnosis.html()).text


def test_data_from_a_file(app, capsys):
    import numpy as np

    x = torch.randn(100, 6)
    np.savez("own.npz", x=x.numpy(), y=x.argmax(1).remainder(3).numpy())
    torch.save({"x": x}, "own.pt")
    options = ["--batches", "2", "--batch-size", "20"]
    _, out, _ = run(
        capsys, "theapp:sound", "--data", "own.npz", "--loss", "cross_entropy", *options
    )
    assert "Measured on 2 batches, 40 samples" in out
    _, out, _ = run(capsys, "theapp:sound", "--data", "own.pt", *options)
    assert "outputs in evaluation are off by" in out
    assert "Measured on 2 batches, 40 samples" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["theapp:nothing"], "module theapp has no nothing"),
        (["theapp:fails"], "KeyError: 'no such width'"),
        (["theapp:number"], "it returned int, not a torch.nn.Module"),
        (
            ["theapp:sgd"],
            "model theapp:sgd takes model: name a function that takes nothing",
        ),
        (["theapp:build"], "model theapp:build takes norm_layer: name a function that takes noth"),
        (["nowhere.pth"], "nowhere.pth: no such file"),
        (["theapp:sound", "--data", "theapp:nobody"], "data theapp:nobody: module theapp has no"),
        (["theapp:sound", "--data", "missing.npz"], "data missing.npz: no such file"),
        (["theapp:sound", "--loss", "crossentropy"], "loss 'crossentropy': not in torch.nn"),
        (["theapp:sound", "--loss", "mse_loss"], "needs a loader"),
        (
            ["theapp:sound", "--data", "theapp:loader", "--loss", "mse_loss"],
            "loss mse_loss of the model's output and 1 target of a batch: RuntimeError: ",
        ),
        (
            ["theapp:sound", "--data", "theapp:loader", "--loss", "theapp:nothing_at_all"],
            "loss theapp:nothing_at_all of the model's output and 1 target of a batch: TypeError: ",
        ),
        (
            ["theapp:sound", "--data", "xonly.npz", "--loss", "cross_entropy"],
            "loss cross_entropy of the model's output and 0 targets of a batch: TypeError: ",
        ),
        (["theapp:sound", "--data", "uneven.npz"], "uneven.npz: x has 4 samples and y 3"),
        (["theapp:sound", "--data", "theapp:fails"], "data theapp:fails: KeyError: 'no such"),
        (["theapp:sound", "--optimizer", "theapp:loader"], "optimizer theapp:loader: TypeError:"),
        (["theapp:sound", "--batches", "0"], "of --data, which is not given"),
        (
            ["theapp:sound", "--data", "theapp:loader", "--batch-size", "8"],
            "batch-size 8: of the batches that a file is cut into; data theapp:loader makes",
        ),
        (["theapp:sound", "--data", "theapp:loader", "--batches", "0"], "not a positive integer"),
        (["theapp:sound", "--html", "page.txt"], "its name ends in .html"),
        (["theapp:sound", "--html", "no/page.html"], "there is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(app, capsys, arguments, words):
    import numpy as np

    x = np.zeros((4, 6), np.float32)
    np.savez("xonly.npz", x=x)
    np.savez("uneven.npz", x=x, y=np.zeros(3, np.int64))
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("normalform diagnose: ")
    assert err.count("\n") == 1


# Files of weights


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.PReLU(),
        nn.Linear(4, 4), nn.RMSNorm(4), nf.SwitchNorm2d(8), nn.Embedding(4, 4),
        nn.LayerNorm((2, 4)),
    )  # fmt: skip


KINDS = [
    ("1", "batch-like"),
    ("2", "layer-like"),
    ("5", "scale-like"),
    ("6", "switch-like"),
    ("8", "layer-like"),
]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "model": state}])
def test_norms_are_told_by_their_tensors(tmp_path, capsys, wrap):
    model = network()
    model[1].running_mean += 1
    model[6].running_var += 1
    torch.save(wrap(model.state_dict()), tmp_path / "net.pth")
    status, out, _ = run(capsys, str(tmp_path / "net.pth"), "--json", str(tmp_path / "found.json"))
    assert status == 1  # the variance of 1 is still that of the start
    assert "never updated" in out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    prefix = "" if len(wrap({})) == 0 else "model."
    assert [(row["name"], row["kind"]) for row in rows] == [(prefix + n, k) for n, k in KINDS]


def test_layer_norms_named_bn_are_layer_norms():
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.bn2, self.layernorm = nn.LayerNorm(4), nn.LayerNorm(4), nn.BatchNorm1d(4)

    rows = nf.diagnose(Old().state_dict()).rows
    assert [(row.name, row.kind) for row in rows] == [
        ("bn1", "layer-like"), ("bn2", "layer-like"), ("layernorm", "batch-like"),
    ]  # fmt: skip


def plant(name: str, value: float) -> dict[str, Any]:
    state = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).state_dict()
    for norm in ("1", "2"):
        state[f"{norm}.running_mean"] += 1
        state[f"{norm}.running_var"] += 1
    state[name][...] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "check", "severity"),
    [
        ("2.running_var", math.nan, "non-finite statistics", "error"),
        ("2.running_var", -1.0, "negative variance", "error"),
        ("2.running_var", 0.0, "dead channels", "warning"),
        ("2.running_var", 1.0, "never updated", "warning"),
        ("2.weight", math.inf, "non-finite parameters", "error"),
        ("2.weight", 0.0, "dead channels", "note"),
    ],
)
def test_a_fault_planted_in_the_tensors_is_found(name, value, check, severity):
    assert nf.diagnose(plant("2.bias", 0.5)).findings == ()
    finding = nf.diagnose(plant(name, value)).findings[0]
    assert (finding.check, finding.severity, finding.where) == (check, severity, ("2",))


def test_a_norm_that_fell_behind_is_named():
    state = plant("2.bias", 0.5)
    state["1.num_batches_tracked"] += 100
    state["2.num_batches_tracked"] += 7
    finding = nf.diagnose(state).findings[0]
    assert finding.where == ("2",)
    assert "counted 7 batches where others counted 100" in finding.what


def test_nothing_is_unpickled_without_being_told(tmp_path, capsys):
    torch.save(nn.Sequential(nn.BatchNorm1d(3, momentum=0.99)), tmp_path / "whole.pt")
    status, _, err = run(capsys, str(tmp_path / "whole.pt"))
    assert status == 2
    assert "--run-pickled-code" in err
    status, out, _ = run(capsys, str(tmp_path / "whole.pt"), "--run-pickled-code")
    assert status == 1
    assert "momentum" in out


def test_a_pickle_that_would_run_code_does_not(tmp_path, capsys):
    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Planted()}, tmp_path / "bad.pth")
    assert run(capsys, str(tmp_path / "bad.pth"))[0] == 2
    assert not (tmp_path / "ran").exists()
    run(capsys, str(tmp_path / "bad.pth"), "--run-pickled-code")
    assert (tmp_path / "ran").exists()


def test_none_found(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU(3), nn.Conv2d(1, 1, 3))
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    status, out, _ = run(capsys, str(tmp_path / "plain.pth"))
    assert status == 0
    assert out.startswith("none found: no tensors that look like those of a norm; 1 vectors")
    model[1].weight.data[0] = math.nan
    assert nf.diagnose(model.state_dict()).status == 1
    assert str(nf.diagnose(nn.Linear(3, 3), [torch.ones(2, 3)])).startswith("none found")


# The page


def a_diagnosis(count: int = 3) -> Diagnosis:
    torch.manual_seed(0)
    layers = [layer for _ in range(count) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8))]
    model = nn.Sequential(*layers)
    batches = [torch.randn(12, 8) for _ in range(2)]
    nf.recalibrate(model, batches)
    model[1].running_mean += 5
    return nf.diagnose(
        model, batches, lambda output: (output - output.detach().mean()).square().mean()
    )


def test_the_page_is_whole_and_asks_no_network():
    diagnosis = a_diagnosis()
    found = diagnosis.html()
    parsed = Page(found)
    assert parsed.open == []
    assert "http" not in found.replace("http-equiv", "")
    assert any(meta.get("content") == page.POLICY for meta in parsed.all("meta"))
    assert "default-src 'none'" in page.POLICY
    assert parsed.all("script") == []
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in parsed.all("meta")}
    assert diagnosis.summary in parsed.text
    for finding in diagnosis.findings:
        assert finding.what in parsed.text
        assert finding.remedy in parsed.text
    assert parsed.row_names == [row.name for row in diagnosis.rows]


@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_plot_has_a_mark_for_each_norm(count):
    diagnosis = a_diagnosis(count)
    marks = [e for e in Page(diagnosis.html()).all("rect") if e["class"] in ("bar", "bad")]
    measured = [[r.values, r.mean_off, r.var_off, r.share] for r in diagnosis.rows]
    assert len(marks) == sum(value is not None for row in measured for value in row)
    inside = [plots.LEFT <= float(m["x"]) <= plots.WIDTH - float(m["width"]) for m in marks]
    assert all(inside)
    assert all(float(m["y"]) + float(m["height"]) <= plots.HEIGHT for m in marks)


def test_marks_stand_where_the_values_are():
    rows = a_diagnosis(3).rows
    plot = plots.Plot("p", "", (25.0, 50.0, 100.0), 0.0, limit=60.0)
    marks = Page(plots.drawn(plot, rows)).all("rect")
    heights = [float(mark["height"]) for mark in marks]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.2)
    assert [mark["class"] for mark in marks] == ["bar", "bar", "bad"]
    decades = plots.Plot("p", "", (10.0, 100.0, 1000.0), 1.0, log=True)
    heights = [float(mark["height"]) for mark in Page(plots.drawn(decades, rows)).all("rect")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_names_cannot_break_the_page():
    model = nn.ModuleDict({"<b>&": nn.BatchNorm1d(3, momentum=0.99)})
    found = nf.diagnose(model).html()
    assert "<b>&" not in found
    assert "<b>&" in Page(found).text


def test_the_page_is_written_and_no_other_file_overwritten(app, capsys):
    options = ["theapp:stale", "--data", "theapp:loader", "--html", "page.html"]
    assert run(capsys, *options)[0] == 1
    assert run(capsys, *options)[0] == 1
    Path("page.html").write_text("mine")
    status, _, err = run(capsys, *options)
    assert status == 2
    assert "another file stands there" in err
    assert Path("page.html").read_text() == "mine"


def test_the_command_needs_no_extra(app):
    hidden = "import sys; sys.modules.update(dict.fromkeys(['rich', 'altair', 'scipy', 'PIL']));"
    call = "from normalform.cli import main; sys.exit(main(['diagnose', 'theapp:sound']))"
    found = subprocess.run([sys.executable, "-c", hidden + call], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "nothing wrong found" in found.stdout
