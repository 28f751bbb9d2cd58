"""Calls that were made before: found again where nothing but values changed, and nowhere else."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import normalform as nf
from normalform import path
from normalform.kernels import known
from normalform.kernels.cpu import steps
from steps import assert_same, direction, prepared, step
from zoo import ZOO

# What torch warns of in its own code.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

OPTIONS = "norm", 1e-5
# Norms that the compiled kernels do not take.
BY_RECIPE = "switch rows", "switch of four", "switch, one value"


@pytest.fixture(params=["by_torch", "described"], autouse=True)
def _nothing_known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared by torch's guards, and as where it has none."""
    monkeypatch.setattr(known, "_remembered", {})
    monkeypatch.setattr(known, "_counters", [])
    if request.param == "described":
        monkeypatch.delattr("torch._C._dynamo.guards.TensorGuards")


class Found:
    """Steps that say that they were found."""

    forward: Any = staticmethod(lambda *given: ("found", None))
    backward: Any = None
    again: Any = None


class Subclass(Tensor):
    pass


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, f: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(f))
        return f(*args, **(kwargs or {}))


def given() -> dict[str, Any]:
    return {
        "x": torch.zeros(4, 6, 5, 5),
        "weight": nn.Parameter(torch.ones(6)),
        "bias": nn.Parameter(torch.zeros(6)),
        "logits": (torch.zeros(2), torch.ones(2)),
        "running": (torch.zeros(6), torch.ones(6)),
    }


def remember(call: dict[str, Any]) -> None:
    x, weight, bias, logits, running = call.values()
    known.remember(OPTIONS, x, weight, bias, logits, running, Found(), learns=False)


def find(call: dict[str, Any]) -> Any:
    x, weight, bias, logits, running = call.values()
    return known.known(OPTIONS, "auto", x, weight, bias, logits, running)


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "another shape": ("x", lambda x: x[:, :, 1:]),
    "another type": ("x", lambda x: x.double()),
    "channels last": ("x", lambda x: x.to(memory_format=torch.channels_last)),
    "strides of the same shape": ("x", lambda x: x.mT),
    "wants a gradient": ("x", lambda x: x.clone().requires_grad_()),
    "a parameter": ("x", lambda x: nn.Parameter(x)),
    "a subclass": ("x", lambda x: x.as_subclass(Subclass)),
    "on another device": ("x", lambda x: x.to("meta")),
    "negated as a view": ("x", lambda x: torch._neg_view(x)),
    "sparse": ("x", lambda x: x.to_sparse()),
    "no weight": ("weight", lambda w: None),
    "weight of another type": ("weight", lambda w: nn.Parameter(w.detach().double())),
    "weight with gaps": ("weight", lambda w: w.new_ones(12)[::2]),
    "weight of a subclass": ("weight", lambda w: w.detach().as_subclass(Subclass)),
    "a weight that is fixed": ("weight", lambda w: nn.Parameter(w.detach(), requires_grad=False)),
    "no bias": ("bias", lambda b: None),
    "another number of logits": ("logits", lambda pair: (torch.zeros(3), torch.zeros(3))),
    "no logits": ("logits", lambda pair: None),
    "no running statistics": ("running", lambda pair: None),
    "running variance of another type": ("running", lambda pair: (pair[0], pair[1].double())),
    "running mean negated as a view": ("running", lambda p: (torch._neg_view(p[0]), p[1])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_lies_otherwise_is_not_known(change: str):
    call = given()
    remember(call)
    name, changed = CHANGES[change]
    assert find(call | {name: changed(call[name])}) is None
    assert find(call) == "found"


def test_one_that_is_given_in_the_place_of_another_is_not_known():
    """As many tensors, and all of them alike."""
    call = given() | {"bias": None}
    remember(call)
    assert find(call | {"weight": None, "bias": call["weight"]}) is None
    assert find(call) == "found"


@pytest.mark.parametrize(
    "watched",
    [Watching, TorchFunctionMode, FakeTensorMode, forward_ad.dual_level],
    ids=lambda mode: mode.__name__,
)
def test_nothing_is_known_while_operators_are_watched(
    watched: Callable[[], AbstractContextManager[Any]],
):
    call = given()
    remember(call)
    with watched():
        assert find(call) is None
    assert find(call) == "found"


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad], ids=lambda f: f.__name__)
def test_nothing_is_known_inside_transforms(transform: Callable[..., Any]):
    """Not even on tensors from outside."""
    call, found = given(), list[Any]()
    remember(call)

    def function(x: Tensor) -> Tensor:
        found.append(find(call))
        return x.sum()

    transform(function)(torch.ones(3))
    assert found == [None]


def test_nothing_is_known_to_a_tracer_or_to_another_kernel():
    call = given()
    remember(call)
    found = list[Any]()

    def function(x: Tensor) -> Tensor:
        found.append(find(call))
        return x + 1

    torch.jit.trace(function, torch.ones(3), check_trace=False)
    assert found == [None]
    x, weight, bias, logits, running = call.values()
    assert known.known(OPTIONS, "eager", x, weight, bias, logits, running) is None
    assert known.known(("norm", 1e-3), "auto", x, weight, bias, logits, running) is None


def test_other_values_are_known():
    call = given()
    remember(call)
    again = given()
    again["x"] += 1
    assert find(again) == "found"


def test_a_tensor_that_stands_twice_is_known():
    """torch's guards take none."""
    call = given()
    call["bias"] = call["weight"]
    remember(call)
    assert find(call) == "found"
    assert find(given()) in ("found", None)  # whichever: both run the same steps


def test_layouts_without_end_are_forgotten():
    base = torch.zeros(100000)
    for k in range(100):
        remember(given() | {"x": base.as_strided((4, 6, 5, 5), (150 + k, 25, 5, 1))})
    (found,) = known._remembered.values()
    assert 1 <= len(found) <= known._MOST_ALIKE
    for k in range(known._MOST + 10):
        known.remember((k,), **given(), steps=Found(), learns=False)
    assert len(known._remembered) <= known._MOST


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [name for name in ZOO if name not in BY_RECIPE])
def test_the_second_call_of_a_layer_is_known(
    name: str, training: bool, mode: Any, monkeypatch: pytest.MonkeyPatch
):
    """It goes by none of the checks, and gives what it would give if it did."""
    layer, x = prepared(name, training)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    with mode():
        first = layer(x)
        layer.load_state_dict(state)
        monkeypatch.setattr(path, "run", None)
        assert torch.equal(layer(x), first)


@pytest.mark.parametrize("name", ZOO)
def test_a_gradient_where_one_was_not_wanted_before(name: str):
    """And none where it was."""
    layer, x = prepared(name)
    layer.train(False)
    with torch.no_grad():
        assert not layer(x).requires_grad
    found = step(layer, layer, x)
    with torch.no_grad():
        assert not layer(x).requires_grad
    fixed = layer.requires_grad_(False)
    assert not fixed(x).requires_grad
    leaf = x.clone().requires_grad_()
    y = fixed(leaf)
    (dx,) = torch.autograd.grad(y, leaf, direction(y))
    assert_same({"dx": dx}, {"dx": found["dx"]})


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "without strides": lambda dy: dy.flatten()[3].expand_as(dy),
    "transposed": lambda dy: dy.mT.contiguous().mT,
    "a negated view": lambda dy: torch._neg_view(-dy),
    "no memory": lambda dy: torch._efficientzerotensor(dy.shape),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("name", ["batch 2d", "group", "layer, token", "switch 2d"])
def test_a_gradient_that_lies_otherwise_than_those_before(name: str, kind: str):
    layer, x = prepared(name)
    leaves = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    gradients = direction(y), GRADIENTS[kind](direction(y))
    expected = [
        torch.autograd.grad(y, leaves, torch.empty_like(y).copy_(dy), True) for dy in gradients
    ]
    for dy, wanted in zip(gradients, expected, strict=True):
        found = torch.autograd.grad(y, leaves, dy, True)
        assert_same(dict(enumerate(found)), dict(enumerate(wanted)))


@pytest.mark.parametrize("fewest", [0, 2])
@pytest.mark.parametrize("name", ["batch 2d", "group", "layer, token", "switch 2d"])
def test_saved_tensors_that_come_back_otherwise_than_those_before(name: str, fewest: int):
    """All of them, or the input alone, which has more axes than parameters have."""
    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    for _ in range(2):
        expected = step(twin, twin, x)
    hooks = torch.autograd.graph.saved_tensors_hooks
    with hooks(lambda t: t, lambda t: t):  # parameters come back as tensors
        step(layer, layer, x)
    with hooks(lambda t: t, lambda t: torch._neg_view(-t) if t.ndim >= fewest else t):
        found = step(layer, layer, x)
    assert_same(found, expected)


COUNTERS = {
    "ordinary": torch.tensor(3),
    "of another type": torch.tensor(3, dtype=torch.int32),
    "a float": torch.tensor(3.0),
    "not a scalar": torch.tensor([3, 4]),
    "a part of something": torch.tensor([3, 4, 5])[1],
    "a parameter": nn.Parameter(torch.tensor(3), requires_grad=False),
}


@pytest.mark.parametrize("kind", COUNTERS)
def test_batches_are_counted(kind: str):
    counter = COUNTERS[kind]
    after, version = counter + 2, counter._version
    for _ in range(2):
        known.count(counter)
    assert torch.equal(counter, after)
    assert counter._version == version + 2
    assert len(known._counters) == (kind in ("ordinary", "a part of something", "a parameter"))


def test_batches_that_are_counted_under_autocast_or_without_gradients():
    """Each way a guard of its own, and they stay few."""
    counter = torch.tensor(0)
    for mode in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")) * 2:
        known.count(counter)
        with mode():
            known.count(counter)
    assert int(counter) == 12
    assert len(known._counters) <= 3
    assert any(each.check(counter) for each in known._counters)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in BY_RECIPE])
def test_what_is_remembered_of_a_call_holds_no_arrays(name: str):
    """There are as many of them as shapes."""
    layer, x = prepared(name)
    step(layer, layer, x)
    ((remembered,),) = known._remembered.values()
    held = [value for value in vars(remembered[1]).values() if isinstance(value, Tensor)]
    assert held
    assert {t.untyped_storage().data_ptr() for t in held} == {steps._NUMBER.data_ptr()}
    assert steps._NUMBER.untyped_storage().nbytes() == 8


def test_nobody_who_watches_misses_that_batches_are_counted():
    counter = torch.tensor(3)
    known.count(counter)
    with Watching() as watching:
        known.count(counter)
    assert watching.seen == ["aten.add_.Tensor"]
    with torch.inference_mode():
        made_inside = torch.tensor(3)
        known.count(made_inside)
    assert (int(counter), int(made_inside)) == (5, 4)
    with pytest.raises(RuntimeError, match="inference tensor"):
        known.count(made_inside)


def test_a_class_that_answers_by_itself():
    """Parametrized or pruned parameters do not stand where they stood."""
    layer, x = nf.GroupNorm(2, 4), torch.randn(2, 4, 3)

    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    plain = layer(x)
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert torch.equal(layer(x), 2 * plain)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer(x), 2 * plain)

    class Fixed(nf.GroupNorm):
        @property
        def bias(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            return torch.ones(4)

    layer.__class__ = Fixed
    exact = nf.functional.group_norm(x, 2, torch.full((4,), 2.0), torch.ones(4))
    assert torch.equal(layer(x), exact)

    class Twice(nf.GroupNorm):
        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            return value * 2 if name == "weight" else value

    twice = Twice(2, 4)
    twice.load_state_dict(nf.GroupNorm(2, 4).state_dict())
    assert torch.equal(twice(x), 2 * plain)
    other = nf.GroupNorm(2, 4)
    other.__dict__["weight"] = torch.full((4,), 2.0)
    assert torch.equal(other(x), 2 * plain)
    pruned = nf.GroupNorm(2, 4)
    prune.l1_unstructured(pruned, "weight", 2)
    assert (pruned(x) == 0).sum() >= 2 * 3
