"""The gap between training and evaluation, and the model left as it was."""

import copy
import math
from threading import Lock
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normalform as nf
from diagnosed import Net, data, found, sound, stale, trained_like
from interruptions import interrupted_everywhere
from normalform.diagnose import gap
from test_keeping import state

PASSES_RUN = tuple(
    f"diagnose/{name}.py" for name in ("examine", "facts", "gap", "measure", "trial")
)


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(sound())


# The gap


def test_nothing_is_wrong_with_a_model_that_was_trained(model):
    diagnosis = nf.diagnose(model, data(), F.cross_entropy)
    assert diagnosis.worse_than("note") == ()
    assert diagnosis.status == 0
    assert "no gap to speak of; 3 norms: nothing wrong found" in diagnosis.summary
    assert [row.values for row in diagnosis.rows] == [32 * 144, 32 * 25, 32 * 4]


@pytest.mark.parametrize("guilty", ["stem.1", "body.1", "tail.1"])
def test_the_gap_is_found_and_comes_from_the_norm_that_is_wrong(model, guilty):
    norm = model.get_submodule(guilty)
    with torch.no_grad():
        norm.running_mean.add_(2.5 * norm.running_var.sqrt())
        norm.running_var.mul_(0.1)
    diagnosis = nf.diagnose(model, data(), F.cross_entropy)
    losses = diagnosis.losses
    assert losses is not None
    assert losses.unit == "loss"
    assert losses.recalibrated is not None
    assert losses.evaluation > 2 * losses.batch
    assert losses.recalibrated < losses.batch + 0.1 * losses.gap
    gap = diagnosis.findings[0]
    assert (gap.check, gap.severity, gap.where[0]) == ("train/eval gap", "error", guilty)
    assert gap.effect == pytest.approx(losses.gap)
    assert gap.remedy == "nf.recalibrate(model, loader)"
    assert gap.tried is not None
    assert gap.tried.after == losses.recalibrated
    row = next(row for row in diagnosis.rows if row.name == guilty)
    assert row.share is not None
    assert row.share > 0.9
    assert row.mean_off == pytest.approx(2.5, rel=0.4)
    assert row.var_off == pytest.approx(10, rel=0.4)
    assert diagnosis.summary.startswith("eval loss ")
    assert f"% of the gap comes from {guilty}, {row.values:,} values per statistic" in (
        diagnosis.summary
    )


def test_the_losses_are_those_of_the_model(model):
    """By hand: evaluation, and evaluation with the norms alone in training."""
    batches = data()[:4]
    model.stem[1].running_var.mul_(9)
    losses = nf.diagnose(model, batches, F.cross_entropy).losses
    assert losses is not None
    model.eval()
    with torch.no_grad():
        expected = sum(float(F.cross_entropy(model(x), y)) for x, y in batches) / 4
        assert losses.evaluation == pytest.approx(expected, rel=1e-6)
        for norm in (model.stem[1], model.body[1], model.tail[1]):
            norm.train()
        expected = sum(float(F.cross_entropy(model(x), y)) for x, y in batches) / 4
    assert losses.batch == pytest.approx(expected, rel=1e-6)


def test_distances_are_in_units_of_the_batch():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    batches = [50 + 100 * torch.randn(64, 3) for _ in range(4)]
    nf.recalibrate(model, batches)
    model[0].running_mean += 100 * torch.tensor([2.0, -2.0, 1.0])
    model[0].running_var /= torch.tensor([9.0, 9.0, 1.0])
    row = nf.diagnose(model, batches).rows[0]
    assert row.values == 64
    assert row.mean_off == pytest.approx(3**0.5, rel=0.1)
    assert row.var_off == pytest.approx(9, rel=0.1)


def test_shares_add_up_to_the_gap_also_where_norms_are_taken_together(model, monkeypatch):
    for block in (model.stem, model.body, model.tail):
        block[1].running_var.mul_(9)
    whole = nf.diagnose(model, data(), F.cross_entropy, batches=2)
    assert whole.losses is not None
    for passes in (gap.PASSES, 3, 2):
        monkeypatch.setattr(gap, "PASSES", passes)
        diagnosis = nf.diagnose(model, data(), F.cross_entropy, batches=2)
        effects = [row.effect for row in diagnosis.rows if row.effect is not None]
        assert len(effects) == 3
        assert math.fsum(effects) == pytest.approx(whole.losses.gap)
        shares = [row.share for row in diagnosis.rows if row.share is not None]
        assert math.fsum(shares) == pytest.approx(1)
        assert max(row.among for row in diagnosis.rows) == {32: 1, 3: 2, 2: 3}[passes]


def test_without_a_loss_the_gap_is_the_distance_of_the_outputs(model):
    model.body[1].running_mean.add_(3)
    diagnosis = nf.diagnose(model, data())
    assert diagnosis.losses is not None
    assert diagnosis.losses.unit == "distance"
    gap = found(diagnosis, "train/eval gap")
    assert gap.where[0] == "body.1"
    assert gap.effect is None
    assert gap.evidence["evaluation"] == diagnosis.losses.evaluation
    assert "statistics of the batch" not in gap.evidence  # none: they are what it is a distance to
    assert "of their size" in diagnosis.summary
    assert found(diagnosis, "stale statistics").severity == "warning"
    assert nf.diagnose(copy.deepcopy(sound()), data()).status == 0


def test_a_model_that_reads_its_batch_is_not_sent_to_recalibrate():
    """Each batch has a brightness of its own, which only the batch's own statistics take away."""
    batches = [(x + 6 * i, y) for i, (x, y) in enumerate(data())]
    torch.manual_seed(0)
    diagnosis = nf.diagnose(trained_like(Net(), batches=batches), batches, F.cross_entropy)
    finding = found(diagnosis, "train/eval gap")
    assert finding.where[0] == "stem.1"
    assert finding.remedy == 'nf.convert(model, {"batch": "group:32"})'
    assert "after recalibrating a copy: what comes out depends on the rest of the" in finding.what
    assert finding.tried is not None
    assert finding.tried.after is None


# The model is left as it was


@pytest.mark.parametrize("loss", [F.cross_entropy, None], ids=["loss", "none"])
def test_everything_is_left_as_it_was(model, loss):
    stale(model)
    model.train()
    model.drop.eval()
    F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*data(), strict=True))), 32, shuffle=True,
                        generator=generator)  # fmt: skip
    before, drawn = state(model), generator.get_state()
    assert nf.diagnose(model, loader, loss).findings
    assert state(model) == before
    assert torch.equal(generator.get_state(), drawn)


def test_everything_is_left_as_it_was_also_after_an_interruption():
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.LayerNorm(4), nn.Linear(4, 2)
    )
    model(torch.randn(8, 3)).sum().backward()
    model[1].running_mean.add_(20)
    batch = torch.randn(16, 3)
    before = state(model)
    reached = set()
    for _, function, _ in interrupted_everywhere(lambda: nf.diagnose(model, [batch]), PASSES_RUN):
        assert state(model) == before, function
        reached.add(function)
    assert {"measure", "attributed", "run", "batch_statistics", "on_copy", "_idle"} <= reached


def test_a_loss_is_a_function(model):
    with pytest.raises(TypeError, match=r"loss='cross_entropy'.* as torch\.nn\.functional"):
        nf.diagnose(model, [(torch.randn(2, 3),)], "cross_entropy")  # pyright: ignore[reportArgumentType]


def test_an_exception_of_the_model_or_the_loss_comes_out_and_changes_nothing(model):
    calls = []

    def fails(output: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 7:
            raise KeyError("the loss of the user")
        return F.cross_entropy(output, y)

    before = state(model)
    with pytest.raises(KeyError, match="the loss of the user"):
        nf.diagnose(model, data(), fails)
    assert state(model) == before


def test_a_model_that_cannot_be_copied_is_told_what_was_not_tried(model):
    stale(model)
    model.lock = Lock()
    diagnosis = nf.diagnose(model, data(), F.cross_entropy)
    finding = found(diagnosis, "train/eval gap")
    assert (finding.remedy, finding.tried) == ("nf.recalibrate(model, loader)", None)
    assert "copy" not in diagnosis.summary


def test_passes_are_counted(model):
    passes = []
    handle = model.register_forward_hook(lambda module, args, y: passes.append(1))
    nf.diagnose(model, data(), F.cross_entropy)
    few = len(passes)
    stale(model)
    nf.diagnose(model, data(), F.cross_entropy)
    handle.remove()
    assert few == 3 * 4 + 4  # evaluation, training, recalibration and what comes of it
    assert len(passes) - few == few + 2 * 4 + 4 - 4  # four states of three norms, two batches


# What cannot be done


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear,), TypeError, "takes a torch.nn.Module or a state_dict; got Linear"),
        ((nn.BatchNorm1d(3), None, F.cross_entropy), ValueError, "needs a loader"),
        ((nn.BatchNorm1d(3), []), ValueError, "gives no batches"),
        ((nn.BatchNorm1d(3), torch.ones(3, 3)), TypeError, r"One batch goes in a list: \[batch\]"),
        ((nn.LazyBatchNorm1d(), [torch.ones(4, 3)]), ValueError, "run the model once first"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, error, words):
    with pytest.raises(error, match=words):
        nf.diagnose(*arguments)


@pytest.mark.parametrize("samples", [129, 130, 133, 192])
def test_a_smaller_last_batch_is_no_training_batch(samples: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(samples, 4)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:64]), (x[:64, 0] > 0).long()).backward()
        optimizer.step()
    found = nf.diagnose(model, loader, F.cross_entropy)
    told = [(f.check, f.severity) for f in found.worse_than("note")]
    assert told == ([("one value", "warning")] if samples == 129 else [])


def test_the_last_batch_is_that_of_the_sampler(model):
    x, y = data()[0]
    dataset = TensorDataset(x.repeat(3, 1, 1, 1)[:65], y.repeat(3)[:65])
    few = torch.utils.data.SubsetRandomSampler(range(64))
    model.head = nn.Sequential(nn.BatchNorm1d(16), model.head)
    checks = [f.what for f in nf.diagnose(model, DataLoader(dataset, 8, sampler=few)).findings]
    assert not any("last batch" in what for what in checks)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
def test_a_model_with_a_scripted_part():
    model = nn.Sequential(torch.jit.script(nn.ReLU()), nn.BatchNorm2d(3, momentum=0.99))
    assert nf.diagnose(model).findings[0].check == "momentum"


def test_an_infinite_bound_of_a_class_nobody_knows_is_no_fault():
    class ObsNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("lowest", torch.tensor([-math.inf]))

    found = nf.diagnose(nn.Sequential(ObsNorm(), nn.BatchNorm1d(2)))
    assert found.worse_than("note") == ()
