"""What torch does to functions it does to ours: map, differentiate in any way, recompute, watch.

In float64 the recipe and the hand-written gradient agree to 1e-12, in float32 to the last bit but
one, whichever of them a transform runs.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import normalform as nf
from steps import assert_same, direction, example, prepared, step
from zoo import ZOO

# What torch warns of in its own code: forward-mode differentiation scripts some functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

each_layer = pytest.mark.parametrize("name", ZOO)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def with_state(layer: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """The layer as a function of x and its parameters, which leaves the buffers as they are."""

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        return functional_call(
            layer, {**dict(zip(names, parameters, strict=True)), **buffers}, (x,)
        )

    return call, {name: p.detach() for name, p in layer.named_parameters()}


# Mapping and differentiating


@each_mode
@each_layer
def test_vmap_over_models_and_inputs(name: str, training: bool):
    layer, x = prepared(name, training)
    state = {key: torch.stack([value, 2 * value]) for key, value in layer.state_dict().items()}
    xs = torch.stack([x, 3 * x])

    def run(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        state = {key: value.clone() for key, value in state.items()}
        return functional_call(layer, state, (x,)), state

    y, after = torch.vmap(run)(state, xs)
    for k in range(2):
        layer.load_state_dict({key: value[k] for key, value in state.items()})
        assert_same({"y": y[k]}, {"y": layer(xs[k])}, terms=2)
        assert_same({key: value[k] for key, value in after.items()}, layer.state_dict())


@each_mode
@each_layer
def test_function_transforms(name: str, training: bool):
    layer, x = prepared(name, training, torch.float64)
    call, parameters = with_state(layer)
    given, v = (x, *parameters.values()), direction(x)

    def loss(*given: Tensor) -> Tensor:
        return (call(*given) * v).sum()

    names = ["dx", *(f"d{name}" for name in parameters)]
    leaves = [each.clone().requires_grad_() for each in given]
    found = torch.func.grad(loss, argnums=tuple(range(len(given))))(*given)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    gradients = dict(zip(names, found, strict=True))
    assert_same(gradients, dict(zip(names, expected, strict=True)))

    _, along = torch.func.jvp(lambda x: loss(x, *given[1:]), (x,), (v,))
    assert_same({"jvp": along}, {"jvp": (gradients["dx"] * v).sum()})
    jacobian = torch.func.jacrev(lambda x: call(x, *given[1:]))(x)
    pulled = torch.tensordot(v, jacobian, dims=x.ndim)
    assert_same({"jacobian": pulled}, {"jacobian": gradients["dx"]})

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: loss(x, *given[1:]))(x)

    _, curved = torch.func.jvp(slope, (x,), (v,))
    (dx,) = torch.autograd.grad(loss(*leaves), leaves[:1], create_graph=True)
    (again,) = torch.autograd.grad(dx, leaves[0], v, allow_unused=True, materialize_grads=True)
    assert_same({"hvp": curved}, {"hvp": again})


@each_mode
@each_layer
def test_gradients_of_layers(name: str, training: bool):
    layer, x = prepared(name, training, torch.float64)
    call, parameters = with_state(layer)
    leaves = [t.clone().requires_grad_() for t in (x, *parameters.values())]
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


RECIPES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "batch": ("[n] c [s]", (3, 2, 2), {}),
    "layer": ("n [c s]", (2, 3, 2), {}),
    "instance": ("n c [s]", (2, 2, 3), {}),
    "group": ("n (g [c]) [s]", (2, 4, 2), {"g": 2}),
    "ghost": ("(b [n]) c [s]", (5, 2, 2), {"n": 2}),
    "ghost by count": ("(b [n]) c [s]", (4, 2, 2), {"b": 2}),
    "token": ("n s [c]", (2, 2, 4), {}),
    "position": ("n [c] s", (2, 4, 2), {}),
    "all": ("[n c s]", (2, 2, 2), {}),
    "rms": ("n s [c]", (2, 2, 4), {"center": False}),
    "batch of groups": ("[n] (g [c]) s", (2, 4, 2), {"g": 2}),
    "a weight an element": ("n s [c]", (2, 2, 3), {"params": "s c"}),
    "a weight a sample": ("n c [s]", (2, 2, 3), {"params": "n c"}),
}


@pytest.mark.parametrize(("recipe", "shape", "options"), RECIPES.values(), ids=RECIPES)
def test_gradients_of_recipes(recipe: str, shape: tuple[int, ...], options: dict[str, Any]):
    parsed = nf.recipe(recipe)
    dims = parsed.param_dims(len(shape), options.get("params", "c"))
    x = example(shape, torch.float64).requires_grad_()
    weight, bias = (
        example([shape[d] for d in dims], torch.float64, seed).requires_grad_() for seed in (1, 2)
    )

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nf.norm(x, recipe, weight, bias, 1e-2, **options)

    leaves = (x, weight, bias)
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, leaves)


@each_mode
@each_layer
def test_gradients_of_a_stack_at_once(name: str, training: bool):
    layer, x = prepared(name, training)
    leaves = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    dys = torch.stack([direction(y), torch.ones_like(y), y.detach()])
    stacked = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in dys]
    for each, ones in zip(stacked, zip(*single, strict=True), strict=True):
        # dx of ones, and of y, is the small difference of terms as large as of the other one.
        assert_same({"gradients": each}, {"gradients": torch.stack(ones)}, terms=8)


@pytest.mark.parametrize("reentrant", [True, False])
@each_layer
def test_checkpointed(name: str, reentrant: bool):
    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    x.requires_grad_()
    y = checkpoint(layer, x, use_reentrant=reentrant)
    y.backward(direction(y))
    expected = step(twin, twin, x)
    assert_same({"y": y.detach(), "dx": x.grad}, {key: expected[key] for key in ("y", "dx")})
    for key, parameter in layer.named_parameters():
        assert_same({"d": parameter.grad}, {"d": expected[f"d{key}"]})


# Watching: tensors that are not there, subclasses and modes


@each_mode
@each_layer
def test_meta_and_fake_tensors_have_the_shape_and_strides(name: str, training: bool):
    layer, x = prepared(name, training)
    real = layer(x)
    assert layer.to("meta")(x.to("meta")).stride() == real.stride()
    layer, _ = prepared(name, training)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaf = mode.from_tensor(x.requires_grad_())
        y = layer(leaf)
        y.sum().backward()
    assert (y.shape, y.stride(), y.dtype) == (real.shape, real.stride(), real.dtype)
    assert leaf.grad.shape == x.shape


class Named(torch.Tensor):
    """A subclass that does nothing but last."""


class Watching(TorchDispatchMode):
    """Notes every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@each_layer
def test_subclasses_and_modes_see_ordinary_operators(name: str):
    layer, x = prepared(name, training=False)
    expected = layer(x)
    y = layer(x.as_subclass(Named))
    assert type(y) is Named
    assert_same({"y": y.detach().as_subclass(Tensor)}, {"y": expected.detach()}, terms=2)
    with Watching() as watching:
        y = layer(x)
    assert_same({"y": y.detach()}, {"y": expected.detach()}, terms=2)
    assert "aten.rsqrt.default" in watching.seen
    assert all(operator.startswith("aten.") for operator in watching.seen)


@each_layer
def test_a_gradient_of_y_with_a_tangent(name: str):
    """dx is linear in dy, so that its tangent is the gradient by the tangent."""
    layer, x = prepared(name)
    x.requires_grad_()
    y = layer(x)
    dy, tangent = direction(y), example(tuple(y.shape), seed=1)
    torch.autograd.grad(y, x, dy, retain_graph=True)  # such a dy is known from now on
    (expected,) = torch.autograd.grad(y, x, tangent, retain_graph=True)
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, tangent))
        found = forward_ad.unpack_dual(dx).tangent
    assert found is not None
    assert_same({"dx": found}, {"dx": expected}, terms=8)


def test_flops_of_a_network_are_those_of_its_convolutions():
    def flops(layers: list[nn.Module]) -> int:
        with FlopCounterMode(display=False) as counter:
            nn.Sequential(nn.Conv2d(3, 6, 3), *layers)(torch.ones(2, 3, 8, 8)).sum().backward()
        return counter.get_total_flops()

    assert flops([nf.BatchNorm2d(6), nf.SwitchNorm2d(6)]) == flops([]) > 0


def test_rms_norm_of_five_dimensions_under_vmap():
    """There the memory format cannot be asked for."""
    x = torch.randn(2, 2, 3, 4, 6)
    layer = nf.RMSNorm(6)
    assert torch.equal(torch.func.vmap(layer)(x), torch.stack([layer(each) for each in x]))
