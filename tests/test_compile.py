"""Compiled by ``torch.compile`` on a CPU, a norm is one operator, and gives the same bits as eager.

The bits are those of the output, all gradients, buffers and counters. A backend that keeps the
graphs shows what a norm became.
"""

import copy
import itertools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import normalform as nf
from normalform.kernels import op
from normalform.kernels.call import Call
from normalform.kernels.cpu import steps
from normalform.kernels.cpu import table as t
from normalform.recipes import named, recipe
from steps import direction, example, prepared, step, torch_twin
from zoo import ZOO, build

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

NORM = "normalform.norm.default"
# A branch is left out (one value a cell) or averages over channels at each position.
AS_RECIPE = ["switch rows", "switch, one value", "switch of four"]
SOME = ["batch 2d", "instance 2d", "group", "switch 2d", "ghost 2d", "layer, token", "rms"]
IMAGES = SOME[:5]


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch._dynamo.reset()
    counters.clear()


class Graphs:
    """A backend that remembers what it was given, and how often it was asked."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.backend, self.seen = backend, []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        self.seen.append(called.count(NORM))
        return torch._dynamo.lookup_backend(self.backend)(graph, inputs)


def compiled(call: Any, graphs: Any = "aot_eager", **options: Any) -> Any:
    return torch.compile(call, fullgraph=True, backend=graphs, **options)


def assert_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, value in actual.items():
        other = expected[name]
        assert (value.dtype, value.shape, value.stride()) == (
            other.dtype,
            other.shape,
            other.stride(),
        ), name
        assert torch.equal(value, other), f"{name}: {(value - other).abs().max()} apart"


@pytest.mark.parametrize("name", SOME)
def test_where_torch_takes_compiling_for_exporting(name: str, monkeypatch):
    """As PyTorch before 2.13 does; its own operators would be there, and keep no promise."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: torch.compiler.is_compiling())
    (layer, x), graphs = prepared(name), Graphs()
    compiled(layer, graphs)(x)
    assert graphs.seen == [1]


@pytest.mark.parametrize(
    ("name", "training", "backend"),
    [
        *itertools.product(ZOO, [True, False], ["aot_eager"]),
        *itertools.product(["batch 2d", "switch 2d"], [True, False], ["eager"]),
    ],
)
def test_one_operator_and_the_same_bits(name: str, training: bool, backend: str):
    layer, x = prepared(name, training)
    twin, graphs = copy.deepcopy(layer), Graphs(backend)
    call = compiled(layer, graphs)
    for scale in (1, 3):
        assert_bits(step(call, layer, scale * x), step(twin, twin, scale * x))
    assert graphs.seen == [0 if name in AS_RECIPE else 1]
    assert not counters["graph_break"]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_layouts_and_types(name: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]):
    layer, x = prepared(name, dtype=dtype)
    twin, graphs = copy.deepcopy(layer), Graphs()
    call = compiled(lambda leaf: layer(layout(leaf)), graphs)
    assert_bits(step(call, layer, x), step(lambda leaf: twin(layout(leaf)), twin, x))
    assert graphs.seen == [1]


@pytest.mark.parametrize("name", ["batch 2d", "switch 2d", "layer, token"])
def test_gradients_of_any_subset(name: str):
    layer, x = prepared(name)
    leaves = ["x", *dict(layer.named_parameters())]
    for count in {1, len(leaves) - 1, len(leaves)}:
        for wanted in itertools.combinations(leaves, count):
            torch._dynamo.reset()
            twin = copy.deepcopy(layer)
            found = gradients(compiled(layer), layer, x, wanted)
            assert all(map(torch.equal, found, gradients(twin, twin, x, wanted))), wanted


def gradients(
    call: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor, wanted: tuple[str, ...]
) -> tuple[Tensor, ...]:
    leaves = {"x": x.clone(), **dict(layer.named_parameters())}
    for key, leaf in leaves.items():
        leaf.requires_grad_(key in wanted)
    y = call(leaves["x"])
    return torch.autograd.grad(y, [leaves[key] for key in wanted], direction(y))


@pytest.mark.parametrize("name", SOME)
def test_nothing_as_large_as_x_is_kept_but_x(name: str):
    layer, x = prepared(name)
    x = example((*x.shape[:2], *(16 for _ in x.shape[2:])) if x.ndim == 4 else (64, x.shape[-1]))
    call, sizes, keep = compiled(layer), [], lambda t: t
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, keep):
        call(x.requires_grad_())
    assert sorted(sizes)[-1] == x.numel()
    if x.ndim == 4:
        assert sorted(sizes)[-2] < x.numel() // 2


# Sizes: one graph for any


@pytest.mark.parametrize("dynamic", [None, True], ids=["by itself", "asked for"])
@pytest.mark.parametrize("name", IMAGES)
def test_few_graphs_for_many_sizes(name: str, dynamic: bool | None):
    layer, x = prepared(name)
    twin, graphs = copy.deepcopy(layer), Graphs()
    call = compiled(layer, graphs, dynamic=dynamic)
    sizes = [(4, 5, 3), (5, 6, 4), (6, 7, 5), (8, 9, 16), (9, 3, 2), (12, 20, 11), (7, 200, 201)]
    for samples, *image in sizes:
        more = example((samples, x.shape[1], *image))
        assert_bits(step(call, layer, more), step(twin, twin, more))
    assert set(graphs.seen) == {1}
    assert len(graphs.seen) <= 3


@pytest.mark.parametrize("name", ["layer, token", "rms", "batch rows"])
def test_few_graphs_for_many_rows(name: str):
    layer, x = prepared(name)
    twin, graphs = copy.deepcopy(layer), Graphs()
    call = compiled(layer, graphs)
    for samples in (4, 5, 9, 64, 1000):
        more = example((samples, *x.shape[1:]))
        assert_bits(step(call, layer, more), step(twin, twin, more))
    assert set(graphs.seen) == {1}
    assert len(graphs.seen) <= 2


# Running statistics


@pytest.mark.parametrize("name", ["batch 2d", "instance, tracked", "switch 2d", "ghost 2d"])
def test_cumulative_average(name: str):
    layer, x = prepared(name)
    layer.momentum = None
    twin, graphs = copy.deepcopy(layer), Graphs()
    call = compiled(layer, graphs)
    for scale in (1, 2, 3):
        assert_bits(step(call, layer, scale * x), step(twin, twin, scale * x))
    assert graphs.seen == [1]


def test_statistics_that_are_not_finite_keep_their_value():
    layer, x = prepared("batch 2d")
    x[0, 1] = torch.inf
    twin, said = copy.deepcopy(layer), []
    for call in (compiled(layer), twin):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(x)
        said.append([str(w.message) for w in caught if "kept their old value" in str(w.message)])
    assert said[0] == said[1]
    assert len(said[0]) == 2
    assert bool(layer.running_mean.isfinite().all())
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_backward_after_the_statistics_moved():
    layer, x = prepared("batch 2d", training=False)
    twin = copy.deepcopy(layer)
    found: list[Tensor] = []
    for each, call in ((layer, compiled(layer)), (twin, twin)):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        with torch.no_grad():
            each.running_var.mul_(7)
        found.append(torch.autograd.grad(y, leaf, direction(y))[0])
    assert torch.equal(*found)


def test_activation_checkpointing():
    """As for torch's own: statistics move once, where in eager the recomputation moves them too."""
    layer, x = prepared("batch 2d")
    twin, theirs = copy.deepcopy(layer), torch_twin(layer)

    def within(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: checkpoint(lambda t: layer(t.sin()).cos(), x, use_reentrant=False)

    expected = step(lambda x: twin(x.sin()).cos(), twin, x)
    assert_bits(step(compiled(within(layer)), layer, x), expected)
    step(compiled(within(theirs)), theirs, x)
    counts = [each.get_buffer("num_batches_tracked") for each in (layer, theirs)]
    assert torch.equal(*counts)
    assert int(counts[0]) == 1


# Where the operator is not taken


def group_norm(x: Tensor, kernel: str = "auto") -> Tensor:
    return nf.functional.group_norm(x, 2, torch.tensor([0.5, 1.0, 1.5, 2.0]), kernel=kernel)


def scalar(x: Tensor) -> Tensor:
    return group_norm(x).pow(3).sum()


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "grad": torch.func.grad(scalar),
    "vmap": lambda x: torch.func.vmap(group_norm)(torch.stack([x, 2 * x])),
    "jvp": lambda x: torch.func.jvp(group_norm, (x,), (x.cos(),))[1],
    "hessian": torch.func.jacrev(torch.func.grad(scalar)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_trace_the_recipe(transform: Callable[[Tensor], Tensor]):
    x, graphs = example((4, 4, 2, 3)), Graphs()
    assert torch.allclose(compiled(transform, graphs)(x), transform(x), rtol=1e-6, atol=1e-6)
    assert graphs.seen == [0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_second_derivative_is_refused(backend: str):
    x = example((4, 4, 2, 3)).requires_grad_()
    y = compiled(scalar, backend)(x)
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula|not currently support double"):
        torch.autograd.grad(dx.sum(), x)


@pytest.mark.parametrize("kernel", ["auto", "cpu", "eager"])
def test_the_kernel_that_is_asked_for(kernel: str):
    x, graphs = example((4, 4, 2, 3)), Graphs()
    call = compiled(lambda x: nf.functional.group_norm(x, 2, kernel=kernel), graphs)
    assert torch.equal(call(x), nf.functional.group_norm(x, 2, kernel=kernel))
    assert graphs.seen == [int(kernel != "eager")]


def test_float16_is_traced():
    layer, x = prepared("group", dtype=torch.float16)
    graphs = Graphs()
    assert torch.equal(compiled(layer, graphs)(x), layer(x))
    assert graphs.seen == [0]


def test_without_numba_the_recipe_is_traced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(op, "cpu_engine", lambda: "Numba cannot be used")
    x, graphs = example((4, 4, 2, 3)), Graphs()
    assert torch.equal(compiled(group_norm, graphs)(x), group_norm(x, "eager"))
    assert graphs.seen == [0]


@pytest.mark.parametrize("name", SOME)
def test_exported_without_an_operator_of_ours(name: str):
    layer, x = prepared(name, training=False)
    graph = torch.export.export(layer, (x,), strict=True).graph
    assert not [node for node in graph.nodes if "normalform" in str(node.target)]


# The operators by themselves


@pytest.mark.parametrize("name", ZOO)
def test_a_norm_survives_being_written(name: str):
    layer, _ = build(name)
    recipes = getattr(layer, "over", (named("ghost:3"), recipe("n s [c]", center=False)))
    form = op.Form(tuple(recipes), "s c", 1, True)
    assert op.Form.read(form.write()) == form


NAMES = ["batch", "instance", "layer", "group:2", "ghost:3", "position", "token", "rms"]
BLENDS = [("instance", "layer", "batch"), ("layer", "ghost:2"), ("position", "layer")]
SHAPES = [(4, 6, 5, 3), (9, 6), (3, 4, 200, 200), (5, 2, 1, 1), (1, 6, 5, 3), (2, 6, 9)]
LAID = [
    *itertools.product([*((name,) for name in NAMES), *BLENDS], SHAPES),
    *((over, (4, 1, 8, 8)) for over in [("batch",), ("layer",), ("token",), *BLENDS]),
]


@pytest.mark.parametrize(("over", "shape"), LAID, ids=str)
def test_it_keeps_what_the_kernels_need(over: tuple[str, ...], shape: tuple[int, ...]):
    """The cells of every branch, without the slots they came from."""
    recipes = tuple(map(named, over))
    ones, channels = torch.ones(len(over)), torch.ones(recipes[0].cells(shape).shape[1])
    logits, running = (ones, ones) if len(over) > 1 else None, (channels, channels)
    last, tracked = LAYOUTS["channels last"] if len(shape) == 4 else torch.clone, len(over) - 1
    uses = [(None, None, False), (running, tracked, False), (running, tracked, True)]
    for x, use, params in itertools.product(
        (example(shape), last(example(shape))), uses, ("c", "n c")
    ):
        call = Call(x, recipes, None, None, 1e-5, params, logits, *use)
        room, found = op.room(call), steps.find(call)
        if isinstance(found, str):
            assert room is None, found
            continue
        layout = found.layout
        slots = 0 if layout.given else t.CELL * int(layout.table[t.SLOTS])
        assert room == layout.small + slots * (layout.roles().count(t.SLOT) - 1)


def samples() -> dict[str, tuple[Any, ...]]:
    """Arguments of ``normalform::norm``: kinds of norms, layouts and types."""
    x, w, b, mean, var = (
        example(shape, seed=seed).requires_grad_()
        for seed, shape in enumerate([(4, 6, 5, 3), (6,), (6,), (3,), (3,)])
    )
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    half, rows, gaps = (
        t.detach().requires_grad_() for t in (x.bfloat16(), x[:, :, 0, 0], x.transpose(2, 3))
    )
    running, none, logits = (torch.randn(6), torch.rand(6) + 0.5), (None, None), (mean, var)
    three, room = tuple(map(named, ("instance", "layer", "batch"))), 1000

    def of(tensors: tuple[Tensor | None, ...], *form: Any) -> tuple[Any, ...]:
        return *tensors, None, 0.1, 1e-5, op.Form(*form).write(), room

    return {
        "batch": of((x, w, b, *none, *running), three[2:], "c", 0, False),
        "batch, given": of((x, w, b, *none, *running), three[2:], "c", 0, True),
        "switch": of((x, w, b, *logits, *running), three, "c", 2, False),
        "switch, last": of((last, w, None, *logits, *none), three, "c", None, False),
        "instance, half": of((half, w, b, *none, *none), three[:1], "c", None, False),
        "layer, gaps": of((gaps, w, b, *none, *none), three[1:2], "c", None, False),
        "rms": of((rows, w, None, *none, *none), (named("rms"),), "c", None, False),
    }


def test_only_the_output_has_a_gradient():
    y, kept, moved = op.norm(*samples()["switch"])
    assert [t.requires_grad for t in (y, kept, *moved)] == [True, False, False, False]


def test_eps_is_heeded():
    x = example((4, 6, 5, 3))
    for eps in (1e-5, 1.0):
        call = compiled(lambda x, eps=eps: nf.functional.instance_norm(x, eps=eps))
        assert torch.equal(call(x), nf.functional.instance_norm(x, eps=eps))


@pytest.fixture
def _memory_is_clean(monkeypatch: pytest.MonkeyPatch):
    """What is kept has gaps that nobody reads: here they are zeros, so that results compare."""
    monkeypatch.setattr(steps, "torch", SimpleNamespace(**{**vars(torch), "empty": torch.zeros}))
    monkeypatch.setattr(steps, "empty_like", torch.zeros_like)


@pytest.mark.usefixtures("_memory_is_clean")
@pytest.mark.parametrize("name", samples())
def test_torch_finds_no_fault(name: str):
    torch.library.opcheck(op.norm, samples()[name])


@pytest.mark.usefixtures("_memory_is_clean")
@pytest.mark.parametrize("name", samples())
def test_torch_finds_no_fault_with_the_backward(name: str):
    x, w, b, mean, var, running, *_, eps, form, _ = arguments = [
        t.detach() if isinstance(t, Tensor) else t for t in samples()[name]
    ]
    y, kept, _ = op.norm(*arguments)
    dtype = None if running is None else running.dtype
    needs = [t is not None for t in (x, w, b, mean, var)]
    inputs = direction(y), x, w, b, mean, var, kept, dtype, eps, form, needs
    torch.library.opcheck(op.norm_backward, inputs)
