"""Which parameters decay: by the type of their module, each once."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import normalform as nf
from steps import example


class LlamaRMSNorm(nn.Module):
    """A norm of nobody's class, with a weight of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 6, 1, 1))


class LayerNorm2d(nn.LayerNorm):
    pass


class Network(nn.Module):
    """One of each role, under names that mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(6, 6)
        self.bn1 = nn.Conv2d(6, 6, 1)
        self.linear = nf.SwitchNorm2d(6)
        self.conv = nn.ModuleList([nn.BatchNorm2d(6), nf.GroupNorm(2, 6), LayerNorm2d(6)])
        self.weight = LlamaRMSNorm()
        self.token = nn.Embedding(9, 6)
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)
        self.recurrent = nn.LSTM(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.position = nn.Parameter(torch.zeros(1, 9, 6))


ROLES = {
    "decay": {
        *("norm.weight", "bn1.weight", "token.weight", "position"),
        *("attention.in_proj_weight", "attention.out_proj.weight"),
        *("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"),
    },
    "no decay": {
        *("norm.bias", "bn1.bias", "linear.weight", "linear.bias", "weight.scale"),
        *(f"conv.{i}.{name}" for i in range(3) for name in ("weight", "bias")),
        *("attention.in_proj_bias", "attention.out_proj.bias"),
        *("attention.bias_k", "attention.bias_v"),
        *("recurrent.bias_ih_l0", "recurrent.bias_hh_l0", "scale", "temperature"),
    },
    "switch": {"linear.mean_weight", "linear.var_weight"},
}


def named(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_roles_go_by_the_type_of_the_module():
    model = Network()
    groups = nf.param_groups(model, 0.1)
    assert named(model, groups) == ROLES
    assert [(g["name"], g["weight_decay"]) for g in groups] == [
        ("decay", 0.1), ("no decay", 0.0), ("switch", 0.0),
    ]  # fmt: skip
    assert all("lr" not in group for group in groups)


def test_each_parameter_is_in_one_group():
    model = Network()
    model.requires_grad_(False)
    found = [id(p) for group in nf.param_groups(model, 0.1) for p in group["params"]]
    assert len(found) == len({*found})
    assert {*found} == {id(p) for p in model.parameters()}


def test_embeddings_if_asked():
    model = Network()
    groups = named(model, nf.param_groups(model, 0.1, embeddings=False))
    assert groups["no decay"] == ROLES["no decay"] | {"token.weight"}
    assert groups["decay"] == ROLES["decay"] - {"token.weight"}


def test_a_learning_rate_for_switch_logits():
    model = Network()
    groups = nf.param_groups(model, 0.1, lr=0.5, switch_lr=0.1)
    assert {g["name"]: g["lr"] for g in groups} == {
        "decay": 0.5, "no decay": 0.5, "switch": pytest.approx(0.05),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"switch_lr=0\.1 is a multiple of lr, give lr"):
        nf.param_groups(model, 0.1, switch_lr=0.1)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
    ],
)
def test_an_optimizer_decays_what_it_should(make: Callable[..., torch.optim.Optimizer]):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nf.SwitchNorm2d(6), nn.BatchNorm2d(6))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(nf.param_groups(model, 0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # so that nothing else moves them
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == {"0.weight"}
    loaded = make(nf.param_groups(model, 0.5), lr=0.1)
    loaded.load_state_dict(optimizer.state_dict())
    assert [g["name"] for g in loaded.param_groups] == ["decay", "no decay", "switch"]


def test_shared_parameters_are_in_the_group_that_does_not_decay():
    model = nn.ModuleDict({"token": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["token"].weight
    (group,) = nf.param_groups(model, 0.1)
    assert (group["name"], len(group["params"])) == ("decay", 1)
    for order in (["token", "head"], ["head", "token"]):
        turned = nn.ModuleDict(OrderedDict((name, model[name]) for name in order))
        (group,) = nf.param_groups(turned, 0.1, embeddings=False)
        assert (group["name"], len(group["params"])) == ("no decay", 1)


def test_a_module_under_two_names_counts_once():
    layer = nn.Linear(3, 3)
    groups = nf.param_groups(nn.Sequential(layer, layer), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


PARAMETRIZED: dict[str, tuple[Callable[[], nn.Module], dict[str, set[str]]]] = {
    "norm": (
        lambda: parametrize.register_parametrization(nn.LayerNorm(6), "weight", nn.Softplus()),
        {"no decay": {"bias", "parametrizations.weight.original"}},
    ),
    "switch": (
        lambda: parametrize.register_parametrization(
            nf.SwitchNorm2d(6), "mean_weight", nn.Identity()
        ),
        {
            "no decay": {"weight", "bias"},
            "switch": {"var_weight", "parametrizations.mean_weight.original"},
        },
    ),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
        {
            "decay": {
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            },
            "no decay": {"bias"},
        },
    ),
    "bias": (
        lambda: parametrize.register_parametrization(nn.Linear(6, 6), "bias", nn.Identity()),
        {"decay": {"weight"}, "no decay": {"parametrizations.bias.original"}},
    ),
    "pruned": (
        lambda: prune.random_unstructured(nn.Linear(6, 6), "weight", 3),
        {"decay": {"weight_orig"}, "no decay": {"bias"}},
    ),
    "pruned norm": (
        lambda: prune.random_unstructured(nn.BatchNorm2d(6), "weight", 3),
        {"no decay": {"weight_orig", "bias"}},
    ),
    "pruned switch": (
        lambda: prune.random_unstructured(nf.SwitchNorm2d(6), "var_weight", 1),
        {"no decay": {"weight", "bias"}, "switch": {"mean_weight", "var_weight_orig"}},
    ),
}


@pytest.mark.parametrize(("make", "roles"), PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_parametrized_and_pruned(make: Callable[[], nn.Module], roles: dict[str, set[str]]):
    model = make()
    assert named(model, nf.param_groups(model, 0.1)) == roles


def test_several_modules_and_parameters_of_no_module():
    backbone, head = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)
    spread, matrix = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2, 2))
    decay, none = nf.param_groups([backbone, head, spread, matrix], 0.1)
    assert [*map(id, decay["params"])] == [*map(id, (backbone.weight, head.weight, matrix))]
    assert [*map(id, none["params"])] == [*map(id, (backbone.bias, head.bias, spread))]
    again = nf.param_groups((part for part in (backbone, backbone.weight)), 0.1)
    assert [len(group["params"]) for group in again] == [1, 1]


def test_only_groups_that_are_not_empty():
    (group,) = nf.param_groups(nn.LayerNorm(6), 0.1)
    assert group["name"] == "no decay"


def test_frozen_norms_have_none_and_converted_ones_their_new_ones():
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6))
    nf.freeze(model)
    assert [g["name"] for g in nf.param_groups(model, 0.1)] == ["decay"]
    nf.unfreeze(model)
    nf.convert(model, {"batch": "switch"})
    groups = nf.param_groups(model, 0.1)
    assert [(g["name"], len(g["params"])) for g in groups] == [
        ("decay", 1), ("no decay", 2), ("switch", 2),
    ]  # fmt: skip
    y = model(example((2, 3, 4, 4)))
    torch.optim.SGD(groups, lr=0.1).zero_grad()
    assert y.shape == (2, 6, 4, 4)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no parameters": (nn.ReLU(), ValueError, "there are no parameters"),
    "nothing": ([], ValueError, "there are no parameters"),
    "lazy": (nn.Sequential(nn.LazyLinear(3)), ValueError, "0.weight has no shape yet; run"),
    "number": (3, TypeError, "takes a model, got int"),
    "name": ("model", TypeError, "takes a model, got str"),
    "tensor": (torch.ones(3), TypeError, "got Tensor among them"),
    "names": (nn.Linear(3, 3).named_parameters(), TypeError, "got tuple among them"),
}


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_refused(given: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        nf.param_groups(given, 0.1)


def test_a_linear_layer_whose_class_is_called_a_norm_decays():
    class LinearNoNorm(nn.Linear):
        pass

    groups = nf.param_groups(LinearNoNorm(2, 3), weight_decay=0.1)
    assert [(g["name"], len(g["params"])) for g in groups] == [("decay", 1), ("no decay", 1)]


@pytest.mark.parametrize("wrong", [-1, "1e-4", float("nan")])
def test_a_weight_decay_that_is_none(wrong: Any):
    with pytest.raises(ValueError, match="is not a number from 0 on"):
        nf.param_groups(nn.Linear(2, 3), weight_decay=wrong)
