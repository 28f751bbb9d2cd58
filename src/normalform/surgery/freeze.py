"""Batch norms that stop: their statistics, and their weight and bias."""

from __future__ import annotations

from typing import Any

from torch import nn

from normalform.surgery.convert import changed, undone
from normalform.surgery.exchange import Plan, Target, planned
from normalform.surgery.kinds import KINDS, require_model
from normalform.surgery.memory import remembered
from normalform.surgery.report import Report

FREEZABLE: tuple[str, ...] = ("batch", "ghost")
NOT_BATCH = "not a batch norm: eval() stops it, until the next train()"


def freeze(model: nn.Module, *, affine: bool = True, example: Any = None) -> Report:
    """Stop the batch norms in ``model``: from now on each is a constant scale and shift.

    Each becomes a :class:`FrozenBatchNorm2d` (1d, 3d) in place, as by :func:`convert`. It uses its
    running statistics and leaves them alone, in training, too, so that a later ``model.train()``
    does not undo it, as it undoes ``eval()``. Weight and bias become buffers: no optimizer reaches
    them, not even one made before, with weight decay or old gradients, and no
    ``requires_grad_()``. The state_dict keeps its keys and values. Ghost batch norms, in evaluation
    the same, are frozen likewise.

    Norms of other kinds, subclasses and norms without running statistics go on as before; those
    that have running statistics or are batch norms are named, and why they were left.

    Args:
        model: the model, or a norm itself.
        affine: stop weight and bias, too; False to freeze the statistics only, while weight and
            bias go on learning.
        example: as in :func:`convert`.

    Returns:
        What was frozen, what not and why; prints as a table.

    Raises:
        TypeError: not a module.
        ValueError: the model is wrapped in DistributedDataParallel, which would wait for the
            gradients of weight and bias: freeze first.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    >>> nf.freeze(model)
    converted 1: BatchNorm2d 1
      1  nn.BatchNorm2d -> nf.FrozenBatchNorm2d [1]
    [1] carried weight, bias, running_mean, running_var, num_batches_tracked
    >>> y = model.train()(100 + torch.randn(2, 3, 8, 8))
    >>> model[1].running_mean
    tensor([0., 0., 0., 0.])
    """
    require_model(model, "freeze")
    target = Target("frozen", trainable=not affine)
    wanted = dict.fromkeys((*FREEZABLE, "frozen"), target)

    def plan(seen: Any) -> Plan:
        found = planned(model, wanted, seen, NOT_BATCH)
        found.left = [row for row in found.left if _runs(model.get_submodule(row.names[0]))]
        return found

    return changed(model, plan, example, "norms with running statistics")


def unfreeze(model: nn.Module) -> Report:
    """Undo :func:`freeze`: the batch norms in ``model`` are again what they were, and learn.

    Their parameters are the same objects as before, with the ``requires_grad`` they had, so that an
    optimizer made before the freeze goes on with them. Values that were loaded in the meantime
    stay. A frozen norm that was made as one becomes a :class:`BatchNorm2d` (1d, 3d).

    Args:
        model: the model, or a norm itself.

    Returns:
        What was touched, what was not and why; prints as a table.

    Raises:
        TypeError: not a module.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    >>> weight = model[1].weight
    >>> _ = nf.freeze(model)
    >>> nf.unfreeze(model)
    converted 1: FrozenBatchNorm2d 1
      1  nf.FrozenBatchNorm2d -> nn.BatchNorm2d [1]
    [1] carried weight, bias, running_mean, running_var, num_batches_tracked
    >>> model[1].weight is weight
    True
    """
    require_model(model, "unfreeze")
    plan = undone(model, _is_frozen)
    made = planned(model, {"frozen": Target("batch")})
    rows = {id(model.get_submodule(row.names[0])): row for row in made.converted}
    for norm, form in made.forms:
        if remembered(norm) is None:
            plan.forms.append((norm, form))
            plan.converted.append(rows[id(norm)])
    return changed(model, lambda seen: plan, sought="frozen norms")


def _is_frozen(norm: nn.Module) -> bool:
    kind = KINDS.get(type(norm))
    return kind is not None and kind.name == "frozen"


def _runs(norm: nn.Module) -> bool:
    """Whether it is a batch norm, or has running statistics all the same."""
    kind = KINDS.get(type(norm))
    known = kind is not None and kind.name in FREEZABLE
    return known or getattr(norm, "running_mean", None) is not None
