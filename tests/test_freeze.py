"""Batch norms that have stopped: the layer, and the models they are stopped in."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform.testing import assert_layer_accurate
from raising import everywhere
from steps import assert_same, direction, example, step

FROZEN = {1: nf.FrozenBatchNorm1d, 2: nf.FrozenBatchNorm2d, 3: nf.FrozenBatchNorm3d}
BATCH = {1: nf.BatchNorm1d, 2: nf.BatchNorm2d, 3: nf.BatchNorm3d}
SHAPES = {1: (5, 6, 7), 2: (5, 6, 4, 3), 3: (5, 6, 2, 3, 2)}
KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
each_dim = pytest.mark.parametrize("dim", [1, 2, 3])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def randomized(layer: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.fill_(7)
    return layer


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_bits(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert [*found] == [*expected]
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def network() -> nn.Sequential:
    shared = nn.BatchNorm2d(6)
    return randomized(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), shared, nn.ReLU(), nn.Conv2d(6, 6, 1),
            nn.BatchNorm2d(6), nn.ReLU(), shared, nn.Flatten(),
            nn.Linear(6 * 36, 4), nn.BatchNorm1d(4),
        )
    )  # fmt: skip


NORMS = (1, 4, 9)


def images(seed: int = 0) -> Tensor:
    return 1 + 2 * example((5, 3, 8, 8), seed=seed)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, **zero: Any) -> None:
    model.train()
    for seed in range(3):
        optimizer.zero_grad(**zero)
        model(images(seed)).sin().mean().backward()
        optimizer.step()


# The layer


@each_mode
@each_dim
@pytest.mark.parametrize("options", [{}, {"trainable": True}, {"affine": False}], ids=str)
def test_exact_in_every_mode(dim: int, options: dict[str, bool], training: bool):
    layer = randomized(FROZEN[dim](6, eps=1e-3, **options)).train(training)
    x = 100 + example(SHAPES[dim])
    assert_layer_accurate(layer, x, direction(x))
    assert len([*layer.parameters()]) == 2 * options.get("trainable", False)


@each_mode
@each_dim
def test_the_results_of_batch_norm_in_evaluation_by_every_bit(dim: int, training: bool):
    batch = randomized(BATCH[dim](6)).eval()
    layer = FROZEN[dim](6, trainable=True).train(training)
    layer.load_state_dict(batch.state_dict())
    x = example(SHAPES[dim])
    for given in (x, x.double(), x.bfloat16(), x[:, :, ::2], x[:1]):
        found, expected = step(layer, layer, given), step(batch, batch, given)
        assert [*found] == [*expected]
        assert all(torch.equal(found[name], expected[name]) for name in found)
    if dim == 1:
        assert torch.equal(layer(x[:, :, 0]), batch(x[:, :, 0]))


@each_dim
def test_nothing_moves_its_statistics(dim: int):
    layer = randomized(FROZEN[dim](6))
    before = bits(layer)
    for training in (True, False):
        layer.train(training)(100 + example(SHAPES[dim]))
        layer(example(SHAPES[dim]) * float("nan"))
    assert_bits(layer, before)


@each_dim
def test_the_state_dict_is_that_of_batch_norm(dim: int):
    torchs = randomized(getattr(nn, f"BatchNorm{dim}d")(6))
    layer = FROZEN[dim](6)
    assert [*layer.state_dict()] == [*torchs.state_dict()] == KEYS
    layer.load_state_dict(torchs.state_dict(), strict=True)
    assert_bits(layer, torchs.state_dict())
    other = getattr(nn, f"BatchNorm{dim}d")(6)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert_bits(other, torchs.state_dict())
    assert layer.eps == torchs.eps


class OtherFrozen(nn.Module):
    """With the four buffers that frozen norms have in other libraries."""

    def __init__(self) -> None:
        super().__init__()
        for name in KEYS[:4]:
            self.register_buffer(name, torch.rand(6) + 0.5)


def test_state_without_a_counter_loads():
    theirs, layer = nn.Sequential(OtherFrozen()), nn.Sequential(nf.FrozenBatchNorm2d(6))
    layer[0].num_batches_tracked.fill_(3)
    state = theirs.state_dict()
    layer.load_state_dict(state, strict=True)
    assert [*state] == [f"0.{key}" for key in KEYS[:4]]
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
    assert layer[0].num_batches_tracked == 3
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.running_var"'):
        layer.load_state_dict({k: v for k, v in state.items() if "var" not in k})
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.num_batches_tracked"'):
        layer.load_state_dict({})


def test_printed_and_refused():
    assert repr(nf.FrozenBatchNorm2d(6)) == "FrozenBatchNorm2d(6, eps=1e-05, affine=True)"
    assert repr(nf.FrozenBatchNorm1d(6, trainable=True)).endswith("affine=True, trainable=True)")
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\): FrozenBatchNorm2d"):
        nf.FrozenBatchNorm2d(6)(example((5, 6, 7)))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        nf.FrozenBatchNorm1d(6)(example((5, 6, 7, 8)))
    with pytest.raises(RuntimeError, match="weight should contain 5 elements not 6"):
        nf.FrozenBatchNorm2d(6)(example((2, 5, 3, 3)))
    with pytest.raises(ValueError, match="FrozenBatchNorm2d: without weight and bias nothing is"):
        nf.FrozenBatchNorm2d(6, affine=False, trainable=True)


def test_one_value_a_channel_and_none():
    layer = randomized(nf.FrozenBatchNorm2d(6)).train()
    x = example((1, 6, 1, 1))
    assert_layer_accurate(layer, x)
    assert layer(x[:0]).shape == (0, 6, 1, 1)


# A model


@pytest.mark.parametrize("zero", [{}, {"set_to_none": False}], ids=str)
@pytest.mark.parametrize("convert", [False, True], ids=["torch's", "ours"])
def test_freezing_stops_them_whatever_the_optimizer_does(convert: bool, zero: dict[str, bool]):
    model = network()
    if convert:
        nf.convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(model, optimizer)
    expected = copy.deepcopy(model).eval()(images())
    state = bits(model)
    optimizer_step_pending = model[4].weight.grad
    assert optimizer_step_pending is not None
    report = nf.freeze(model)
    assert [row.names for row in report.converted] == [("1", "6"), ("4",), ("9",)]
    assert not report.left
    assert_bits(model, state)
    assert (model.train()(images()) - expected).abs().max() <= 2.0**-20 * expected.abs().max()
    model.requires_grad_(True)
    optimizer.step()
    train(model, optimizer, **zero)
    after = model.state_dict()
    norms = {name for name in after if int(name.split(".")[0]) in (*NORMS, 6)}
    assert all(torch.equal(after[name], state[name]) for name in norms)
    assert not any(torch.equal(after[name], state[name]) for name in after.keys() - norms)
    assert [type(model[k]).__name__ for k in NORMS] == [
        "FrozenBatchNorm2d", "FrozenBatchNorm2d", "FrozenBatchNorm1d",
    ]  # fmt: skip
    nf.unfreeze(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in norms)


def test_freezing_the_statistics_only():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, weights = bits(model), [model[k].weight for k in NORMS]
    optimizer.param_groups[0]["lr"] = 1e-4
    nf.freeze(model, affine=False)
    assert all(model[k].weight is weight for k, weight in zip(NORMS, weights, strict=True))
    assert_bits(model, state)
    train(model, optimizer)
    for name, value in model.state_dict().items():
        stopped = any(part in name for part in ("running", "tracked"))
        assert torch.equal(value, state[name]) == stopped, name
        assert value.isfinite().all(), name
    trained = bits(model)
    nf.unfreeze(model)
    assert_bits(model, trained)


def test_unfreezing_gives_back_the_same_parameters():
    model = network()
    model[1].weight.requires_grad_(False)
    model[4].requires_grad_(False)
    model[4].eval()
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    parameters, state = dict(model.named_parameters()), bits(model)
    modes = [m.training for m in model.modules()]
    for affine in (True, False):
        assert len(nf.freeze(model, affine=affine)) == 3
        if affine:
            model.requires_grad_(True)
            model[0].requires_grad_(learning["0.weight"])
        assert len(nf.unfreeze(model)) == 3
        assert {name: p.requires_grad for name, p in model.named_parameters()} == learning
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert_bits(model, state)
        assert [m.training for m in model.modules()] == modes
    assert [type(model[k]) for k in NORMS] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]
    assert vars(model[1]).keys() == vars(nn.BatchNorm2d(6)).keys()


def test_an_optimizer_made_before_goes_on_after():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nf.freeze(model)
    nf.unfreeze(model)
    state = bits(model)
    train(model, optimizer)
    moved = {name for name, value in model.state_dict().items() if not value.equal(state[name])}
    assert {f"{k}.{key}" for k in NORMS for key in KEYS} <= moved


def test_what_is_loaded_while_frozen_stays():
    model, other = network(), network()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor += 1
    weight = model[4].weight
    nf.freeze(model)
    model.load_state_dict(other.state_dict(), strict=True)
    model.double()
    (first, *_) = nf.unfreeze(model).converted
    assert_bits(model, other.double().state_dict())
    assert model[4].weight is weight
    assert first.note == "changed since and kept as now: " + ", ".join(KEYS)


def test_freezing_twice_and_more_of_it():
    model = network()
    before, parameters = bits(model), dict(model.named_parameters())
    assert len(nf.freeze(model, affine=False)) == 3
    again = nf.freeze(model, affine=False)
    assert not again
    assert {row.reason for row in again.left} == {"frozen norm already"}
    assert len(nf.freeze(model)) == 3
    assert not any("norm" in type(m).__name__.lower() and [*m.parameters()] for m in model)
    nf.unfreeze(model)
    assert_bits(model, before)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert not nf.unfreeze(model)


def test_unfreezing_goes_back_no_further_than_freezing():
    layer = nf.GroupNorm(2, 6)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), layer)
    nf.convert(model, {"group": "batch"})
    nf.freeze(model)
    nf.unfreeze(model)
    assert type(layer) is nf.BatchNorm2d
    nf.freeze(model)
    nf.revert(model)
    assert type(layer) is nf.GroupNorm


def test_a_norm_made_frozen_becomes_a_batch_norm_that_learns():
    model = nn.Sequential(randomized(nf.FrozenBatchNorm2d(6, eps=1e-3)), nn.BatchNorm2d(6))
    nf.freeze(model)
    state = bits(model)
    report = nf.unfreeze(model)
    assert {row.names: row.after for row in report.converted} == {
        ("0",): "nf.BatchNorm2d",
        ("1",): "nn.BatchNorm2d",
    }
    assert_bits(model, state)
    assert model[0].eps == 1e-3
    assert all(p.requires_grad for p in model.parameters())
    before = bits(model)
    model.train()(example(SHAPES[2]) + 5).sum().backward()
    assert (model[0].running_mean != before["0.running_mean"]).all()


def test_ghost_norms_and_synchronized_ones_are_frozen_too():
    ghost, sync = randomized(nf.GhostBatchNorm2d(6, 2)), randomized(nn.SyncBatchNorm(6))
    model = nn.Sequential(nn.Conv2d(3, 6, 1), ghost, sync)
    x = example((5, 3, 4, 4))
    twin = randomized(nn.BatchNorm2d(6)).eval()
    expected = twin(twin(model[0](x)))
    assert len(nf.freeze(model)) == 2
    assert (model(x) - expected).abs().max() <= 2.0**-19
    nf.unfreeze(model)
    assert [type(m) for m in model[1:]] == [nf.GhostBatchNorm2d, nn.SyncBatchNorm]


class Subclass(nn.BatchNorm2d):
    pass


def test_left_and_named():
    model = nn.ModuleDict(
        {
            "subclass": Subclass(6),
            "switch": nf.SwitchNorm2d(6),
            "tracked": nn.InstanceNorm2d(6, track_running_stats=True),
            "untracked": nn.BatchNorm2d(6, track_running_stats=False),
            "lazy": nn.LazyBatchNorm2d(),
            "instance": nn.InstanceNorm2d(6),
            "layer": nn.LayerNorm(6),
            "batch": nn.BatchNorm2d(6),
        }
    )
    report = nf.freeze(model)
    assert [row.names for row in report.converted] == [("batch",)]
    assert {row.names[0]: row.reason.split(":")[0] for row in report.left} == {
        "subclass": "a subclass of nn.BatchNorm2d, which may do something else",
        "switch": "not a batch norm",
        "tracked": "not a batch norm",
        "untracked": "keeps no running statistics that could be frozen",
        "lazy": "uninitialized lazy module",
    }
    assert not nf.unfreeze(model).left


def test_without_norms():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    sought = {nf.freeze: "norms with running statistics", nf.unfreeze: "frozen norms"}
    for change, what in sought.items():
        assert str(change(model)) == f"no {what} found"
        with pytest.raises(TypeError, match=f"^{change.__name__} takes a model, .* got dict$"):
            change({})


def test_a_tied_weight_stays_tied():
    model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    model[1].weight = model[0].weight
    nf.freeze(model)
    nf.unfreeze(model)
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_thaws_by_itself(way: str):
    model = network()
    model[4].bias.requires_grad_(False)
    state = bits(model)
    nf.freeze(model)
    other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        other[4].weight.add_(1)
    nf.unfreeze(other)
    assert torch.equal(other[4].weight, state["4.weight"] + 1)
    assert not other[4].bias.requires_grad
    nf.unfreeze(model)
    assert_bits(model, state)


def test_by_how_much_freezing_changes_the_outputs():
    model = network().train()
    assert nf.freeze(model, example=images()).effect.largest > 0.1
    model = network().eval()
    assert nf.freeze(model, example=images()).effect.relative < 1e-6


def test_inside_compiled_code():
    torch._dynamo.reset()
    model = network().eval()
    compiled = torch.compile(model, backend="eager")
    expected = compiled(images())
    nf.freeze(compiled)
    found = compiled.train()(images())
    assert_same({"y": found}, {"y": model(images())})
    assert (found - expected).abs().max() <= 2.0**-20 * expected.abs().max()


@pytest.mark.parametrize("change", [nf.freeze, nf.unfreeze])
def test_an_exception_anywhere_leaves_the_model_as_it_was(change: Callable[..., Any]):
    def cases() -> Iterator[tuple[Any, Callable[[], None]]]:
        while True:
            model = nn.Sequential(network()[1], nf.FrozenBatchNorm2d(6))
            if change is nf.unfreeze:
                nf.freeze(model[0])
                model.double()
            before = bits(model), [type(m) for m in model], [*map(id, model.parameters())]

            def holds(model: nn.Sequential = model, before: Any = before) -> None:
                assert_bits(model, before[0])
                assert [type(m) for m in model] == before[1]
                assert [*map(id, model.parameters())] == before[2]

            yield lambda model=model: change(model), holds

    assert everywhere(cases()) > 100
