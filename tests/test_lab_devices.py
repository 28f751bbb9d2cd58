"""Devices and mixed precision: where a comparison computes, in which type, what it records."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

import normalform as nf
from normalform import cli
from normalform.lab import plan
from normalform.lab.arms import Arm
from normalform.lab.data import Dataset
from normalform.lab.devices import check_precision, device_named, model_of
from normalform.lab.networks import STRIDE8
from normalform.lab.plan import Options, planned, run_id, settle
from normalform.lab.records import Writer, read
from normalform.lab.report.ending import facts
from normalform.lab.report.findings import load
from normalform.lab.report.joined import Named, join
from normalform.lab.rows import read_rows
from normalform.lab.train import Images, Run, build, epochs, judge, train
from normalform.lab.workers import Done, prepare, side_by_side, train_here
from test_lab_records import DETAILS, meta, row

BATCH = Arm("batch", 8)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Three classes that differ in brightness, twelve batches of them."""
    rng = np.random.default_rng(0)
    y = np.arange(500) % 3
    x = (rng.standard_normal((500, 1, 16, 16)) + y[:, None, None, None]).astype(np.float32)
    return Dataset("made", "made", x[:400], y[:400], x[400:], y[400:], ("a", "b", "c"))


@pytest.fixture(scope="module")
def images(data) -> Images:
    return Images(data)


@pytest.fixture
def cuda(monkeypatch):
    """Two devices, as far as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Model of {device}")


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def run_of(arm: Arm = BATCH, epochs: int = 1, **more) -> Run:
    return Run(STRIDE8, arm, 0, epochs, 0.05, **more)


def test_the_device_that_is_meant(cuda):
    known = {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}
    assert {asked: device_named(asked) for asked in known} == known
    with pytest.raises(ValueError, match="device cuda:2: this PyTorch finds 2 CUDA devices"):
        device_named("cuda:2")
    assert model_of("cuda:1") == "cuda, Model of cuda:1"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("cuda", "device cuda: this PyTorch finds no CUDA device; choose auto or cpu"),
        ("cuda:0", "device cuda:0: this PyTorch finds no CUDA device"),
        ("mps", "device mps: this PyTorch finds no such device; choose auto or cpu"),
        ("gpu", "device 'gpu' is not known; choose from auto, cpu, cuda, cuda:1, mps"),
        ("cuda:x", "device 'cuda:x' is not known"),
        ("cpu:1", "device 'cpu:1' is not known"),
        ("cuda:", "device 'cuda:' is not known"),
    ],
)
def test_devices_that_are_not_there(no_cuda, asked, words):
    assert device_named("auto") == "cpu"
    with pytest.raises(ValueError, match=words):
        settle(Options(device=asked))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "float16"], "float16 needs a CUDA device; on cpu choose bfloat16"),
        (["--precision", "half"], "'half' is not known; choose from float32, bfloat16, float16"),
        (["--device", "cuda"], "device cuda: this PyTorch finds no CUDA device"),
        (["--experiment", "depth", "--device", "cpu"], "--device does not go with --experiment"),
    ],
)
def test_one_line_says_what_cannot_be_had(no_cuda, tmp_path, capsys, arguments, words):
    assert cli.main(["compare", "--out", str(tmp_path / "runs"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_on_the_cpu_in_float32_is_called_as_ever(monkeypatch):
    monkeypatch.setattr(plan, "version", lambda package: "0")
    x, y = np.zeros((4, 1, 8, 8), np.float32), np.arange(4) % 2
    data = Dataset("made", "made", x, y, x, y, ("a", "b"))
    run = run_of(epochs=2)
    assert run_id(run, data) == "stride8_batch-8_s0_c5540a5d"
    others = {
        run_id(dataclasses.replace(run, **change), data)
        for change in (
            {},
            {"device": "cuda"},
            {"device": "mps"},
            {"precision": "bfloat16"},
            {"precision": "float16", "device": "cuda"},
        )
    }
    assert len(others) == 5
    names = {run_id(dataclasses.replace(run, device=f"cuda{i}"), data) for i in ("", ":0", ":1")}
    assert len(names) == 1  # which of several devices decides nothing


def test_settings_reach_every_run(cuda, data):
    settings = settle(Options(data, norms=["none"], precision="float16"))
    assert {(run.device, run.precision) for run in planned(settings, data)[1].values()} == {
        ("cuda", "float16")
    }


def test_one_worker_on_a_gpu():
    assert [side_by_side(None, device) for device in ("cuda", "cuda:1", "mps")] == [1, 1, 1]
    assert side_by_side(3, "cuda") == 3
    assert side_by_side(None) == min(len(os.sched_getaffinity(0)), 8)


def test_operations_without_a_deterministic_form_run_beside_the_cpu(data):
    warns = torch.is_deterministic_algorithms_warn_only_enabled
    before = torch.are_deterministic_algorithms_enabled(), warns()
    try:
        prepare("cuda")
        assert warns()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        list(train_here({"a": run_of()}, data))
        assert warns()
        prepare()
        assert torch.are_deterministic_algorithms_enabled()
        assert not warns()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize(
    "run",
    [run_of(Arm("layer"), choices=(0.1, 0.2)), run_of(Arm("switch", 8))],
    ids=["layer, the best of two rates", "switch"],
)
@pytest.mark.parametrize("metric", ["error", "mse"])
def test_everything_is_computed_on_the_device(images, monkeypatch, run, metric):
    """On PyTorch's device without numbers: it takes no tensor of another, and NumPy none of it."""
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda x: torch.zeros_like(x, device="cpu") if x.is_meta else cpu(x)
    )
    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0)
    if metric == "mse":
        images = images.to("cpu")
        images.metric = metric
        images.y_train, images.y_test = (
            torch.zeros(len(y), 3) for y in (images.y_train, images.y_test)
        )
    devices = set()
    module = torch.nn.Conv2d.forward

    def forward(conv, x):
        devices.add((str(x.device), str(conv.weight.device)))
        return module(conv, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    outcome = train(dataclasses.replace(run, device="meta"), images)
    assert outcome.status == "ok"
    assert devices == {("meta", "meta")}
    assert images.x_train.device.type == "cpu"


def test_bfloat16_computes_in_it_and_keeps_parameters(images):
    run = run_of(Arm("switch", 8), precision="bfloat16")
    network = build(run, images)
    seen = []
    for module in (network.convs[1], network.norms[1], network.linear):
        module.register_forward_hook(lambda m, inputs, output: seen.append(output.dtype))
    outputs = network(images.x_train[:32])
    assert seen == [torch.bfloat16] * 3
    assert outputs.dtype == torch.float32
    seen.clear()
    list(epochs(run, network, images))
    judge(network, images)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("arm", [Arm("none"), Arm("batch", 8), Arm("switch", 2), Arm("group:4")])
def test_bfloat16_trains_as_well_and_not_to_the_same_numbers(images, arm):
    plain, mixed = (train(run_of(arm, 3, precision=p), images) for p in ("float32", "bfloat16"))
    assert mixed.train_loss != plain.train_loss
    assert mixed.train_loss == pytest.approx(plain.train_loss, abs=0.1)
    assert mixed.details["train_loss"][-1] < 0.7 * mixed.details["train_loss"][0]
    assert mixed.test_error < 0.2
    spread = [outcome.details["conv_std"][0] for outcome in (plain, mixed)]
    np.testing.assert_allclose(spread[1], spread[0], rtol=0.02)
    assert (spread[1] != spread[0]).all()


def test_float16_scales_the_loss_and_not_the_step(images):
    ended, arrived = [], []
    for precision in ("float32", "float16"):
        run = run_of(Arm("layer"), precision=precision)
        network = build(run, images)
        network.linear.register_full_backward_hook(
            lambda m, inputs, outputs, to=arrived: to.append(float(outputs[0].abs().max()))
        )
        list(epochs(run, network, images))
        ended.append(network.linear.weight.detach().clone())
    first, scaled = arrived[0], arrived[len(arrived) // 2]
    assert scaled / first == pytest.approx(2**16, rel=0.05)
    assert (ended[0] - ended[1]).abs().max() < 0.02


def test_rows_and_report_say_device_and_precision(data, tmp_path):
    mixed, plain = (
        nf.lab.compare(
            torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                torch.nn.Linear(784, 3),
            ),
            data, norms=["batch"], nbs=[32], seeds=1, epochs=1, device="cpu", name=precision,
            precision=precision, out=tmp_path, quiet=True, report=False,
        )
        for precision in ("bfloat16", "float32")
    )  # fmt: skip
    assert [(r.device, r.precision) for r in mixed.rows] == [("cpu", "bfloat16")]
    assert [(r.device, r.precision) for r in plain.rows] == [("cpu", "float32")]
    found = [Named(run.folder.name, load(run.folder)) for run in (mixed, plain)]
    assert [facts(named.findings)["precision"] for named in found] == ["bfloat16", "float32"]
    assert facts(found[0].findings)["device"] == "cpu"
    assert [group.name for group in join(found)] == ["bfloat16", "float32"]


def test_tables_without_the_columns_are_of_the_cpu(tmp_path):
    folder = tmp_path / "run"
    with Writer(folder, meta("a")) as writer:
        writer.add(row("a"), DETAILS)
    table = folder / "results.csv"
    text = table.read_text()
    for end in (",device,precision\n", ",cpu,float32\n"):
        assert text.count(end) == 1
        text = text.replace(end, "\n")
    table.write_text(text)
    assert [(r.device, r.precision) for r in read_rows(table).values()] == [("cpu", "float32")]
    kept = folder / "details" / "a.npz"
    with np.load(kept) as archive:
        arrays = dict(archive)
    told = json.loads(str(arrays["row"]))
    assert (told.pop("device"), told.pop("precision")) == ("cpu", "float32")
    np.savez(kept, **arrays | {"row": np.array(json.dumps(told))})
    table.unlink()
    with Writer(folder, meta("a")) as writer:
        assert writer.finished == {"a"}
    assert [(r.device, r.precision) for r in read(folder).rows] == [("cpu", "float32")]


def test_a_model_on_another_device_is_taken_to_the_cpu_first(data, monkeypatch):
    """It is built where its weights are drawn, and moved from there."""
    from normalform.lab.models import own_network

    moved = []
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: moved.append(module) or module)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    built = own_network(model, 2).build(Arm("batch", 32), 0)
    assert moved == [built]


def test_precision_is_checked_for_its_device():
    check_precision("float16", "cuda:1")
    check_precision("bfloat16", "cpu")
    with pytest.raises(ValueError, match="on mps choose bfloat16 or float32"):
        check_precision("float16", "mps")


def test_workers_prepare_for_the_device_of_the_run(data, monkeypatch):
    from normalform.lab import workers

    asked = []
    monkeypatch.setattr(workers, "prepare", asked.append)
    monkeypatch.setattr(workers, "train", lambda run, images, *more: run.device)
    run = run_of(device="cuda:1")
    assert list(train_here({"a": run}, data)) == [Done("a", "cuda:1")]
    assert workers._trainer(data)(run, lambda: None) == "cuda:1"
    assert asked == ["cuda:1"] * 2
