"""The compiled CPU kernels where they work differently from each other, at sizes that show it.

Long planes are cut into pieces, channels-last tensors into tiles and folded rows, batches into
blocks with a tail. The promise is the same everywhere; ``kernel="cpu"`` raises where none runs.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform import budget, reference
from normalform.kernels import known
from normalform.kernels.cpu import table as t
from normalform.kernels.cpu.layout import PARALLEL
from normalform.testing import HARD_INPUTS, assert_accurate, assert_layer_accurate, measure
from planted import normal, randomized

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    # Contiguous: planes, in pieces where they are long
    "batch, pieces": (lambda: nf.BatchNorm2d(3), (2, 3, 191, 181), False),
    "instance, pieces": (lambda: nf.InstanceNorm2d(3, affine=True), (1, 3, 191, 181), False),
    "group, pieces": (lambda: nf.GroupNorm(2, 4), (1, 4, 191, 181), False),
    "switch, pieces": (lambda: nf.SwitchNorm2d(3), (2, 3, 191, 181), False),
    "switch, parts": (lambda: nf.SwitchNorm2d(16), (8, 16, 24, 25), False),
    "switch, groups": (
        lambda: nf.SwitchNorm2d(12, over=("group:3", "layer", "batch")),
        (5, 12, 30, 31),
        False,
    ),
    "group, parts": (lambda: nf.GroupNorm(4, 16), (8, 16, 24, 25), False),
    "instance, tracked": (
        lambda: nf.InstanceNorm2d(6, affine=True, track_running_stats=True),
        (4, 6, 30, 31),
        False,
    ),
    "instance, a few samples a part": (
        lambda: nf.InstanceNorm2d(8, affine=True),
        (20, 8, 13, 12),
        False,
    ),
    "switch, a few samples a part": (lambda: nf.SwitchNorm2d(8), (40, 8, 11, 5), False),
    "ghost, tail": (lambda: nf.GhostBatchNorm2d(6, 3), (8, 6, 30, 31), False),
    # Channels last: columns, rows folded where they are short, tiles where they are long
    "batch, last": (lambda: nf.BatchNorm2d(7), (3, 7, 90, 61), True),
    "instance, last": (lambda: nf.InstanceNorm2d(7, affine=True), (2, 7, 90, 61), True),
    "group, last": (lambda: nf.GroupNorm(2, 12), (3, 12, 70, 61), True),
    "switch, last": (lambda: nf.SwitchNorm2d(7), (3, 7, 90, 61), True),
    "ghost, last": (lambda: nf.GhostBatchNorm2d(7, 2), (5, 7, 20, 31), True),
    "layer, pieces, last": (lambda: nf.GroupNorm(1, 12), (3, 12, 70, 61), True),
    "layer, a piece, last": (lambda: nf.GroupNorm(1, 7), (3, 7, 20, 31), True),
    "switch, tiles": (lambda: nf.SwitchNorm2d(1100), (3, 1100, 3, 2), True),
    "batch rows, tiles": (lambda: nf.BatchNorm1d(1500), (41, 1500), False),
    # Short planes in large batches
    "batch, short planes": (lambda: nf.BatchNorm2d(3), (37, 3, 3, 3), False),
    "batch, short planes in tiles": (lambda: nf.BatchNorm2d(200), (9, 200, 3, 3), False),
    "instance, short planes": (lambda: nf.InstanceNorm2d(12, affine=True), (18, 12, 7, 7), False),
    "group, short planes": (lambda: nf.GroupNorm(4, 12), (18, 12, 5, 5), False),
    "group, many short planes": (lambda: nf.GroupNorm(4, 800), (9, 800, 5, 5), False),
    "layer, several runs": (lambda: nf.GroupNorm(1, 1024), (3, 1024, 8, 8), False),
    # Rows
    "layer, long rows": (lambda: nf.LayerNorm(70001), (2, 70001), False),
    "rms, long rows": (lambda: nf.RMSNorm(70001), (2, 70001), False),
    "layer, last": (lambda: nf.GroupNorm(1, 12), (9, 12, 20, 21), True),
    "layer, last, wide": (lambda: nf.GroupNorm(1, 1100), (9, 1100, 3, 3), True),
    "layer, many channels last": (lambda: nf.GroupNorm(1, 1100), (3, 1100, 2, 2), True),
    "layer, many rows": (lambda: nf.LayerNorm(37), (1801, 37), False),
    "rms, many rows": (lambda: nf.RMSNorm(37), (1801, 37), False),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAST = {True: torch.channels_last, False: torch.contiguous_format}


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer whose parameters have the type of x too, x, and a gradient of its output."""
    make, shape, last = CASES[name]
    layer = randomized(make()).to(dtype)
    layer.kernel = "cpu"
    x, dy = (t.to(dtype).contiguous(memory_format=LAST[last]) for t in pair(shape))
    return layer, x, dy


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    noise = normal(2, *shape)
    return noise[0] + 100, noise[1]


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    return [y, *torch.autograd.grad(y, [leaf, *layer.parameters()], dy)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_promise(name: str, dtype: torch.dtype, training: bool):
    layer, x, dy = prepared(name, dtype)
    assert_layer_accurate(layer.train(training), x, dy)


FEW = ["instance, tracked", "batch, last", "layer, many rows", "switch, parts"]


@pytest.mark.parametrize(
    ("name", "hard", "dtype"),
    [
        *itertools.product(CASES, ["mean 1e6", "variance below eps", "outlier"], DTYPES[:1]),
        *itertools.product(CASES, ["mean 1e6", "variance below eps", "outlier"], DTYPES[1:2]),
    ],
)
def test_hard_inputs(name: str, hard: str, dtype: torch.dtype):
    layer, x, dy = prepared(name, dtype)
    values = HARD_INPUTS[hard](tuple(x.shape), torch.Generator().manual_seed(1))
    assert_layer_accurate(layer, torch.empty_like(x).copy_(values), dy)


@pytest.mark.parametrize("mean", [0.0, 5.0, 600.0, None])
@pytest.mark.parametrize("name", CASES)
def test_any_distance_of_the_mean(name: str, mean: float | None):
    """None is another one for each sample."""
    layer, x, dy = prepared(name)
    apart = (4.0 ** (torch.arange(len(x)) % 8)).reshape(-1, *[1] * (x.ndim - 1))
    assert_layer_accurate(layer, x - 100 + (apart if mean is None else mean), dy)


@pytest.mark.filterwarnings("ignore:running_:UserWarning")
@pytest.mark.parametrize("size", [1e-36, 1e-28, 1e28, 1e36])
@pytest.mark.parametrize(
    "name",
    [
        "group, parts", "batch, pieces", "instance, short planes", "batch, last",
        "batch rows, tiles", "batch, short planes", "layer, many rows", "layer, long rows",
    ],
)  # fmt: skip
def test_statistics_that_float32_cannot_hold(name: str, size: float):
    """rstd, or its product with the weight, is subnormal or infinite there; y is neither."""
    layer, x, dy = prepared(name)
    layer.eps = 1e-90 if name.startswith("batch") else 0.0
    with torch.no_grad():
        layer.weight *= size**-0.5
        layer.bias *= size**-0.5
    assert_layer_accurate(layer, (x - 100) * size, dy * size**0.5)


@pytest.mark.parametrize("size", [1e-41, 1e-39, 1e34])
@pytest.mark.parametrize(
    "name",
    [
        "batch, pieces", "batch, last", "batch rows, tiles", "layer, many rows", "layer, long rows",
        "layer, last", "rms, many rows", "instance, short planes",
    ],
)  # fmt: skip
def test_weights_that_float32_computes_worse_with(name: str, size: float):
    """They are subnormal, or what is near a finite number times them is infinite."""
    layer, x, dy = prepared(name)
    if not name.startswith("batch"):  # of float32 they would be as exact
        layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= size
    # In evaluation that of x is no part of dx, which must be none of float32's smallest numbers.
    of_x = size**-0.5 if name.startswith("batch") else 1.0
    assert_layer_accurate(layer.eval(), (x - 100) * of_x, dy * size**-0.5)


def test_a_dead_channel_changes_no_bit_of_others():
    """Its running mean decays to the last but few subnormal numbers, and stays there."""
    layer, x, _ = prepared("batch, last")
    x[:, 3] = 0
    expected = layer.eval()(x)[:, :3]
    layer.running_mean[3] = 5.6e-45
    assert torch.equal(layer(x)[:, :3], expected)


@pytest.mark.parametrize(
    ("make", "seed"), [(lambda: nf.BatchNorm1d(8), 274), (lambda: nf.SwitchNorm1d(8), 82)]
)
def test_a_gradient_of_the_smallest_numbers_is_rounded_once(
    make: Callable[[], nn.Module], seed: int
):
    """Of sums that are zero, so that the slope of dx is all that the statistics add."""
    noise = torch.randn(2, 4, 8, 64, generator=torch.Generator().manual_seed(seed))
    noise[..., 32:] = -noise[..., :32]
    layer = make()
    layer.kernel = "cpu"
    assert_layer_accurate(layer, noise[0] * 2.0**-6, noise[1] * 2.0 ** (-135 + seed % 8))


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_roundings_of_float32_are_few(name: str, mean: float):
    """Three of the four that y's promise has, and half of the eight of dx's."""
    layer, x, dy = prepared(name)
    found = measure(layer, x - 100 + mean, dy)
    assert found["y"] < 0.75
    assert found["dx"] < 0.5


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_float64_of_a_first_channel_far_from_the_others(last: bool):
    """Sums about its mean would cancel by as many times as there are channels."""
    x, dy = (t.double().contiguous(memory_format=LAST[last]) for t in pair((3, 1100, 13, 11)))
    x[:, 0] += 1e6
    layer = randomized(nf.SwitchNorm2d(1100, over=("layer",))).double()
    layer.kernel = "cpu"
    assert_layer_accurate(layer, x, dy)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_an_element_next_to_the_mean(last: bool):
    """One float64 for the mean is off by 6e-11 at |mean| = 1e6 std, more than the promise."""
    x = torch.full((1, 2, 3001, 1), 1e6)
    x[:, :, 1::2] += 1
    x[:, :, 2::2] -= 1
    x[:, :, 1] += 0.0625
    layer = nf.BatchNorm2d(2, affine=False)
    layer.kernel = "cpu"
    if last:  # as strides say it: a width of 1 is in either order
        x = x.expand(1, 2, 3001, 1).reshape(1, 2, 3001).mT.contiguous().mT.unsqueeze(3)
        x = x.as_strided(x.shape, (6002, 1, 2, 2))
    assert_layer_accurate(layer, x)


def test_an_element_next_to_the_mean_of_a_group():
    """The same where a cell holds several channels."""
    x = torch.full((1, 4, 3001), 1e6)
    x[:, :, 1::2] += 1
    x[:, :, 2::2] -= 1
    x[:, :, 1] += 0.0625
    layer = nf.GroupNorm(2, 4, affine=False)
    layer.kernel = "cpu"
    assert_layer_accurate(layer, x)


@pytest.mark.parametrize(
    ("name", "dtype", "training"),
    [*itertools.product(CASES, DTYPES, [True]), *itertools.product(CASES, DTYPES[:1], [False])],
)
def test_tensors_larger_than_the_cache(
    name: str, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch
):
    """They are written past it, and taken row by row, others four rows at a time."""
    monkeypatch.setattr("normalform.kernels.cpu.layout.STAYS", 0)
    monkeypatch.setattr("normalform.kernels.cpu.layout.STAYS_BACK", 0)
    monkeypatch.setattr(known, "_remembered", {})
    layer, x, dy = prepared(name, dtype)
    assert_layer_accurate(layer.train(training), x, dy)


@pytest.mark.parametrize("wide", [True, False], ids=["many registers", "few registers"])
@pytest.mark.parametrize("name", CASES)
def test_by_fours_or_one_by_one(name: str, wide: bool, monkeypatch: pytest.MonkeyPatch):
    """What the number of registers decides, whatever this processor has."""
    monkeypatch.setattr("normalform.kernels.cpu.layout.WIDE", wide)
    monkeypatch.setattr(known, "_remembered", {})
    assert_layer_accurate(*prepared(name))


def test_what_the_cases_reach():
    """Every pattern, and every way in which its work is cut up."""
    reached = set[str]()
    for name in CASES:
        layer, x, _ = prepared(name)
        choice = nf.explain(layer, x).choice
        layout = choice.steps.layout
        p, kind, programs = layout.table, layout.kind, layout.programs(2)
        found = {
            "parts": programs.parts > 1,
            "threads": layout.values >= PARALLEL,
            "tiled": programs.tiled,
            "staged": not programs.tiled,
        }
        if kind != "rows":  # which has other numbers there
            found |= {
                "pieces": p[t.PIECES] > 1,
                "a few samples a part": 1 < programs.parts < p[t.SPREAD_UNITS],
                "a shorter piece": p[t.EXTENT] % p[t.LENGTH] != 0,
                "tiles": p[t.TILES] > 1,
                "a smaller tile": p[t.CHANNELS] % p[t.TILE] != 0,
                "rows left over": p[t.LENGTH] % p[t.FOLD] != 0,
                "neighbours": p[t.WIDTH] > 1,
            }
        reached |= {f"{kind}: {way}" for way, is_so in found.items() if is_so}
    columns = {"tiles", "a smaller tile", "rows left over", "neighbours"}
    both = {"pieces", "a shorter piece", "parts", "threads", "tiled", "staged"}
    assert reached >= {f"columns: {way}" for way in columns | both}
    assert reached >= {f"planes: {way}" for way in both | {"a few samples a part"}}
    assert reached >= {f"rows: {way}" for way in ("parts", "threads")}


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize(
    ("make", "shape", "last"),
    [
        (lambda: nf.GroupNorm(1, 16), (2, 16, 45, 45), False),
        (lambda: nf.InstanceNorm2d(2, affine=True), (1, 2, 181, 181), False),
        (lambda: nf.BatchNorm2d(2), (16, 2, 181, 181), False),
        (lambda: nf.BatchNorm2d(2), (16, 2, 181, 181), True),
        (lambda: nf.LayerNorm(32768), (3, 32768), False),
        (lambda: nf.RMSNorm(32768), (3, 32768), False),
    ],
    ids=["layer", "instance", "batch", "batch, last", "layer, rows", "rms"],
)
def test_float64_of_many_values(
    make: Callable[[], nn.Module], shape: tuple[int, ...], last: bool, mean: float
):
    """A sum of n terms, one after the other, would be off by more than the promise leaves."""
    layer = randomized(make()).double()
    layer.kernel = "cpu"
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (noise + mean).contiguous(memory_format=LAST[last])
    assert_layer_accurate(layer, x, normal(*shape).double().contiguous(memory_format=LAST[last]))


# What the caller may give


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda dy: dy.contiguous(),
    "channels last": lambda dy: dy.contiguous(memory_format=torch.channels_last),
    "transposed": lambda dy: dy.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda dy: dy[:1, :, :1, :1].expand_as(dy),
    "of a sum": lambda dy: dy.new_ones(()).expand_as(dy),
    "negative": lambda dy: torch._neg_view(-dy),
    "zeros": lambda dy: torch._efficientzerotensor(dy.shape, dtype=dy.dtype),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("name", ["batch, pieces", "instance, last", "group, short planes"])
def test_a_gradient_that_lies_otherwise_in_memory(name: str, kind: str):
    layer, x, dy = prepared(name)
    other = GRADIENTS[kind](dy)
    same = torch.empty_like(x).copy_(other)
    assert all(map(torch.equal, step(layer, x, other), step(layer, x, same)))
    assert_layer_accurate(layer, x, same)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["switch, parts", "switch, last", "layer, many rows"])
def test_any_subset_of_gradients(name: str, training: bool):
    layer, x, dy = prepared(name)
    layer.train(training)
    leaves: list[Tensor] = [x.requires_grad_(), *layer.parameters()]
    everything = torch.autograd.grad(layer(x), leaves, dy)
    for k in range(len(leaves)):
        for wanted in ([k], [i for i in range(len(leaves)) if i != k]):
            for i, leaf in enumerate(leaves):
                leaf.requires_grad_(i in wanted)
            found = torch.autograd.grad(layer(x), [leaves[i] for i in wanted], dy)
            assert all(map(torch.equal, found, (everything[i] for i in wanted))), wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    ("notation", "sizes"), [("n c [s]", {}), ("[n] c [s]", {}), ("n (g [c]) [s]", {"g": 3})]
)
def test_weight_and_bias_of_every_sample(
    notation: str, sizes: dict[str, int], last: bool, dtype: torch.dtype
):
    shape = (5, 6, 20, 21)
    x, dy = (t.to(dtype).contiguous(memory_format=LAST[last]) for t in pair(shape))
    weight, bias = normal(2, *shape[:2]).to(dtype)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    y = nf.norm(x, notation, weight, bias, params="n c", kernel="cpu", **sizes)
    dx, *others = torch.autograd.grad(y, leaves, dy)
    wide, weight_, bias_, dy_ = (t.detach().double().numpy() for t in (x, weight, bias, dy))
    result = reference.norm(wide, notation, weight_, bias_, params="n c", **sizes)
    gradients = result.backward(dy_)
    assert_accurate(y.detach(), result.y, budget.allowed_y(result, dtype))
    assert_accurate(dx, gradients.x, budget.allowed_dx(result, gradients, dtype), "dx")
    for name, gradient in zip(("weight", "bias"), others, strict=True):
        exact = getattr(gradients, name).reshape(gradient.shape)
        allowed = budget.allowed_sum(name, result, gradients, dy_, dtype, dtype)
        assert_accurate(gradient, exact, allowed.reshape(gradient.shape), name)


def test_logits_of_any_size():
    """Their softmax must not overflow."""
    layer, x, dy = prepared("switch, parts")
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([1e3, 1e3 - 1, -1e4]))
        layer.var_weight.copy_(torch.tensor([-1e4, -1e4 - 1, -1e4 + 1]))
    assert_layer_accurate(layer, x, dy)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("over", [("instance", "batch"), ("batch", "group:2")])
def test_running_statistics_far_from_x(over: tuple[str, ...], last: bool):
    """Where x is constant in a cell, that branch adds nothing to dx, however far the blend is."""
    layer = nf.SwitchNorm2d(16, eps=1e-3, over=over)
    layer.kernel = "cpu"
    randomized(layer)
    x = 1e6 + 4096 * normal(7, 2, 1, 1).round().repeat_interleave(8, 1).expand(7, 16, 3, 5)
    x, dy = (t.contiguous(memory_format=LAST[last]) for t in (x, normal(7, 16, 3, 5)))
    assert_layer_accurate(layer.eval(), x, dy)


@pytest.mark.parametrize("over", [("instance",), ("layer",)])
def test_logits_of_one_branch_have_no_gradient(over: tuple[str]):
    """They decide nothing, whatever lay in the memory where gradients are summed."""
    layer = nf.SwitchNorm2d(4, over=over)
    x = normal(2, 4, 5, 5)
    x[0] = torch.inf
    layer(x.requires_grad_()).sum().backward()
    layer.zero_grad()
    layer(normal(2, 4, 5, 5)).square().sum().backward()
    for logits in (layer.mean_weight, layer.var_weight):
        assert logits.grad is not None
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["batch, last", "switch, parts", "layer, many rows"])
def test_parameters_wider_than_x(name: str, dtype: torch.dtype):
    layer, x, dy = prepared(name, dtype)
    assert_layer_accurate(layer.double(), x, dy)


def test_nan_stays_nan_in_bfloat16():
    """Rounded as a number, the largest of all NaN would become zero."""
    weight = torch.tensor([0x7FFFFFFF, 0], dtype=torch.int32).view(torch.float32)
    y = nf.norm(normal(4, 2).bfloat16(), "n [c]", weight, kernel="cpu")
    assert y[:, 0].isnan().all()
    assert (y[:, 1] == 0).all()


# Threads


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_however_many_threads_there_were(name: str, monkeypatch: pytest.MonkeyPatch):
    """Also with layouts made anew. In float64, where no last rounding hides another order."""
    threads, runs = torch.get_num_threads(), list[Any]()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            monkeypatch.setattr(known, "_remembered", {})
            layer, x, dy = prepared(name, torch.float64)
            runs.append([*step(layer, x, dy), *layer.buffers()])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
