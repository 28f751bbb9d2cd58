"""``normalform check``: what it prints, writes and refuses, and its exit status."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import normalform as nf
from normalform import cli
from normalform.lab import check, check_report
from normalform.lab.accuracy import COMPILE, measured
from normalform.lab.cases import NORMS, plan
from normalform.lab.check import Options


def run(width: int = 80, **options: object) -> tuple[int, str]:
    """Exit status and what is printed."""
    console = Console(file=StringIO(), width=width)
    status = check.run(Options(**{"quick": True, **options}), console)
    return status, console.file.getvalue()


def planted(change: Callable[[Tensor], Tensor]) -> Callable[[torch.nn.Module, Tensor], Tensor]:
    forward = nf.GroupNorm.forward
    return lambda self, x: change(forward(self, x))


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return dy * (1 + 1e-5)


def test_status_is_0_although_pytorch_is_outside():
    status, text = run(norms=["batch", "switch"], dtypes=["float32"])
    assert status == 0
    assert "Everything of ours is inside the promise." in text
    assert "PyTorch has no switch" in text
    assert "0.906" in text
    for number in ("13.83", "6.92", "221.67", "55.41"):
        assert number in text


@pytest.mark.parametrize(
    ("change", "column"),
    [(lambda y: y * (1 + 1e-5), "y"), (lambda y: y * torch.nan, "y"), (_WrongGradient.apply, "d")],
)
def test_a_wrong_layer_makes_the_status_1(monkeypatch, change, column):
    monkeypatch.setattr(nf.GroupNorm, "forward", planted(change))
    status, text = run(norms=["group"], dtypes=["float32"])
    assert status == 1
    assert "Ours is outside the promise in" in text
    assert f"group, float32, (16, 12), mean/std 0: {column}" in text


def test_every_way_to_run_ours_is_in_the_report(tmp_path: Path):
    status, text = run(
        norms=["token"], dtypes=["float32"], compile=True, json=tmp_path / "all.json"
    )
    assert status == 0
    rows = dict(
        line.split(maxsplit=1)
        for line in text.splitlines()
        if line.startswith((" auto: ", " eager ", " torch.compile "))
    )
    content = json.loads((tmp_path / "all.json").read_text())
    assert {each["kernel"] for each in content["cases"]} == {"auto: cpu"}
    others = [each["kernel"] for each in content["cases_in_other_ways"]]
    assert set(others) == {"eager", "torch.compile"}
    assert rows["auto:"].split()[:2] == ["cpu", str(len(content["cases"]))]
    for way in ("eager", "torch.compile"):
        assert rows[way].split()[0] == str(others.count(way))


@pytest.mark.parametrize(("device", "types"), [("cuda", 2), ("mps", 1)])
def test_layers_run_on_the_device_in_every_way(monkeypatch, device: str, types: int):
    """A device without float64 is not asked for it."""
    where: list[tuple[str, str]] = []

    def measured_there(case, x=None, *, kernel, device):
        where.append((device, kernel))
        return measured(case, x, kernel=kernel)

    monkeypatch.setattr("normalform.lab.check.device_named", str)
    monkeypatch.setattr("normalform.lab.check.model_of", str.upper)
    monkeypatch.setattr("normalform.lab.check.measured", measured_there)
    status, text = run(norms=["rms"], dtypes=["float32", "float64"], device=device, compile=True)
    assert status == 0
    assert text.startswith(f"Layers run on {device.upper()}, the reference on the CPU.")
    assert set(where) == {(device, kernel) for kernel in ("auto", "eager", COMPILE)}
    assert len(re.findall(r"float(32|64) +[0-9.]+\|", text)) == types


def test_a_device_that_is_not_here(capsys):
    assert cli.main(["check", "--device", "gpu"]) == 2
    assert "device 'gpu' is not known; choose from auto, cpu" in capsys.readouterr().err


def test_a_device_without_the_type_that_is_asked_for(monkeypatch):
    monkeypatch.setattr("normalform.lab.check.device_named", str)
    with pytest.raises(ValueError, match=r"device mps has no float64; choose another type"):
        run(norms=["rms"], dtypes=["float64"], device="mps")


@pytest.mark.parametrize("way", ["eager", "torch.compile"])
def test_another_way_being_wrong_makes_the_status_1(monkeypatch, way: str):
    forward = nf.GroupNorm.forward

    def wrong(self: nf.GroupNorm, x: Tensor) -> Tensor:
        here = "torch.compile" if torch.compiler.is_compiling() else self.kernel
        return forward(self, x) * (1 + 1e-5 * (here == way))

    monkeypatch.setattr(nf.GroupNorm, "forward", wrong)
    status, text = run(norms=["group"], dtypes=["float32"], compile=True)
    assert status == 1
    assert f"group, float32, (16, 12), mean/std 0, {way}: y" in text


def test_a_wrong_article_tensor_makes_the_status_1(monkeypatch):
    monkeypatch.setattr("normalform.lab.articles.TENSOR_LIMIT", 1e-6)
    status, text = run(norms=["rms"], dtypes=["float32"])
    assert status == 1
    assert "Not every number of the source articles came out." in text


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(width: int, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 4, 3, 3)))
    status, text = run(width, input=tmp_path / "x.npy", dtypes=["bfloat16"])
    assert status == 0
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for norm in NORMS:
        assert f"\n {norm:8} bfloat16" in text


def test_numbers_never_hide_that_they_are_outside():
    for error in (1.0000001, 1.004, 9.999, 99.96, 9999.6, 1e9):
        assert float(check_report.number(error)) > 1
        assert len(check_report.number(error)) <= 4
    assert check_report.number(0.999) == "1.00"
    assert check_report.number(1e30) == ">1e9"
    assert check_report.number(float("nan")) == "inf"


def test_json_has_every_number(tmp_path: Path):
    path = tmp_path / "numbers.json"
    run(norms=["ghost"], dtypes=["float32"], json=path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    cases = plan(["ghost"], ["float32"], quick=True)
    assert content["ok"] is True
    assert len(content["cases"]) == len(cases)
    again = measured(cases[3])
    assert content["cases"][3]["ours"] == again.ours
    assert content["cases"][3]["shape"] == list(cases[3].shape)
    assert len(content["articles"]["tensors"]) == 12
    assert content["articles"]["sums"][0]["printed"] == 13.8286
    assert [each.name for each in tmp_path.iterdir()] == ["numbers.json"]


def test_json_of_a_nan_is_the_text_inf(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(nf.GroupNorm, "forward", planted(lambda y: y * torch.nan))
    run(norms=["group"], dtypes=["float32"], json=tmp_path / "numbers.json")
    content = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert content["ok"] is False
    assert content["cases"][0]["ours"]["y"] == "inf"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("normalform check: ")
    return lines[0]


def test_json_replaces_its_own_file_and_no_other(tmp_path: Path, capsys):
    path = tmp_path / "numbers.json"
    run(norms=["rms"], dtypes=["float32"], json=path)
    run(norms=["rms"], dtypes=["float16"], json=path)
    assert json.loads(path.read_text())["cases"][0]["dtype"] == "float16"
    precious = tmp_path / "thesis.json"
    precious.write_text("{}")
    for other, message in [
        (precious, "another file stands there"),
        (tmp_path, "a folder"),
        (tmp_path / "no" / "x.json", "there is no folder"),
    ]:
        assert cli.main(["check", "--quick", "--json", str(other)]) == 2
        assert message in one_line(capsys)
    assert precious.read_text() == "{}"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown 'bach'; known: batch, instance"):
        check.run(Options(norms=["bach"]))
    with pytest.raises(ValueError, match="unknown 'float8'; known: float32"):
        check.run(Options(dtypes=["float8"]))
    with pytest.raises(ValueError, match="norms: none given"):
        check.run(Options(norms=[]))
    with pytest.raises(ValueError, match="unknown kernel 'fast'"):
        check.run(Options(kernel="fast", quick=True))


def test_rich_missing_is_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    for module in (check_report, check):
        with pytest.raises(ImportError, match=r'needs rich: pip install "normalform\[lab\]"'):
            importlib.reload(module)
