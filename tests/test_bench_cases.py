"""What ``normalform bench`` measures: the sweep, the competitors, the networks."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import normalform as nf
from normalform.lab import plain
from normalform.lab.bench import measure, models, norms
from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.bench.norms import Case
from normalform.lab.bench.targets import TRAINING
from normalform.lab.cases import NORMS


def test_the_sweep():
    cases = norms.plan()
    assert {case.norm for case in cases} == set(NORMS) - {"ghost"}
    for norm in norms.DEFAULT:
        own = [case for case in cases if case.norm == norm]
        sizes = sorted({math.prod(case.shape) for case in own})
        assert sizes[0] == 256
        assert 2e7 < sizes[-1] <= 3e7
        assert all(b / a < 32 for a, b in pairwise(sizes))
        assert {case.what for case in own} >= {FORWARD, STEP}
        over_tokens = norm in ("token", "rms")
        assert {c.layout for c in own} == set(norms.LAYOUTS[: 1 if over_tokens else 2])
    assert (2, 8, 4, 4) in {case.shape for case in cases}
    quick = norms.plan(quick=True)
    assert set(quick) < set(cases)
    assert {case.norm for case in quick} == {case.norm for case in cases}


@pytest.mark.parametrize("what", [FORWARD, STEP, INFERENCE])
@pytest.mark.parametrize("layout", norms.LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_competitors_compute_the_same(norm, layout, what):
    if norm in ("token", "rms"):
        case = Case(norm, (3, 5, 16), "contiguous", what)
    else:
        case = Case(norm, (4, 8, 5, 6), layout, what)
    works = norms.works(case)
    assert list(works) == ["copy", "ours", "torch"]
    ours = works["ours"]()
    found = measure.difference(works["torch"](), ours)
    assert 0 <= found < 1e-5
    parameters = len(list(norms.layers(case)[0].parameters()))
    if what == STEP:
        assert ours[0].shape == case.shape
        assert len(ours) == 1 + parameters
    else:
        assert ours.shape == case.shape
    copied = works["copy"]()
    last = layout == "channels_last" and len(case.shape) == 4
    assert copied.is_contiguous(memory_format=torch.channels_last) == last
    assert copied.is_contiguous() == (not last)


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "token", "rms"])
def test_the_competitor_is_pytorchs_own_layer(norm):
    ours, theirs = norms.layers(Case(norm, (4, 8, 5, 6), "contiguous", FORWARD))
    assert type(theirs) is getattr(nn, type(ours).__name__)
    assert type(ours) is getattr(nf, type(theirs).__name__)
    assert ours.training
    assert theirs.training
    assert all(p.requires_grad for p in theirs.parameters())
    assert len(list(theirs.parameters())) == (1 if norm == "rms" else 2)


@pytest.mark.parametrize("shape", [(4, 8, 5, 6), (4, 8, 7), (2, 4, 3, 5, 6), (6, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_plain_switchable_norm_from_the_planes_is_the_one_from_the_tensor(shape, training):
    what = FORWARD if training else INFERENCE
    ours, theirs = norms.layers(Case("switch", shape, "contiguous", what))
    slow = getattr(plain, type(ours).__name__)(shape[1]).train(training)
    with torch.no_grad():
        for layer in (slow, theirs):
            layer.mean_weight.copy_(torch.tensor([0.1, 0.7, -0.4]))
            layer.var_weight.copy_(torch.tensor([1.1, -0.7, 0.2]))
            layer.running_mean.fill_(0.3)
            layer.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            layer.bias.copy_(torch.linspace(-1, 1, shape[1]))
    x = 1 + torch.randn(shape)
    torch.testing.assert_close(theirs(x), slow(x))
    assert dict(theirs.named_buffers()).keys() == dict(slow.named_buffers()).keys()
    for name, buffer in slow.named_buffers():
        if name != "num_batches_tracked":
            torch.testing.assert_close(theirs.get_buffer(name), buffer)


def test_inductor_competes_where_asked_with_pytorchs_layer(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda layer, **_: asked.append(layer) or layer)
    works = norms.works(Case("instance", (2, 8, 4, 4), "contiguous", STEP), compiled=True)
    assert list(works) == ["copy", "ours", "torch", "compiled"]
    assert [type(each) for each in asked] == [nn.InstanceNorm2d]
    assert len(works["compiled"]()) == 3


def test_kernel_reaches_our_layer_alone():
    case = Case("batch", (2, 8, 4, 4), "contiguous", FORWARD)
    works = norms.works(case, "magic")
    with pytest.raises(ValueError, match="magic"):
        works["ours"]()
    assert works["torch"]().shape == case.shape


def test_difference_is_in_units_of_the_largest_value_of_each_tensor():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([0.0, 0.001])
    assert measure.difference((a, b), (a, 2 * b)) == pytest.approx(0.5)
    assert measure.difference(a, a) == 0
    assert math.isnan(measure.difference(a * torch.nan, a))


@pytest.mark.parametrize("name", models.MODELS)
def test_networks_agree_before_and_after(name):
    for what in models.WHATS:
        case = models.Case(name, what)
        networks = models.pair(case)
        known = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
        theirs = [m for m in networks["torch"].modules() if isinstance(m, known)]
        ours = [m for m in networks["ours"].modules() if isinstance(m, known)]
        assert len(theirs) == len(ours) > 4
        assert all(type(m) in known for m in theirs)
        assert not any(type(m) in known for m in ours)
        assert all(network.training == (what == TRAINING) for network in networks.values())
        x = torch.randn(case.shape)
        with torch.no_grad():
            found = {name: network(x) for name, network in networks.items()}
        assert measure.difference(found["torch"], found["ours"]) < 1e-4
        assert case.shape[0] == 1 or what == TRAINING


def test_a_training_step_changes_every_parameter_alike():
    case = models.Case("resnet-group", TRAINING)
    networks = models.pair(case)
    before = [p.clone() for p in networks["torch"].parameters()]
    for step in models.works(case, networks, torch.randn(case.shape)).values():
        step()
    after = {name: list(network.parameters()) for name, network in networks.items()}
    assert all(not torch.equal(a, b) for a, b in zip(before, after["torch"], strict=True))
    for a, b in zip(after["torch"], after["ours"], strict=True):
        torch.testing.assert_close(a, b)
