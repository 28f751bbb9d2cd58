"""Bad input: refused and warned of as torch does, in words that help."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normalform as nf
from steps import example, prepared


def outcome(call: Callable[[], Any]) -> tuple[Any, list[tuple[type, str]]]:
    """The type of what a call raises or gives, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = type(call())
        except Exception as error:
            result = type(error)
    return result, [(each.category, str(each.message)) for each in caught]


WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "layer, no eps": ("LayerNorm", (5,), {"eps": None}, (2, 4, 5)),
    "group, no eps": ("GroupNorm", (2, 4), {"eps": None}, (2, 4, 5)),
    "instance, no eps": ("InstanceNorm2d", (4,), {"eps": None}, (2, 4, 5, 5)),
    "batch, channels": ("BatchNorm2d", (4,), {}, (2, 3, 5, 5)),
    "batch, axes": ("BatchNorm2d", (4,), {}, (2, 4, 5)),
    "batch 1d, axes": ("BatchNorm1d", (4,), {}, (4,)),
    "batch, one value": ("BatchNorm1d", (4,), {}, (1, 4)),
    "batch, one pixel": ("BatchNorm2d", (4,), {}, (1, 4, 1, 1)),
    "batch, channels never used": (
        *("BatchNorm2d", (4,)),
        {"affine": False, "track_running_stats": False},
        (2, 3, 5, 5),
    ),
    "instance, channels": ("InstanceNorm2d", (4,), {"affine": True}, (2, 3, 5, 5)),
    "instance, channels not used": ("InstanceNorm2d", (4,), {}, (2, 3, 5, 5)),
    "instance, unbatched channels": ("InstanceNorm2d", (4,), {"affine": True}, (3, 5, 5)),
    "instance, tracked channels": (
        "InstanceNorm2d",
        (4,),
        {"track_running_stats": True},
        (2, 3, 5, 5),
    ),
    "instance, axes": ("InstanceNorm2d", (4,), {}, (2, 4)),
    "instance, one value": ("InstanceNorm1d", (4,), {}, (2, 4, 1)),
    "group, channels": ("GroupNorm", (2, 4), {}, (2, 6, 3)),
    "group, not divisible": ("GroupNorm", (2, 4), {}, (2, 5, 3)),
    "group, one value": ("GroupNorm", (4, 4), {}, (1, 4)),
    "group, one value of two samples": ("GroupNorm", (4, 4), {}, (2, 4)),
    "group, axes": ("GroupNorm", (2, 4), {}, (4,)),
    "layer, shape": ("LayerNorm", (4,), {}, (2, 5)),
    "layer, axes": ("LayerNorm", ((3, 4),), {}, (4,)),
    "rms, shape": ("RMSNorm", (4,), {}, (2, 5)),
    "batch, eps": ("BatchNorm2d", (4, 0.0), {}, (2, 4, 3, 3)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "args", "options", "shape"), WRONG.values(), ids=WRONG)
def test_refuses_and_warns_as_torch(
    name: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    shape: tuple[int, ...],
    training: bool,
):
    ours, torchs = (
        outcome(lambda m=module: getattr(m, name)(*args, **options).train(training)(example(shape)))
        for module in (nf, nn)
    )
    assert ours == torchs


ONES = torch.ones(4)
CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "a mean alone": ("batch_norm", (ONES, None), {"training": True}),
    "a variance alone": ("batch_norm", (None, ONES), {"training": True}),
    "a mean alone to use": ("batch_norm", (ONES, None), {}),
    "nothing to use": ("batch_norm", (None, None), {}),
    "a short mean": ("batch_norm", (ONES[:3], ONES), {}),
    "a short variance": ("batch_norm", (ONES, ONES[:3]), {"training": True}),
    "a short weight": ("batch_norm", (ONES, ONES), {"weight": ONES[:3]}),
    "a short bias": ("batch_norm", (ONES, ONES), {"bias": ONES[:3], "training": True}),
    "a negative eps": ("batch_norm", (ONES, ONES), {"eps": -1.0}),
    "an eps of zero": ("batch_norm", (ONES, ONES), {"eps": 0.0}),
    "an eps of zero in training": ("batch_norm", (ONES, ONES), {"eps": 0.0, "training": True}),
    "instance, nothing to use": ("instance_norm", (), {"use_input_stats": False}),
    "instance, a short weight": ("instance_norm", (), {"weight": ONES[:3]}),
    "instance, a short mean": ("instance_norm", (ONES[:3], ONES), {}),
    "group, does not divide": ("group_norm", (3,), {}),
    "group, a short weight": ("group_norm", (2, ONES[:3]), {}),
    "layer, no shape": ("layer_norm", ((),), {}),
    "layer, another shape": ("layer_norm", ((4,),), {}),
    "layer, a short weight": ("layer_norm", ((5,), ONES), {}),
    "rms, no shape": ("rms_norm", ((),), {}),
    "rms, another shape": ("rms_norm", ((4,),), {}),
    "rms, a short weight": ("rms_norm", ((5,), ONES), {}),
}


@pytest.mark.parametrize(("name", "args", "options"), CALLS.values(), ids=CALLS)
def test_functions_refuse_as_torchs(name: str, args: tuple[Any, ...], options: dict[str, Any]):
    x = example((2, 4, 5))
    ours, torchs = (
        outcome(lambda m=module: getattr(m, name)(x, *copy.deepcopy(args), **options))
        for module in (nf.functional, nn.functional)
    )
    assert ours == torchs


@pytest.mark.parametrize(
    "name", ["batch 2d", "instance 2d", "layer, token", "group", "rms", "switch 2d"]
)
def test_integers_are_refused_in_words(name: str):
    layer, x = prepared(name)
    with pytest.raises(TypeError, match=r"floating point tensors, got torch\.int64: convert it"):
        layer(x.long())


@pytest.mark.parametrize("name", [None, nn.BatchNorm2d, 3])
def test_names_are_text(name):
    with pytest.raises(TypeError, match="a name such as"):
        nf.get_norm_layer(name)
    with pytest.raises(TypeError, match="a name, a notation or a Recipe"):
        nf.norm(torch.ones(2, 3), name)


def test_a_weight_along_two_axes_has_their_shape():
    x, weight = torch.randn(8, 16, 3, 3), torch.arange(128.0)
    with pytest.raises(RuntimeError, match=r"has shape \[16, 8\], .* needs \[8, 16\]"):
        nf.norm(x, "n c [s]", weight.view(16, 8), params="n c")
    y = nf.norm(x, "n c [s]", weight.view(8, 16), params="n c")
    assert torch.equal(y[:, :, 0, 0] == 0, weight.view(8, 16) == 0)


def test_one_running_buffer_is_refused_after_a_call_without_any():
    x, var = torch.randn(4, 3, 5, 5), torch.ones(3)
    for norm in (nf.functional.batch_norm, nf.functional.instance_norm):
        norm(x, None, None, None, None, True)
        with pytest.raises(ValueError, match="must either both be None or neither"):
            norm(x, None, var, None, None, True)
        with pytest.raises(ValueError, match="must either both be None or neither"):
            norm(x, var, None, None, None, True)


@pytest.mark.parametrize("kernel", ["auto", "cpu", "eager"])
@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()], ids=str)
@pytest.mark.parametrize("name", ["mean_weight", "var_weight"])
def test_one_logit_for_each_branch(name: str, shape: tuple[int, ...], kernel: str):
    x = torch.randn(4, 4, 5, 5)
    layer = nf.SwitchNorm2d(4)
    layer.kernel = kernel
    layer(x)  # a call that is known
    behind = torch.zeros(8)  # what lies behind the logits must not be read
    setattr(layer, name, nn.Parameter(behind.as_strided(shape, [1] * len(shape))))
    with pytest.raises(RuntimeError, match=rf"{name} should have shape \[3\], one logit"):
        layer(x)


def test_one_logit_for_each_branch_of_a_graph():
    layer = nf.SwitchNorm2d(4)
    layer.mean_weight = nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError, match=r"mean_weight should have shape \[3\]"):
        torch.compile(layer, backend="eager")(torch.randn(4, 4, 5, 5))


def test_arrays_and_arguments_of_other_functions_are_refused_in_words():
    x = torch.randn(2, 3, 4)
    with pytest.raises(TypeError, match="norm normalizes tensors, got ndarray: torch"):
        nf.norm(x.numpy(), "n [c] s")
    for name in ("batch 2d", "instance 2d", "layer, token", "group", "rms", "switch 2d", "frozen"):
        layer, y = prepared(name)
        with pytest.raises(TypeError, match=r"takes a tensor, got ndarray: torch.as_tensor\(x\)"):
            layer(y.detach().numpy())
    with pytest.raises(TypeError, match=r"weight is a tensor or None, got 0\.001"):
        nf.norm(x, "[n] c [s]", 1e-3)
    with pytest.raises(TypeError, match="unexpected argument running_mean; it takes no sizes"):
        nf.norm(x, "[n] c [s]", running_mean=torch.zeros(3))
