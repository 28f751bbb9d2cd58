"""Running statistics made anew: exact ones, of the right norms, and nothing else touched."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normalform as nf
from interruptions import interrupted_everywhere
from model_state import state
from normalform.surgery import population, watching
from normalform.surgery.population import Population, moments


def data(*shape: int, mean: float = 3.0, std: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 1.5, shape[1]).view(-1, *[1] * (len(shape) - 2))
    return mean + std * scale * torch.randn(shape, generator=generator)


def of_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, by NumPy in float64."""
    rows = np.moveaxis(x.double().numpy(), 1, 0).reshape(x.size(1), -1)
    return torch.from_numpy(rows.mean(1)), torch.from_numpy(rows.var(1, ddof=1))


def assert_is_of(norm: nn.Module, x: Tensor, rel: float = 1e-6) -> None:
    for found, exact in zip((norm.running_mean, norm.running_var), of_all(x), strict=True):
        assert ((found.double() - exact).abs() <= rel * exact.abs()).all()


# The statistics


SHAPES: dict[int, tuple[int, ...]] = {1: (40, 6, 5), 2: (40, 6, 4, 3), 3: (40, 6, 2, 3, 3)}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "nn.BatchNorm": lambda d: getattr(nn, f"BatchNorm{d}d")(6),
    "nf.BatchNorm": lambda d: getattr(nf, f"BatchNorm{d}d")(6),
    "SyncBatchNorm": lambda d: nn.SyncBatchNorm(6),
    "GhostBatchNorm": lambda d: getattr(nf, f"GhostBatchNorm{d}d")(6, 2),
    "SwitchNorm": lambda d: getattr(nf, f"SwitchNorm{d}d")(6),
    "of ghosts": lambda d: getattr(nf, f"SwitchNorm{d}d")(6, over=("instance", "ghost:2")),
    "double": lambda d: getattr(nn, f"BatchNorm{d}d")(6, dtype=torch.float64, momentum=None),
    "not affine": lambda d: getattr(nn, f"BatchNorm{d}d")(6, affine=False),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dim", SHAPES)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_statistics_are_those_of_the_data(
    make: Callable[[int], nn.Module], dim: int, training: bool
):
    layer = make(dim).train(training)
    x = data(*SHAPES[dim]).to(layer.running_mean.dtype)
    report = nf.recalibrate(layer, [x[:7], x[7:30], x[30:]])
    assert_is_of(layer, x)
    assert layer.num_batches_tracked == 3
    (row,) = report.norms
    assert (row.names, row.values, report.batches) == (("",), x.numel() // 6, 3)
    assert row.kind.endswith(type(layer).__name__)
    assert layer.training == training


def test_rows():
    x = data(50, 6)
    for layer in (nn.BatchNorm1d(6), nf.SwitchNorm1d(6), nf.GhostBatchNorm1d(6, 4)):
        nf.recalibrate(layer, x.split(8))
        assert_is_of(layer, x)


def pick(x: Tensor) -> dict[str, Tensor]:
    return {
        "plain": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": torch.cat([x, x + 1], 3)[..., : x.size(3)],
        "reversed": x.flip(1).flip(1).transpose(2, 3).contiguous().transpose(2, 3),
        "one sample each": x,
    }


@pytest.mark.parametrize("chunk", [1, 17, 100, 2**20])
@pytest.mark.parametrize("form", pick(torch.zeros(1, 1, 1, 1)))
def test_any_layout_in_chunks_of_any_size(form: str, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(population, "CHUNK", chunk)
    x = pick(data(9, 6, 5, 4))[form]
    layer = nn.BatchNorm2d(6)
    nf.recalibrate(layer, x.split(1) if form == "one sample each" else [x])
    assert_is_of(layer, x)


@pytest.mark.parametrize(("mean", "std"), [(1e4, 1e-2), (1e6, 1.0), (-1e3, 1e-3), (0.0, 1e-15)])
def test_large_means_and_tiny_variances(mean: float, std: float):
    x = data(64, 6, 4, 4, mean=mean, std=std)
    layer = nf.BatchNorm2d(6)
    nf.recalibrate(layer, x.split(5))
    assert (layer.running_var >= 0).all()
    exact = of_all(x)
    assert (
        (layer.running_mean.double() - exact[0]).abs() <= 1e-6 * exact[0].abs() + 1e-7 * std
    ).all()
    assert ((layer.running_var.double() - exact[1]).abs() <= 1e-6 * exact[1]).all()


@pytest.mark.parametrize("value", [0.0, 1000.1, -1e30])
def test_constants_have_no_variance(value: float):
    layer = nn.BatchNorm1d(2)
    nf.recalibrate(layer, torch.full((10, 2), value).split(3))
    assert layer.running_var.tolist() == [0, 0]
    assert layer.running_mean.tolist() == torch.full((2,), value).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype: torch.dtype):
    x = data(64, 6, 4, 4).to(dtype)
    layer = nf.BatchNorm2d(6)
    nf.recalibrate(layer, x.split(16))
    assert_is_of(layer, x.float())


def test_populations_merge_in_any_order():
    x = data(30, 4, 3)
    parts = [moments(part) for part in x.split([1, 20, 2, 7])]
    for order in (parts, parts[::-1], [Population(4), *parts, Population(4)]):
        merged = Population(4)
        for part in order:
            merged.merge(part)
        assert merged.count == 90
        for found, exact in zip((merged.mean, merged.variance()), of_all(x), strict=True):
            assert (found - exact).abs().max() <= 1e-14 * exact.abs().max()


# Planted: what a careless merge would give is told from the exact one.


def test_the_check_tells_careless_ways_apart():
    x = data(40, 6)
    batches = [x[:4], x[4:]]
    layer = nn.BatchNorm1d(6)
    exact = of_all(x)
    careless = {
        "mean of batch variances": torch.stack([b.var(0) for b in batches]).mean(0),
        "biased": x.var(0, correction=0),
        "not centred": x.square().mean(0),
    }
    for name, var in careless.items():
        layer.running_mean.copy_(exact[0])
        layer.running_var.copy_(var)
        with pytest.raises(AssertionError):
            assert_is_of(layer, x)
        layer.running_var.copy_(exact[1])
        assert_is_of(layer, x), name


@pytest.mark.parametrize("fault", ["equal weights", "no spread between", "sum of means"])
def test_planted_faults_in_the_merge_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    def merge(self: Population, other: Population) -> None:
        n, m = self.count, other.count
        apart = other.mean - self.mean
        share = 0.5 if fault == "equal weights" and n else m / (n + m)
        self.mean = self.mean + (other.mean if fault == "sum of means" else apart) * share
        between = 0 if fault == "no spread between" else n * m / (n + m)
        self.spread = self.spread + other.spread + apart.square() * between
        self.count = n + m

    monkeypatch.setattr(Population, "merge", merge)
    x = data(40, 6)
    layer = nn.BatchNorm1d(6)
    nf.recalibrate(layer, [x[:4], x[4:]])
    with pytest.raises(AssertionError):
        assert_is_of(layer, x)


# A network


class Net(nn.Module):
    """A shared norm, dropout, a norm that is not reached, an auxiliary head in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = nn.BatchNorm2d(4)
        self.shared = nf.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nf.SwitchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.inputs: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.relu(self.first(self.stem(x))))
        x = self.last(self.drop(self.shared(2 * x + 1)))
        if self.training:
            x = self.unused(x)
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(data(8, 3, 6, 6)).sum().backward()
    return model


def images(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(data(4 + k, 3, 6, 6, seed=k), torch.arange(4 + k)) for k in range(count)]


def seen(model: Net, loader: Any) -> dict[str, Tensor]:
    """What reaches each norm of a copy whose norms train and whose dropout does not."""
    model = copy.deepcopy(model).eval()
    found: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            module.train()
            module.register_forward_pre_hook(
                lambda m, args, name=name: found.setdefault(name, []).append(args[0])
            )
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    return {name: torch.cat(inputs) for name, inputs in found.items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_norm_gets_the_statistics_of_what_reaches_it(training: bool):
    model, loader = net().train(training), images()
    expected = seen(model, loader)
    unused = copy.deepcopy(model.unused.state_dict())
    report = nf.recalibrate(model, loader)
    assert [row.names for row in report.norms] == [("first",), ("shared",), ("last",)]
    for name, x in expected.items():
        assert_is_of(model.get_submodule(name), x)
    assert [row.values for row in report.norms] == [30 * 16, 60 * 16, 30 * 16]
    assert model.shared.num_batches_tracked == 10
    assert [(row.names, row.reason) for row in report.left] == [
        (("unused",), "no batch reached it")
    ]
    after = model.unused.state_dict()
    assert all(torch.equal(after[key], value) for key, value in unused.items())


def test_evaluation_is_training_where_batches_are_alike():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nf.BatchNorm2d(4), nn.BatchNorm2d(4))
    x = data(16, 3, 9, 9)
    expected = model(x)
    nf.recalibrate(model.eval(), [x, x, x])
    assert (model(x) - expected).abs().max() < 5 / (16 * 49)  # unbiased, and three times


def test_nothing_but_the_statistics_changes():
    model = net().train()
    model.drop.eval()
    model.first.register_forward_hook(lambda module, args, y: None)
    before = state(model)
    stats = {"running_mean", "running_var", "num_batches_tracked"}
    nf.recalibrate(model, images())
    after = state(model)
    assert after[0] == before[0]
    assert after[1] == before[1]
    assert after[3:] == before[3:]
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    changed = {n for n, a, b in zip(names, before[2], after[2], strict=True) if a != b}
    norms = ("first", "shared", "last")
    assert changed == {f"{norm}.{stat}" for norm in norms for stat in stats}


def test_one_pass_of_one_call_a_batch():
    model, calls = net(), []
    model.stem.register_forward_hook(lambda module, args, y: calls.append(y.requires_grad))
    nf.recalibrate(model, images(3))
    assert calls == [False] * 3
    taken: list[int] = []
    loader = ((taken.append(k), data(4, 3, 6, 6, seed=k))[1] for k in range(9))
    assert nf.recalibrate(model, loader, batches=2).batches == 2
    assert taken == [0, 1]


def test_one_batch_and_a_short_loader_will_do():
    model = net()
    assert nf.recalibrate(model, images(1), batches=200).batches == 1
    assert model.first.num_batches_tracked == 1


def test_the_average_goes_on_from_there():
    layer = nn.BatchNorm1d(3, momentum=None)
    x = data(30, 3)
    nf.recalibrate(layer, x.split(10))
    later = data(10, 3, mean=50)
    layer(later)
    expected = (3 * x.mean(0) + later.mean(0)) / 4
    assert torch.allclose(layer.running_mean, expected)


def test_batch_average_of_a_switchable_norm():
    """The authors' sums over batches, divided: mean of means, mean of squares less its square."""
    layer = nf.SwitchNorm2d(6)
    batches = [data(8, 6, 3, 3, seed=k) for k in range(4)]
    nf.recalibrate(layer, batches)
    stats = [(b.double().mean((0, 2, 3)), b.double().var((0, 2, 3), correction=0)) for b in batches]
    mean = sum(m for m, _ in stats) / 4
    biased = sum(m * m + v for m, v in stats) / 4 - mean * mean
    count = 4 * 8 * 9
    assert (layer.running_mean - mean).abs().max() < 1e-6
    assert (layer.running_var - biased * count / (count - 1)).abs().max() < 1e-5


# Batches of one


def test_a_last_batch_of_one_value_a_channel():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nf.BatchNorm1d(4))
    x = data(9, 3)
    nf.recalibrate(model, x.split(4))
    assert_is_of(model[0], x)
    assert model[0].training
    assert model[2].num_batches_tracked == 3
    assert torch.isfinite(model[2].running_var).all()


def test_a_batch_of_one_value_a_channel_in_between():
    layer, modes = nn.BatchNorm1d(3), []
    layer.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    layer.register_forward_hook(lambda module, args, y: modes.append(module.training))
    x = data(9, 3)
    nf.recalibrate(layer, x.split([4, 1, 4]))
    assert modes == [True, True, True, False, True, True]
    assert_is_of(layer, x)


def test_inputs_are_left_as_they_are():
    x = data(8, 3).double()
    before = x.clone()
    nf.recalibrate(nn.BatchNorm1d(3, dtype=torch.float64), [x])
    assert torch.equal(x, before)


def test_a_first_batch_of_one_value_a_channel_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = state(model)
    message = r"^recalibrate: the first input of 1 is \[1, 4\], one value .* give larger batches"
    with pytest.raises(ValueError, match=message):
        nf.recalibrate(model, data(3, 3).split(1))
    assert state(model) == before


def test_a_switchable_norm_takes_single_samples():
    layer = nf.SwitchNorm2d(4, over=("layer", "batch"))
    x = data(5, 4, 1, 1)
    nf.recalibrate(layer, x.split(1))
    assert_is_of(layer, x)


def test_an_empty_batch_counts_for_nothing():
    layer = nf.BatchNorm1d(3)
    x = data(8, 3)
    report = nf.recalibrate(layer, [x[:0], x, x[:0]])
    assert_is_of(layer, x)
    assert layer.num_batches_tracked == 1
    assert report.norms[0].values == 8
    (row,) = nf.recalibrate(layer, [x[:0]]).left
    assert row.reason == "no batch reached it"
    (row,) = nf.recalibrate(
        nf.SwitchNorm2d(3, over=("layer", "batch")), [x[:1, :, None, None]]
    ).left
    assert row.reason == "one value in each channel has no variance"


def test_channels_that_are_not_finite_keep_theirs():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(7)
    x = data(8, 3)
    x[2, 1] = torch.nan
    (row,) = nf.recalibrate(layer, [x]).norms
    assert row.note == "1 of 3 channels kept: not finite"
    assert layer.running_mean[1] == 7
    assert layer.running_var[1] == 1
    assert layer.running_mean[0] == pytest.approx(float(x[:, 0].double().mean()), rel=1e-6)
    x[:] = torch.inf
    (row,) = nf.recalibrate(layer, [x]).left
    assert row.reason == "what reached it is not finite in any channel"


# What is left


class Act(nn.BatchNorm2d):
    """With an activation, as other libraries have it: its statistics are of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Doubled(nn.BatchNorm2d):
    """Its statistics are not of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


class LastAxis(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(-1, 1)).movedim(1, -1)


class FrozenBatchNorm2d(nn.Module):
    """As detectron2 and torchvision have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean[:, None, None]) / self.running_var[:, None, None].sqrt()


class OwnSync(nn.SyncBatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        return input


def scripted() -> nn.Module:
    return torch.jit.script(nn.BatchNorm2d(4))


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "frozen": (lambda: nf.FrozenBatchNorm2d(4), "frozen: its statistics are not meant to change"),
    "another's frozen": (FrozenBatchNorm2d, "a class of its own"),
    "no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), "keeps no running"),
    "switch of two": (lambda: nf.SwitchNorm2d(4, over=("instance", "layer")), "keeps no running"),
    "instance": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), "those of instances"),
    "subclass": (Doubled, "a subclass of nn.BatchNorm2d, and its statistics are not those of its"),
    "last axis": (LastAxis, "a subclass of nn.BatchNorm2d, and its statistics are not"),
    "synchronized": (OwnSync, "a subclass of nn.SyncBatchNorm, which may do something else"),
    "scripted": (scripted, "compiled by torch.jit"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_left_and_named(make: Callable[[], nn.Module], reason: str):
    odd = make(4) if make in (Doubled, LastAxis, OwnSync) else make()
    model = nn.ModuleDict({"odd": odd, "plain": nn.BatchNorm2d(4)})
    before = copy.deepcopy(odd.state_dict())
    training = {name: m.training for name, m in model.named_modules()}

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = model

        def forward(self, x: Tensor) -> Tensor:
            return self.norms["plain"](self.norms["odd"](x))

    report = nf.recalibrate(Run(), [data(6, 4, 4, 4)])
    assert [row.names for row in report.norms] == [("norms.plain",)]
    (row,) = report.left
    assert row.names == ("norms.odd",)
    assert reason in row.reason
    assert all(torch.equal(t, before[key]) for key, t in odd.state_dict().items())
    assert training == {name: m.training for name, m in model.named_modules()}


def test_subclasses_whose_statistics_are_of_their_input_are_recalibrated():
    parametrized = nn.BatchNorm2d(4)
    parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    replaced = nn.BatchNorm2d(4)
    replaced.forward = lambda x: nn.BatchNorm2d.forward(replaced, x).abs()
    for layer in (Act(4), parametrized, replaced):
        layer.momentum = 0.01
        x = data(6, 4, 4, 4)
        assert len(nf.recalibrate(layer, [x])) == 1
        assert_is_of(layer, x)
        assert layer.momentum == 0.01


def test_norms_in_evaluation_mode_within_a_model_in_training_mode_are_frozen():
    model = net().train()
    model.first.eval()
    before = copy.deepcopy(model.first.state_dict())
    report = nf.recalibrate(model, images())
    assert [row.names for row in report.norms] == [("shared",), ("last",)]
    assert (("first",), watching.IN_EVALUATION) in [(row.names, row.reason) for row in report.left]
    assert all(torch.equal(t, before[key]) for key, t in model.first.state_dict().items())


class Backbone(nn.Sequential):
    """Keeps its norms in evaluation mode, as fine tuning recipes do."""

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        self[0].eval()
        with torch.no_grad():
            self[1].weight.add_(1)  # as those that merge and split weights do
        return self


@pytest.mark.parametrize("training", [True, False])
def test_norms_that_the_models_own_train_keeps_in_evaluation_are_frozen(training: bool):
    model = Backbone(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.train(training)
    before = state(model[1]), state(model[0])
    report = nf.recalibrate(model, [data(8, 3)])
    assert [row.names for row in report.norms] == [("2",)]
    assert (state(model[1])[2], state(model[0])[2]) == (before[0][2], before[1][2])


def test_no_norms_found():
    report = nf.recalibrate(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), [])
    assert (str(report), len(report)) == ("no norms with running statistics found", 0)


# Wrappers


def test_inside_a_wrapper():
    x = data(8, 3)
    layer = nn.BatchNorm1d(3)
    (row,) = nf.recalibrate(nn.DataParallel(nn.Sequential(layer)), [x]).norms
    assert row.names == ("module.0",)
    assert_is_of(layer, x)


def test_compiled_models_and_parts():
    torch._dynamo.reset()
    layers = [nn.BatchNorm1d(3) for _ in range(3)]
    whole = torch.compile(nn.Sequential(layers[0]), backend="eager")
    part = nn.Sequential(torch.compile(nn.Sequential(layers[1]), backend="eager"))
    in_place = nn.Sequential(layers[2])
    in_place.compile(backend="eager")
    for layer, model in zip(layers, (whole, part, in_place), strict=True):
        model.eval()
        layer.train()
        with torch.no_grad():
            model(data(8, 3, seed=5))  # compiled as it will be run, before there are any hooks
        x = data(8, 3)
        assert len(nf.recalibrate(model, [x])) == 1
        assert_is_of(layer, x)
        y = model.eval()(x)
        assert (y - layer(x)).abs().max() < 1e-6


# All or nothing


@pytest.mark.parametrize("loader", [[], iter(()), (x for x in ())])
def test_an_empty_loader_is_refused(loader: Any):
    model = net()
    before = state(model)
    with pytest.raises(ValueError, match=r"^recalibrate: the loader gave no batches"):
        nf.recalibrate(model, loader)
    assert state(model) == before


def test_what_is_no_model_or_no_loader_is_refused():
    with pytest.raises(TypeError, match=r"recalibrate takes a model, .* got the class BatchNorm2d"):
        nf.recalibrate(nn.BatchNorm2d, [])
    with pytest.raises(TypeError, match="recalibrate takes an iterable of batches"):
        nf.recalibrate(net(), data(4, 3, 6, 6))
    with pytest.raises(ValueError, match="recalibrate: batches=0 is not a positive"):
        nf.recalibrate(net(), images(), batches=0)


def test_an_exception_anywhere_in_the_model_leaves_it_as_it_was():
    model, loader = net(), images(2)
    calls = [0]
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda m, args, y: stop(calls))
    before = state(model)
    until = [1]

    def stop(calls: list[int]) -> None:
        calls[0] += 1
        if calls[0] == until[0]:
            raise KeyboardInterrupt

    reached = 0
    while True:
        calls[0] = 0
        try:
            nf.recalibrate(model, loader)
        except KeyboardInterrupt:
            assert state(model) == before, until
            reached += 1
            until[0] += 1
        else:
            break
    assert reached == 2 * 7


def test_an_exception_of_the_loader_leaves_the_model_as_it_was():
    def broken() -> Any:
        yield from images(2)
        raise OSError("no such file")

    model = net()
    before = state(model)
    with pytest.raises(OSError, match="no such file"):
        nf.recalibrate(model, broken())
    assert state(model) == before


def test_an_interrupt_at_any_point_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.Linear(3, 3), Act1d(3), nf.FrozenBatchNorm1d(3))
    loader = [data(4, 3), data(1, 3)]
    start = copy.deepcopy(model)
    before = [state(model)]

    def run() -> None:
        nf.recalibrate(model, loader)
        model.load_state_dict(start.state_dict())
        before[0] = state(model)

    files = ("surgery/keeping", "surgery/watching", "surgery/recalibrate", "surgery/population")
    points = 0
    for point in interrupted_everywhere(run, files):
        assert state(model)[:2] == before[0][:2], point
        bits = [[(t[0], *t[2:]) for t in s[2]] for s in (state(model), before[0])]
        assert bits[0] == bits[1], point
        assert state(model)[3:] == before[0][3:], point
        points += 1
    assert points > 200


class Act1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


# The report


def test_the_report_says_how_far_they_moved():
    layer = nn.BatchNorm1d(2, eps=1e-12)
    layer.running_mean.copy_(torch.tensor([0.0, 1.0]))
    layer.running_var.copy_(torch.tensor([1.0, 4.0]))
    x = torch.tensor([[1.0, -1.0], [3.0, 3.0]])  # means 2 and 1, variances 2 and 8
    model = nn.Sequential(layer, nn.Identity(), nf.FrozenBatchNorm1d(2))
    report = nf.recalibrate(model, [x])
    (row,) = report.norms
    assert row.shift == pytest.approx(2 / 2**0.5)
    assert row.scale == pytest.approx((2**0.5, 2**0.5))
    moved = "mean moved by up to 1.4 std, std times 1.4 to 1.4"
    assert str(report).splitlines() == [
        "recalibrated 1 from 1 batch; left 1",
        f"  0  nn.BatchNorm1d: 2 values a channel, {moved}",
        "  2  nf.FrozenBatchNorm1d left: frozen: its statistics are not meant to change",
    ]
    assert repr(report) == str(report)
    layer.running_mean.fill_(torch.nan)
    assert nf.recalibrate(model, [x]).norms[0].shift == torch.inf


# Several processes


SHARES = ((0, 9), (9, 30))


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    x = data(30, 6, 4, 4)
    start, stop = SHARES[rank]
    found: dict[str, Any] = {}
    kinds = {nn.SyncBatchNorm: nn.Sequential, nn.BatchNorm2d: nn.parallel.DistributedDataParallel}
    for kind, wrap in kinds.items():
        torch.manual_seed(0)
        model = nn.Sequential(kind(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
        report = nf.recalibrate(wrap(model), x[start:stop].split(4))
        found[kind.__name__] = model.state_dict(), report.norms[0].values, report.batches
    found["empty"] = _empty_on_one(rank, x)
    found["failed"] = _failed_on_one(rank, x)
    dist.barrier()
    dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


def _empty_on_one(rank: int, x: Tensor) -> dict[str, Tensor]:
    layer = nn.BatchNorm2d(6)
    nf.recalibrate(layer, x.split(8) if rank else [])
    return layer.state_dict()


def _failed_on_one(rank: int, x: Tensor) -> str:
    layer = nn.BatchNorm2d(6)
    before = state(layer)
    try:
        nf.recalibrate(layer, x.split(8) if rank else ["no tensor"])
    except Exception as error:
        assert state(layer) == before
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def test_two_processes_with_unequal_shares_agree(tmp_path: Any):
    mp.spawn(_in_process, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    x = data(30, 6, 4, 4)
    for name in ("SyncBatchNorm", "BatchNorm2d"):
        first, second = (rank[name] for rank in ranks)
        assert first[1:] == second[1:] == (480, 3 + 6)
        assert all(torch.equal(t, second[0][key]) for key, t in first[0].items()), name
        norm = nn.BatchNorm2d(6)
        norm.load_state_dict({k[2:]: t for k, t in first[0].items() if k.startswith("0.")})
        assert_is_of(norm, x)
        assert norm.num_batches_tracked == 9
    empty = nn.BatchNorm2d(6)
    empty.load_state_dict(ranks[0]["empty"])
    assert_is_of(empty, x)
    assert all(torch.equal(t, ranks[1]["empty"][key]) for key, t in ranks[0]["empty"].items())
    assert "RuntimeError: recalibrate: it failed on rank 0" in ranks[1]["failed"]
    assert not ranks[0]["failed"].startswith(("nothing", "RuntimeError: recalibrate"))
