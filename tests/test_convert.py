"""Models of torch's norms converted and reverted: what changes, what stays, what is left."""

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.nn.intrinsic as intrinsic
import torch.ao.nn.quantized as quantized
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import normalform as nf
from normalform.surgery import Converted, Left, Report
from normalform.surgery.convert import TO_OURS
from normalform.testing import assert_layer_accurate, measure
from steps import IN_TORCH, direction, example, prepared, step, torch_twin

each_torch_layer = pytest.mark.parametrize("name", IN_TORCH)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def snapshot(model: nn.Module) -> list[Any]:
    """Class and attributes of every module by identity, and every tensor's bits and version."""
    modules = [
        (name, type(module), {key: id(value) for key, value in vars(module).items()})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [
        (name, id(t), t._version, t.detach().numpy().tobytes())
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    ]
    return [modules, tensors, [*model.state_dict()]]


def without_classes(found: list[Any]) -> list[Any]:
    return [[(name, attributes) for name, _, attributes in found[0]], *found[1:]]


def norms() -> nn.Sequential:
    """Three kinds in float64, and one of them twice."""
    batch = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), batch, nn.GroupNorm(2, 4), batch, nn.LayerNorm(6)
    ).double()  # fmt: skip


def images(seed: int = 0) -> Tensor:
    return example((2, 3, 8, 8), torch.float64, seed)


# Each class


def test_every_norm_that_both_have_is_converted():
    names = [name for name in dir(nf) if "Norm" in name and hasattr(nn, name)]
    assert {getattr(nn, name): getattr(nf, name) for name in names} == TO_OURS
    assert {type(torch_twin(prepared(name)[0])) for name in IN_TORCH} == {*TO_OURS}


@each_mode
@each_torch_layer
def test_only_the_class_changes_and_changes_back(name: str, training: bool):
    layer, x = prepared(name, training)
    layer = torch_twin(layer)
    expected = step(twin := copy.deepcopy(layer), twin, x)
    before = snapshot(layer)
    label = type(layer).__name__

    report = nf.convert(layer)
    assert report == Report((Converted(("",), f"nn.{label}", f"nf.{label}"),))
    assert type(layer) is getattr(nf, label)
    assert without_classes(snapshot(layer)) == without_classes(before)

    assert nf.revert(layer) == Report((Converted(("",), f"nf.{label}", f"nn.{label}"),))
    assert snapshot(layer) == before
    found = step(layer, layer, x)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@each_mode
@each_torch_layer
def test_the_same_results_but_for_rounding(name: str, training: bool):
    layer, x = prepared(name, training, torch.float64)
    torchs = torch_twin(layer)
    ours = copy.deepcopy(torchs)
    nf.convert(ours)
    found, expected = step(ours, ours, x), step(torchs, torchs, x)
    for key, value in expected.items():
        apart = (found[key] - value).abs().max()
        assert apart <= 1e-12 * (1 + value.abs().max()), key


@each_mode
@each_torch_layer
def test_a_converted_layer_keeps_the_promise(name: str, training: bool):
    layer, x = prepared(name, training)
    layer = torch_twin(layer)
    nf.convert(layer)
    assert_layer_accurate(layer, x + 100, direction(x))


# A model


def test_shared_modules_and_parameters_stay_shared():
    model = norms()
    model[2].weight = model[1].weight
    report = nf.convert(model)
    assert [row.names for row in report.converted] == [("1", "3"), ("2",), ("4",)]
    assert model[1] is model[3]
    assert model[1].weight is model[2].weight
    assert type(model[1]) is nf.BatchNorm2d


def test_an_optimizer_made_before_goes_on():
    def trained(change: Callable[[nn.Module], object]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = norms()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(4):
            if seed == 2:
                change(model)
            optimizer.zero_grad()
            model(images(seed)).square().sum().sqrt().backward()
            optimizer.step()
        return model.state_dict()

    found, expected = trained(nf.convert), trained(nn.Module.train)
    assert not torch.equal(expected["4.weight"], torch.ones_like(expected["4.weight"]))
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= 1e-11 * (1 + value.abs().max()), key


def test_hooks_stay():
    model, called = norms(), []
    model[2].register_forward_pre_hook(lambda module, inputs: called.append("pre"))
    model[2].register_forward_hook(lambda module, inputs, y: called.append("forward"))
    model[2].register_full_backward_hook(lambda module, dx, dy: called.append("backward"))
    nf.convert(model)
    model(images()).sum().backward()
    assert called == ["pre", "forward", "backward"]


def test_a_pruned_norm_is_converted():
    layer = prune.random_unstructured(nn.LayerNorm(8), "weight", 3)
    assert len(nf.convert(layer)) == 1
    y = layer(example((5, 8)))
    assert ((y == 0).all(0) == (layer.weight_mask == 0)).all()
    assert len(list(layer.parameters())) == 2


@pytest.mark.parametrize("first", ["convert", "wrap"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.fx.symbolic_trace])
def test_inside_a_wrapper(wrap: Callable[[nn.Module], nn.Module], first: str):
    model = norms().eval()
    if first == "convert":
        nf.convert(model)
        wrapper = wrap(model)
    else:
        wrapper = wrap(model)
        assert [row.after for row in nf.convert(wrapper).converted] == [
            "nf.BatchNorm2d", "nf.GroupNorm", "nf.LayerNorm",
        ]  # fmt: skip
        nf.convert(model)
    assert {type(m) for m in wrapper.modules()} >= {nf.BatchNorm2d, nf.GroupNorm, nf.LayerNorm}
    assert torch.equal(wrapper(images()), model(images()))


@pytest.fixture
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_inside_distributed_data_parallel():
    model = norms()
    wrapper = nn.parallel.DistributedDataParallel(model)
    assert nf.convert(wrapper).converted[0].names == ("module.1", "module.3")
    wrapper(images()).square().sum().backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin(images()).square().sum().backward()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_compiled_code_is_compiled_again():
    torch._dynamo.reset()
    layer = nn.LayerNorm(8)
    compiled = torch.compile(layer, backend="eager")
    x = 1e4 + example((32, 8))
    assert measure(compiled, x)["y"] > 10
    assert nf.convert(compiled).converted[0].names == ("_orig_mod",)
    assert measure(compiled, x)["y"] <= 1
    nf.revert(compiled)
    assert measure(compiled, x)["y"] > 10


def copies(model: nn.Module) -> dict[str, nn.Module]:
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(stored, weights_only=False),
    }


def test_a_converted_model_copies_and_pickles():
    model = norms().eval()
    nf.convert(model)
    for way, other in copies(model).items():
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()], way
        assert torch.equal(other(images()), model(images())), way
        assert len(nf.revert(other)) == 3, way


@pytest.mark.parametrize("momentum", [None, 0.1])
@pytest.mark.parametrize("tracked", [True, False])
def test_the_one_departure_in_state_is_noted(tracked: bool, momentum: float | None):
    torchs = nn.InstanceNorm1d(3, track_running_stats=tracked, momentum=momentum)
    ours = copy.deepcopy(torchs)
    (row,) = nf.convert(ours).converted
    ours(example((2, 3, 5)))
    torchs(example((2, 3, 5)))
    before, after = torchs.state_dict(), ours.state_dict()
    departs = any((before[key] - after[key]).abs().max() > 1e-6 for key in before)
    assert ("momentum=None" in row.note) == departs == (tracked and momentum is None)


# What is left


class FrozenBatchNorm2d(nn.Module):
    """A norm of no class of torch's, as torchvision has it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class OurSubclass(nf.GroupNorm):
    pass


def replaced() -> nn.Module:
    layer = nn.GroupNorm(2, 4)
    layer.forward = lambda x: x
    return layer


def parametrized(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", nn.Softplus())


def scripted() -> nn.Module:
    return torch.jit.script(nn.BatchNorm2d(4))


HERE = __name__
LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "own class": (FrozenBatchNorm2d, f"{HERE}.FrozenBatchNorm2d", "a class of its own"),
    "subclass": (lambda: LayerNorm2d(4), f"{HERE}.LayerNorm2d", "a subclass of nn.LayerNorm"),
    "our subclass": (lambda: OurSubclass(2, 4), f"{HERE}.OurSubclass", "subclass of nf.GroupNorm"),
    "synchronized": (lambda: nn.SyncBatchNorm(4), "nn.SyncBatchNorm", "has no such norm"),
    "lazy": (nn.LazyBatchNorm2d, "nn.LazyBatchNorm2d", "uninitialized lazy module: run it once"),
    "quantized": (
        lambda: quantized.BatchNorm2d(4),
        "torch.ao.nn.quantized.modules.batchnorm.BatchNorm2d",
        "normalform has no such norm",
    ),
    "parametrized": (
        lambda: parametrized(nn.LayerNorm(4)),
        "torch.nn.utils.parametrize.ParametrizedLayerNorm",
        "remove the parametrization first",
    ),
    "forward replaced": (replaced, "nn.GroupNorm", "its forward was replaced on the instance"),
    "scripted": (scripted, "torch.jit BatchNorm2d", "compiled by torch.jit"),
    "ours": (lambda: nf.RMSNorm(4), "nf.RMSNorm", "normalform's already"),
    "ours alone": (lambda: nf.SwitchNorm2d(4), "nf.SwitchNorm2d", "normalform's already"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
@pytest.mark.parametrize(("make", "kind", "reason"), LEFT.values(), ids=LEFT)
def test_left_and_named(make: Callable[[], nn.Module], kind: str, reason: str):
    model = nn.ModuleDict({"before": nn.BatchNorm1d(4), "odd": make(), "after": nn.RMSNorm(4)})
    odd = type(model["odd"])
    report = nf.convert(model)
    assert [row.names for row in report.converted] == [("before",), ("after",)]
    (row,) = report.left
    assert (row.names, row.kind) == (("odd",), kind)
    assert reason in row.reason
    assert type(model["odd"]) is odd


def test_left_inside_a_module_of_quantization():
    model = intrinsic.ConvBn2d(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (row,) = nf.convert(model).left
    assert row.names == ("1",)
    assert "exact type" in row.reason
    assert type(model[1]) is nn.BatchNorm2d


def test_left_by_revert():
    model = nn.ModuleDict(
        {
            "switch": nf.SwitchNorm2d(4),
            "subclass": OurSubclass(2, 4),
            "parametrized": parametrized(nf.LayerNorm(4)),
            "torch's": parametrized(nn.LayerNorm(4)),
            "plain": nn.BatchNorm2d(4),
        }
    )
    kinds = [type(module) for module in model.modules()]
    report = nf.revert(model)
    assert not report
    assert [row.reason for row in report.left] == [
        "PyTorch has no such norm",
        "a subclass of nf.GroupNorm, which may do something else",
        "parametrized, which made a class of its own: remove the parametrization first",
        "PyTorch's already",
        "PyTorch's already",
    ]
    assert [type(module) for module in model.modules()] == kinds


def test_what_is_left_can_be_converted_later():
    lazy, layer = nn.LazyBatchNorm2d(), parametrized(nn.LayerNorm(4))
    lazy(example((2, 3, 4, 4)))
    parametrize.remove_parametrizations(layer, "weight")
    assert len(nf.convert(nn.ModuleList([lazy, layer]))) == 2


class Normalize(nn.Module):
    """No norm, whatever its name begins with."""


class PreNorm(nn.Sequential):
    """A container."""


def test_no_norms_found():
    linear = parametrizations.spectral_norm(nn.Linear(3, 3))
    for model in (nn.Linear(3, 3), nn.Sequential(linear, Normalize(), PreNorm(nn.Identity()))):
        report = nf.convert(model)
        assert (str(report), report) == ("no norms found", Report())


def test_converting_twice_changes_nothing_more():
    model = norms()
    first = nf.convert(model)
    before = snapshot(model)
    second = nf.convert(model)
    assert not second
    assert [row.names for row in second.left] == [row.names for row in first.converted]
    assert snapshot(model) == before


# All or nothing


class Unfit(nn.GroupNorm):
    """Of another layout in memory, so that no instance can become one."""

    __slots__ = ("room",)


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model = norms()
    before = snapshot(model)
    monkeypatch.setitem(TO_OURS, nn.GroupNorm, Unfit)
    with pytest.raises(TypeError, match="layout"):
        nf.convert(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("change", [nf.convert, nf.revert])
@pytest.mark.parametrize(
    ("given", "got"),
    [(nn.BatchNorm2d, "the class BatchNorm2d"), ({}, "dict"), (torch.ones(1), "Tensor")],
)
def test_what_is_no_model_is_refused(change: Callable[..., Report], given: Any, got: str):
    with pytest.raises(TypeError, match=f"^{change.__name__} takes a model, an .*; got {got}$"):
        change(given)


# The fast path of transformers


@pytest.fixture
def norm_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The calls of our layer norm; a hook would turn the fast path off."""
    calls: list[nn.Module] = []
    forward = nf.LayerNorm.forward

    def counted(self: nf.LayerNorm, input: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, input)

    monkeypatch.setattr(nf.LayerNorm, "forward", counted)
    yield calls
    torch.backends.mha.set_fastpath_enabled(True)


ENCODERS: dict[str, tuple[dict[str, Any], bool]] = {
    "batch first": ({}, True),
    "norm first": ({"norm_first": True}, True),
    "gelu": ({"activation": "gelu"}, True),
    "sequence first": ({"batch_first": False}, False),
    "one head": ({"nhead": 1}, False),
    "no bias": ({"bias": False}, False),
    "tanh": ({"activation": torch.tanh}, False),
    "another eps": ({}, False),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_note_on_the_fast_path_is_true(kind: str, norm_calls: list[nn.Module]):
    options, fast = ENCODERS[kind]
    options = {"d_model": 8, "nhead": 2, "dim_feedforward": 8, "batch_first": True, **options}
    layer, x = nn.TransformerEncoderLayer(**options), example((2, 5, 8))
    if kind == "another eps":
        layer.norm2.eps = 1e-3
    report = nf.convert(layer)
    assert ["set_fastpath_enabled(False)" in row.note for row in report.converted] == [fast] * 2

    def calls() -> int:
        norm_calls.clear()
        layer(x)
        return len(norm_calls)

    assert calls() == 2
    layer.eval()
    assert calls() == 2
    with torch.no_grad():
        assert calls() == (0 if fast else 2)
        torch.backends.mha.set_fastpath_enabled(False)
        assert calls() == 2


def test_the_fast_path_gives_the_same_bits_as_before():
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    x = example((2, 5, 8))
    with torch.no_grad():
        expected = model(x)
        nf.convert(model)
        assert torch.equal(model(x), expected)


def test_only_the_norms_of_encoder_layers_get_the_note():
    model = nn.Transformer(8, 2, 2, 1, 8, batch_first=True)
    model.encoder.layers[0].another = nn.LayerNorm(8)
    report = nf.convert(model)
    noted = [row.names[0] for row in report.converted if row.note]
    assert noted == [f"encoder.layers.{i}.norm{j}" for i in (0, 1) for j in (1, 2)]
    assert len(report) == 10
    assert not any(row.note for row in nf.revert(model).converted)


class Encoder(nn.TransformerEncoderLayer):
    """With a forward and parts of its own."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.norm1 = nn.LayerNorm(8)


def test_an_encoder_layer_without_the_usual_parts():
    (row,) = nf.convert(Encoder()).converted
    assert (row.names, row.note) == (("norm1",), "")


# The report


def test_the_report_reads_as_a_table():
    report = Report(
        (
            Converted(("stem", "head.norm"), "nn.BatchNorm2d", "nf.BatchNorm2d"),
            Converted(("a.norm1",), "nn.LayerNorm", "nf.LayerNorm", "one"),
            Converted(("a.norm2",), "nn.LayerNorm", "nf.LayerNorm", "two"),
            Converted(("b.norm1",), "nn.LayerNorm", "nf.LayerNorm", "one"),
        ),
        (Left(("sync",), "nn.SyncBatchNorm", "normalform has no such norm"),),
    )
    assert str(report).splitlines() == [
        "converted 4: LayerNorm 3, BatchNorm2d 1; left 1: SyncBatchNorm 1",
        "  stem, head.norm  nn.BatchNorm2d -> nf.BatchNorm2d",
        "  a.norm1          nn.LayerNorm -> nf.LayerNorm [1]",
        "  a.norm2          nn.LayerNorm -> nf.LayerNorm [2]",
        "  b.norm1          nn.LayerNorm -> nf.LayerNorm [1]",
        "  sync             nn.SyncBatchNorm left: normalform has no such norm",
        "[1] one",
        "[2] two",
    ]
    assert repr(report) == str(report)
    assert len(report) == 4
    assert str(Report((), report.left)).startswith("converted 0; left 1: SyncBatchNorm 1\n")


def test_the_report_is_a_value():
    report = nf.convert(norms())
    assert report == nf.convert(norms())
    assert report == pickle.loads(pickle.dumps(report))
    assert len({report, nf.convert(norms())}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.left = ()
