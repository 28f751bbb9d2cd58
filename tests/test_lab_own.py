"""A network of the user's own in a comparison: built, fitted to data, trained, kept, refused."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normalform as nf
from normalform import cli
from normalform.lab.arms import Arm, plan_arms
from normalform.lab.exchange import exchange
from normalform.lab.fit import look
from normalform.lab.metrics import IGNORED, loss, scores, tally
from normalform.lab.plan import Options, planned, settle
from normalform.lab.records import read
from normalform.lab.samples import take
from normalform.lab.train import Images, Run, batches, build, choose, train
from normalform.lab.workers import Done, train_all, train_here

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, inside, outside, norm_layer):
        super().__init__()
        bias = issubclass(norm_layer.func, (nn.InstanceNorm2d, nn.Identity))
        self.parts = nn.ModuleDict({
            "conv": nn.Conv2d(inside, outside, 3, 2, 1, bias=bias), "norm": norm_layer(outside)})

    def forward(self, x):
        return torch.relu(self.parts["norm"](self.parts["conv"](x)))

def build(norm_layer):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 3)]
    return nn.Sequential(Block(1, 8, norm_layer), Block(8, 8, norm_layer), *head)

def plain():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8, eps=1e-3), nn.Flatten(), nn.LazyLinear(3))

def other(width): ...
def nothing(norm_layer): return None
def forgets(norm_layer): return nn.Flatten()
def wrong(norm_layer): return nn.Sequential(norm_layer(1), nn.Flatten(), nn.Linear(7, 3))
def few(norm_layer): return nn.Sequential(norm_layer(1), nn.Flatten(), nn.Linear(64, 2))
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
number = 3
"""
NETWORK = "ownnets:build"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a module and data of the user's."""
    (tmp_path / "ownnets.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import normalform\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    x, y = labelled()
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    yield tmp_path
    sys.modules.pop("ownnets", None)


def labelled(count=120):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.standard_normal((count, 1, 8, 8)) + 1.5 * y[:, None, None, None]
    return x.astype(np.float32), y


def fitted(source=NETWORK, norms=("none", "batch", "instance", "group:2", "switch"), data=None):
    data = data or take(labelled(), "error")
    arms = plan_arms(norms, (32, 2))
    return look(source, arms, data), arms, data


def command(*more):
    return [
        "compare", "--model", NETWORK, "--data", "mine.npz", "--seeds", "1", "--epochs", "1",
        "--nbs", "32", "--norms", "batch,group:2", "--workers", "1", *more,
    ]  # fmt: skip


def test_from_the_command_line_with_norms_in_nested_modules(here, capsys):
    assert cli.main(command()) == 0
    run = read(here / "runs" / "ownnets-build-mine")
    assert [(r.network, r.arm, r.status) for r in run.rows] == [
        (NETWORK, "batch 32", "ok"),
        (NETWORK, "group:2", "ok"),
    ]
    places = run.details(run.rows[0])["places"].tolist()
    assert places == ["norm 0.parts.norm", "norm 1.parts.norm"]
    page = (run.folder / "report.html").read_text()
    assert "ownnets:build with 2 norms, the last, 1.parts.norm, on 8 channels, 2x2" in page
    assert "Ends at" not in page.split("<script")[0]
    capsys.readouterr()
    assert cli.main(command()) == 0
    assert "All 2 runs are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere:build", "no module nowhere here or installed"),
        ("ownnets", "'ownnets' is not of the form package.module:name"),
        ("ownnets:absent", "module ownnets has no absent"),
        ("broken:build", "importing broken failed: ZeroDivisionError: division by zero"),
        ("ownnets:number", "neither a model nor a function that makes one"),
        ("ownnets:other", "takes width: give it one parameter norm_layer"),
        ("ownnets:nothing", "returned NoneType, not a torch.nn.Module"),
        ("ownnets:forgets", "keeps no norm that norm_layer made"),
        ("ownnets:Tokens", "no batch, instance or group norm to exchange, only LayerNorm"),
        ("ownnets:wrong", "does not take data mine, of shape (2, 1, 8, 8): RuntimeError: mat1"),
        ("ownnets:few", "gives shape (2, 2), data mine has 3 classes: shape (2, 3) is needed"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(model, words, here, capsys):
    assert cli.main([*command(), "--model", model]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--norms", "group:3"], "group:3: num_channels (8) must be divisible by num_groups (3)"),
        (["--metric", "f1"], "metric 'f1' is not known; choose from error, miou, mse"),
        (["--metric", "miou"], "one label a pixel"),
        (["--lr", "0.1,-1"], "lr -1.0"),
    ],
)
def test_options_that_do_not_fit_are_said_in_one_line(more, words, here, capsys):
    assert cli.main(command(*more)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_arms_of_a_seed_start_with_the_same_bits_though_one_has_biases():
    network, arms, data = fitted()
    images = Images(data)
    states = [build(Run(network, arm, 3, 1, 0.05), images).model.state_dict() for arm in arms]
    weights = ["0.parts.conv.weight", "1.parts.conv.weight", "5.weight", "5.bias"]
    for state in states[1:]:
        assert all(torch.equal(states[0][name], state[name]) for name in weights)
    biased = [s["1.parts.conv.bias"] for s in states if "1.parts.conv.bias" in s]
    assert len(biased) == 2
    assert torch.equal(*biased)
    other = build(Run(network, arms[0], 4, 1, 0.05), images).model.state_dict()
    assert not any(torch.equal(states[0][name], other[name]) for name in weights)
    orders = [next(batches(Run(network, a, 3, 1, 0.05), images)).flatten() for a in arms]
    assert all(torch.equal(orders[0], order) for order in orders)


def test_a_run_gives_the_same_bits_again_in_a_worker_and_after_other_draws():
    network, _, data = fitted()
    runs = {"a": Run(network, Arm("batch", 2), 1, 2, 0.05)}
    (first,) = train_here(runs, data)
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    (again,) = train_here(runs, data)
    assert torch.equal(torch.get_rng_state(), state)
    there = [m for m in train_all(runs, data, workers=1) if isinstance(m, Done)]
    for other in (again, there[0]):
        assert other.outcome.train_loss == first.outcome.train_loss
        for name, array in first.outcome.details.items():
            assert other.outcome.details[name].tobytes() == array.tobytes(), name


def test_a_run_is_another_where_the_source_is(here):
    _, _, data = fitted()
    settings = settle(Options(norms=["batch"], nbs=[32], seeds=1))
    before = set(planned(settings, data, NETWORK)[1])
    assert set(planned(settings, data, NETWORK)[1]) == before
    (here / "ownnets.py").write_text(SOURCE.replace("torch.relu", "torch.tanh"))
    assert not set(planned(settings, data, NETWORK)[1]) & before


def test_exchange_keeps_names_weights_and_sharing_and_names_what_it_refuses():
    shared = nn.BatchNorm2d(6)
    nn.init.constant_(shared.weight, 0.25)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3), shared), nn.ModuleDict({"again": shared}),
        nn.LayerNorm(4), nn.GroupNorm(2, 4, eps=0.5, affine=False),
    )  # fmt: skip
    before = [name for name, _ in model.named_modules(remove_duplicate=False)]
    with pytest.raises(ValueError, match=r"0\.1, a BatchNorm2d of 6 channels: .*divisible"):
        exchange(model, lambda channels, old: nf.GroupNorm(4, channels))
    assert model[0][1] is shared
    found = exchange(model, lambda channels, old: nf.SwitchNorm2d(channels, eps=old.eps))
    assert list(found) == ["0.1", "3"]
    assert model[0][1] is model[1]["again"] is found["0.1"]
    assert (found["0.1"].weight == 0.25).all()
    assert found["3"].eps == 0.5
    assert type(model[2]) is nn.LayerNorm
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == before


def test_a_model_keeps_its_weights_and_only_its_norms_change():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    network, arms, data = fitted(model, ("batch", "group:2"))
    for arm in arms:
        built = build(Run(network, arm, 5, 1, 0.05), Images(data)).model
        assert torch.equal(built[0].weight, model[0].weight)
        assert type(built[1]).__name__ in ("BatchNorm2d", "GhostBatchNorm2d", "GroupNorm")
    assert type(model[1]) is nn.BatchNorm2d


def test_a_planted_difference_is_found():
    """Half the classes are told by brightness alone, which instance norm takes away."""
    rng = np.random.default_rng(1)
    y = np.arange(240) % 2
    x = rng.standard_normal((240, 1, 8, 8)) + 2.0 * y[:, None, None, None]

    def build(norm_layer):
        first = [norm_layer(1), nn.Conv2d(1, 4, 3), nn.ReLU()]
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    run = nf.lab.compare(
        build,
        (x, y),
        ["batch", "instance"],
        [32],
        2,
        epochs=6,
        out="runs",
        quiet=True,
        report=False,
    )
    errors = {
        arm: [r.test_error for r in run.rows if r.norm == arm] for arm in ("batch", "instance")
    }
    assert max(errors["batch"]) < 0.1
    assert min(errors["instance"]) > 0.25


def test_killed_and_continued(here):
    line = [sys.executable, "-m", "normalform.cli", *command("--seeds", "3")]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
    table = here / "runs" / "ownnets-build-mine" / "results.csv"
    end = time.monotonic() + 120
    while not table.exists() or len(table.read_text().splitlines()) < 3:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = table.read_text().splitlines()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    lines = table.read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert len({row.split(",")[0] for row in lines[1:]}) == len(lines) - 1 == 6
    fresh, _, data = fitted(norms=("batch", "group:2"), data=take("mine.npz", "error"))
    row = read(table.parent).rows[-1]
    (arm,) = [a for a in plan_arms(["batch", "group:2"], (32,)) if a.label == row.arm]
    (here_too,) = train_here({"x": Run(fresh, arm, row.seed, 1, 0.05)}, data)
    assert here_too.outcome.train_loss == row.train_loss


def test_the_learning_rate_is_the_best_on_samples_held_out():
    network, _, data = fitted()
    images = Images(data)
    run = Run(network, Arm("group:2"), 0, 12, 1e-6, (1e-6, 0.1, 1e-5))
    chosen, tried = choose(run, images)
    assert (chosen.lr, int(np.argmin(tried)), chosen.choices) == (0.1, 1, ())
    part = images.held_out()
    assert len(part.x_train) + len(part.x_test) == len(images.x_train)
    rows = {tuple(x.flatten()[:4].tolist()) for x in part.x_train}
    assert not rows & {tuple(x.flatten()[:4].tolist()) for x in part.x_test}
    outcome, alone = train(run, images), train(replace(run, lr=0.1, choices=()), images)
    assert outcome.lr == 0.1
    assert outcome.train_loss == alone.train_loss
    assert outcome.details["lr_scores"].tolist() == tried


def test_error_and_squared_error_by_hand():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [float("nan"), 5.0]])
    assert scores("error", [tally("error", outputs, torch.tensor([1, 1, 1]))]).tolist() == [0, 1, 1]
    y = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    square = scores("mse", [tally("mse", outputs[:2], y)])
    assert square.tolist() == [(0 + 4) / 2, (9 + 0) / 2]
    assert loss("mse", outputs[:2], y).item() == square.mean()
    column = tally("mse", torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0]))
    assert scores("mse", [column]).tolist() == [1, 4]


def test_mean_intersection_over_union_by_hand():
    """Two pictures of four pixels: class 0 has 2 of 4, class 1 3 of 5, class 2 is never seen."""
    y = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [0, IGNORED]]])
    answers = torch.tensor([[[0, 1], [1, 1]], [[1, 0], [0, 0]]])
    outputs = nn.functional.one_hot(answers, 3).movedim(3, 1).float()
    whole = scores("miou", [tally("miou", outputs, y)])
    assert whole.mean() == pytest.approx(1 - (2 / 4 + 3 / 5) / 2)
    parts = [tally("miou", outputs[i : i + 1], y[i : i + 1]) for i in range(2)]
    assert np.array_equal(scores("miou", parts), whole)
    # of the first picture: 1 of 2 and 2 of 3; of the second: 1 of 2 and 1 of 2
    first = 1 - ((2 / 4 + (1 - 2 / 4 * 2) / 2) + (3 / 5 + (2 - 3 / 5 * 3) / 2.5)) / 2
    assert whole[0] == pytest.approx(first)
    outputs[0] = float("nan")
    assert scores("miou", [tally("miou", outputs, y)]).mean() == pytest.approx(
        1 - (1 / 4 + 1 / 4) / 2
    )


def test_dense_prediction_and_regression_are_trained():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 1, 6, 6)).astype(np.float32)
    maps = (x[:, 0] > 0).astype(np.int64)
    maps[:, 0, 0] = 255

    def dense(norm_layer):
        return nn.Sequential(nn.Conv2d(1, 4, 1), norm_layer(4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def number(norm_layer):
        return nn.Sequential(nn.Linear(3, 8), norm_layer(8), nn.ReLU(), nn.Linear(8, 1))

    options = {"norms": ["batch"], "nbs": [32], "seeds": 1, "epochs": 8, "quiet": True}
    run = nf.lab.compare(dense, (x, maps), metric="miou", lr=0.2, **options)
    assert run.rows[0].test_error < 0.2
    assert run.details(run.rows[0])["scores"].mean() == pytest.approx(run.rows[0].test_error)
    assert "Test 1 - mIoU against" in (run.folder / "report.html").read_text()
    flat = rng.standard_normal((80, 3)).astype(np.float32)
    run = nf.lab.compare(number, (flat, flat.sum(1)), metric="mse", name="sum", **options)
    assert run.rows[0].test_error < 1.5
    assert run.rows[0].values_per_statistic_min == 32


def test_data_in_every_form_is_the_same():
    x, y = (torch.as_tensor(a) for a in labelled(60))
    cut = [TensorDataset(x[:40], y[:40]), TensorDataset(x[40:], y[40:])]
    given = take(((x[:40], y[:40]), (x[40:], y[40:])), "error")
    assert given.sha256 == take(cut, "error").sha256
    assert given.sha256 == take([DataLoader(part, 7) for part in cut], "error").sha256
    shuffled = [take(DataLoader(TensorDataset(x, y), 7, shuffle=True), "error") for _ in range(2)]
    assert shuffled[0].sha256 == shuffled[1].sha256 != take((x, y), "error").sha256
    assert np.array_equal(given.standardized()[0], x[:40].numpy())  # taken as it is
    pixels = take(((x * 20 + 99).to(torch.uint8), y), "error")
    assert abs(pixels.standardized()[0].mean()) < 1e-6
    assert take((torch.arange(120).reshape(60, 2), y), "error").x_train.dtype == np.int64
    with pytest.raises(ValueError, match="not pairs of x and y"):
        take(TensorDataset(x), "error")


def test_workers_need_a_model_that_can_be_sent():
    def local(norm_layer):
        return nn.Sequential(norm_layer(1), nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(ValueError, match=r'name it as "package.module:build", or leave workers'):
        nf.lab.compare(local, labelled(), ["batch"], [32], 1, workers=1, quiet=True)


def test_the_report_says_how_the_learning_rate_was_found(here, capsys):
    assert cli.main(command("--lr", "0.05,0.01")) == 0
    assert "Learning rate: of 0.05, 0.01 each run took the best" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )
    page = (here / "runs" / "ownnets-build-mine" / "report.html").read_text()
    assert "learning rate of each run the best of 0.05, 0.01" in page
    assert {row.lr for row in read(here / "runs" / "ownnets-build-mine").rows} <= {0.05, 0.01}
