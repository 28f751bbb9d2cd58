"""Graphs made of our layers and functions: compiled, exported, as ONNX, traced.

A compiled layer gives what the layer gives, to the last bit but one. An exported one is made of
PyTorch's own operators, where it has them, and gives what PyTorch's layer gives.
"""

import copy
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from steps import IN_TORCH, assert_same, example, prepared, step, torch_twin
from zoo import ZOO, build

# What torch warns of in its own code: forward-mode differentiation and the exporters call these.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

each_layer = pytest.mark.parametrize("name", ZOO)
each_torch_layer = pytest.mark.parametrize("name", IN_TORCH)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
ONE_OF_EACH = ["batch 2d", "instance 2d", "layer, token", "group", "rms", "switch 2d", "ghost 2d"]
KEEPING = [name for name in ZOO if len(list(build(name)[0].buffers()))]
TRACKING = ["batch 2d", "instance, tracked", "switch 2d", "ghost 2d"]

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "norm": lambda x, w: nf.norm(x, "n (g [c]) [s]", w, g=2),
    "norm by name": lambda x, w: nf.norm(x, "batch", w),
    "norm, not centred": lambda x, w: nf.norm(x, "n [c] s", w, center=False),
    "batch_norm": lambda x, w: nf.functional.batch_norm(x, 0 * w, w * w, w, training=True),
    "instance_norm": lambda x, w: nf.functional.instance_norm(x, weight=w),
    "layer_norm": lambda x, w: nf.functional.layer_norm(x, x.shape[2:]),
    "group_norm": lambda x, w: nf.functional.group_norm(x, 2, w),
    "rms_norm": lambda x, w: nf.functional.rms_norm(x, x.shape[2:]),
    "switch_norm": lambda x, w: nf.functional.switch_norm(x, None, None, w[:3], w[1:], w),
    "switch_norm of two": lambda x, w: nf.functional.switch_norm(
        x, None, None, w[:2], w[1:3], over=("layer", "ghost:2")
    ),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch._dynamo.reset()


# Compiling


@pytest.mark.parametrize(
    ("name", "training"), [*((n, True) for n in ZOO), *((n, False) for n in KEEPING)]
)
def test_compiled_without_a_break(name: str, training: bool):
    layer, x = prepared(name, training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_same(step(compiled, layer, x), step(twin, twin, x))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_compiled_once_for_any_batch(name: str):
    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def call(x: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(x, 0)
        return compiled(x)

    assert_same(step(call, layer, x), step(twin, twin, x))
    more = example((x.shape[0] + 4, *x.shape[1:]))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(step(call, layer, more), step(twin, twin, more))


@pytest.mark.parametrize("name", TRACKING)
def test_compiled_with_a_cumulative_average(name: str):
    layer, x = prepared(name)
    layer.momentum = None
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for scale in (1, 2, 3):
        assert_same(step(compiled, layer, scale * x), step(twin, twin, scale * x))


@each_function
def test_functions_compiled_without_a_break(function: Callable[..., Tensor]):
    x, w = example((4, 4, 2, 3)), torch.tensor([0.5, 1.0, 1.5, 2.0])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same({"y": compiled(x, w)}, {"y": function(x, w)})


# Exporting: for other runtimes the graph holds PyTorch's own operators


OPERATORS = {
    "BatchNorm": "aten.batch_norm.default",
    "InstanceNorm": "aten.instance_norm.default",
    "LayerNorm": "aten.layer_norm.default",
    "GroupNorm": "aten.group_norm.default",
    "RMSNorm": "aten.rms_norm.default",
}


@each_mode
@each_torch_layer
def test_exported_as_torchs_own_operator(name: str, training: bool):
    layer, x = prepared(name, training)
    twin = torch_twin(layer)
    program = torch.export.export(layer, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert OPERATORS[type(layer).__name__.rstrip("123d")] in called
    module = program.module()
    assert torch.equal(module(x), twin(x))
    state = module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in twin.state_dict().items())


@each_mode
@pytest.mark.parametrize("name", [name for name in ZOO if name not in IN_TORCH])
def test_exported_where_torch_has_no_operator(name: str, training: bool):
    layer, x = prepared(name, training)
    twin = copy.deepcopy(layer)
    module = torch.export.export(layer, (x,)).module()
    assert_torchs_accuracy(module(x), twin(x))
    state = module.state_dict()
    for key, value in twin.state_dict().items():
        assert_torchs_accuracy(state[key], value)


@pytest.mark.parametrize(
    "name", [*ONE_OF_EACH[:5], *(name for name in ZOO if name not in IN_TORCH)]
)
def test_exported_for_any_batch(name: str):
    layer, x = prepared(name, training=False)
    few, many = (example((samples, *x.shape[1:])) for samples in (5, 8))
    samples = torch.export.Dim("samples", min=2, max=64)
    program = torch.export.export(layer, (few,), dynamic_shapes=({0: samples},))
    assert_torchs_accuracy(program.module()(many), layer(many))


@pytest.mark.parametrize("name", ["ghost 1d", "ghost 2d", "ghost 3d"])
def test_ghost_is_exported_as_batch_norm(name: str):
    layer, x = prepared(name, training=False)
    graph = torch.export.export(layer, (x,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.batch_norm.default"]


def assert_torchs_accuracy(actual: Tensor, expected: Tensor) -> None:
    """A graph for other runtimes works in float32 throughout: some roundings of ordinary values."""
    apart = (actual.double() - expected.double()).abs()
    assert bool((apart <= 32 * 2.0**-24 * (1 + expected.double().abs())).all()), float(apart.max())


class Side(nn.Module):
    """Several layers, each of an input of its own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_runs_every_layer(tmp_path):
    layers, inputs = map(list, zip(*(prepared(name, training=False) for name in ZOO), strict=True))
    expected = [
        (torch_twin(layer) if name in IN_TORCH else layer)(x).detach()
        for name, layer, x in zip(ZOO, layers, inputs, strict=True)
    ]
    file = tmp_path / "layers.onnx"
    torch.onnx.export(Side(layers).eval(), (inputs,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    given = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
    for y, each in zip(session.run(None, given), expected, strict=True):
        assert_torchs_accuracy(torch.from_numpy(np.asarray(y)), each)
    made = [node.op_type for node in onnx.load(file).graph.node]
    counts = {kind: made.count(f"{kind}Normalization") for kind in ("Batch", "Instance", "Layer")}
    assert counts["Batch"] >= 9
    assert counts["Instance"] >= 3
    assert counts["Layer"] >= 3


# Tracing


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@each_mode
@each_torch_layer
def test_jit_traced_as_torchs_own_operator(name: str, training: bool):
    layer, x = prepared(name, training)
    before = copy.deepcopy(layer.state_dict())
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    layer.load_state_dict(before)
    assert torch.equal(traced(x), torch_twin(layer)(x)) or training
    assert "_norm" in str(traced.inlined_graph)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in ZOO if name not in IN_TORCH])
def test_jit_traced_where_torch_has_no_operator(name: str):
    """And once more, without gradients, as torch does to check what it has traced."""
    layer, x = prepared(name, training=False)
    traced = torch.jit.trace(layer, (x,))
    assert_torchs_accuracy(traced(2 * x), layer(2 * x))


@each_layer
def test_fx_keeps_a_layer_one_node(name: str):
    layer, x = prepared(name)
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Tanh(), layer))
    assert [node.op for node in graph.graph.nodes].count("call_module") == 2
    twin = copy.deepcopy(layer)
    assert_same(step(graph, layer, x), step(lambda x: twin(x.tanh()), twin, x))
    graph.eval()
    twin.eval()
    assert torch.equal(graph(x), twin(x.tanh()))
    assert not layer.training


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


@each_function
def test_fx_keeps_a_function_one_node(function: Callable[..., Tensor]):
    module = Calls(function)
    graph = torch.fx.symbolic_trace(module)
    ours = [
        node
        for node in graph.graph.nodes
        if "normalform" in str(getattr(node.target, "__module__", ""))
    ]
    assert len(ours) == 1
    x = example((4, 4, 2, 3))
    assert torch.equal(graph(x), module(x))
