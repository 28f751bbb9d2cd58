"""A model lent out comes back as it was; batches of every kind reach it."""

import copy
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from interruptions import Interruption, interrupted_everywhere
from model_state import NUMBERS, state
from normalform.surgery import feeding
from normalform.surgery.feeding import Given, batches, feed, given
from normalform.surgery.keeping import kept


class Net(nn.Module):
    """Something of everything: shared parts, plain tensors, lists, a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.again = self.norm
        self.drop = nn.Dropout()
        self.head = nn.Linear(3, 2)
        self.register_buffer("odd", torch.tensor([float("nan"), -0.0, 1.0]))
        self.register_buffer("zero", torch.zeros(1))
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)
        self.cache = torch.zeros(2)
        self.calls: list[int] = []
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.head(self.drop(self.again(self.norm(x))))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(5, 3)).sum().backward()
    return model


def add_hook(model: Net) -> None:
    model.norm.register_forward_hook(lambda module, args, y: None)


def rename(model: Net) -> None:
    model.norm.__class__ = nn.BatchNorm2d


def replace(model: Net) -> None:
    model.head = nn.Linear(3, 1)
    model.head.weight = nn.Parameter(torch.zeros(1, 3))


def swap_data(model: Net) -> None:
    model.head.weight.data = torch.zeros(2, 3)


def to_double(model: Net) -> None:
    model.double()


def draw(model: Net) -> None:
    torch.rand(1), random.random(), NUMBERS.rand()


def differentiate(model: Net) -> None:
    assert all(p.grad is None for p in model.parameters())
    model(torch.randn(4, 3)).square().sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())


CHANGES: dict[str, Callable[[Net], object]] = {
    "mode": lambda m: m.train(not m.training),
    "mode of a part": lambda m: m.drop.train(),
    "statistics": lambda m: m(torch.randn(9, 3)),
    "momentum": lambda m: setattr(m.norm, "momentum", None),
    "class": rename,
    "hook": add_hook,
    "part": replace,
    "part gone": lambda m: delattr(m, "head"),
    "part new": lambda m: m.add_module("new", nn.Linear(1, 1)),
    "data": swap_data,
    "dtype": to_double,
    "buffer in place": lambda m: m.odd.zero_(),
    "buffer replaced": lambda m: setattr(m, "odd", torch.zeros(3)),
    "buffer by NumPy": lambda m: m.odd.numpy().fill(0),
    "negative zero": lambda m: m.zero.numpy().fill(-0.0),
    "mask": lambda m: m.mask.logical_not_(),
    "plain tensor": lambda m: m.cache.add_(1),
    "list": lambda m: m.calls.append(7),
    "frozen": lambda m: m.requires_grad_(False),
    "gradients": differentiate,
    "gradients gone": lambda m: m.zero_grad(),
    "random numbers": draw,
    "autograd off": lambda m: torch._C._set_grad_enabled(False),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen_and_undone(change: Callable[[Net], object], training: bool):
    model = net().train(training)
    before = state(model)
    with kept(model):
        change(model)
        changed = state(model)
    assert changed != before
    assert state(model) == before


def test_a_copy_of_the_parameters_undoes_what_is_done_in_place():
    model = net()
    before = state(model)
    with kept(model, parameters=True), torch.no_grad():
        model.head.weight.add_(1)
        model.head.bias.data.add_(1)
    assert state(model) == before
    message = r"^head.weight was changed in place .*; 1 of 4 "
    with pytest.raises(RuntimeError, match=message), kept(model), torch.no_grad():
        model.head.weight.add_(1)


def raise_in_the_midst(model: Net, kind: type[BaseException]) -> None:
    with kept(model):
        for name in ("statistics", "class", "hook", "data", "list", "part gone", "random numbers"):
            CHANGES[name](model)
        raise kind


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_comes_out_and_the_model_is_as_it_was(kind: type[BaseException]):
    model = net()
    before = state(model)
    with pytest.raises(kind):
        raise_in_the_midst(model, kind)
    assert state(model) == before


def test_an_interrupt_at_any_point_leaves_the_model_as_it_was():
    model = net()
    before = state(model)

    def run() -> None:
        with kept(model):
            model.eval()
            model.norm.momentum = None
            add_hook(model)
            model.odd.zero_()
            model.head.weight.data = torch.zeros(2, 3)

    points = 0
    for point in interrupted_everywhere(run, ("surgery/keeping.py",)):
        assert state(model) == before, point
        points += 1
    assert points > 50


def test_graphs_recorded_before_can_still_be_differentiated():
    model = net().eval()
    y = model(torch.randn(4, 3)).sum()
    with kept(model):
        model.train()(torch.randn(4, 3))
    y.backward()


def test_a_lazy_module_is_refused_before_anything_happens():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d())
    message = r"^1.weight is not initialized yet: run the model once"
    with pytest.raises(ValueError, match=message), kept(model):
        raise AssertionError("not reached")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
def test_a_scripted_model():
    model = torch.jit.script(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    with kept(model):
        model.eval()
        model[0].running_mean.fill_(3)
    assert model.training
    assert model[0].training
    assert model[0].running_mean.tolist() == [0, 0, 0]


def test_what_it_costs_is_no_copy_of_the_parameters(monkeypatch: pytest.MonkeyPatch):
    cloned = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda t: cloned.append(t.numel()) or clone(t))
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    with kept(model):
        pass
    assert sorted(cloned) == [1, 100, 100]


# Feeding

Pair = namedtuple("Pair", "x y")


class One(nn.Module):
    def forward(self, x: Any, mask: Any = None) -> Any:
        return x


class Two(nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return x, y


class Named(nn.Module):
    def forward(self, ids: Any, *, mask: Any = None) -> Any:
        return ids, mask


class Whole(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


class Anything(nn.Module):
    def forward(self, **parts: Any) -> Any:
        return parts


class Graph:
    """As PyG's Data: not a tensor, but goes to a device."""

    def to(self, device: torch.device) -> "Graph":
        self.device = device
        return self


SPLIT: dict[str, tuple[nn.Module, Any, Given]] = {
    "tensor": (One(), 1, Given((1,))),
    "pair": (One(), (1, 2), Given((1,), rest=(2,))),
    "list": (One(), [1, 2, 3], Given((1,), rest=(2, 3))),
    "named tuple": (One(), Pair(1, 2), Given((1,), rest=(2,))),
    "two inputs": (Two(), (1, 2, 3), Given((1, 2), rest=(3,))),
    "two inputs alone": (Two(), [1, 2], Given((1, 2))),
    "several maps": (One(), ([1, 2], 3), Given(([1, 2],), rest=(3,))),
    "dict": (Named(), {"ids": 1, "mask": 2}, Given(kwargs={"ids": 1, "mask": 2})),
    "dict with more": (Named(), {"ids": 1, "label": 2}, Given(kwargs={"ids": 1}, rest=(2,))),
    "dict and target": (Named(), ({"ids": 1}, 2), Given(kwargs={"ids": 1}, rest=(2,))),
    "whole dict": (Whole(), {"ids": 1}, Given(({"ids": 1},))),
    "any names": (Anything(), {"ids": 1}, Given(kwargs={"ids": 1})),
    "wrapped": (nn.DataParallel(Two()), (1, 2, 3), Given((1, 2), rest=(3,))),
    "compiled": (torch.compile(Two(), backend="eager"), (1, 2, 3), Given((1, 2), rest=(3,))),
    "sequential": (nn.Sequential(One()), (1, 2), Given((1,), rest=(2,))),
}


@pytest.mark.parametrize(("model", "batch", "expected"), SPLIT.values(), ids=SPLIT)
def test_what_of_a_batch_is_the_input(model: nn.Module, batch: Any, expected: Given):
    assert given(model, batch) == expected


def test_feed_gives_the_model_its_inputs_only():
    assert feed(One(), (1, 2)) == 1
    assert feed(Two(), (1, 2, 3)) == (1, 2)
    assert feed(Named(), {"ids": 1, "other": 5}) == (1, None)


def test_a_batch_goes_where_the_model_is():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), Whole())
    x = torch.ones(2)
    found = given(model, ({"x": x, "list": [x]}, Pair(x, 1)))
    assert found.args[0]["x"].device.type == "meta"
    assert found.args[0]["list"][0].device.type == "meta"
    assert found.rest[0].x.device.type == "meta"
    assert isinstance(found.rest[0], Pair)
    assert given(model, Graph()).args[0].device.type == "meta"
    assert given(One(), x).args[0] is x


def test_a_batch_with_too_little_is_refused():
    with pytest.raises(ValueError, match=r"forward needs x, y; the batch is a list of 1\. Let"):
        given(Two(), [1])
    with pytest.raises(ValueError, match=r"forward needs x; the batch is a tuple of 0\."):
        given(One(), ())


def test_batches_stops_where_it_should():
    taken = []
    loader = (taken.append(k) or k for k in range(9))
    assert list(batches(loader, 3, doing="x")) == [0, 1, 2]
    assert taken == [0, 1, 2]
    assert list(batches([1, 2], doing="x")) == [1, 2]
    assert list(batches([1, 2], 5, doing="x")) == [1, 2]


@pytest.mark.parametrize("loader", [torch.ones(3, 2), {"x": 1}, None, 3, "path"])
def test_what_is_no_loader_is_refused(loader: Any):
    with pytest.raises(TypeError, match=r"^measure takes an iterable .* One batch goes in a list"):
        list(batches(loader, doing="measure"))


@pytest.mark.parametrize("limit", [0, -1, True, 2.0])
def test_what_is_no_limit_is_refused(limit: Any):
    with pytest.raises(ValueError, match=f"^measure: batches={limit!r} is not a positive integer"):
        list(batches([1], limit, doing="measure"))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_long_work_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = iter(range(100))
    monkeypatch.setattr(feeding.time, "monotonic", lambda: 0.9 * next(clock))
    monkeypatch.setattr(feeding.sys.stderr, "isatty", lambda: terminal)
    list(batches([1, 2], doing="measuring"))
    assert capsys.readouterr().err == ""
    list(batches(list(range(40)), doing="measuring"))
    shown = capsys.readouterr().err
    assert "measuring: batch 2 of 40, 3 s, 51 s left" in shown
    if terminal:
        assert shown.count("measuring") > 30
        assert shown.endswith("\r\x1b[K")
    else:
        assert shown.count("\n") == shown.count("measuring") == 2
    list(batches(iter(range(5)), doing="measuring"))
    assert "batch 2, 3 s" in capsys.readouterr().err


def test_a_norm_is_kept_through_feeding():
    model = nn.Sequential(OrderedDict(norm=nf.SwitchNorm1d(3)))
    before = copy.deepcopy(model.state_dict())
    with kept(model):
        for batch in batches([(torch.randn(4, 3), 1)] * 2, doing="x"):
            feed(model, batch)
        assert model.norm.num_batches_tracked == 2
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_interrupter_notices_who_swallows():
    model = net()

    def run() -> None:
        with suppress(Interruption), kept(model):
            pass

    with pytest.raises(AssertionError, match="was not reached or was swallowed"):
        list(interrupted_everywhere(run, ("surgery/keeping.py",)))


FORMS = {
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "expanded": lambda: torch.zeros(1).expand(4),
    "every other": lambda: torch.arange(6.0)[::2],
    "sparse": lambda: torch.eye(3).to_sparse(),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_buffers_of_any_form(make: Callable[[], Tensor]):
    model = nn.BatchNorm1d(3)
    model.register_buffer("odd", make())
    before = model.odd.clone()
    with kept(model):
        model.running_mean.fill_(7)
        if model.odd.layout == torch.strided and 0 not in model.odd.stride():
            model.odd.copy_(before.clone().fill_(2) if before.is_quantized else 2 * before)
    seen = [t.dequantize() if t.is_quantized else t.to_dense() for t in (model.odd, before)]
    assert torch.equal(*seen)
    assert torch.equal(model.running_mean, torch.zeros(3))


def test_generators_that_a_module_holds():
    model = nn.Linear(1, 1)
    model.random = torch.Generator().manual_seed(3)
    with kept(model):
        first = torch.rand(2, generator=model.random)
    assert torch.equal(torch.rand(2, generator=model.random), first)


def test_fused_encoder_layers_are_switched_back():
    with suppress(KeyError), kept(nn.Linear(1, 1)):
        torch.backends.mha.set_fastpath_enabled(False)
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled()
