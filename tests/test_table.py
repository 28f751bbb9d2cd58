"""Layers by name."""

import copy
import functools
from typing import Any

import pytest

import normalform as nf
from normalform.testing import assert_layer_accurate
from steps import assert_same, example

each_dim = pytest.mark.parametrize("dim", [1, 2, 3])


NAMES: dict[str, tuple[str, str]] = {
    "batch": ("BatchNorm{}d", "6, eps=1e-05"),
    "instance": ("InstanceNorm{}d", "6, eps=1e-05"),
    "switch": ("SwitchNorm{}d", "6, eps=1e-05"),
    "ghost:2": ("GhostBatchNorm{}d", "6, block=2"),
    "frozen": ("FrozenBatchNorm{}d", "6, eps=1e-05"),
    "layer": ("GroupNorm", "1, 6"),
    "group:3": ("GroupNorm", "3, 6"),
    "token": ("LayerNorm", "(6,)"),
    "rms": ("RMSNorm", "(6,)"),
    "none": ("Identity", ""),
}


@each_dim
@pytest.mark.parametrize("name", NAMES)
def test_layers_by_name(name: str, dim: int):
    expected, arguments = NAMES[name]
    make = nf.get_norm_layer(name, dim)
    assert isinstance(make, functools.partial)
    layer = make(6)
    assert type(layer) is make.func
    assert type(layer).__name__ == expected.format(dim)
    assert layer.extra_repr().startswith(arguments)
    x = example((4, 6, *(5, 3, 2)[:dim]))
    x = x.movedim(1, -1) if name in ("token", "rms") else x
    assert_same({"y": layer(x)}, {"y": copy.deepcopy(layer)(x)})
    if name == "none":
        assert layer(x) is x
    else:
        assert_layer_accurate(layer, x)


def test_group_by_name_has_the_papers_32_groups():
    assert nf.get_norm_layer("group")(64).num_groups == 32


def test_options_by_name_reach_the_layer():
    layer = nf.get_norm_layer("instance", affine=True, eps=0.5)(6)
    assert layer.affine
    assert layer.eps == 0.5
    switch = nf.get_norm_layer("switch", 3, over=("instance", "layer"))(6)
    assert [str(r) for r in switch.over] == ["n c [s]", "n [c s]"]


WRONG_NAMES: dict[str, tuple[tuple[Any, ...], str]] = {
    "unknown": (("foo",), "unknown norm 'foo'; known: .*batch.*group.*none"),
    "capital": (("Batch",), "unknown norm 'Batch'"),
    "number of none": (("none:3",), "norm 'none' takes no number"),
    "number of frozen": (("frozen:3",), "norm 'frozen' takes no number"),
    "number of batch": (("batch:3",), "norm 'batch' takes no number"),
    "text for a number": (("group:x",), "'x' is not a positive integer"),
    "no number": (("group:",), "'' is not a positive integer"),
    "zero": (("ghost:0",), "'0' is not a positive integer"),
    "ghost of what": (("ghost",), "needs a block size: 'ghost:8'"),
    "dim": (("batch", 4), "dim is 1, 2 or 3"),
}


@pytest.mark.parametrize(("given", "message"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_wrong_names_are_refused_with_what_is_known(given: tuple[Any, ...], message: str):
    with pytest.raises(ValueError, match=message):
        nf.get_norm_layer(*given)
