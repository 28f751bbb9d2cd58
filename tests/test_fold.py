"""Norms folded by data flow: exact where they are, refused where they are not."""

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import normalform as nf
from interruptions import interrupted_everywhere
from model_state import state
from normalform.surgery.folding import paths, rules
from normalform.surgery.folding.result import Folding
from normalform.surgery.folding.rules import Rule
from normalform.surgery.folding.weights import Affine, Weights


def example(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prepared(model: nn.Module, positive: bool = False, seed: int = 0) -> nn.Module:
    """In evaluation, with norms that do something to every channel, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.ndim == 1 and hasattr(module, "eps"):
                value = torch.randn(tensor.shape, generator=generator)
                spread = name == "running_var" or (name == "weight" and positive)
                tensor.data.copy_(value.abs() + 0.3 if spread else value)
    return model.eval()


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        return model(*x) if isinstance(x, tuple) else model(x)


def double(x: Any) -> Any:
    return tuple(map(double, x)) if isinstance(x, tuple) else x.double()


def assert_folded(model: nn.Module, x: Any, into: dict[str, str], **options: Any) -> Folding:
    """The fold, and that it is exact for other inputs, too, which it has not seen."""
    before = state(model)
    folding = nf.fold(model, x, **options)
    assert state(model) == before
    assert {name: row.into for row in folding.folded for name in row.names} == into
    for name in into:
        assert type(folding.model.get_submodule(name)) is nn.Identity
    assert {type(m) for m in folding.model.modules()} <= {*map(type, model.modules()), nn.Identity}
    other = tuple(2 * t + 1 for t in x) if isinstance(x, tuple) else 2 * x + 1
    for given in (x, other):
        exact = outputs(copy.deepcopy(model).double(), double(given))
        found = outputs(copy.deepcopy(folding.model).double(), double(given))
        size = exact.abs().max()
        assert (found - exact).abs().max() <= 2e-6 * size  # the weights are rounded to float32
        assert (outputs(folding.model, given) - exact).abs().max() <= 4e-6 * size
    if into:
        assert folding.proof.error < 1e-13
        assert folding.proof.dtype is torch.float64
    return folding


def assert_left(model: nn.Module, x: Any, name: str, *reasons: str) -> Folding:
    before = state(model)
    folding = nf.fold(model, x)
    assert state(model) == before
    row = next(row for row in folding.left if name in row.names)
    for reason in reasons:
        assert reason in row.reason
    assert type(folding.model.get_submodule(name)) is type(model.get_submodule(name))
    return folding


# Every layer that can take one up


def conv(dim: int, kind: str = "Conv", **options: Any) -> nn.Module:
    options = {"kernel_size": 3, **options}
    return getattr(nn, f"{kind}{dim}d")(4, 8, **options)


HOSTS: dict[str, Callable[[int], nn.Module]] = {
    "conv": conv,
    "no bias": lambda d: conv(d, bias=False),
    "padded": lambda d: conv(d, padding=1, stride=2),
    "reflecting": lambda d: conv(d, padding=1, padding_mode="circular"),
    "same": lambda d: conv(d, padding="same", dilation=2),
    "groups": lambda d: conv(d, groups=2),
    "depthwise": lambda d: conv(d, groups=4),
    "transposed": lambda d: conv(d, "ConvTranspose", stride=2, output_padding=1),
    "transposed, groups": lambda d: conv(d, "ConvTranspose", groups=2, padding=1),
    "transposed, depthwise": lambda d: conv(d, "ConvTranspose", groups=4, bias=False),
}
each_host = pytest.mark.parametrize("host", HOSTS)
each_dim = pytest.mark.parametrize("dim", [1, 2, 3])
SIZES = (7, 6, 5)


@each_dim
@each_host
def test_backwards_into_every_layer(host: str, dim: int):
    norm = getattr(nn, f"BatchNorm{dim}d")
    model = prepared(nn.Sequential(HOSTS[host](dim), norm(8), nn.ReLU()))
    folding = assert_folded(model, example(2, 4, *SIZES[:dim]), {"1": "0"})
    assert not folding.folded[0].ahead
    assert {*folding.model.state_dict()} == {"0.weight", "0.bias"}


EXACT_AHEAD = {"conv", "no bias", "reflecting", "groups", "depthwise"}


@each_dim
@each_host
def test_forwards_into_every_layer_without_borders(host: str, dim: int):
    norm = getattr(nf, f"BatchNorm{dim}d")
    model = prepared(nn.Sequential(nn.ReLU(), norm(4), HOSTS[host](dim)))
    x = example(2, 4, *SIZES[:dim])
    if host in EXACT_AHEAD:
        assert assert_folded(model, x, {"1": "2"}).folded[0].ahead
        return
    assert_left(model, x, "1", "comes after nn.ReLU 0", "whose borders it does not shift")
    unshifted = copy.deepcopy(model)
    unshifted[1].bias.data.zero_(), unshifted[1].running_mean.zero_()
    assert_folded(unshifted, x, {"1": "2"})


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_forwards_into_a_transposed_convolution_of_one_position(groups: int):
    host = nn.ConvTranspose2d(4, 8, 1, groups=groups)
    model = prepared(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), host))
    assert_folded(model, example(2, 4, 5, 5), {"1": "2"})


def test_linear_both_ways():
    model = prepared(
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5),
                      nn.Linear(5, 3))
    )  # fmt: skip
    folding = assert_folded(model, example(4, 6), {"1": "0", "3": "4"})
    assert [row.ahead for row in folding.folded] == [False, True]


NORMS: dict[str, Callable[[], nn.Module]] = {
    "nn.BatchNorm2d": lambda: nn.BatchNorm2d(8, eps=0.1),
    "nf.BatchNorm2d": lambda: nf.BatchNorm2d(8),
    "not affine": lambda: nn.BatchNorm2d(8, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "GhostBatchNorm": lambda: nf.GhostBatchNorm2d(8, 2),
    "frozen": lambda: nf.FrozenBatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "another's": lambda: FrozenBatchNorm2d(8),
    "scale and shift": lambda: ScaleShift(8),
    "scale": lambda: Scale(8),
}


class FrozenBatchNorm2d(nn.Module):
    """As detection libraries have it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.eps = 1e-3
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class ScaleShift(nn.Module):
    """As MLP-only networks have it instead of a norm."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.linspace(-1, 2, n).view(1, n, 1, 1))
        self.beta = nn.Parameter(torch.linspace(2, 3, n).view(1, n, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta


class Scale(nn.Module):
    """Layer scale."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.1, 1, n).view(n, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.gamma)


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_every_constant_norm(make: Callable[[], nn.Module]):
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), make(), nn.ReLU()))
    x = example(2, 4, 6, 6)
    assert_folded(model, x, {"1": "0"})


OF_INPUT: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(4),
    "group": lambda: nf.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm2d(8),
    "switch": lambda: nf.SwitchNorm2d(8),
    "rms": lambda: nn.RMSNorm(4),
}


@pytest.mark.parametrize("make", OF_INPUT.values(), ids=OF_INPUT)
def test_norms_with_statistics_of_the_input_are_left(make: Callable[[], nn.Module]):
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), make()))
    assert_left(model, example(2, 4, 6, 6), "1", "its statistics are those of each input")


def test_norms_without_running_statistics_and_in_training_are_left():
    loose = nn.BatchNorm2d(8, track_running_stats=False)
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), loose, nn.BatchNorm2d(8)))
    x = example(2, 4, 6, 6)
    assert_left(model, x, "1", "keeps no running statistics")
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    model[1].train()
    assert_left(model, x, "1", "in training mode", "call eval() first")
    model.train()
    assert not nf.fold(model, x).folded
    frozen = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nf.FrozenBatchNorm2d(8))).train()
    assert_folded(frozen, x, {"1": "0"})


def test_statistics_that_are_not_finite_are_left():
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    model[1].running_var[3] = -1
    assert_left(model, example(2, 4, 6, 6), "1", "its scale or shift is not finite")


class Nonlinear(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(n, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * x * self.alpha


class PerPosition(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(n, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha


@pytest.mark.parametrize("kind", [Nonlinear, PerPosition])
def test_arithmetic_that_is_no_scale_of_channels_is_left(kind: type[nn.Module]):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), kind(8)).eval()
    assert_left(model, example(2, 4, 6, 6), "1", "its forward is no scale and shift")


# What may lie between


THROUGH: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "dropout": nn.Dropout2d,
    "average pool": lambda: nn.AvgPool2d(2),
    "average pool, padded": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool, ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d(3),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "reflection": lambda: nn.ReflectionPad2d(1),
    "replication": lambda: nn.ReplicationPad2d(2),
    "F.avg_pool2d": lambda: Function(lambda x: F.avg_pool2d(x, 2)),
    "F.interpolate": lambda: Function(lambda x: F.interpolate(x, scale_factor=2)),
    "F.dropout": lambda: Function(lambda x: F.dropout(x, 0.5, False)),
    "F.pad, reflecting": lambda: Function(lambda x: F.pad(x, (1, 1, 1, 1), "reflect")),
    "contiguous": lambda: Function(lambda x: x.contiguous().clone()),
    "there and back": lambda: Function(lambda x: x.transpose(1, 3).transpose(1, 3)),
    "cut": lambda: Function(lambda x: x[:, :, 1:, :-1]),
    "half": lambda: Function(lambda x: x[:, :, None].squeeze(2)),
}
MAXIMA: dict[str, Callable[[], nn.Module]] = {
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool, padded": lambda: nn.MaxPool2d(3, 2, 1),
    "adaptive": lambda: nn.AdaptiveMaxPool2d(3),
    "F.max_pool2d": lambda: Function(lambda x: F.max_pool2d(x, 2)),
    "torch.max_pool2d": lambda: Function(lambda x: torch.max_pool2d(x, 2)),
    "F.adaptive": lambda: Function(lambda x: F.adaptive_max_pool2d(x, 3)),
}
ZEROS: dict[str, Callable[[], nn.Module]] = {
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "F.pad": lambda: Function(lambda x: F.pad(x, (1, 2, 0, 1))),
    "average pool with zeros": lambda: nn.AvgPool2d(3, 2, 1),
    "F.avg_pool2d with zeros": lambda: Function(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
}


class Function(nn.Module):
    """A step of a model's own code."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = [function]

    def forward(self, x: Tensor) -> Tensor:
        return self.function[0](x)


def around(between: nn.Module, positive: bool = False) -> nn.Sequential:
    """A norm that goes back through it, and one that goes ahead through it."""
    return prepared(
        nn.Sequential(
            nn.Conv2d(4, 8, 3), between, nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8),
            copy.deepcopy(between), nn.Conv2d(8, 2, 1),
        ), positive,
    )  # fmt: skip


X = example(2, 4, 14, 14)


@pytest.mark.parametrize("make", THROUGH.values(), ids=THROUGH)
def test_through_what_commutes(make: Callable[[], nn.Module]):
    assert_folded(around(make()), X, {"2": "0", "4": "6"})


@pytest.mark.parametrize("make", MAXIMA.values(), ids=MAXIMA)
def test_through_maxima_where_no_scale_is_negative(make: Callable[[], nn.Module]):
    assert_folded(around(make(), positive=True), X, {"2": "0", "4": "6"})
    model = around(make())
    for name in ("2", "4"):
        negative = int((model.get_submodule(name).weight < 0).sum())
        assert_left(model, X, name, f"between, and {negative} of its scales are negative")
    model[2].weight.data[:] = 0
    model[4].weight.data[:] = 0
    assert_folded(model, X, {"2": "0", "4": "6"})


@pytest.mark.parametrize("make", ZEROS.values(), ids=ZEROS)
def test_through_zeros_where_nothing_is_shifted(make: Callable[[], nn.Module]):
    model = around(make())
    for name in ("2", "4"):
        assert_left(model, X, name, "between would not be shifted in its zeros")
        norm = model.get_submodule(name)
        norm.bias.data.zero_(), norm.running_mean.zero_()
    assert_folded(model, X, {"2": "0", "4": "6"})


BETWEEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "relu": (nn.ReLU, "nn.ReLU 1"),
    "F.relu": (lambda: Function(F.relu), "relu"),
    "method": (lambda: Function(lambda x: x.relu()), "relu"),
    "leaky": (nn.LeakyReLU, "nn.LeakyReLU 1"),
    "sine": (lambda: Function(torch.sin), "sin"),
    "ones": (lambda: nn.ConstantPad2d(1, 1.0), "nn.ConstantPad2d 1"),
    "F.pad, ones": (lambda: Function(lambda x: F.pad(x, (1, 1), value=1.0)), "pad"),
    "lp pool": (lambda: nn.LPPool2d(2, 2), "nn.LPPool2d 1"),
    "group norm": (lambda: nn.GroupNorm(2, 8), "nn.GroupNorm 1"),
    "softmax": (lambda: nn.Softmax2d(), "nn.Softmax2d 1"),
    "sum": (lambda: Function(lambda x: x + 1), "add"),
}


@pytest.mark.parametrize(("make", "named"), BETWEEN.values(), ids=BETWEEN)
def test_not_through_what_does_not_commute(make: Callable[[], nn.Module], named: str):
    model = around(make(), positive=True)
    assert_left(model, X, "2", f"comes after {named}")
    assert_left(model, X, "4", f"comes before {named}".replace(" 1", " 5"))


def test_channels_that_are_mixed_on_the_way():
    turn = Function(lambda x: x.transpose(1, 2))
    model = nn.Sequential(nn.Conv2d(4, 8, 3), turn, nn.BatchNorm2d(12), turn, nn.Conv2d(8, 2, 1))
    assert_left(prepared(model), X, "2", "its channels lie along another axis of the next layer")
    pooled = around(Function(lambda x: F.avg_pool2d(x.transpose(1, 2), 2).transpose(1, 2)))
    pooled[2], pooled[4], pooled[6] = nn.Identity(), prepared(nn.BatchNorm2d(4)), nn.Conv2d(2, 2, 1)
    assert_left(pooled, X, "4", "takes several channels together")


def test_dropout_that_is_on_is_in_the_way():
    model = around(nn.Dropout())
    model[1].train()
    assert_left(model, X, "2", "comes after nn.Dropout 1")


@pytest.mark.parametrize(
    "flatten",
    [
        nn.Flatten(),
        Function(lambda x: torch.flatten(x, 1)),
        Function(lambda x: x.view(x.size(0), -1)),
        Function(lambda x: x.reshape(x.shape[0], -1)),
        Function(lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1)),
        Function(lambda x: F.avg_pool2d(x, 2).flatten(1)),
    ],
)
def test_flattened_into_a_linear_layer(flatten: nn.Module):
    x = example(3, 4, 6, 8)
    size = flatten(example(3, 4, 6, 8)).size(1)
    model = prepared(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), flatten, nn.Linear(size, 5)))
    assert_folded(model, x, {"1": "3"})


def test_backwards_from_behind_a_global_pool():
    for pool in (nn.AdaptiveAvgPool2d(1), Function(lambda x: x.mean((2, 3), keepdim=True))):
        model = nn.Sequential(nn.Conv2d(4, 8, 3), pool, nn.Flatten(), nn.BatchNorm1d(8))
        assert_folded(prepared(model), X, {"3": "0"})
    top = Function(lambda x: x.amax((2, 3)))
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), top, nn.BatchNorm1d(8)))
    assert_left(model, X, "2", "of its scales are negative")
    assert_folded(prepared(model, positive=True), X, {"2": "0"})


def test_a_norm_of_flattened_maps_does_not_fit_a_convolution():
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.BatchNorm1d(8))
    reason = "treats parts of a channel of nn.Conv2d 0 differently; comes before the model's"
    assert_left(prepared(model), example(2, 4, 4, 4), "2", reason)


def test_a_linear_layer_over_a_sequence():
    model = nn.Sequential(
        nn.Linear(6, 5), Function(lambda x: x.transpose(1, 2)), nn.BatchNorm1d(5), nn.ReLU(),
        nn.BatchNorm1d(5), Function(lambda x: x.transpose(1, 2)), nn.Linear(5, 2),
    )  # fmt: skip
    assert_folded(prepared(model), example(3, 7, 6), {"2": "0", "4": "6"})


def test_several_norms_in_a_row():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2),
    )  # fmt: skip
    into = {"1": "0", "3": "0", "5": "7", "6": "7", "8": "7"}
    assert_folded(prepared(model), X, into)


# By data flow


class Crossed(nn.Module):
    """Children in another order than they are called in, with misleading names."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.Conv2d(4, 8, 3)
        self.norm = nn.ReLU()
        self.conv2 = nn.BatchNorm2d(8)
        self.conv = nn.BatchNorm2d(8)
        self.bn2 = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn2(self.norm(self.conv(self.bn1(x)))))


def test_neither_order_nor_names_matter():
    assert_folded(prepared(Crossed()), X, {"conv": "bn1", "conv2": "bn2"})


class PreActivation(nn.Module):
    """A norm and a ReLU before each convolution; child order suggests the opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(torch.relu(self.bn2(y)))


def test_pre_activation():
    model = prepared(PreActivation())
    assert_folded(model, X, {"bn2": "conv1"})
    assert_left(model, X, "bn1", "the output of the model's input has 2 uses; comes before relu")


class Residual(nn.Module):
    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, stride, 1, bias=False), nn.BatchNorm2d(8))
        self.short = nn.Sequential(nn.Conv2d(4, 8, 1, stride, bias=False), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.short(x))


def test_a_residual_network():
    model = prepared(nn.Sequential(Residual(), nn.MaxPool2d(2)))
    into = {"0.conv.1": "0.conv.0", "0.short.1": "0.short.0"}
    folding = assert_folded(model, X, into)
    assert type(folding.model[0]) is Residual
    assert folding.model[0].act.inplace


class Uses(nn.Module):
    """A value, a layer or a weight that has another use."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(4, 4, 1)
        if kind == "tied":
            self.tied.weight = self.conv.weight
        if kind == "hooked":
            self.conv.register_forward_hook(lambda module, args, y: 2 * y)
        if kind == "hooked norm":
            self.norm.register_forward_pre_hook(lambda module, args: (2 * args[0],))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        if self.kind == "value":
            return z + y
        if self.kind == "value, later":
            return z + y.flatten(1).mean(1).view(-1, 1, 1, 1)
        if self.kind == "layer":
            return z + self.conv(z)
        if self.kind == "weight":
            return z + self.conv.weight.sum()
        if self.kind == "norm":
            return self.norm(z)
        if self.kind == "parameters":
            return z + self.norm.bias.sum()
        if self.kind == "statistics":
            return z + self.norm.running_mean.sum()
        if self.kind == "tied":
            return self.tied(z.relu())
        if self.kind == "shape":
            return z / y.size(1) + y.shape[2]
        return z


USES = {
    "value": "the output of nn.Conv2d conv has 2 uses; comes before add of several tensors",
    "value, later": "the output of nn.Conv2d conv has 2 uses",
    "layer": "nn.Conv2d conv is called several times",
    "weight": "the weights of nn.Conv2d conv have another use",
    "norm": "it is called 2 times",
    "parameters": "its tensors have another use",
    "tied": "the weights of nn.Conv2d conv have another use",
    "hooked": "nn.Conv2d conv has hooks",
    "hooked norm": "has hooks, which may change its input or output",
}


@pytest.mark.parametrize(("kind", "reason"), USES.items())
def test_what_has_another_use_is_left(kind: str, reason: str):
    assert_left(prepared(Uses(kind)), X, "norm", reason)


def test_reading_a_shape_is_no_use():
    assert_folded(prepared(Uses("shape")), X, {"norm": "conv"})


def test_shared_norms_and_two_names():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared)
    assert_left(prepared(model), X, "1", "it is called 2 times")
    model = prepared(Uses(""))
    model.alias = model.norm
    folding = assert_folded(model, X, {"norm": "conv", "alias": "conv"})
    assert folding.folded[0].names == ("norm", "alias")


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class ActNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_classes_of_ones_own():
    for host, reason in {
        Standardized(4, 8, 3): "is no plain layer of PyTorch",
        parametrizations.weight_norm(nn.Conv2d(4, 8, 3)): "is parametrized: remove that first",
    }.items():
        assert_left(prepared(nn.Sequential(host, nn.BatchNorm2d(8))), X, "1", reason)
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), ActNorm(8)))
    assert_left(model, X, "1", "a subclass of nn.BatchNorm2d, which may do something else")
    model[1] = prepared(nn.BatchNorm2d(8))
    model[1].forward = lambda x: x.abs()
    assert_left(model, X, "1", "its forward was replaced")


class Branching(nn.Module):
    """Control flow that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_a_part_that_cannot_be_traced_is_left():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Sequential(Branching()))
    model = prepared(model)
    folding = assert_folded(model, X, {"1": "0"})
    (row,) = folding.left
    assert row.names == ("2.0.norm",)
    assert row.reason.startswith("inside 2.0, which cannot be traced: TraceError: symbolically")
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), Branching()))
    part = nn.Sequential(model[2].conv, model[2].norm)
    assert_folded(part, example(2, 8, 3, 3), {"1": "0"})


def test_a_model_that_cannot_be_traced_is_refused():
    model = prepared(Branching())
    before = state(model)
    message = (
        r"^fold: the data flow of Branching.forward cannot be followed \(TraceError.*one by one"
    )
    with pytest.raises(ValueError, match=message):
        nf.fold(model, example(2, 8, 3, 3))
    assert state(model) == before


def test_a_norm_that_is_not_called_and_a_norm_alone():
    model = prepared(Uses(""))
    model.spare = nn.BatchNorm2d(4).eval()
    folding = assert_folded(model, X, {"norm": "conv"})
    assert [(row.names, row.reason) for row in folding.left] == [
        (("spare",), "it is not called in evaluation")
    ]
    (row,) = nf.fold(prepared(nn.BatchNorm2d(4)), X).left
    assert row.reason == "it is the model itself, without a layer"


class Options(nn.Module):
    """Arguments of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, other: Tensor, mask: Any = None, *, twice: bool = False) -> Any:
        y = self.norm(self.conv(x))
        y = y if mask is None else y * mask
        return {"y": y + other, "list": [2 * y if twice else y], "count": x.size(0)}


def test_inputs_and_outputs_of_many_kinds():
    model = prepared(Options())
    other = example(2, 8, 14, 14)
    for given in ((X, other), {"x": X, "other": other}, {"x": X, "other": other, "twice": True}):
        folding = nf.fold(model, given)
        assert len(folding) == 1
        assert folding.proof.error < 1e-13
        exact = model.double()(X.double(), other.double())
        found = folding.model.double()(X.double(), other.double())
        model.float()
        for a, b in zip((found["y"], *found["list"]), (exact["y"], *exact["list"]), strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_wrapped_and_compiled_models_are_unwrapped():
    model = prepared(Uses(""))
    for wrapper in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        folding = nf.fold(wrapper, X)
        assert type(folding.model) is Uses
        assert folding.folded[0].names == ("norm",)


# The copy


def test_the_copy_is_apart_and_like_the_model():
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)))
    model[0].weight.requires_grad_(False)
    hooked = []
    model.register_forward_hook(lambda module, args, y: hooked.append(module))
    folding = nf.fold(model, X, verify=False)
    assert not folding.model[0].bias.requires_grad
    assert folding.model.training == model.training
    pointers = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not pointers & {t.data_ptr() for t in folding.model.parameters()}
    hooked.clear()
    outputs(folding.model, X)
    assert hooked == [folding.model]
    other = pickle.loads(pickle.dumps(nf.fold(prepared(Crossed()), X).model))
    assert type(other) is Crossed
    assert "conv2.weight" not in other.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype):
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))).to(dtype)
    folding = nf.fold(model, X.to(dtype))
    assert {p.dtype for p in folding.model.parameters()} == {dtype}
    assert folding.proof.error < 1e-13
    assert folding.proof.rounding < (1e-13 if dtype is torch.float64 else 0.03)


class InSingle(nn.Module):
    """Written for float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.float()))


def test_a_model_of_one_type_is_compared_in_that():
    folding = nf.fold(prepared(InSingle()), X)
    assert folding.proof.dtype is torch.float32
    assert 0 <= folding.proof.error < 1e-5
    assert "in float32" in str(folding)


# What is wrong is noticed


def broken_scale(self: Weights, affine: Affine) -> None:
    self.weight = self.weight * self._by_output(affine.scale)
    self.bias = self.bias + affine.shift


def broken_shift(self: Weights, affine: Affine) -> None:
    self.weight = self.weight * self._by_input(affine.scale)
    self.bias = self.bias + (self.weight * self._by_input(affine.shift)).flatten(1).sum(1)


def no_eps(module: nn.Module, shape: Any) -> Affine | str:
    if not isinstance(module, nn.BatchNorm2d):
        return "no norm"
    scale = module.weight.double() / module.running_var.double().sqrt()
    return Affine(scale.detach(), (module.bias - module.running_mean * scale).detach().double())


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "bias not scaled": (Weights, "behind", broken_scale),
    "shift after scale": (Weights, "ahead", broken_shift),
    "eps forgotten": ("normalform.surgery.folding.fold", "affine_of", no_eps),
    "activation ignored": (paths, "rule_of", lambda *args: Rule(lambda numbers: numbers)),
    "borders ignored": (paths, "_has_borders", lambda host: False),
    "axis forgotten": (
        Weights,
        "_by_output",
        lambda self, v: v[: self.weight.size(1)].view(-1, 1, 1),
    ),
    "negative maxima": (
        rules,
        "Rule",
        lambda channels, unshifted=False, nonnegative=False: Rule(channels),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch):
    owner, name, planted = FAULTS[fault]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    model = prepared(
        nn.Sequential(
            nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8, eps=0.1), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8),
        )
    )  # fmt: skip
    x = example(2, 8, 20, 20)
    assert nf.fold(model, x).proof.error < 1e-13
    before = state(model)
    monkeypatch.setattr(owner, name, planted)
    with pytest.raises(RuntimeError, match=r"outputs for the example differ by|does not run"):
        nf.fold(model, x)
    assert state(model) == before


class Sly(nn.Module):
    """Does something that its data flow does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return 2 * y if isinstance(self.norm, nn.BatchNorm2d) else y


def test_what_the_data_flow_does_not_show_is_noticed():
    with pytest.raises(RuntimeError, match=r"cannot be seen in its data flow. The model is as it"):
        nf.fold(prepared(Sly()), X)
    assert nf.fold(prepared(Sly()), X, verify=False).proof is None
    with pytest.raises(RuntimeError, match=r"does not run on the example \(AttributeError: 'Ident"):
        nf.fold(prepared(Uses("statistics")), X)


def test_a_model_that_cannot_be_copied_is_refused():
    model = prepared(Uses(""))
    prune.l1_unstructured(model.conv, "weight", 5)
    with pytest.raises(TypeError, match=r"^fold: Uses cannot be copied by copy.deepcopy"):
        nf.fold(model, X)
    with pytest.raises(TypeError, match="fold takes a model"):
        nf.fold([model], X)


def test_an_interrupt_at_any_point_leaves_the_model_as_it_was():
    layers = nn.Linear(3, 2), nn.Flatten(), nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2)
    model = prepared(nn.Sequential(*layers, nn.Linear(2, 1)))
    x = example(2, 3)
    before = state(model)
    points = 0
    for point in interrupted_everywhere(
        lambda: nf.fold(model, x), ("surgery/folding/",), last=False
    ):
        assert state(model) == before, point
        points += 1
    assert points > 200


# The report


def test_the_report_reads_as_a_table():
    model = prepared(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    model.extend(prepared(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4))))
    lines = str(nf.fold(model, X)).splitlines()
    assert lines[0].startswith("folded 2: BatchNorm2d 2; left 1: GroupNorm 1; outputs differ by ")
    assert lines[0].endswith(" before)")
    assert lines[1:] == [
        "  1  nn.BatchNorm2d -> 0",
        "  3  nn.BatchNorm2d -> 4 (ahead)",
        "  5  nn.GroupNorm left: its statistics are those of each input",
    ]
    assert str(nf.fold(nn.Sequential(nn.Linear(4, 4)), X)) == "no norms found"


def test_under_autocast_the_folded_weights_are_used_at_once():
    model = prepared(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)))
    x = example(2, 6, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        folded = nf.fold(model, x).model(x)
    assert (folded - expected).abs().max() < 0.05 * expected.abs().max()
