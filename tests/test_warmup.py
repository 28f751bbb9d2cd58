"""After a warmup the first request compiles nothing, and the model is as it was."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normalform as nf
from normalform import path
from normalform.kernels.call import Call
from programs import run
from zoo import ZOO, build


def state(model: nn.Module) -> list[Any]:
    """Everything of the model that could change, by identity and bits."""
    stored = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, id(t), t._version, t.detach().numpy().tobytes()) for name, t in stored],
        [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
        [(m.training, len(m._forward_pre_hooks), dict(m._buffers).keys()) for m in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.is_grad_enabled(),
    ]


class Net(nn.Module):
    """A norm that is used twice, one of PyTorch's, noise, and a buffer that is assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.torchs, self.last = nf.BatchNorm2d(4), nn.BatchNorm2d(4), nf.LayerNorm(6)
        self.register_buffer("calls", torch.zeros(()))
        self.noise = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0, *, fail: bool = False) -> Tensor:
        self.calls = self.calls + 1
        x = self.noise(self.torchs(self.norm(x))) * scale
        x = self.norm(x[:, :, ::2])
        if fail:
            raise RuntimeError("the model fails")
        return self.last(x.relu_())


COMPILED = """
import json
import bits
import torch
import normalform as nf
from zoo import ZOO, build

counted = bits.compilations()
names = {names!r}
if {warm}:
    for name in names:
        layer, shape = build(name)
        for mode in (True, False):
            nf.warmup(layer.train(mode), torch.randn(shape), backward={backward})
counted.update(compiled=0, loaded=0)
for threads in (1, 2):
    for name in names:
        layer, shape = build(name)
        x = torch.randn(shape, requires_grad={backward})
        for mode in (True, False):
            torch.set_num_threads(threads)
            y = layer.train(mode)(x)
            if {backward}:
                torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True)
        layer, x = nf.GroupNorm(2, 4), torch.randn(2, 4, 256, 256)
        with torch.no_grad():
            if {warm}:
                before = dict(counted)
                nf.warmup(layer, x, backward=False)
                counted.update(before)
            layer(x)
print(json.dumps(counted))
"""


@pytest.mark.parametrize("backward", [True, False])
def test_the_first_request_compiles_and_loads_nothing(backward):
    asked = {"names": tuple(ZOO), "backward": backward}
    cold = run(COMPILED.format(warm=False, **asked))
    assert sum(map(int, cold.values())) > 10
    warm = run(COMPILED.format(warm=True, **asked))
    assert warm == {"compiled": 0, "loaded": 0}


def test_programs_for_any_number_of_threads_are_prepared():
    x, weight = torch.randn(2, 4, 9, 300), torch.ones(4)
    steps = path.compiled(Call(x, (path.INSTANCE,), weight, None, 1e-5))
    assert not isinstance(steps, str)
    steps.prepare(backward=True)
    for programs in (steps.layout.tiled, steps.layout.staged):
        assert set(programs._made) == {None, (True, True)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_a_layer_is_left_as_it_was(name, training):
    layer, shape = build(name)
    layer.train(training)
    x = torch.randn(shape)
    before, given = state(layer), x.clone()
    made = nf.warmup(layer, x)
    assert state(layer) == before
    assert torch.equal(x, given)
    said = nf.explain(layer, x).choice
    assert said is not None
    assert [(row.choice.kernel, row.choice.why) for row in made.norms] == [(said.kernel, said.why)]


@pytest.mark.parametrize(
    "example",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: (x, 2.0),
        lambda x: {"x": x, "scale": 3.0},
    ],
    ids=["tensor", "tuple", "two", "dict"],
)
def test_a_model_is_left_as_it_was(example):
    model, x = Net(), torch.randn(2, 4, 8, 6)
    model.norm.weight.grad = torch.ones(4)
    before, given = state(model), x.clone()
    made = nf.warmup(model, example(x))
    assert state(model) == before
    assert torch.equal(x, given)
    assert [(row.name, row.kind, row.x) for row in made.norms] == [
        ("norm", "BatchNorm2d", "(2, 4, 8, 6) float32, contiguous"),
        ("norm", "BatchNorm2d", "(2, 4, 4, 6) float32, strides (192, 48, 12, 1)"),
        ("last", "LayerNorm", "(2, 4, 4, 6) float32, contiguous"),
    ]
    assert str(made).splitlines()[0] == "norms: 3; compiled kernels ready for 3"


def test_a_model_that_fails_is_left_as_it_was():
    model, x = Net(), torch.randn(2, 4, 8, 6)
    before = state(model)
    with pytest.raises(RuntimeError, match="the model fails"):
        nf.warmup(model, {"x": x, "fail": True})
    assert state(model) == before


def test_buffers_that_are_shared_stay_shared():
    first, second = nf.BatchNorm2d(4), nf.BatchNorm2d(4)
    second.running_mean = first.running_mean
    seen: list[bool] = []
    second.register_forward_hook(lambda *_: seen.append(first.running_mean is second.running_mean))
    nf.warmup(nn.Sequential(first, second), torch.randn(2, 4, 3, 3))
    assert seen == [True]
    assert first.running_mean is second.running_mean
    assert not first.running_mean.any()


def test_it_says_what_runs_eagerly_and_why():
    model = nn.Sequential(nf.GroupNorm(2, 4), nn.Tanh(), nf.InstanceNorm2d(4)).half()
    model[2].kernel = "eager"
    lines = str(nf.warmup(model, torch.randn(2, 4, 8, 6).half())).splitlines()
    x, why = (
        "(2, 4, 8, 6) float16, contiguous",
        "it takes float32, float64 and bfloat16, not float16",
    )
    assert lines == [
        "norms: 2; compiled kernels ready for 0",
        f"  0  GroupNorm on {x}: kernel eager: not cpu, {why}",
        f"  2  InstanceNorm2d on {x}: kernel eager: the layer asks for it",
    ]


def test_a_compiled_model_is_seen_through():
    model = torch.compile(nn.Sequential(nf.GroupNorm(2, 4)), backend="eager")
    assert [row.name for row in nf.warmup(model, torch.randn(2, 4, 5)).norms] == ["0"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_part_and_a_model_without_norms():
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)), nn.ReLU())
    before = [b.clone() for b in model.buffers()]
    assert (
        str(nf.warmup(model, torch.randn(8, 4)))
        == "no norms of normalform ran; nf.convert makes PyTorch's ours"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match=r"an instance of torch.nn.Module, got <class"):
        nf.warmup(nf.BatchNorm2d, torch.randn(2, 4, 3, 3))


@pytest.mark.parametrize("example", [None, 3], ids=str)
def test_an_example_without_a_tensor_is_refused_in_words(example: Any):
    with pytest.raises(TypeError, match=r"'0' was given \w+ and no tensor; the example has to be"):
        nf.warmup(nn.Sequential(nf.SwitchNorm2d(3)), example)
