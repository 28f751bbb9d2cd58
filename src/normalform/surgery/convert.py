"""PyTorch's norms to ours of the same kind, and back: a change of a module's class, nothing else.

So whatever refers to the module, its parameters or its buffers goes on as before. Between exact
types that is safe, ours differ from PyTorch's in ``forward`` alone. Of any other class nobody knows
what its own ``forward`` does: it is named and left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normalform import layers
from normalform.surgery.report import Converted, Left, Report

Kinds = Mapping[type[nn.Module], type[nn.Module]]

TO_OURS: Kinds = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
    nn.InstanceNorm1d: layers.InstanceNorm1d,
    nn.InstanceNorm2d: layers.InstanceNorm2d,
    nn.InstanceNorm3d: layers.InstanceNorm3d,
    nn.LayerNorm: layers.LayerNorm,
    nn.GroupNorm: layers.GroupNorm,
    nn.RMSNorm: layers.RMSNorm,
}
TO_TORCHS: Kinds = {ours: torchs for torchs, ours in TO_OURS.items()}

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_IN_NAME = re.compile("Norm(?![a-z])")  # but not Normalize

FUSED = (
    "in evaluation without autograd nn.TransformerEncoderLayer computes it in one kernel of "
    "PyTorch's with all the rest, and never calls it; "
    "torch.backends.mha.set_fastpath_enabled(False) turns that off"
)
AVERAGES = (
    "with momentum=None its running statistics are now the average over all batches; PyTorch's "
    "instance norm never updates them"
)


def convert(model: nn.Module) -> Report:
    """Make PyTorch's norms in ``model`` normalform's of the same kind, in place.

    The same results but for rounding, the same parameters, buffers and state_dict, the same mode.
    Only the class of each norm changes, so hooks, shared modules, optimizers and wrappers such as
    :class:`torch.nn.parallel.DistributedDataParallel` need not know, and :func:`torch.compile`
    compiles again at the next call. Where anything fails, the model is left as it was.

    Exact types only: subclasses, whatever their own ``forward`` does, are named and left, as are
    parametrized, scripted and not yet initialized modules. Calls of functions such as
    :func:`torch.nn.functional.batch_norm` inside a ``forward`` cannot be found.

    Tools that compare exact types, as quantization does, and :func:`torch.jit.script` need
    :func:`revert` first.

    Args:
        model: the model, or a norm itself.

    Returns:
        What was touched, what was not and why; prints as a table.

    Raises:
        TypeError: not a module.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    >>> nf.convert(model)
    converted 1: BatchNorm2d 1
      1  nn.BatchNorm2d -> nf.BatchNorm2d
    >>> type(model[1])
    <class 'normalform.layers.running.BatchNorm2d'>
    """
    return _change(model, TO_OURS, "convert")


def revert(model: nn.Module) -> Report:
    """Undo :func:`convert`: normalform's norms in ``model`` become PyTorch's, bit for bit.

    In place and by class, as there. Norms that PyTorch does not have, such as switchable norm, are
    named and left.

    Args:
        model: the model, or a norm itself.

    Returns:
        What was touched, what was not and why; prints as a table.

    Raises:
        TypeError: not a module.

    >>> model = torch.nn.Sequential(nf.GroupNorm(2, 4), nf.SwitchNorm2d(4))
    >>> nf.revert(model)
    converted 1: GroupNorm 1; left 1: SwitchNorm2d 1
      0  nf.GroupNorm -> nn.GroupNorm
      1  nf.SwitchNorm2d left: PyTorch has no such norm
    """
    return _change(model, TO_TORCHS, "revert")


def _change(model: nn.Module, to: Kinds, verb: str) -> Report:
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{verb} takes a model, an instance of torch.nn.Module; got {got}")
    parts, fused = _in_quantization(model), _in_fast_path(model)
    changes: list[tuple[nn.Module, type[nn.Module]]] = []
    converted: list[Converted] = []
    left: list[Left] = []
    for module, names in _named(model):
        after = to.get(type(module))
        if after is None and not _is_norm(module):
            continue
        reason = _why_left(module, to) if after is None else _obstacle(module, parts)
        if after is None or reason:
            left.append(Left(names, _label(module), reason))
            continue
        note = _note(module, fused) if to is TO_OURS else ""
        converted.append(Converted(names, _label(module), _label_of(after), note))
        changes.append((module, after))
    _assign(changes)
    return Report(tuple(converted), tuple(left))


def _named(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Each module once, with all its names."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    for module, names in found.values():
        yield module, tuple(names)


def _assign(changes: list[tuple[nn.Module, type[nn.Module]]]) -> None:
    """All of them or none."""
    before = [(module, type(module)) for module, _ in changes]
    try:
        for module, kind in changes:
            module.__class__ = kind
    except BaseException:
        for module, kind in before:
            module.__class__ = kind
        raise


def _is_norm(module: nn.Module) -> bool:
    """Whether to name a module of no class we convert: a norm by type, or by its name alone."""
    if isinstance(module, NORMS):
        return True
    kind = type(module)
    name = str(getattr(module, "original_name", kind.__name__))  # of a scripted module
    helps = kind.__module__.startswith("torch.nn.utils.")  # as the parametrization _SpectralNorm
    leaf = next(module.children(), None) is None
    return leaf and not helps and NORM_IN_NAME.search(name) is not None


def _obstacle(module: nn.Module, parts: set[int]) -> str:
    """Why a norm of a class that is converted is left all the same, or nothing."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if id(module) in parts:
        return "part of a module of torch.ao, which counts on its exact type"
    return ""


def _why_left(module: nn.Module, to: Kinds) -> str:
    """Why a norm of a class that is not converted is left."""
    kind = type(module)
    owner, wanted = _owner(kind), "normalform" if to is TO_OURS else "PyTorch"
    if is_parametrized(module) and kind.__mro__[1] in to:
        return "parametrized, which made a class of its own: remove the parametrization first"
    if owner == wanted:
        return f"{wanted}'s already"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit: convert before that"
    if isinstance(module, LazyModuleMixin):
        return "uninitialized lazy module: run it once first"
    base = next((b for b in kind.__mro__ if b in TO_OURS or b in TO_TORCHS), None)
    if base is not None:
        return f"a subclass of {_label_of(base)}, which may do something else"
    return f"{wanted} has no such norm" if owner else "a class of its own"


def _note(module: nn.Module, fused: set[int]) -> str:
    """What to know about a norm that is now ours, or nothing."""
    if isinstance(module, _InstanceNorm) and module.track_running_stats and module.momentum is None:
        return AVERAGES
    return FUSED if id(module) in fused else ""


def _in_fast_path(model: nn.Module) -> set[int]:
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


def _in_quantization(model: nn.Module) -> set[int]:
    """The parts of modules that torch.ao fused for quantization."""
    return {
        id(part)
        for module in model.modules()
        if any(kind.__module__.startswith("torch.ao.nn.") for kind in type(module).__mro__)
        for part in module.children()
    }


def _owner(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return {"torch": "PyTorch", "normalform": "normalform"}.get(package, "")


def _label(module: nn.Module) -> str:
    scripted = getattr(module, "original_name", None)
    return _label_of(type(module)) if scripted is None else f"torch.jit {scripted}"


def _label_of(kind: type) -> str:
    """As in code: ``nn.BatchNorm2d``, ``nf.BatchNorm2d``, others in full."""
    for package, short in (("torch.nn.modules.", "nn"), ("normalform.layers.", "nf")):
        if kind.__module__.startswith(package):
            return f"{short}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"
