"""Norms of a model made others in place: PyTorch's ours, one kind another, and all of it undone.

The module stays, its class changes. So whatever refers to the module, its parameters or its buffers
goes on as before. Between exact types that is safe: ours differ from PyTorch's in ``forward``
alone. Of any other class nobody knows what its own ``forward`` does: it is named and left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel

from normalform import layers
from normalform.surgery.effect import effect, outputs, watched
from normalform.surgery.exchange import Plan, planned, targets
from normalform.surgery.kinds import (
    KINDS,
    in_fast_path,
    in_quantization,
    is_norm,
    label,
    label_of,
    named,
    obstacle,
    own_tensors,
    owner,
    require_model,
    stranger,
)
from normalform.surgery.memory import Form, assigned, form_of, remembered, tensors, unwound
from normalform.surgery.report import Converted, Left, Report

Kinds = Mapping[type[nn.Module], type[nn.Module]]
Seen = Mapping[nn.Module, set[int]] | None  # axes of the inputs of each norm

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

FUSED = (
    "in evaluation without autograd nn.TransformerEncoderLayer computes it in one kernel of "
    "PyTorch's with all the rest, and never calls it; "
    "torch.backends.mha.set_fastpath_enabled(False) turns that off"
)
AVERAGES = (
    "with momentum=None its running statistics are now the average over all batches; PyTorch's "
    "instance norm never updates them"
)
STALE = "its running statistics are from before the conversion: recalibrate"
NOT_EXCHANGED = "was not exchanged"
ONCE_MORE = f"{NOT_EXCHANGED}: revert once more to make it PyTorch's"


def convert(
    model: nn.Module, mapping: Mapping[str, str] | None = None, *, example: Any = None
) -> Report:
    """Make PyTorch's norms in ``model`` normalform's, or norms of one kind those of another.

    In place: a norm changes its class, the module stays. So names, hooks, shared modules, mode and
    optimizers need not know, a model that is itself a norm is converted like any other, and
    :func:`torch.compile` compiles again at the next call. Where anything fails, the model is left
    as it was.

    **Without a mapping** PyTorch's norms become ours of the same kind: the same results but for
    rounding, the same parameters, buffers and state_dict, also inside
    :class:`torch.nn.parallel.DistributedDataParallel`.

    **With a mapping** norms of the kinds that are its keys become what the values say:

    - Keys: ``batch`` (also :class:`torch.nn.SyncBatchNorm`), ``instance``, ``group``, ``switch``,
      ``ghost`` and ``frozen``, PyTorch's and ours, have channels on axis 1; ``layer`` and ``rms``
      work on the last axes.
    - Values: names as :func:`get_norm_layer` takes them. ``layer`` is, for a norm over channels,
      layer norm over the sample, ``GroupNorm(1, C)``. ``group:32`` becomes the largest number of
      groups up to 32 that divides the channels, and the report says so. Norms over channels do not
      become norms over the last axes, nor the other way round.
    - Options (``eps``, ``momentum``, the number of axes) and the parameters and buffers that both
      norms have go on, the very same tensors: ``weight`` and ``bias``; running statistics among
      ``batch``, ``ghost``, ``switch`` and ``frozen``, and from an ``instance`` norm that tracks
      them. The report says for each norm what it carried, what is new and what was put aside for
      :func:`revert`. Only norms keep what was put aside, in an attribute of their own, so it is in
      copies and pickles of the model but not in its state_dict.
    - Norms whose class takes any number of axes (``group``) become such as need to know it
      (``batch``) where the example shows it or all convolutions and norms of the model agree.

    Exact types only: subclasses, whatever their own ``forward`` does, are named and left, as are
    parametrized, pruned, scripted and not yet initialized modules. Calls of functions such as
    :func:`torch.nn.functional.batch_norm` inside a ``forward`` cannot be found. Tools that compare
    exact types, as quantization does, and :func:`torch.jit.script` need :func:`revert` first.

    Args:
        model: the model, or a norm itself.
        mapping: from the kind of norm to look for to the name of the one it becomes.
        example: an input as a loader gives it. The model runs on it before and after, in the mode
            it is in, without gradients and with nothing of it changed; the report says by how much
            its outputs change.

    Returns:
        What was touched, what was not and why; prints as a table.

    Raises:
        TypeError: not a module, or a mapping that is no dict of names.
        ValueError: a kind or name that is not known; or new parameters or buffers inside
            DistributedDataParallel, which keeps a list of those it was given: convert first.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3), torch.nn.BatchNorm2d(48))
    >>> nf.convert(model)
    converted 1: BatchNorm2d 1
      1  nn.BatchNorm2d -> nf.BatchNorm2d
    >>> type(model[1])
    <class 'normalform.layers.running.BatchNorm2d'>
    >>> nf.convert(model, {"batch": "group:32"})
    converted 1: BatchNorm2d 1
      1  nf.BatchNorm2d -> nf.GroupNorm, 24 groups [1] [2]
    [1] carried weight, bias; put aside running_mean, running_var, num_batches_tracked
    [2] 48 channels do not divide into 32 groups: 24 do
    """
    require_model(model, "convert")
    if mapping is None:
        return changed(model, lambda seen: _by_class(model, TO_OURS), example)
    wanted = targets(mapping)
    return changed(model, lambda seen: planned(model, wanted, seen), example)


def revert(model: nn.Module) -> Report:
    """Undo :func:`convert`, bit for bit.

    Norms that were exchanged for norms of another kind, by a mapping or by :func:`freeze`, become
    again what they were before the first exchange, in place and by class. Where there are none,
    normalform's norms become PyTorch's; so after both kinds of conversion call it twice. Norms that
    PyTorch does not have, such as switchable norm, are named and left.

    Parameters and buffers that a norm carried through the conversion are the same tensors all the
    time: as everywhere in the model, training between ``convert`` and ``revert`` is kept. What had
    no place in the new norm comes back as it was before, on the device and of the type the norm
    has now: the running statistics of a batch norm that was a group norm for a while. If weight
    or bias have changed since, the report says so, as the running statistics should then be
    estimated anew. What only the new norm had, such as switch weights, is gone.

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
    require_model(model, "revert")
    if not any(remembered(module) is not None for module in model.modules()):
        return changed(model, lambda seen: _by_class(model, TO_TORCHS))
    plan = undone(model, lambda norm: True)
    for module, names in named(model):
        if is_norm(module) and remembered(module) is None:
            reason = ONCE_MORE if type(module) in TO_TORCHS else NOT_EXCHANGED
            plan.left.append(Left(names, label(module), _stranger_or(module, reason)))
    return changed(model, lambda seen: plan)


def changed(
    model: nn.Module, plan: Callable[[Seen], Plan], example: Any = None, sought: str = "norms"
) -> Report:
    """What a plan says, done to ``model``, and what that does to its outputs for an example."""
    if example is None:
        found = plan(None)
        _require_unwrapped(model, found)
        with assigned(found.forms):
            return Report(tuple(found.converted), tuple(found.left), None, sought)
    norms = [module for module in model.modules() if type(module) in KINDS]
    before, seen = watched(model, example, norms)
    found = plan(seen)
    _require_unwrapped(model, found)
    with assigned(found.forms):
        change = effect(before, outputs(model, example), model.training)
        return Report(tuple(found.converted), tuple(found.left), change, sought)


def _require_unwrapped(model: nn.Module, plan: Plan) -> None:
    """Refuse to change what a wrapper has made a list of."""
    if not any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return
    for (module, form), row in zip(plan.forms, plan.converted, strict=True):
        then = {**form.attributes["_parameters"], **form.attributes["_buffers"]}
        if [*map(id, then.values())] != [*map(id, tensors(module).values())]:
            raise ValueError(
                f"{row.names[0]}: DistributedDataParallel goes on with the parameters and buffers "
                "it was given; change the norms of a model before it is wrapped"
            )


def undone(model: nn.Module, while_: Callable[[nn.Module], bool]) -> Plan:
    """Exchanged norms as they were, step by step while ``while_`` is true of them."""
    plan, parts = Plan([], [], []), in_quantization(model)
    for module, names in named(model):
        if remembered(module) is None or not while_(module):
            continue
        known = type(module) in KINDS or type(module) is nn.Identity
        reason = "" if known else stranger(module) or "of another class by now"
        reason = reason or obstacle(module, parts) or own_tensors(module)
        if reason:
            plan.left.append(Left(names, label(module), reason))
            continue
        form = unwound(module, model, while_)
        plan.forms.append((module, form))
        plan.converted.append(_undone(module, names, form))
    return plan


def _undone(module: nn.Module, names: tuple[str, ...], form: Form) -> Converted:
    notes: list[str] = []
    if form.changed:
        notes.append(f"changed since and kept as now: {', '.join(form.changed)}")
        if "running_mean" in form.fresh:
            notes.append(STALE)
    return Converted(
        names, label(module), label_of(form.kind), "; ".join(notes),
        carried=form.carried, returned=form.fresh, dropped=form.aside,
    )  # fmt: skip


def _stranger_or(module: nn.Module, reason: str) -> str:
    """Why a module of an unknown class is left, or another reason."""
    return (type(module) not in KINDS and stranger(module)) or reason


def _by_class(model: nn.Module, to: Kinds) -> Plan:
    """Norms of one library as those of the other."""
    parts, fused = in_quantization(model), in_fast_path(model)
    plan = Plan([], [], [])
    for module, names in named(model):
        after = to.get(type(module))
        if after is None and not is_norm(module):
            continue
        reason = _why_left(module, to) if after is None else obstacle(module, parts)
        if after is None or reason:
            plan.left.append(Left(names, label(module), reason))
            continue
        note = _note(module, fused) if to is TO_OURS else ""
        plan.converted.append(Converted(names, label(module), label_of(after), note))
        plan.forms.append((module, form_of(module)._replace(kind=after)))
    return plan


def _why_left(module: nn.Module, to: Kinds) -> str:
    """Why a norm of a class that is not converted is left."""
    kind, wanted = type(module), "normalform" if to is TO_OURS else "PyTorch"
    parametrized = hasattr(module, "parametrizations") and kind.__mro__[1] in to
    if owner(kind) == wanted and not parametrized:
        return f"{wanted}'s already"
    return _stranger_or(module, f"{wanted} has no such norm")


def _note(module: nn.Module, fused: set[int]) -> str:
    """What to know about a norm that is now ours, or nothing."""
    if isinstance(module, _InstanceNorm) and module.track_running_stats and module.momentum is None:
        return AVERAGES
    return FUSED if id(module) in fused else ""
