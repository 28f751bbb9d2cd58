"""Running statistics and counters: changed when torch's change, to what the formulas say."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from steps import IN_TORCH, assert_same, direction, example, prepared, step, torch_twin
from zoo import ZOO, build

KEEPING = [name for name in ZOO if len(list(build(name)[0].buffers()))]
IN_BOTH = [name for name in KEEPING if name in IN_TORCH]
ONE_VALUE = "switch, one value"  # its batch branch is left out, and learns nothing
STILL = (ONE_VALUE, "frozen")
each_keeping = pytest.mark.parametrize("name", KEEPING)
each_learning = pytest.mark.parametrize("name", [name for name in KEEPING if name not in STILL])
each_in_both = pytest.mark.parametrize("name", IN_BOTH)


def buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in actual.items())


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@each_in_both
def test_change_when_torchs_change(name: str, momentum: float | None):
    """A life of a layer: trained, evaluated, fed an empty batch, trained without statistics."""
    layer, x = prepared(name, dtype=torch.float64)
    layer.momentum = momentum
    twin = torch_twin(layer)
    if momentum is None and isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        with pytest.raises(AssertionError):  # the one documented departure, see below
            follow(layer, twin, x)
        return
    follow(layer, twin, x)


def follow(layer: nn.Module, twin: nn.Module, x: Tensor) -> None:
    empty = x[:0] if isinstance(layer, nn.modules.batchnorm._BatchNorm) else x
    for training, given, tracking in [
        (True, x, True),
        (True, 3 * x + 1, True),
        (False, x, True),
        (True, empty, True),
        (True, x, False),
        (False, x, True),
        (True, x - 5, True),
    ]:
        for each in (layer, twin):
            each.train(training)
            each.track_running_stats = tracking
            each(given)
        assert_same(buffers(layer), buffers(twin))  # the counters too


@each_keeping
def test_evaluation_leaves_every_bit(name: str):
    layer, x = prepared(name, training=False)
    before = buffers(layer)
    layer(x)
    step(layer, layer, x)
    with torch.no_grad():
        layer(float("inf") * x)
    assert_equal(buffers(layer), before)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in KEEPING])
def test_without_running_statistics_there_are_none(name: str):
    layer, x = prepared(name)
    keys = list(layer.state_dict())
    trained = layer(x)
    assert torch.equal(layer.eval()(x), trained)
    assert list(layer.state_dict()) == keys
    assert not any("running" in key or "tracked" in key for key in keys)


def channels(x: Tensor, block: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, averaged over blocks of samples by their size."""
    parts = list(x.split(block or len(x)))
    if len(parts) > 1 and parts[-1].numel() == x.shape[1]:  # one value a channel joins the others
        parts[-2:] = [torch.cat(parts[-2:])]
    shares = torch.tensor([len(part) / len(x) for part in parts], dtype=x.dtype)
    moments = [(part.transpose(0, 1).flatten(1).mean(1), unbiased(part)) for part in parts]
    means, variances = (torch.stack(each, 1) for each in zip(*moments, strict=True))
    return means @ shares, variances @ shares


def unbiased(x: Tensor) -> Tensor:
    rows = x.transpose(0, 1).flatten(1)
    return (rows - rows.mean(1, keepdim=True)).square().sum(1) / (rows.shape[1] - 1)


def planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the samples of each one's mean and unbiased variance."""
    rows = x.flatten(2)
    centred = rows - rows.mean(2, keepdim=True)
    variances = centred.square().sum(2) / (rows.shape[2] - 1)
    return rows.mean((0, 2)), variances.mean(0)


def block_of(layer: nn.Module) -> int | None:
    """Samples that share statistics, None for all."""
    return next((r.sizes["n"] for r in getattr(layer, "over", ()) if "n" in r.sizes), None)


def statistics(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a batch adds to the running statistics."""
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return planes(x)
    return channels(x, block_of(layer))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    apart = (actual - expected).abs().max()
    assert apart <= 1e-13 * (1 + expected.abs().max()), float(apart)


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@each_learning
def test_move_by_momentum_towards_each_batch(name: str, momentum: float):
    layer, x = prepared(name, dtype=torch.float64)
    layer.momentum = momentum
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for k in range(1, 5):
        batch = k * x - k
        layer(batch)
        batch_mean, batch_var = statistics(layer, batch)
        mean, var = (
            (1 - momentum) * old + momentum * new
            for old, new in ((mean, batch_mean), (var, batch_var))
        )
        assert_near(layer.running_mean, mean)
        assert_near(layer.running_var, var)
        counts = not isinstance(layer, nn.modules.instancenorm._InstanceNorm)  # as torch's does not
        assert int(layer.num_batches_tracked) == k * counts


def test_a_branch_that_is_left_out_leaves_its_statistics():
    layer, x = prepared(ONE_VALUE)
    before = buffers(layer)
    layer(x)
    assert torch.equal(layer.running_mean, before["running_mean"])
    assert torch.equal(layer.running_var, before["running_var"])


@each_learning
def test_without_momentum_they_are_the_average_of_all_batches(name: str):
    layer, x = prepared(name, dtype=torch.float64)
    layer.momentum = None
    batches = [k * x - k for k in range(1, 5)]
    for batch in batches:
        layer(batch)
    mean, var = (
        sum(each) / 4 for each in zip(*(statistics(layer, b) for b in batches), strict=True)
    )
    assert_near(layer.running_mean, mean)
    assert_near(layer.running_var, var)
    assert int(layer.num_batches_tracked) == 4


def test_torchs_instance_norm_without_momentum_never_moves():
    """The documented departure: ours averages, above."""
    twin = torch_twin(nf.InstanceNorm2d(6, momentum=None, track_running_stats=True))
    twin(example((4, 6, 5, 3)))
    assert torch.equal(twin.running_mean, torch.zeros(6))


@each_keeping
def test_evaluation_is_a_fixed_scale_and_shift_of_the_tracked_branch(name: str):
    layer, x = prepared(name, training=False, dtype=torch.float64)
    if hasattr(layer, "mean_weight"):
        with torch.no_grad():  # all weight on the branch that averages over samples
            tracked = next(k for k, r in enumerate(layer.over) if "n" in r.over)
            layer.mean_weight.fill_(-1e4)[tracked] = 0
            layer.var_weight.fill_(-1e4)[tracked] = 0
    shape = (-1, *(1 for _ in x.shape[2:]))
    mean, var = layer.running_mean.view(shape), layer.running_var.view(shape)
    expected = (x - mean) / (var + layer.eps).sqrt()
    if layer.weight is not None:
        expected = expected * layer.weight.view(shape) + layer.bias.view(shape)
    assert_near(layer(x), expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ZOO)
def test_an_empty_batch_changes_nothing(name: str, training: bool):
    layer, x = prepared(name, training)
    before = {key: buffer for key, buffer in buffers(layer).items() if "running" in key}
    leaf = x[:0].requires_grad_()
    y = layer(leaf)
    assert y.shape == leaf.shape
    leaves = [leaf, *layer.parameters()]
    gradients = torch.autograd.grad(y.sum(), leaves, allow_unused=True, materialize_grads=True)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(gradients, leaves, strict=True))
    assert_equal({key: buffers(layer)[key] for key in before}, before)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [n for n in IN_TORCH if "instance" not in n])
def test_an_empty_batch_gives_the_gradients_that_torchs_give(name: str, training: bool):
    layer, x = prepared(name, training)
    found = []
    for each in (layer, torch_twin(layer)):
        leaf = x[:0].requires_grad_()
        each(leaf).sum().backward()
        found.append([leaf.grad, *(p.grad for p in each.parameters())])
        each.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each_learning
def test_a_channel_that_is_not_finite_keeps_its_statistics(name: str, bad: float):
    layer, x = prepared(name)
    block = block_of(layer)
    clean, _ = prepared(name)
    clean(x)
    before = buffers(layer)
    x = x.clone()
    x[0, 1] = bad
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(x)
    assert {str(each.message).split(":")[0] for each in caught} == {"running_mean", "running_var"}
    assert all("1 of" in str(each.message) for each in caught)
    others = torch.arange(len(before["running_mean"])) != 1
    for key in ("running_mean", "running_var"):
        after = layer.state_dict()[key]
        assert after[1] == before[key][1]
        assert torch.equal(after[others], clean.state_dict()[key][others])
    assert block is None or block > 0


@each_keeping
def test_half_precision_buffers_are_rounded_once(name: str):
    layer, x = prepared(name, dtype=torch.bfloat16)
    exact = copy.deepcopy(layer).double()
    layer(x)
    exact(x.double())
    assert torch.equal(layer.running_mean, exact.running_mean.to(torch.bfloat16))
    assert torch.equal(layer.running_var, exact.running_var.to(torch.bfloat16))


def test_a_backward_is_not_misled_by_buffers_that_move_on():
    for dtype in (torch.float32, torch.float64):
        for name in ("batch 2d", "switch 2d", "ghost 2d"):
            layer, x = prepared(name, training=False, dtype=dtype)
            leaves = [x.requires_grad_(), *layer.parameters()]
            expected = torch.autograd.grad(layer(x), leaves, direction(x))
            y = layer(x)
            layer.train()(2 * x.detach() + 1)
            for again in (False, True):
                found = torch.autograd.grad(
                    y, leaves, direction(x), retain_graph=True, create_graph=again
                )
                assert_same(dict(enumerate(found)), dict(enumerate(expected)), terms=2)
