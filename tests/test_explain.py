"""What ``explain`` says is what runs, and asking changes nothing."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform.drawing.sets import Most, Sets
from normalform.drawing.svg import NAMESPACE
from normalform.explain import Choice, chosen
from sharing import partition
from zoo import ZOO, build

team = pytest.importorskip("normalform.kernels.cpu.team")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each program of the compiled kernels, as they run."""
    seen: list[int] = []
    run = team.run

    def record(args: object, threads: int) -> None:
        seen.append(threads)
        run(args, threads)

    monkeypatch.setattr(team, "run", record)
    return seen


def laid(x: Tensor, order: str) -> Tensor:
    if order == "channels last" and x.ndim > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if order == "with gaps":
        return torch.stack([x, x], -1)[..., 0]
    return x


def state(layer: nn.Module) -> list[tuple[str, bytes, int]]:
    stored = [*layer.named_parameters(), *layer.named_buffers()]
    return [(k, t.detach().view(-1).view(torch.uint8).numpy().tobytes(), t._version)
            for k, t in stored]  # fmt: skip


@pytest.mark.parametrize("order", ["contiguous", "channels last", "with gaps"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_it_says_what_runs_and_changes_nothing(name, dtype, order, ran):
    layer, shape = build(name, dtype=dtype)
    for training in (True, False):
        layer.train(training)
        x = laid(torch.randn(shape).to(dtype), order)
        before = state(layer)
        choice = chosen(layer, x)
        assert not ran
        assert state(layer) == before
        assert layer.kernel == "auto"
        layer(x)
        assert (choice.kernel == "cpu") == bool(ran), str(choice)
        assert choice.kernel in ("cpu", "eager")
        if dtype == torch.float16:
            assert choice.why == "not cpu, it takes float32, float64 and bfloat16, not float16"
        ran.clear()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [16, 64])
def test_the_threads_it_says(ran, threads, size):
    layer, x = nf.BatchNorm2d(16), torch.randn(4, 16, size, size)
    ours = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        said = str(nf.explain(layer, x))
        layer(x)
    finally:
        torch.set_num_threads(ours)
    few = "one thread below 32768 values"
    assert said.endswith(f"(planes), {few if size == 16 else f'threads: {threads}'}")
    assert ran == [1 if size == 16 else threads]


def test_few_rows_are_no_work_for_two(ran):
    layer, x = nf.GroupNorm(32, 256), torch.randn(8, 256, 6, 6)
    assert str(nf.explain(layer, x)).endswith("(rows), one thread: too few rows for two")
    layer(x)
    assert ran == [1]


REASONS = [
    (nf.norm, "n s [c]", lambda: torch.randn(2, 3, 4, 4, 5), None),
    (nf.norm, "n [c] s", lambda: torch.randn(2, 3, 4), "its memory pattern has no kernel"),
    (nf.norm, "[n] c [s]", lambda: torch.empty(0, 3, 4), "there is nothing to compute"),
    (nf.norm, "n c [s]", lambda: torch.randn(2, 3, 4, device="meta"),
     "a tensor is not an ordinary one on the CPU, or operators are being watched"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "recipe", "make", "reason"), REASONS)
def test_names_and_notation_stand_for_the_function(run, recipe, make, reason, ran):
    choice = nf.explain(recipe, make()).choice
    assert not ran
    if reason is None:
        assert (choice.kernel, choice.why[:5]) == ("cpu", "cpu (")
    else:
        assert (choice.kernel, choice.why) == ("eager", f"not cpu, {reason}")
    run(make(), recipe)
    assert bool(ran) == (reason is None)


def test_a_blend_by_name(ran):
    choice = nf.explain("switch", torch.randn(2, 3, 4, 4)).choice
    assert choice.why == "cpu (planes), one thread below 32768 values"
    assert not ran


def test_the_kernel_a_layer_asks_for(ran):
    layer, x = nf.GroupNorm(2, 4), torch.randn(2, 4, 5)
    layer.kernel = "eager"
    assert str(nf.explain(layer, x).choice) == "kernel eager: the layer asks for it"
    layer(x)
    assert not ran
    layer.kernel = "cpu"
    assert chosen(layer, x).kernel == "cpu"
    assert layer.kernel == "cpu"


def test_an_input_that_reaches_no_kernel(ran):
    layer, x = nf.LayerNorm(4), torch.empty(0, 4)
    assert nf.explain(layer, x).choice == Choice(None, "there is nothing to compute")
    assert str(nf.explain(layer, x)).endswith("no kernel: there is nothing to compute")


def test_an_input_that_the_layer_refuses():
    layer = nf.BatchNorm2d(4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nf.explain(layer, torch.randn(1, 4, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        nf.explain(layer, torch.randn(2, 4))
    assert layer.num_batches_tracked == 0


def test_what_cannot_be_explained_is_named_in_a_line():
    with pytest.raises(TypeError, match=r"got Sequential\. nf\.convert makes"):
        nf.explain(nn.Sequential(nf.LayerNorm(3)))
    with pytest.raises(TypeError, match="takes a tensor as its input, got tuple"):
        nf.explain("batch", (2, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r'needs a size.* a name has it at its end, "group:8"'):
        nf.explain("group", torch.randn(2, 4))


def test_in_words():
    layer = nf.SwitchNorm2d(4, over=("instance", "group:2"))
    assert str(nf.explain(layer)).splitlines() == [
        str(layer),
        "  n c [s]: one mean per sample and channel, over its positions",
        "  n (g [c]) [s], g=2: one mean per sample and group of channels",
        "  mean and var are blends of these, weighted by two softmaxes",
        "  y = weight * (x - mean) / sqrt(var + eps) + bias",
        "  weight (4,), bias (4,), mean_weight (2,), var_weight (2,)",
    ]
    assert str(nf.explain(nf.RMSNorm(4))).splitlines()[1:] == [
        "  n [c]: one mean square per row of the last axes",
        "  y = weight * x / sqrt(mean(x^2) + eps)",
        "  weight (4,)",
    ]
    assert "\n  (b [n]) c [s], n=2: batch norm over blocks" in repr(nf.explain("ghost:2"))


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_has_its_recipes(name):
    layer, _ = build(name)
    seen = nf.explain(layer)
    kind = type(layer).__name__.lower().removeprefix("frozen")  # of batch norm
    stem = next(stem for stem in ("batch", "instance", "layer", "group", "rms", "switch", "ghost")
                if kind.startswith(stem))  # fmt: skip
    if stem in ("layer", "rms"):
        assert str(seen.recipes[0]) == "n [c]"
        assert seen.recipes[0].center == (stem == "layer")
    elif stem == "switch":
        assert seen.recipes == layer.over
    else:
        size = {"group": getattr(layer, "num_groups", 0), "ghost": getattr(layer, "block", 0)}
        named = f"{stem}:{size[stem]}" if stem in size else stem
        assert seen.recipes == nf.explain(named).recipes
    shapes = {k: tuple(p.shape) for k, p in layer.named_parameters()}
    assert shapes.items() <= dict(seen.tensors).items()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)])
def test_other_modules_are_refused(norm):
    with pytest.raises(TypeError, match="a layer of normalform, or the name of a norm"):
        nf.explain(norm)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown norm 'bach'"):
        nf.explain("bach")


LAID = {
    "batch rows": (lambda: nf.BatchNorm1d(4), (3, 4)),
    "batch 3d": (lambda: nf.BatchNorm3d(2), (2, 2, 2, 2, 2)),
    "instance": (lambda: nf.InstanceNorm2d(3), (2, 3, 2, 2)),
    "instance, one sample": (lambda: nf.InstanceNorm1d(3), (3, 4)),
    "group": (lambda: nf.GroupNorm(2, 6), (2, 6, 3)),
    "ghost": (lambda: nf.GhostBatchNorm1d(3, 2), (5, 3, 2)),
    "layer, one row": (lambda: nf.LayerNorm(5), (5,)),
    "layer, rows": (lambda: nf.LayerNorm(4), (3, 4)),
    "layer, tokens": (lambda: nf.LayerNorm(4), (2, 3, 4)),
    "layer, many axes ahead": (lambda: nf.LayerNorm(3), (2, 2, 2, 1, 2, 3)),
    "layer, samples": (lambda: nf.LayerNorm((3, 2, 2)), (2, 3, 2, 2)),
    "layer, one sample": (lambda: nf.LayerNorm((3, 2)), (3, 2)),
    "layer, planes": (lambda: nf.LayerNorm((2, 3)), (2, 2, 3, 2, 3)),
    "rms, planes": (lambda: nf.RMSNorm((2, 3)), (2, 3, 2, 3)),
}


@pytest.mark.parametrize("name", LAID)
def test_the_sets_of_a_layer_are_those_that_it_has(name):
    make, shape = LAID[name]
    layer = make().double()

    def y_of(x):
        return layer(torch.from_numpy(x)).detach().numpy()

    truth = partition(y_of, shape)
    seen = nf.explain(layer, torch.randn(shape, dtype=torch.float64))
    sets = Sets.of(seen.laid[0], seen.shape, Most(99, 99, 99))
    found = {}
    for element in sets.elements():  # pictures may have one axis in the place of several
        at = np.unravel_index(np.ravel_multi_index(element.at, seen.shape), shape)
        found.setdefault(sets.set_of(element), set()).add(tuple(map(int, at)))
    assert {frozenset(group) for group in found.values()} == set(truth.values())


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_has_a_picture(name):
    layer, shape = build(name)
    alone, asked = nf.explain(layer), nf.explain(layer, torch.randn(shape))
    for said in (alone, asked):
        svg = said._repr_svg_()
        texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{{{NAMESPACE}}}text")]
        assert type(layer).__name__ in texts
        assert all(str(sets).split(";")[0] in " ".join(texts) for sets in said.sets)
    assert asked.lines[-1].startswith(f"on {tuple(shape)} ")
    channels = {p.shape[0] for key, p in layer.named_parameters() if key == "weight"}
    assert channels <= set(alone.shape)


def test_pictures_of_names():
    assert nf.explain("group").shape == (2, 4, 3, 3)
    assert str(nf.explain("group").sets[0]).startswith("n (g [c]) [s] on 2x4x3x3: 4 sets of 18 ")
    assert "a blend" in nf.explain("switch").svg("and more")
    assert "and more" in nf.explain("switch").svg("and more")
    assert nf.explain("n c [s]", torch.randn(2, 3, 2, 2, 2, 2))._repr_svg_() is None
    assert nf.explain("n c [s]", torch.empty(0, 3, 2))._repr_svg_() is None
    with pytest.raises(ValueError, match="cannot be drawn"):
        nf.explain("n c [s]", torch.empty(0, 3, 2)).svg()


def test_whose_statistics_are_stored():
    x = torch.randn(2, 3, 8, 8)
    stored = "mean and var are running_mean and running_var"
    own = nf.InstanceNorm2d(3, track_running_stats=True).eval()
    blend = nf.explain(nf.SwitchNorm2d(3).eval(), x).lines
    assert stored in nf.explain(nf.FrozenBatchNorm2d(3), x).lines
    assert f"{stored}, in evaluation" in nf.explain(nf.BatchNorm2d(3).eval(), x).lines
    assert f"{stored}, in evaluation" in nf.explain(own, x).lines
    assert "those over the batch are running_mean and running_var, in evaluation" in blend
    assert not any("running_mean and" in line for line in nf.explain(nf.BatchNorm2d(3), x).lines)


def test_sizes_are_those_of_a_recipe():
    x = torch.randn(2, 8, 4, 4)
    said = str(nf.explain("n (g [c]) [s]", x, g=4))
    assert "n (g [c]) [s], g=4: one mean per sample and group of channels" in said
    assert (
        said.splitlines()[1:]
        == str(nf.explain(nf.recipe("n (g [c]) [s]", g=4), x)).splitlines()[1:]
    )
    with pytest.raises(TypeError, match="unexpected size k=4; it takes g= or c="):
        nf.explain("n (g [c]) [s]", x, k=4)
    with pytest.raises(TypeError, match="GroupNorm has its sizes, got g"):
        nf.explain(nf.GroupNorm(2, 8), x, g=4)
