"""Each fault planted, found, and its norm named first; the line that mends it, typed."""

import ast
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, TensorDataset

import normalform as nf
from diagnosed import data, found, sound, stale
from normalform.diagnose.statistics import GAP


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(sound())


# One plant of each kind


def never_updated(model: Any) -> dict[str, Any]:
    model.tail[1].reset_running_stats()
    return {"where": "tail.1"}


def variance_never_updated(model: Any) -> dict[str, Any]:
    model.body[1].running_var.fill_(1)
    return {"where": "body.1"}


def nan_statistics(model: Any) -> dict[str, Any]:
    model.tail[1].running_var[3] = math.nan
    return {"where": "tail.1", "severity": "error", "loss after": True}


def negative(model: Any) -> dict[str, Any]:
    model.body[1].running_var[:2] = -0.01
    return {"where": "body.1", "severity": "error", "loss after": True}


def infinite_weight(model: Any) -> dict[str, Any]:
    model.stem[1].weight.data[0] = math.inf
    return {"where": "stem.1", "severity": "error"}


def broken_activations(model: Any) -> dict[str, Any]:
    model.body[0].weight.data[0] = 1e38
    return {"where": "body.1", "severity": "error"}


def keras_momentum(model: Any) -> dict[str, Any]:
    model.body[1].momentum = 0.99
    return {"where": "body.1"}


def no_momentum(model: Any) -> dict[str, Any]:
    model.body[1].momentum = 0.0
    return {"where": "body.1", "severity": "note"}


def few_values(model: Any) -> dict[str, Any]:
    return {"where": "tail.1", "loader": data(size=2)}


def few_values_of_its_own(model: Any) -> dict[str, Any]:
    model.head = nn.Sequential(nn.GroupNorm(8, 16), model.head)
    return {"where": "head.0"}


def one_value(model: Any) -> dict[str, Any]:
    model.head = nn.Sequential(nn.BatchNorm1d(16), model.head)
    return {"where": "head.0", "loader": data(size=1), "severity": "error"}


def one_value_of_a_sample(model: Any) -> dict[str, Any]:
    model.tail.append(nn.AdaptiveAvgPool2d(1)).append(nn.InstanceNorm2d(16))
    return {"where": "tail.3", "severity": "error"}


def no_eps(model: Any) -> dict[str, Any]:
    model.stem[1].eps = 0.0
    return {"where": "stem.1"}


def half_eps(model: Any) -> dict[str, Any]:
    model.head = nn.Sequential(nn.BatchNorm1d(16, eps=1e-12, dtype=torch.float16), model.head)
    return {"where": "head.0", "loader": None}


def large_eps(model: Any) -> dict[str, Any]:
    model.head = nn.Sequential(nn.RMSNorm(16, eps=100.0), model.head)
    return {"where": "head.0"}


def dead(model: Any) -> dict[str, Any]:
    model.body[0].weight.data[:7] = 0
    return {"where": "body.1"}


def one_dead(model: Any) -> dict[str, Any]:
    model.body[0].weight.data[:1] = 0
    return {"where": "body.1", "severity": "note"}


def exploding(model: Any) -> dict[str, Any]:
    model.body[1].running_var[2] = 1e-9
    return {"where": "body.1"}


def frozen_weight(model: Any) -> dict[str, Any]:
    model.body[1].requires_grad_(False)
    return {"where": "body.1"}


def frozen_bias(model: Any) -> dict[str, Any]:
    model.tail[1].bias.requires_grad_(False)
    return {"where": "tail.1"}


def held(model: Any) -> dict[str, Any]:
    model.train()
    model.body[1].eval()
    return {"where": "body.1", "severity": "note"}


def last_of_one(model: Any) -> dict[str, Any]:
    model.head = nn.Sequential(nn.BatchNorm1d(16), model.head)
    whole = TensorDataset(*(torch.cat(parts)[:161] for parts in zip(*data(), strict=True)))
    return {"where": "head.0", "loader": DataLoader(whole, 32)}


def bias(model: Any) -> dict[str, Any]:
    model.body[0].bias = nn.Parameter(torch.randn(12))
    model.body[1].running_mean += model.body[0].bias.detach()
    return {"where": "body.1", "severity": "note"}


def decay(model: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(
        [
            {"params": [*model.stem.parameters(), *model.head.parameters()], "weight_decay": 0},
            {"params": model.tail.parameters(), "weight_decay": 5e-4},
        ],
        lr=0.1,
    )
    return {"where": "tail.1", "optimizer": optimizer}


def idle(model: Any) -> dict[str, Any]:
    model.spare = nn.BatchNorm2d(8)
    model.spare.running_mean += 1
    return {"where": "spare", "severity": "note"}


def own_class(model: Any) -> dict[str, Any]:
    class ScaleNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.norm(dim=-1, keepdim=True)

    model.head = nn.Sequential(ScaleNorm(), model.head)
    return {"where": "head.0", "severity": "note"}


PLANTED: dict[Callable[[Any], dict[str, Any]], str] = {
    stale: "stale statistics",
    never_updated: "never updated",
    variance_never_updated: "never updated",
    nan_statistics: "non-finite statistics",
    negative: "negative variance",
    infinite_weight: "non-finite parameters",
    broken_activations: "non-finite activations",
    keras_momentum: "momentum",
    no_momentum: "momentum",
    few_values: "few values",
    few_values_of_its_own: "few values",
    one_value: "one value",
    one_value_of_a_sample: "one value",
    no_eps: "eps",
    half_eps: "eps",
    large_eps: "eps",
    dead: "dead channels",
    one_dead: "dead channels",
    exploding: "exploding channels",
    frozen_weight: "half frozen",
    frozen_bias: "half frozen",
    held: "half frozen",
    last_of_one: "one value",
    bias: "cancelled bias",
    decay: "weight decay",
    idle: "never called",
    own_class: "own class",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_and_its_norm_named_first(model, plant):
    check = PLANTED[plant]
    sound = nf.diagnose(model, data(), F.cross_entropy)
    assert check not in [finding.check for finding in sound.findings]
    expected = plant(model)
    loader = expected.get("loader", data())
    loss = None if loader is None else F.cross_entropy
    diagnosis = nf.diagnose(model, loader, loss, optimizer=expected.get("optimizer"))
    finding = found(diagnosis, check)
    assert finding.where[0] == expected["where"], diagnosis
    assert finding.severity == expected.get("severity", "warning")
    assert diagnosis.status == int(finding.severity != "note") or diagnosis.status
    if expected.get("loss after"):
        assert finding.tried is not None
        assert finding.tried.before is not None
        assert finding.tried.after is not None
        assert not math.isfinite(finding.tried.before)
        assert finding.tried.after < 0.5


def test_batch_norm_of_each_process_alone(model):
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        wrapped = DistributedDataParallel(model)
        small = found(nf.diagnose(wrapped, data(size=8), F.cross_entropy), "not synchronized")
        large = found(nf.diagnose(wrapped, data(size=32)), "not synchronized")
        nf.convert(model, {"batch": "group:4"})
        grouped = nf.diagnose(DistributedDataParallel(model))
    finally:
        dist.destroy_process_group()
    assert (small.severity, small.where[0]) == ("warning", "stem.1")
    assert small.evidence["samples of a process"] == 8
    assert large.severity == "note"
    assert "not synchronized" not in [finding.check for finding in grouped.findings]


def test_every_kind_of_finding_has_a_plant():
    kinds: set[str] = set()
    for file in Path(nf.diagnose.__code__.co_filename).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "suspect":
                kind = call.args[1]
                kinds.add(GAP if isinstance(kind, ast.Name) else ast.literal_eval(kind))
    assert kinds == {*PLANTED.values(), GAP, "not synchronized"}


def test_a_norm_that_refuses_its_input_is_named(model):
    one_value_of_a_sample(model)
    diagnosis = nf.diagnose(model, data())
    assert diagnosis.losses is None
    assert diagnosis.summary.startswith("tail.3 refuses what it gets")


def test_a_bias_that_is_used_elsewhere_is_not_called_cancelled():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    assert "cancelled bias" not in [f.check for f in nf.diagnose(Twice(), data()).findings]
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)]
    changed = nn.Sequential(*layers, nn.BatchNorm2d(4))
    assert found(nf.diagnose(changed, data()), "cancelled bias").where == ("1",)


# The line that mends


RUNS = [
    stale, never_updated, nan_statistics, keras_momentum, no_eps, large_eps, few_values,
    frozen_weight,
]  # fmt: skip


@pytest.mark.parametrize("plant", RUNS, ids=lambda plant: plant.__name__)
def test_the_remedy_can_be_typed_and_does_what_was_said(model, plant):
    loader = plant(model).get("loader", data())[:4]
    before = copy.deepcopy(model)
    finding = found(nf.diagnose(model, loader, F.cross_entropy), PLANTED[plant])
    exec(finding.remedy, {"model": model, "loader": loader, "nf": nf, "torch": torch})
    after = nf.diagnose(model, loader, F.cross_entropy)
    assert PLANTED[plant] not in [f.check for f in after.findings]
    if finding.check == "half frozen":
        return
    assert finding.tried is not None
    if finding.tried.after is not None:
        assert after.losses is not None
        assert after.losses.evaluation == pytest.approx(finding.tried.after, rel=1e-4)
    elif finding.check == "few values":
        apart = size = 0.0
        with torch.no_grad():
            for x, _ in loader:
                y, mended = before.eval()(x), model.eval()(x)
                apart, size = apart + (mended - y).square().sum(), size + y.square().sum()
        assert finding.tried.change == pytest.approx(float(apart / size) ** 0.5, rel=1e-4)


def test_the_optimizer_is_mended(model):
    optimizer = decay(model)["optimizer"]
    finding = found(nf.diagnose(model, optimizer=optimizer), "weight decay")
    names: dict[str, Any] = {"model": model, "nf": nf, "torch": torch}
    exec(finding.remedy, names)
    assert names["optimizer"].defaults["lr"] == 0.1
    assert names["optimizer"].defaults["momentum"] == optimizer.defaults["momentum"]
    assert nf.diagnose(model, optimizer=names["optimizer"]).findings == ()


def test_many_norms_are_mended_in_one_line(model):
    model.more = nn.ModuleList(nn.BatchNorm2d(8, momentum=0.9) for _ in range(5))
    model.body[1].momentum = model.tail[1].momentum = 0.9
    finding = found(nf.diagnose(model), "momentum")
    assert len(finding.where) == 7
    model.momentum = 0.9  # of the model's own, for another purpose
    exec(finding.remedy.splitlines()[0], {"model": model})
    assert model.momentum == 0.9
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 8
