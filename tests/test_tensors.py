"""Tensors of any kind: strides, gradients wanted of some only, changed in between, not finite."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform.testing import judge
from steps import IN_TORCH, assert_same, direction, example, prepared, step, torch_twin
from zoo import ZOO

each_layer = pytest.mark.parametrize("name", ZOO)
each_torch_layer = pytest.mark.parametrize("name", IN_TORCH)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def sliced(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": channels_last,
    "sliced": sliced,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "samples inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand(x.shape),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_layer
def test_any_strides(name: str, layout: str):
    layer, x = prepared(name)
    arranged = LAYOUTS[layout](x)
    plain = arranged.contiguous().clone()
    twin = copy.deepcopy(layer)
    leaf = arranged.detach().requires_grad_()
    y = layer(leaf)
    dy = LAYOUTS[layout](direction(plain))  # the gradient arrives in any strides too
    gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], dy)
    expected_y = twin(plain.requires_grad_())
    expected = torch.autograd.grad(expected_y, [plain, *twin.parameters()], dy.contiguous())
    assert_same({"y": y.detach()}, {"y": expected_y.detach()}, terms=2)
    assert_same(dict(enumerate(gradients)), dict(enumerate(expected)), terms=2)
    assert_same(dict(layer.named_buffers()), dict(twin.named_buffers()))


@each_mode
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@each_torch_layer
def test_the_memory_format_stays(name: str, layout: str, training: bool):
    layer, x = prepared(name, training)
    x = LAYOUTS[layout](x)
    y, theirs = layer(x), torch_twin(layer)(x)
    # PyTorch's instance norm goes back to contiguous, PyTorch's others keep the format.
    rows = isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    assert y.stride() == (theirs.stride() if rows else x.stride())
    if "instance" not in name:
        assert y.stride() == theirs.stride()


@each_layer
def test_a_gradient_without_strides(name: str):
    layer, x = prepared(name)
    leaves = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    summed = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    ones = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert_same(dict(enumerate(summed)), dict(enumerate(ones)))


@each_mode
@each_layer
def test_gradients_of_any_subset(name: str, training: bool):
    layer, x = prepared(name, training)
    twin = copy.deepcopy(layer)
    expected = step(twin, twin, x)
    leaves = {"dx": x, **{f"d{key}": p for key, p in layer.named_parameters()}}
    for count in range(len(leaves) + 1):
        for wanted in itertools.combinations(leaves, count):
            for key, leaf in leaves.items():
                leaf.requires_grad_(key in wanted)
            y = layer(x)
            assert y.requires_grad == bool(wanted)
            if wanted:
                found = torch.autograd.grad(y, [leaves[key] for key in wanted], direction(y))
                assert_same(
                    dict(zip(wanted, found, strict=True)), {key: expected[key] for key in wanted}
                )


FUNCTIONS = ["batch_norm", "instance_norm", "layer_norm", "group_norm"]


# PyTorch's own group norm fails with a bias alone; ours is compared with a weight of ones below.
@pytest.mark.parametrize(
    ("function", "given"),
    [
        each
        for each in itertools.product(FUNCTIONS, ["weight", "bias"])
        if each != ("group_norm", "bias")
    ],
)
def test_one_of_weight_and_bias(function: str, given: str):
    x = example((4, 6, 5)).double()
    ours, theirs = (getattr(module, function) for module in (nf.functional, torch.nn.functional))
    size = 5 if function == "layer_norm" else 6
    extra = {
        "batch_norm": {"running_mean": None, "running_var": None, "training": True},
        "instance_norm": {},
        "layer_norm": {"normalized_shape": (5,)},
        "group_norm": {"num_groups": 2},
    }[function]
    found = []
    for call in (ours, theirs):
        leaves = [x.clone().requires_grad_(), example((size,)).double().requires_grad_()]
        y = call(leaves[0], **extra, **{given: leaves[1]})
        found.append(
            {"y": y.detach(), **dict(enumerate(torch.autograd.grad(y, leaves, direction(y))))}
        )
    assert_same(*found)


def test_group_norm_with_a_bias_alone():
    x, bias = example((4, 6, 5)).double(), example((6,)).double()
    alone = nf.functional.group_norm(x, 2, None, bias)
    assert_same({"y": alone}, {"y": nf.functional.group_norm(x, 2, torch.ones(6), bias)})


@each_mode
@each_layer
def test_a_saved_tensor_that_changes_is_noticed(name: str, training: bool):
    layer, x = prepared(name, training)
    for what in ("x", "weight", "mean_weight", "var_weight"):
        if what != "x" and getattr(layer, what, None) is None:
            continue
        given = x.clone().requires_grad_().clone()
        y = layer(given)
        with torch.no_grad():
            (given if what == "x" else layer.get_parameter(what)).add_(1)
        if what.endswith("_weight") and min(x.shape[2:], default=1) == 1:
            y.sum().backward()  # of logits that were picked out, the copy is used
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("kept", ["transposed", "sliced", "channels last", "contiguous"])
@each_layer
def test_saved_tensors_that_come_back_with_other_strides(name: str, kept: str):
    """Hooks must give back the values, no more."""

    def back(t: Tensor) -> Tensor:
        return LAYOUTS[kept](t.detach().clone()) if t.is_floating_point() else t

    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    for arranged in (x, channels_last(x)):
        expected = step(twin, twin, arranged)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
            found = step(layer, layer, arranged)
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["batch 2d", "instance 2d", "group", "layer, token"])
def test_saved_tensors_that_come_back_as_negated_views(name: str):
    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    expected = step(twin, twin, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: torch._neg_view(-t)):
        found = step(layer, layer, x)
    assert_same(found, expected)


def test_saved_tensors_that_come_back_in_another_type():
    layer = nf.BatchNorm2d(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.bfloat16()):
        y = layer(torch.randn(2, 3, 4, 4, requires_grad=True))
    said = r"input that was saved .* as torch.bfloat16 \[2, 3, 4, 4\], it was torch.float32"
    with pytest.raises(RuntimeError, match=said):
        y.sum().backward()


@pytest.mark.parametrize("axes", [1, 4], ids=["parameters", "input"])
@pytest.mark.parametrize("name", ["batch 2d", "instance 2d", "group", "switch 2d"])
def test_saved_tensors_that_come_back_smaller(name: str, axes: int):
    """No memory beyond them is read or written."""

    def back(t: Tensor) -> Tensor:
        return t.detach()[:1].clone() if t.ndim == axes else t

    layer, x = prepared(name)
    for arranged in (x, channels_last(x)):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
            y = layer(arranged.requires_grad_())
        with pytest.raises(RuntimeError, match=r"was saved for the backward came back as .* \[1"):
            y.sum().backward()


FREED = {
    "input": lambda layer, x: x,
    "weight": lambda layer, x: layer.weight.data,
    "bias": lambda layer, x: layer.bias.data,
    "running_mean": lambda layer, x: layer.running_mean,
    "running_var": lambda layer, x: layer.running_var,
    "mean_weight": lambda layer, x: layer.mean_weight.data,
    "var_weight": lambda layer, x: layer.var_weight.data,
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", FREED)
def test_memory_that_was_freed(name: str, known: bool):
    """As those that shard parameters do between two uses: no other values, and no crash."""
    layer, x = nf.SwitchNorm2d(3), torch.randn(2, 3, 4, 4)
    if known:
        layer(x)
    FREED[name](layer, x).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"memory of .*{name} was freed"):
        layer(x)


@pytest.mark.parametrize("name", ["input", "weight", "mean_weight"])
def test_memory_that_was_freed_before_the_backward(name: str):
    layer, x = nf.SwitchNorm2d(3), torch.randn(2, 3, 4, 4)
    y = layer(x.clone().requires_grad_() if name != "input" else x)
    FREED[name](layer, x).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"memory of .*{name} was freed"):
        y.sum().backward()
    layer, x = nf.GroupNorm(1, 3), torch.randn(2, 3, 4, 4)
    y, dy = layer(x), torch.randn(2, 3, 4, 4)
    dy.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="memory of the gradient of the output was freed"):
        y.backward(dy)


def test_zeros_without_memory():
    """As forward-mode differentiation makes them."""
    zeros = torch._efficientzerotensor(2, 3, 4, 4)
    for layer in (nf.BatchNorm2d(3), nf.GroupNorm(1, 3), nf.LayerNorm(4)):
        assert torch.equal(layer(zeros), torch.zeros(2, 3, 4, 4))


@each_layer
def test_a_graph_is_gone_after_its_backward(name: str):
    layer, x = prepared(name)
    y = layer(x.requires_grad_()).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@each_layer
def test_inputs_are_left_as_they_are(name: str):
    layer, x = prepared(name)
    before = [t.detach().clone() for t in (x, *layer.parameters())]
    step(layer, layer, x)
    assert all(torch.equal(t, old) for t, old in zip((x, *layer.parameters()), before, strict=True))


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@each_mode
@each_layer
def test_what_is_not_finite_stays_in_its_cell(name: str, training: bool, bad: float):
    layer, x = prepared(name, training)
    place = tuple(size // 2 for size in x.shape)
    result = judge(layer, x)
    mark = torch.zeros_like(x)
    mark[place] = 1
    cells = [result.largest(mark.double().numpy().reshape(result.xhat.shape))]
    cells.append(result.largest(cells[0]))  # of a blend, dx also knows what shares these cells
    y_knows, dx_knows = (torch.from_numpy(cell).reshape(x.shape) > 0 for cell in cells)
    twin = copy.deepcopy(layer)
    clean = step(twin, twin, x)
    x[place] = bad
    found = step(layer, layer, x)
    assert torch.equal(found["y"][~y_knows], clean["y"][~y_knows])
    assert torch.equal(found["dx"][~dx_knows], clean["dx"][~dx_knows])
    assert not found["y"][place].isfinite()
    if bad != bad:
        assert found["y"][y_knows].isnan().all()
