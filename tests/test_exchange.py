"""Norms exchanged for norms of other kinds, and given back: what is carried, new and put aside."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import normalform as nf
from normalform.surgery import memory
from normalform.surgery.keeping import kept
from normalform.surgery.kinds import CLASSES
from normalform.testing import assert_layer_accurate
from raising import everywhere
from steps import assert_same, direction, example

SHAPES = {1: (5, 6, 7), 2: (5, 6, 4, 3), 3: (5, 6, 2, 3, 2)}
ROWS = ("layer", "rms")
CHANNEL_TARGETS = ("batch", "instance", "group:2", "layer", "switch", "ghost:2", "frozen", "none")
TARGETS = {kind: ("layer", "token", "rms", "none") if kind in ROWS else CHANNEL_TARGETS
           for kind in CLASSES}  # fmt: skip

AFFINE = {"weight", "bias"}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
HOLDS = {
    "batch": AFFINE | STATISTICS,
    "ghost": AFFINE | STATISTICS,
    "frozen": AFFINE | STATISTICS,
    "switch": AFFINE | STATISTICS | {"mean_weight", "var_weight"},
    "instance": AFFINE,
    "group": AFFINE,
    "layer": AFFINE,
    "token": AFFINE,
    "rms": {"weight"},
    "none": set(),
}
NEW = {"running_var": 1.0, "weight": 1.0, "mean_weight": 1.0, "var_weight": 1.0}


def randomized(layer: nn.Module) -> nn.Module:
    """With parameters and buffers that are not all alike."""
    generator = torch.Generator().manual_seed(0)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.fill_(7)
    return layer


def made(make: Any, kind: str, **options: Any) -> Any:
    arguments = {"group": (3, 6), "ghost": (6, 3)}.get(kind, (7,) if kind in ROWS else (6,))
    if kind == "instance":
        options = {"affine": True, "track_running_stats": True, **options}
    return randomized(make(*arguments, **options))


def each_pair(*packages: Any) -> Any:
    """Every class of every kind with every kind it may become."""
    found: list[Any] = []
    for kind, dim, package in itertools.product(CLASSES, (1, 2, 3), packages):
        make = getattr(package, CLASSES[kind].format(dim), None)
        for target in TARGETS[kind] if make is not None else ():
            name = f"{package.__name__}.{make.__name__}-{dim}d-{target}"
            if kind not in ROWS or dim == 1:
                found.append(pytest.param(make, kind, dim, target, id=name))
    return pytest.mark.parametrize(("make", "kind", "dim", "target"), found)


def around(layer: nn.Module, dim: int) -> nn.Sequential:
    """A network with a norm in it twice, whose convolution says how many axes there are."""
    return nn.Sequential(layer, getattr(nn, f"Conv{dim}d")(6, 6, 1), layer)


def everything(model: nn.Module) -> list[Any]:
    """Classes, attributes and tensors by identity, and the tensors' bits."""
    modules = [
        (name, type(m), {k: _value(v) for k, v in vars(m).items()})
        for name, m in model.named_modules(remove_duplicate=False)
    ]
    tensors = [
        (name, t.requires_grad, t.dtype, t.detach().reshape(-1).view(torch.uint8).tolist())
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return [modules, tensors, [*model.state_dict()]]


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(each)) for key, each in value.items()]
    return value


def refused(layer: nn.Module, kind: str, target: str) -> str:
    """Why a norm stays what it is, or nothing."""
    if kind == target.replace("token", "layer") and type(layer).__module__.startswith("normalform"):
        return "norm already"
    if target == "frozen" and kind == "group":
        return "keeps no running statistics"
    return ""


def outputs(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [copy.deepcopy(layer).train(mode)(x) for mode in (True, False)]


@each_pair(nn, nf)
def test_reverted_it_is_what_it_was_by_every_bit(make: Any, kind: str, dim: int, target: str):
    layer = made(make, kind)
    model, x = around(layer, dim), example(SHAPES[dim])
    before, expected, reason = everything(model), outputs(layer, x), refused(layer, kind, target)
    report = nf.convert(model, {kind: target})
    if reason:
        assert not report
        assert reason in report.left[0].reason
    else:
        assert everything(model) != before
        (row,) = nf.revert(model).converted
        assert (row.names, row.before) == (("0", "2"), report.converted[0].after.split(",")[0])
    assert everything(model) == before
    assert all(torch.equal(a, b) for a, b in zip(outputs(layer, x), expected, strict=True))


@each_pair(nf)
def test_what_is_carried_new_and_put_aside(make: Any, kind: str, dim: int, target: str):
    layer = made(make, kind)
    model, x = around(layer, dim), example(SHAPES[dim])
    held = memory.tensors(layer)
    values = {name: t.clone() for name, t in held.items()}
    if refused(layer, kind, target):
        return
    (row,) = nf.convert(model, {kind: target}).converted
    has, had = HOLDS[target.partition(":")[0]], {*held}
    if kind in ROWS and target == "layer":
        has = AFFINE
    now = {name: t for name, t in memory.tensors(layer).items() if t is not None}
    assert {*now} == has
    assert {*row.carried} == has & had
    assert {*row.initialised} == has - had
    assert {*row.aside} == had - has
    for name in row.carried:
        assert torch.equal(now[name], values[name])
        kept_as_it_is = isinstance(now[name], nn.Parameter) == isinstance(held[name], nn.Parameter)
        assert (now[name] is held[name]) == kept_as_it_is
    for name in row.initialised:
        assert (now[name] == NEW.get(name, 0.0)).all(), name
    if target != "none":
        assert_layer_accurate(layer, x, direction(x))
        assert_layer_accurate(layer.eval(), x, direction(x))
    assert ("DistributedDataParallel made before" in row.note) == any(
        isinstance(t, nn.Parameter) and t not in {*held.values()} for t in now.values()
    )


@pytest.mark.parametrize("package", [nn, nf])
@pytest.mark.parametrize(
    "target", ["group:6", "layer", "instance", "batch", "switch", "frozen", "rms"]
)
def test_options_mode_and_type_stay(package: Any, target: str):
    kind = "layer" if target == "rms" else "batch"
    make = package.LayerNorm if target == "rms" else package.BatchNorm2d
    layer = made(make, kind, eps=1e-3, dtype=torch.float64).eval().requires_grad_(False)
    layer.remark = "mine"
    if kind == "batch":
        layer.momentum = 0.3
    assert len(nf.convert(layer, {kind: target})) == (target != "batch" or package is nn)
    assert (layer.eps, layer.training, layer.remark) == (1e-3, False, "mine")
    assert getattr(layer, "momentum", 0.3) == 0.3
    assert all(t.dtype == torch.float64 for t in layer.parameters())
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(("target", "kernel"), [("group:2", "torch"), ("switch", "auto")])
def test_the_kernel_stays_where_there_is_such_a_one(target: str, kernel: str):
    layer, x = nf.BatchNorm2d(4), example((2, 4, 3, 3))
    layer.kernel = "torch"
    nf.convert(layer, {"batch": target}, example=x)
    assert layer.kernel == kernel
    nf.revert(layer)
    assert layer.kernel == "torch"


def test_a_switch_norm_without_a_batch_becomes_a_batch_norm_that_tracks():
    layer = nf.SwitchNorm2d(4, over=("instance", "layer"))
    (row,) = nf.convert(layer, {"switch": "batch"}).converted
    assert {*row.initialised} == STATISTICS
    assert "running statistics of 0 and 1" in row.note
    layer = nf.BatchNorm2d(4, track_running_stats=False)
    nf.convert(layer, {"batch": "ghost:2"})
    assert layer.running_mean is None


def test_new_parameters_learn_as_the_old_ones_did():
    for learns in (True, False):
        layer = nf.BatchNorm2d(4).requires_grad_(learns)
        nf.convert(layer, {"batch": "switch"})
        assert {p.requires_grad for p in layer.parameters()} == {learns}
    layer = nf.BatchNorm2d(4, affine=False)
    nf.convert(layer, {"batch": "switch"})
    assert layer.mean_weight.requires_grad


@pytest.mark.parametrize("affine", ["none", "weight"])
@pytest.mark.parametrize("target", ["group:2", "batch", "instance", "switch", "ghost:2", "frozen"])
def test_weight_and_bias_are_there_where_they_were(target: str, affine: str):
    layer = nf.BatchNorm2d(4, affine=affine != "none")
    if affine == "weight":
        layer.bias = None
    if target == "batch":
        layer = nf.GroupNorm(2, 4, affine=affine != "none")
        layer.bias = None
    model, x = nn.Sequential(layer, nn.Conv2d(4, 4, 1)), example((3, 4, 5, 5))
    assert nf.convert(model, {"batch": target, "group": target})
    assert (layer.weight is not None, layer.bias) == (affine == "weight", None)
    assert_layer_accurate(layer, x)


def test_options_are_all_known():
    """What a constructor sets and nobody knows would be left behind on another kind."""
    plain = vars(nn.Module())
    for kind, dim in itertools.product(CLASSES, (1, 2, 3)):
        for package in (nn, nf):
            make = getattr(package, CLASSES[kind].format(dim), None)
            found = {} if make is None else vars(made(make, kind))
            assert not found.keys() - plain.keys() - memory.OWN, make
    assert "process_group" in memory.OWN


# What is the same


def test_equal_norms_are_equal():
    x = 3 + 2 * example((5, 6, 4, 3))

    def converted(to: str, of: str = "batch", training: bool = True) -> Tensor:
        layer = made(getattr(nn, CLASSES[of].format(2)), of).train(training)
        model = nn.Sequential(layer, nn.Conv2d(6, 6, 1))
        assert nf.convert(model, {of: to})
        return layer(x).detach()

    def same(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() <= 2.0**-22 * a.abs().max())

    batch = made(nn.BatchNorm2d, "batch")
    affine = {"weight": batch.weight, "bias": batch.bias, "eps": batch.eps}
    sample = nn.functional.group_norm(x, 1, **affine)
    assert same(converted("group:1"), sample)
    assert torch.equal(converted("layer"), converted("group:1"))
    assert same(converted("group:6"), converted("instance"))
    assert not same(converted("group:3"), converted("instance"))
    assert same(converted("frozen"), batch.eval()(x))
    assert not same(converted("frozen"), batch.train()(x))
    assert torch.equal(converted("frozen"), converted("ghost:2", training=False))
    assert same(converted("ghost:5"), batch.train()(x))
    assert same(converted("frozen", "instance"), made(nn.InstanceNorm2d, "instance").eval()(x))
    assert same(converted("batch", "instance", False), converted("frozen", "instance"))


def test_layer_norm_without_a_mean_is_rms_norm():
    x = example((5, 4, 8))
    x = x - x.mean(-1, keepdim=True)
    layer = randomized(nn.LayerNorm(8, bias=False))
    expected = layer(x)
    nf.convert(layer, {"layer": "rms"})
    assert type(layer) is nf.RMSNorm
    assert (layer(x) - expected).abs().max() <= 2.0**-21
    assert (layer(x + 1) - expected).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_eps_of_rms_norm_that_is_none_becomes_a_number(dtype: torch.dtype):
    layer = nn.RMSNorm(8, dtype=dtype)
    nf.convert(layer, {"rms": "layer"})
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert layer.eps == torch.finfo(wide).eps
    assert nf.revert(layer)
    assert layer.eps is None
    nf.convert(layer, {"rms": "rms"})
    assert (type(layer), layer.eps) == (nf.RMSNorm, None)


# Which and where


@pytest.mark.parametrize(
    ("channels", "asked", "groups"),
    [(64, 32, 32), (48, 32, 24), (40, 32, 20), (7, 32, 7), (37, 32, 1), (6, 4, 3), (1, 2, 1)],
)
def test_groups_divide_the_channels(channels: int, asked: int, groups: int):
    layer = nn.BatchNorm2d(channels)
    (row,) = nf.convert(layer, {"batch": f"group:{asked}"}).converted
    assert (layer.num_groups, layer.num_channels) == (groups, channels)
    said = f"{channels} channels do not divide into {asked} groups: {groups} do"
    assert (said in row.note) == (groups != asked)
    assert row.after == f"nf.GroupNorm, {groups} group{'s' * (groups > 1)}"


def test_group_without_a_number_has_the_papers_32():
    layer = nn.BatchNorm2d(96)
    nf.convert(layer, {"batch": "group"})
    assert layer.num_groups == 32


class Network(nn.Module):
    """Norms in containers, as attributes, shared, under dotted names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        shared = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"norm": shared})] * 1)
        self.also = shared
        self.outside = [shared]
        self.token = nn.LayerNorm(5)
        self.head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.outside[0](self.blocks[0]["norm"](x))
        return self.head(self.token(x).mean((1, 2)))


def test_wherever_they_are_and_once_where_they_are_shared():
    model = Network()
    report = nf.convert(model, {"batch": "group:2", "layer": "rms"})
    assert [row.names for row in report.converted] == [
        ("stem.1",), ("blocks.0.norm", "also"), ("token",), ("head.1",),
    ]  # fmt: skip
    assert model.blocks[0]["norm"] is model.also is model.outside[0]
    assert type(model.outside[0]) is nf.GroupNorm
    assert type(model.token) is nf.RMSNorm
    assert model(example((2, 3, 7, 7))).shape == (2, 4)


def test_kinds_are_exchanged_at_once_not_one_after_the_other():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    nf.convert(model, {"batch": "group:4", "group": "batch"})
    assert [type(m) for m in model] == [nf.GroupNorm, nf.BatchNorm2d]
    assert model[0].num_groups == 4


def test_only_what_the_mapping_names():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    (row,) = nf.convert(model, {"group": "layer"}).left
    assert (row.names, row.reason) == (("0",), "the mapping does not name it")
    assert not nf.convert(model, {})
    assert type(model[0]) is nn.BatchNorm2d


def test_synchronized_norms_are_batch_norms():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), randomized(nn.BatchNorm2d(4)))
    )
    before, x = everything(model), example((2, 3, 8, 8))
    twin = nn.BatchNorm2d(4)
    twin.load_state_dict(model[1].state_dict())
    expected = twin.eval()(model[0](x))
    assert nf.convert(model, {"batch": "batch"}).converted[0].before == "nn.SyncBatchNorm"
    assert type(model[1]) is nf.BatchNorm2d
    assert not hasattr(model[1], "process_group")
    assert (model.eval()(x) - expected).abs().max() <= 2.0**-20
    nf.revert(model.train())
    assert everything(model) == before


# What is left


class Subclass(nn.BatchNorm2d):
    pass


def replaced() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda x: x
    return layer


def with_buffer() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.register_buffer("mask", torch.ones(4))
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "subclass": (lambda: Subclass(4), "batch", "group:2", "a subclass of nn.BatchNorm2d"),
    "lazy": (nn.LazyBatchNorm2d, "batch", "group:2", "uninitialized lazy module: run it once"),
    "parametrized": (
        lambda: parametrize.register_parametrization(nn.BatchNorm2d(4), "weight", nn.Softplus()),
        "batch", "group:2", "remove the parametrization first",
    ),
    "pruned": (
        lambda: prune.random_unstructured(nn.BatchNorm2d(4), "weight", 2),
        "batch", "group:2", "holds weight_orig, weight_mask, as pruning does",
    ),
    "a tensor more": (with_buffer, "batch", "group:2", "holds mask"),
    "forward replaced": (replaced, "batch", "group:2", "its forward was replaced"),
    "scripted": (
        lambda: torch.jit.script(nn.BatchNorm2d(4)), "batch", "group:2", "compiled by torch.jit",
    ),
    "last axes to channels": (
        lambda: nn.LayerNorm(4), "layer", "batch",
        "works on the last axes, batch norm on the channels on axis 1",
    ),
    "channels to last axes": (
        lambda: nn.BatchNorm2d(4), "batch", "rms",
        "works on the channels on axis 1, rms norm on the last axes",
    ),
    "to tokens": (lambda: nn.GroupNorm(2, 4), "group", "token", "token norm on the last axes"),
    "rows to groups": (lambda: nn.RMSNorm(4), "rms", "group:2", "group norm on the channels"),
    "nothing to freeze": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False), "batch", "frozen",
        "keeps no running statistics that could be frozen",
    ),
    "no dimension": (lambda: nn.GroupNorm(2, 4), "group", "batch", "give example= an input"),
    "already": (lambda: nf.GroupNorm(2, 4), "group", "group:2", "group:2 norm already"),
    "ghost already": (lambda: nf.GhostBatchNorm1d(4, 2), "ghost", "ghost:2", "norm already"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize(("make", "kind", "target", "reason"), LEFT.values(), ids=LEFT)
def test_left_with_the_reason(make: Callable[[], nn.Module], kind: str, target: str, reason: str):
    model = nn.ModuleDict({"odd": make()})
    before, odd = [*vars(model["odd"])], type(model["odd"])
    report = nf.convert(model, {kind: target})
    assert not report
    (row,) = report.left
    assert row.names == ("odd",)
    assert reason in row.reason
    assert type(model["odd"]) is odd
    assert [*vars(model["odd"])] == before


@pytest.mark.parametrize("other", [nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)])
def test_dimensions_that_do_not_agree_are_not_guessed(other: nn.Module):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), other)
    (row,) = nf.convert(model, {"group": "batch"}).left[:1]
    assert "give example=" in row.reason


def test_dimensions_that_agree_are_taken_and_it_is_said():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.GroupNorm(2, 4))
    twin = copy.deepcopy(model)
    (row,) = nf.convert(model, {"group": "batch"}).converted
    assert type(model[1]) is nf.BatchNorm3d
    assert "as many axes as all convolutions" in row.note
    x = example((2, 3, 2, 3, 4))
    (row,) = nf.convert(twin, {"group": "batch"}, example=x).converted
    assert "as many axes" not in row.note


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "kind": (
        {"bach": "group"},
        ValueError,
        "'bach' is no kind of norm.* did you mean 'batch'[?] known: batch, instance, layer",
    ),
    "class": ({nn.BatchNorm2d: "group"}, ValueError, "is no kind of norm"),
    "name": (
        {"batch": "grp"},
        ValueError,
        "unknown norm 'grp'; did you mean 'group'[?] known: batch",
    ),
    "number": ({"batch": "group:0"}, ValueError, "'0' is not a positive integer"),
    "no number": ({"batch": "ghost"}, ValueError, "ghost norm needs a block size"),
    "number of frozen": ({"batch": "frozen:2"}, ValueError, "norm 'frozen' takes no number"),
    "class for a name": ({"batch": nn.GroupNorm}, TypeError, 'becomes is a name such as "group'),
    "notation": ({"batch": "n (g [c]) [s]"}, ValueError, "notation is for nf.norm and for over="),
    "name alone": ("group", TypeError, 'a dict such as {"batch": "group:32"}, got str'),
}


@pytest.mark.parametrize(("mapping", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_mappings_are_refused(mapping: Any, error: type[Exception], message: str):
    model = nn.Sequential(nn.BatchNorm2d(4))
    before = everything(model)
    with pytest.raises(error, match=message):
        nf.convert(model, mapping)
    assert everything(model) == before


def test_what_an_encoder_layer_computes_itself_is_left():
    layer, x = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), example((2, 5, 8))
    report = nf.convert(layer, {"layer": "rms"})
    assert [row.reason[:24] for row in report.left] == ["in evaluation nn.Transfo"] * 2
    assert len(nf.convert(copy.deepcopy(layer), {"layer": "token"})) == 2
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert len(nf.convert(layer, {"layer": "rms"})) == 2
        y = layer.eval()(x).detach()
        assert (y.square().mean(-1) - 1).abs().max() < 1e-3  # as RMS norm leaves it
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(AttributeError, match="bias"):  # what leaving them spares
        layer(x)


# What refers to the module


def test_hooks_stay_and_can_be_removed():
    layer, called = nn.BatchNorm2d(4), []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: called.append("pre")),
        layer.register_forward_hook(lambda m, args, y: called.append("after")),
        layer.register_state_dict_post_hook(lambda *given: called.append("state")),
    ]
    for change in (lambda: nf.convert(layer, {"batch": "group:2"}), lambda: nf.revert(layer)):
        assert change()
        layer(example((2, 4, 3, 3)))
        layer.state_dict()
    assert called == ["pre", "after", "state"] * 2
    nf.convert(layer, {"batch": "group:2"})
    for handle in handles:
        handle.remove()
    nf.revert(layer)
    layer(example((2, 4, 3, 3)))
    assert len(called) == 6


def test_an_optimizer_made_before_goes_on():
    layer = nn.BatchNorm2d(4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    nf.convert(layer, {"batch": "group:2"})
    layer(example((2, 4, 3, 3))).square().sum().backward()
    optimizer.step()
    assert (layer.weight != 1).all()


def test_a_copy_of_the_network_and_its_pickle_can_be_reverted():
    model = around(made(nn.BatchNorm2d, "batch"), 2)
    before, names = [t.clone() for t in model.state_dict().values()], [*model.state_dict()]
    nf.convert(model, {"batch": "group:2"})
    nf.convert(model, {"group": "switch"})
    assert [*model.state_dict()] == [
        *("0.weight", "0.bias", "0.mean_weight", "0.var_weight"),
        *("0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias"),
        *("2.weight", "2.bias", "2.mean_weight", "2.var_weight"),
        *("2.running_mean", "2.running_var", "2.num_batches_tracked"),
    ]
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stored, weights_only=False),
    ]
    for other in others:
        with torch.no_grad():
            other[0].weight += 1
        other[0].running_mean += 1  # of the switch norm, and no other's
        nf.revert(other)
        assert type(other[0]) is nn.BatchNorm2d
        assert other[0] is other[2]
        found = other.state_dict()
        assert [*found] == names
        for name, a in zip(names, before, strict=True):
            expected = a + 1 if name in ("0.weight", "2.weight") else a
            assert torch.equal(found[name], expected), name
    nf.revert(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))


def test_revert_goes_back_all_the_way():
    layer = made(nn.BatchNorm2d, "batch", eps=1e-3)
    model = around(layer, 2)
    before = everything(model)
    chain = ["frozen", "ghost:3", "switch", "instance", "group:2", "layer", "batch", "none"]
    kinds = ["batch", "frozen", "ghost", "switch", "instance", "group", "group", "batch"]
    for kind, target in zip(kinds, chain, strict=True):
        assert nf.convert(model, {kind: target}), target
    assert type(layer) is nn.Identity
    (row,) = nf.revert(model).converted
    assert (row.before, row.after) == ("nn.Identity", "nn.BatchNorm2d")
    assert everything(model) == before


def test_revert_undoes_exchanges_before_it_changes_classes():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4))
    nf.convert(model)
    nf.convert(model, {"batch": "group:2"})
    (row,) = nf.revert(model).left
    assert (row.names, row.reason[:31]) == (("1",), "was not exchanged: revert once ")
    assert [type(m) for m in model] == [nf.BatchNorm2d, nf.LayerNorm]
    nf.revert(model)
    assert [type(m) for m in model] == [nn.BatchNorm2d, nn.LayerNorm]


def test_training_in_between_is_kept_and_said():
    layer = made(nn.BatchNorm2d, "batch")
    statistics = layer.running_mean.clone()
    weight = layer.weight
    nf.convert(nn.Sequential(layer, nn.Conv2d(4, 4, 1)), {"batch": "switch"})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(example((2, 6, 3, 3))).pow(3).sum().backward()
    optimizer.step()
    trained = weight.detach().clone()
    (row,) = nf.revert(layer).converted
    assert layer.weight is weight
    assert torch.equal(layer.weight, trained)
    assert not torch.equal(layer.running_mean, statistics)  # a switch norm moves them, too
    assert row.note == "changed since and kept as now: " + ", ".join(row.carried)
    assert row.dropped == ("mean_weight", "var_weight")

    statistics = layer.running_mean.clone()
    nf.convert(layer, {"batch": "group:2"})
    with torch.no_grad():
        layer.bias += 1
    (row,) = nf.revert(layer).converted
    assert torch.equal(layer.running_mean, statistics)
    assert row.note.startswith("changed since and kept as now: bias; its running statistics are")


@pytest.mark.parametrize("target", ["group:2", "frozen", "none"])
def test_what_was_put_aside_follows_to_another_type_and_device(target: str):
    model = around(made(nn.BatchNorm2d, "batch"), 2)
    nf.convert(model, {"batch": target})
    model.double()
    nf.revert(model)
    wanted = torch.float32 if target == "none" else torch.float64
    floating = [t for t in model[0].state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {wanted}
    nf.convert(model, {"batch": target})
    model.to("meta")
    nf.revert(model)
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_on_the_meta_device():
    with torch.device("meta"):
        model = around(nn.BatchNorm2d(6), 2)
    assert nf.convert(model, {"batch": "switch"})
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert nf.revert(model)


def test_inside_compiled_code():
    torch._dynamo.reset()
    model, x = around(made(nn.BatchNorm2d, "batch"), 2).eval(), example((5, 6, 4, 3))
    compiled = torch.compile(model, backend="eager")
    expected = compiled(x)
    assert nf.convert(compiled, {"batch": "group:2"}).converted[0].names[0] == "_orig_mod.0"
    assert_same({"y": compiled(x)}, {"y": model(x)})
    assert (compiled(x) - expected).abs().max() > 0.1
    nf.revert(compiled)
    assert torch.equal(compiled(x), expected)


@pytest.fixture
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_inside_distributed_data_parallel_only_what_it_can_bear():
    model, x = around(made(nn.BatchNorm2d, "batch"), 2), example((5, 6, 4, 3))
    wrapper = nn.parallel.DistributedDataParallel(model)
    before = everything(model)
    for refuse in (
        lambda: nf.convert(wrapper, {"batch": "group:2"}),  # it would look for buffers
        lambda: nf.convert(wrapper, {"batch": "switch"}, example=x),
        lambda: nf.freeze(wrapper),
    ):
        with pytest.raises(ValueError, match=r"^module\.0: DistributedDataParallel goes on with"):
            refuse()
        assert everything(model) == before
    for change in (
        lambda: nf.convert(wrapper, {"batch": "ghost:2"}),
        lambda: nf.freeze(wrapper, affine=False),
        lambda: nf.revert(wrapper),
        lambda: nf.convert(wrapper),
    ):
        assert change()
        wrapper(x).square().sum().backward()


def test_a_trace_of_the_network_and_the_network_itself():
    model = around(made(nn.BatchNorm2d, "batch"), 2).eval()
    traced, x = torch.fx.symbolic_trace(model), example((5, 6, 4, 3))
    nf.convert(traced, {"batch": "group:2"})
    assert torch.equal(traced(x), model(x))
    assert {type(m) for m in model.modules()} >= {nf.GroupNorm}


def test_what_is_only_lent_is_given_back():
    model = around(made(nn.BatchNorm2d, "batch"), 2)
    before = everything(model)
    with kept(model):
        nf.convert(model, {"batch": "switch"})
        model(example((5, 6, 4, 3)))
    assert everything(model) == before


def test_gradients_are_left_alone():
    layer = nn.BatchNorm2d(4)
    layer(example((2, 4, 3, 3))).square().sum().backward()
    grad = layer.weight.grad
    nf.convert(layer, {"batch": "group:2"}, example=example((2, 4, 3, 3)))
    assert layer.weight.grad is grad


# An example


@pytest.mark.parametrize("training", [True, False])
def test_by_how_much_outputs_change(training: bool):
    model, x = around(made(nn.BatchNorm2d, "batch"), 2), example((5, 6, 4, 3))
    model.insert(1, nn.Dropout(0.5))
    model.train(training)
    state, before = torch.get_rng_state(), everything(model)[1]
    found = nf.convert(model, {"batch": "group:2"}, example=x).effect
    assert torch.equal(torch.get_rng_state(), state)
    kept_names = {name for name, *_ in everything(model)[1]}
    assert [row for row in before if row[0] in kept_names] == everything(model)[1]
    nf.revert(model)
    first = model(x).detach()
    torch.set_rng_state(state)
    nf.convert(model, {"batch": "group:2"})
    after = model(x).detach()
    largest = float((first.double() - after.double()).abs().max())
    assert found.largest == pytest.approx(largest)
    assert found.relative == pytest.approx(largest / float(first.abs().max()))
    assert found.training is training
    mode = "training" if training else "evaluation"
    assert str(found) == (
        f"the outputs for the example change by up to {found.largest:.3g}, "
        f"{found.relative:.3g} times the largest of them, in {mode}"
    )


def test_what_does_not_change_is_said_not_to():
    layer, x = made(nf.BatchNorm2d, "batch").eval(), example((5, 6, 4, 3))
    report = nf.convert(layer, {"batch": "ghost:2"}, example=x)
    assert report.effect.largest == report.effect.relative == 0
    assert str(report).endswith("the outputs for the example do not change at all, in evaluation")
    small = nf.convert(nn.LayerNorm(8), example=example((4, 8))).effect
    assert 0 < small.relative < 1e-5


class Outputs(nn.Module):
    """As people's models answer: dicts and tuples, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, image: Tensor, scale: float = 1.0) -> dict[str, Any]:
        y = self.norm(image)
        return {"a": (y, 7), "b": [scale * y.sum((2, 3))], "n": y.shape[0], "i": y.argmax()}


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x, torch.ones(2)), lambda x: {"image": x}]
)
def test_examples_as_loaders_give_them(wrap: Callable[[Tensor], Any]):
    model = Outputs()
    report = nf.convert(model, {"group": "batch"}, example=wrap(example((2, 4, 3, 3))))
    assert type(model.norm) is nf.BatchNorm2d
    assert report.effect.largest > 0.1


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_example_shows_how_many_axes_there_are(dim: int):
    model = nn.Sequential(nn.Conv2d(1, 1, 1) if dim == 3 else nn.Identity(), nn.GroupNorm(2, 6))
    x = example(SHAPES[dim])
    nf.convert(model[1], {"group": "instance"}, example=x)
    assert type(model[1]) is getattr(nf, f"InstanceNorm{dim}d")
    rows = nn.GroupNorm(2, 6)
    assert nf.convert(rows, {"group": "batch"}, example=example((5, 6)))
    assert type(rows) is nf.BatchNorm1d


def test_the_example_shows_what_makes_no_sense():
    rows, x = nn.BatchNorm1d(6), example((5, 6))
    assert "one value" in nf.convert(rows, {"batch": "instance"}, example=x).left[0].reason
    single = nn.InstanceNorm2d(6)
    (row,) = nf.convert(single, {"instance": "batch"}, example=example((6, 4, 3))).left
    assert "without N" in row.reason
    model = nn.ModuleDict({"used": nn.GroupNorm(2, 6), "unused": nn.GroupNorm(2, 6)})
    model.forward = lambda x: model["used"](x)
    report = nf.convert(model, {"group": "batch"}, example=example((5, 6, 4, 3)))
    assert [row.names for row in report.converted] == [("used",)]
    assert "an input that reaches it" in report.left[0].reason


def test_without_an_example_the_trap_of_rows_is_noted():
    (row,) = nf.convert(nn.BatchNorm1d(6), {"batch": "instance"}).converted
    assert "an input (N, C) it would read as one sample" in row.note


def test_a_norm_that_refuses_the_example_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).eval()
    before = everything(model)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        nf.convert(model, {"batch": "instance"}, example=example((2, 4, 1, 1)))
    assert everything(model) == before


def test_not_a_number_is_infinitely_far():
    layer = nn.BatchNorm1d(4).eval()
    layer.running_var.fill_(float("nan"))
    found = nf.convert(layer, {"batch": "group:2"}, example=example((3, 4))).effect
    assert found.largest == float("inf")
    layer = nn.BatchNorm1d(4).eval()
    layer.running_var.fill_(float("nan"))
    assert nf.convert(layer, {"batch": "ghost:2"}, example=example((3, 4))).effect.largest == 0


# All or nothing


def mixed() -> nn.Sequential:
    layer = made(nn.BatchNorm2d, "batch")
    return nn.Sequential(
        nn.Conv2d(6, 6, 1), layer, nn.GroupNorm(2, 6), layer, nn.InstanceNorm2d(6), nn.LayerNorm(3)
    )


MAPPING = {"batch": "switch", "group": "batch", "instance": "group:3", "layer": "rms"}


def test_an_exception_anywhere_leaves_the_model_as_it_was():
    x = example((5, 6, 4, 3))

    def convert() -> Iterator[tuple[Any, Callable[[], None]]]:
        while True:
            model = mixed()
            before = everything(model)
            yield (
                lambda model=model: nf.convert(model, MAPPING, example=x),
                lambda model=model, before=before: same(everything(model), before),
            )

    def revert() -> Iterator[tuple[Any, Callable[[], None]]]:
        while True:
            model = mixed()
            nf.convert(model, MAPPING)
            model.double()
            before = everything(model)
            yield (
                lambda model=model: nf.revert(model),
                lambda model=model, before=before: same(everything(model), before),
            )

    assert everywhere(convert()) > 100
    assert everywhere(revert()) > 100


def same(found: Any, expected: Any) -> None:
    assert found == expected


def test_one_channel_in_each_group_is_said_to_be_instance_norm():
    alone = nf.convert(nn.BatchNorm2d(16), {"batch": "group:32"})
    several = nf.convert(nn.BatchNorm2d(64), {"batch": "group:32"})
    assert "is instance norm" in alone.converted[0].note + str(alone)
    assert "is instance norm" not in str(several)
