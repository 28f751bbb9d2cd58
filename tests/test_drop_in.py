"""In place of torch's layers: made, printed, saved, trained and fused as they are."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import normalform as nf
from normalform.testing import assert_layer_accurate
from steps import IN_TORCH, assert_same, direction, example, prepared, step, torch_twin
from zoo import ZOO

each_layer = pytest.mark.parametrize("name", ZOO)
each_torch_layer = pytest.mark.parametrize("name", IN_TORCH)
CLASSES = [
    *(f"{kind}Norm{dim}d" for kind in ("Batch", "Instance") for dim in (1, 2, 3)),
    *("LayerNorm", "GroupNorm", "RMSNorm"),
]
each_class = pytest.mark.parametrize("name", CLASSES)


@each_class
def test_classes_are_torchs_with_another_forward(name: str):
    ours, torchs = getattr(nf, name), getattr(nn, name)
    assert issubclass(ours, torchs)
    assert inspect.signature(ours) == inspect.signature(torchs)
    assert list(inspect.signature(ours.forward).parameters) == list(
        inspect.signature(torchs.forward).parameters
    )
    own = {key for base in ours.__mro__ if "normalform" in base.__module__ for key in vars(base)}
    hidden = {key for key in own if not key.startswith("_")}
    assert hidden == {"forward", "kernel"}


@each_torch_layer
def test_prints_as_torchs(name: str):
    layer, _ = prepared(name)
    assert repr(layer) == repr(torch_twin(layer))


@each_torch_layer
def test_state_dict_loads_both_ways(name: str):
    layer, _ = prepared(name)
    state = layer.state_dict()
    for fresh, loads in ((type(layer), torch_twin(layer)), (type(torch_twin(layer)), layer)):
        other = copy.deepcopy(loads)
        other.__class__ = fresh
        other.load_state_dict({key: value + 1 for key, value in state.items()}, strict=True)
        other.load_state_dict(loads.state_dict(), strict=True)
        assert list(other.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert layer.state_dict()._metadata == torch_twin(layer).state_dict()._metadata


@each_layer
def test_copies_and_pickles(name: str):
    layer, x = prepared(name)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
    ]
    expected = step(layer, layer, x)
    for other in copies:
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert_same(step(other, other, x), expected)


# A network


class Network(nn.Module):
    """Every kind of norm that torch has, one after the other."""

    def __init__(self, norms: Any) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 8, 3, padding=1)
        self.batch, self.group = norms.BatchNorm2d(8), norms.GroupNorm(2, 8)
        self.instance = norms.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.shrink = nn.Conv2d(8, 8, 3, stride=2)
        self.rows, self.layer, self.rms = norms.BatchNorm1d(8), norms.LayerNorm(8), norms.RMSNorm(8)
        self.classify = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.group(self.batch(self.convolve(x)).relu()))
        x = self.shrink(x).relu().mean((2, 3))
        return self.classify(self.rms(self.layer(self.rows(x))))


def trained(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters, gradients and buffers after three steps, and what it then predicts."""
    network.to(dtype).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for seed in range(3):
        optimizer.zero_grad()
        y = network(example((6, 3, 8, 8), dtype, seed))
        nn.functional.cross_entropy(y, torch.arange(6) % 5).backward()
        optimizer.step()
    found = {f"d{key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
    network.eval()
    return {"y": network(example((6, 3, 8, 8), dtype, 9)), **found, **network.state_dict()}


def networks() -> tuple[nn.Module, dict[str, nn.Module]]:
    """A network of torch's layers, and ours in two ways, all of the same state."""
    torch.manual_seed(0)
    torchs, ours = Network(nn), Network(nf)
    ours.load_state_dict(torchs.state_dict())
    swapped = copy.deepcopy(torchs)
    for module in swapped.modules():
        if type(module).__name__ in CLASSES:
            module.__class__ = getattr(nf, type(module).__name__)
    return torchs, {"constructed": ours, "swapped": swapped}


def test_a_network_trains_alike_in_float64():
    torchs, ours = networks()
    expected = trained(torchs, torch.float64)
    for network in ours.values():
        found = trained(network, torch.float64)
        assert list(found) == list(expected)
        for key, value in found.items():
            apart = (value - expected[key]).abs().max()
            assert apart <= 1e-11 * (1 + expected[key].abs().max()), key


def test_a_network_trains_no_further_from_exact_in_float32():
    torchs, ours = networks()
    exact = trained(copy.deepcopy(torchs), torch.float64)
    expected = trained(torchs, torch.float32)
    for network in ours.values():
        for key, value in trained(network, torch.float32).items():
            if "num_batches" in key:
                assert torch.equal(value, expected[key])
                continue
            error, theirs = ((v.double() - exact[key]).norm() for v in (value, expected[key]))
            assert error <= 2 * theirs + 2.0**-22 * (1 + exact[key].norm()), key


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_fuses_into_a_convolution(conv: type[nn.Module]):
    dim = int(conv.__name__[4])
    layer, _ = prepared(f"batch {dim}d", training=False)
    convolution = conv(3, layer.num_features, 2).eval()
    x = example((2, 3, *[4] * dim))
    fused = fuse_conv_bn_eval(convolution, layer)(x)
    apart = (fused - layer(convolution(x))).abs().max()
    assert apart <= 64 * 2.0**-24 * fused.abs().max()


def test_fuses_into_a_linear_layer():
    layer, _ = prepared("batch rows", training=False)
    linear, x = nn.Linear(5, layer.num_features).eval(), example((7, 5))
    fused = fuse_linear_bn_eval(linear, layer)(x)
    assert (fused - layer(linear(x))).abs().max() <= 64 * 2.0**-24 * fused.abs().max()


# Values


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 1.0, 1e4])
@each_torch_layer
def test_eps_of_any_size(name: str, eps: float):
    layer, x = prepared(name)
    layer.eps = eps
    assert_layer_accurate(layer, x, direction(x))
    y = torch_twin(layer).double()(x.double())
    assert (layer(x) - y).abs().max() <= 2.0**-21 * (1 + y.abs().max())


@pytest.mark.parametrize("name", ["layer, token", "group", "rms", "instance 2d"])
def test_eps_of_zero(name: str):
    layer, x = prepared(name)
    layer.eps = 0.0
    assert_layer_accurate(layer, x, direction(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_eps_of_rms_norm_by_default(dtype: torch.dtype):
    """Among values so small that it decides."""
    x, weight = (1e-4 * example((3, 5))).to(dtype), example((5,)).to(dtype)
    ours, theirs = (module.RMSNorm(5, dtype=dtype) for module in (nf, nn))
    for layer in (ours, theirs):
        layer.load_state_dict({"weight": weight})
    assert (ours(x) - theirs(x)).abs().max() <= 4 * torch.finfo(dtype).eps * theirs(x).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in IN_TORCH if "rms" not in n])
def test_float32_parameters_with_half_inputs(name: str, dtype: torch.dtype):
    layer, x = prepared(name)
    ours = step(layer, layer, x.to(dtype))
    layer, x = prepared(name)
    twin = torch_twin(layer)
    theirs = step(twin, twin, x.to(dtype))
    assert {key: v.dtype for key, v in ours.items()} == {key: v.dtype for key, v in theirs.items()}
    layer, x = prepared(name)
    assert_layer_accurate(layer, x.to(dtype), direction(x).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_layer
def test_autocast_leaves_norms_alone(name: str, dtype: torch.dtype):
    for given in (torch.float32, dtype):
        layer, x = prepared(name)
        x = x.to(given)
        expected = copy.deepcopy(layer)(x)
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert y.dtype == given
        assert torch.equal(y, expected)
