"""Which norm a module is: by its exact class, for nobody knows what a subclass does.

Norms of unknown classes are found all the same, so that they can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normalform import layers


class Kind(NamedTuple):
    """A norm that can be exchanged for another.

    Attributes:
        name: as in ``nf.convert(model, {name: ...})``.
        dim: how many axes follow the channels; None for a class that takes any number.
    """

    name: str
    dim: int | None = None


CLASSES = {
    "batch": "BatchNorm{}d",
    "instance": "InstanceNorm{}d",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "rms": "RMSNorm",
    "switch": "SwitchNorm{}d",
    "ghost": "GhostBatchNorm{}d",
    "frozen": "FrozenBatchNorm{}d",
}


def _kinds() -> Iterator[tuple[type[nn.Module], Kind]]:
    yield nn.SyncBatchNorm, Kind("batch")
    for name, stem in CLASSES.items():
        for dim in (1, 2, 3) if "{}" in stem else (None,):
            found = (getattr(package, stem.format(dim), None) for package in (nn, layers))
            yield from ((kind, Kind(name, dim)) for kind in found if kind is not None)


KINDS: Mapping[type[nn.Module], Kind] = dict(_kinds())

NORMS = (_NormBase, *KINDS)
NORM_IN_NAME = re.compile("Norm(?![a-z])")  # but not Normalize
AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
TENSORS = frozenset((*AFFINE, *STATISTICS, "mean_weight", "var_weight"))


def named(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Each module once, with all its names."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    for module, names in found.values():
        yield module, tuple(names)


def is_norm(module: nn.Module) -> bool:
    """Whether a module of whatever class is a norm: by type, or by the name of its class alone."""
    if isinstance(module, NORMS):
        return True
    kind = type(module)
    name = str(getattr(module, "original_name", kind.__name__))  # of a scripted module
    helps = kind.__module__.startswith("torch.nn.utils.")  # as the parametrization _SpectralNorm
    leaf = next(module.children(), None) is None
    return leaf and not helps and NORM_IN_NAME.search(name) is not None


def obstacle(module: nn.Module, parts: set[int]) -> str:
    """Why a norm of a class that we know is left all the same, or nothing."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if id(module) in parts:
        return "part of a module of torch.ao, which counts on its exact type"
    return ""


def own_tensors(module: nn.Module) -> str:
    """Why a norm cannot become one of another kind, if it holds more than its class gave it."""
    held = (*module._parameters, *module._buffers)
    unknown = [name for name in held if name not in TENSORS]
    if unknown or TENSORS & vars(module).keys():
        return (
            f"holds {', '.join(unknown) or 'tensors that are no parameters'}, as pruning does: "
            "make that permanent first"
        )
    return ""


def stranger(module: nn.Module) -> str:
    """Why a norm of a class that we do not know is left."""
    kind = type(module)
    if is_parametrized(module) and kind.__mro__[1] in KINDS:
        return "parametrized, which made a class of its own: remove the parametrization first"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit: convert before that"
    if isinstance(module, LazyModuleMixin):
        return "uninitialized lazy module: run it once first"
    base = next((b for b in kind.__mro__ if b in KINDS), None)
    if base is not None:
        return f"a subclass of {label_of(base)}, which may do something else"
    return "" if owner(kind) else "a class of its own"


def in_quantization(model: nn.Module) -> set[int]:
    """The parts of modules that torch.ao fused for quantization."""
    return {
        id(part)
        for module in model.modules()
        if any(kind.__module__.startswith("torch.ao.nn.") for kind in type(module).__mro__)
        for part in module.children()
    }


def in_fast_path(model: nn.Module) -> set[int]:
    """The norms that an encoder layer computes itself, where it is made as its fast path asks."""
    found: set[int] = set()
    for layer in model.modules():
        if not isinstance(layer, nn.TransformerEncoderLayer):
            continue
        # Looked up carefully: a subclass with a forward of its own may have none of them.
        children: dict[str, nn.Module | None] = layer._modules
        attention = children.get("self_attn")
        norms = [children.get("norm1"), children.get("norm2")]
        eps = {getattr(norm, "eps", None) for norm in norms}
        if (
            getattr(attention, "batch_first", False)
            and getattr(attention, "in_proj_bias", None) is not None
            and getattr(attention, "num_heads", 1) % 2 == 0
            and getattr(layer, "activation_relu_or_gelu", 0)
            and len(eps) == 1
        ):
            found.update(map(id, norms))
    return found


def owner(kind: type) -> str:
    """Whose class it is: ``"PyTorch"``, ``"normalform"`` or nothing."""
    package = kind.__module__.partition(".")[0]
    return {"torch": "PyTorch", "normalform": "normalform"}.get(package, "")


def label(module: nn.Module) -> str:
    """The class of a module as in code."""
    scripted = getattr(module, "original_name", None)
    return label_of(type(module)) if scripted is None else f"torch.jit {scripted}"


def label_of(kind: type) -> str:
    """As in code: ``nn.BatchNorm2d``, ``nf.BatchNorm2d``, others in full."""
    for package, short in (("torch.nn.modules.", "nn"), ("normalform.layers.", "nf")):
        if kind.__module__.startswith(package):
            return f"{short}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def require_model(model: Any, verb: str) -> None:
    """Refuse what is no module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{verb} takes a model, an instance of torch.nn.Module; got {got}")
