"""Which parameters weight decay is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from normalform.surgery.kinds import KINDS, is_norm

SWITCH = tuple(kind for kind, row in KINDS.items() if row.name == "switch")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
LOGITS = ("mean_weight", "var_weight")
# The first group that claims a parameter has it, where it is shared between modules.
NAMES = ("switch", "no decay", "decay")


def param_groups(
    model: nn.Module | Iterable[nn.Module | nn.Parameter],
    weight_decay: float,
    *,
    embeddings: bool = True,
    lr: float | None = None,
    switch_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """The parameters of ``model`` in groups for an optimizer: norms and biases do not decay.

    Weight decay pulls the weights of layers towards 0. On weight and bias of a norm that is a pull
    towards "no signal", and on the logits of a switchable norm one towards equal shares; neither is
    meant. The groups, each with a ``"name"``:

    - ``decay``: weights of layers, and of embeddings unless asked otherwise;
    - ``no decay``: all parameters of norms, whatever they are called, all biases, and vectors and
      single numbers that a module of another kind holds, such as scales of layers;
    - ``switch``: the logits of switchable norms, without decay, at a learning rate of their own.

    By the type of the module, never by its name: a ``Linear`` called ``norm`` decays. What counts
    as a norm is every norm of PyTorch and of normalform, subclasses of them, parametrized and
    pruned ones, and modules whose class calls itself one, such as ``LlamaRMSNorm``. Each parameter
    is in one group; one that is shared does not decay where one of its modules says so. Frozen
    parameters are in their groups, too, should they learn later.

    Args:
        model: a module, or several, and parameters that belong to none: those of fewer than two
            axes do not decay.
        weight_decay: of the group ``decay``.
        embeddings: let embeddings decay.
        lr: the learning rate, needed for ``switch_lr``: groups then carry it.
        switch_lr: the learning rate of the switch logits is so many times ``lr``.

    Returns:
        Those groups that are not empty, for any optimizer of PyTorch that takes groups.

    Raises:
        TypeError: not modules and parameters.
        ValueError: no parameters, or one that has no shape yet; ``switch_lr`` without ``lr``.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), nf.SwitchNorm2d(8))
    >>> groups = nf.param_groups(model, weight_decay=1e-4)
    >>> [(g["name"], g["weight_decay"], len(g["params"])) for g in groups]
    [('decay', 0.0001, 1), ('no decay', 0.0, 3), ('switch', 0.0, 2)]
    >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    """
    if not isinstance(weight_decay, int | float) or not weight_decay >= 0:
        raise ValueError(f"param_groups: weight_decay={weight_decay!r} is not a number from 0 on")
    if lr is None and switch_lr != 1:
        raise ValueError(f"param_groups: switch_lr={switch_lr} is a multiple of lr, give lr, too")
    roles: dict[nn.Parameter, str] = {}
    for role, parameter in _found(model, embeddings):
        before = roles.get(parameter, "decay")
        roles[parameter] = min(role, before, key=NAMES.index)
    if not roles:
        raise ValueError("param_groups: there are no parameters, so nothing to optimize")
    groups: list[dict[str, Any]] = []
    for name in reversed(NAMES):
        parameters = [p for p, role in roles.items() if role == name]
        group = {"name": name, "params": parameters, "weight_decay": 0.0}
        if name == "decay":
            group["weight_decay"] = weight_decay
        if lr is not None:
            group["lr"] = lr * switch_lr if name == "switch" else lr
        groups += [group] if parameters else []
    return groups


def _found(
    model: nn.Module | Iterable[nn.Module | nn.Parameter], embeddings: bool
) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter, once for each module that holds it, and its role there."""
    several = not isinstance(model, nn.Module)
    for part in _several(model) if several else (model,):
        if isinstance(part, nn.Parameter):
            yield ("decay" if part.dim() > 1 else "no decay"), part
        elif isinstance(part, nn.Module):
            for path, module in part.named_modules():
                yield from _of_module(path, module, embeddings)
        else:
            raise TypeError(
                f"param_groups takes a model, or several modules and parameters; "
                f"got {type(part).__name__} among them"
            )


def _several(model: Any) -> Iterable[Any]:
    if isinstance(model, str) or not isinstance(model, Iterable):
        raise TypeError(f"param_groups takes a model, got {type(model).__name__}")
    return model


def _of_module(
    path: str, module: nn.Module, embeddings: bool
) -> Iterator[tuple[str, nn.Parameter]]:
    held = [(name, p) for name, p in module._parameters.items() if p is not None]
    if is_parametrized(module):  # what stands for a tensor has its role
        lists: Any = module.parametrizations
        for name, inner in lists.items():
            held += [(name, p) for p in inner._parameters.values() if p is not None]
    for name, parameter in held:
        if is_lazy(parameter):
            where = f"{path}.{name}".lstrip(".")
            raise ValueError(f"param_groups: {where} has no shape yet; run the model once first")
        yield _role(module, name.removesuffix("_orig"), parameter, embeddings), parameter


def _role(module: nn.Module, name: str, parameter: nn.Parameter, embeddings: bool) -> str:
    """Of a parameter in the module that calls it ``name``."""
    if isinstance(module, SWITCH) and name in LOGITS:
        return "switch"
    # What a layer calls its bias of any shape: bias, bias_hh_l0 (recurrent), bias_k (attention).
    bias = name == "bias" or name.startswith("bias_")
    kept = isinstance(module, EMBEDDINGS) and not embeddings
    if isinstance(module, nn.Linear | _ConvNd) and parameter.dim() > 1:
        return "decay"  # whatever its class is called
    return "no decay" if is_norm(module) or bias or kept or parameter.dim() < 2 else "decay"
