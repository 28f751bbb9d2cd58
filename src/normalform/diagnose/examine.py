"""The table of checks, and the way from a model to its diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader

from normalform.diagnose import measured, static, statistics, words
from normalform.diagnose.diagnosis import Diagnosis
from normalform.diagnose.facts import Facts, Measured, measure
from normalform.diagnose.finding import SEVERITIES, Finding, Row, Suspicion, Tried
from normalform.diagnose.gap import fall
from normalform.diagnose.measure import Data, Loss
from normalform.diagnose.norms import Norm, norms_of
from normalform.diagnose.remedies import RECALIBRATE
from normalform.diagnose.stored import SCALE, norms_in
from normalform.diagnose.trial import compared, on_copy
from normalform.surgery.feeding import Given, given
from normalform.surgery.feeding import batches as first
from normalform.surgery.keeping import kept

Check = Callable[[Facts], Iterator[Suspicion]]

# In the order they are told of where they are as bad and cost as much.
CHECKS: tuple[Check, ...] = (
    static.non_finite,
    static.negative_variance,
    statistics.train_eval_gap,
    statistics.exploding,
    static.never_updated,
    static.fallen_behind,
    static.constant_channels,
    statistics.stale,
    static.momentum,
    measured.one_value,
    measured.last_batch,
    measured.few_values,
    static.vanishing_eps,
    measured.dominant_eps,
    measured.dead_channels,
    static.half_frozen,
    static.weight_decay,
    measured.data_parallel,
    measured.never_called,
    measured.cancelled_bias,
    static.own_classes,
)
UNCHANGED = 1e-3  # relative: outputs may differ by so much where a remedy is to change nothing


def diagnose(
    model: nn.Module | Mapping[str, Any],
    loader: Iterable[Any] | None = None,
    loss: Loss | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    batches: int = 4,
) -> Diagnosis:
    """Say what is wrong with the norms of a model, what it costs, and the line that mends it.

    From the model alone: buffers that are not finite, negative or never updated, momentum of the
    other convention, an eps that vanishes, half-frozen norms, weight decay on norms. From a few
    batches: the gap between training and evaluation that is due to the statistics, in units of the
    loss and norm by norm; running statistics against those of the batch; the values behind each
    statistic; dead and exploding channels; norms never called; biases that a norm cancels.

    A remedy that can be tried was tried, on a copy, over the same batches; each finding says what
    came of it. Norms are known by type, never by name. The model is left as it was: mode,
    parameters, gradients, buffers, hooks and random numbers, also where an exception is raised. The
    loader gives its first batches once; no more than about fifty forward passes are made, most of
    them only where there is a gap to divide.

    Args:
        model: any module, or a state_dict, of which only tensors are looked at. Where
            :class:`torch.nn.parallel.DistributedDataParallel` wraps it, what that means for batch
            norm is looked at, too; then every rank has to call.
        loader: any iterable of batches, as :func:`torch.utils.data.DataLoader` gives them: inputs
            first, then targets.
        loss: called as ``loss(output, *targets)``. Without it the gap is how far the outputs in
            evaluation are from those with the statistics of the batch.
        optimizer: that trains the model.
        batches: how many are looked at; of the same size as in training, or the numbers of values
            are not those of training. A smaller last one is left out.

    Returns:
        The diagnosis, which prints as a table: ``summary``, ``findings``, ``rows``, ``as_dict()``,
        ``html()``.

    Raises:
        TypeError: not a module, a loss that cannot be called, or a loader that gives no batches.
        ValueError: an empty loader, or a loss without a loader.

    >>> conv = torch.nn.Conv2d(1, 4, 3, bias=False)
    >>> model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4, momentum=0.99))
    >>> nf.diagnose(model).findings[0].remedy
    "model.get_submodule('1').momentum = 0.01; nf.recalibrate(model, loader)"
    >>> nf.diagnose(torch.nn.Linear(2, 2))
    none found: the model has no norms
    """
    if isinstance(model, Mapping):
        return _of_tensors(model)
    if not isinstance(model, nn.Module):
        got = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"diagnose takes a torch.nn.Module or a state_dict; got {got}")
    if loss is not None and not callable(loss):
        raise TypeError(
            f"diagnose(loss={loss!r}): a loss is called with the output and the targets, as "
            "torch.nn.functional.cross_entropy"
        )
    if loss is not None and loader is None:
        raise ValueError("diagnose(loss=...) needs a loader: batches to take the loss of")
    subject, ranks = _unwrapped(model)
    norms = norms_of(subject)
    if not norms:
        return Diagnosis("none found: the model has no norms")
    held = [norm.name for norm in norms if subject.training and not norm.module.training]
    known = Facts(subject, norms, optimizer, ranks, frozenset(held), _tail(loader))
    wrapped = isinstance(model, DistributedDataParallel | DataParallel)
    if loader is None:
        return _of_wrapped(_concluded(known)) if wrapped else _concluded(known)
    with kept(subject), _same_order(loader):
        data = Data(_alike(subject, [*first(loader, batches, doing="diagnose")]), loss)
        if not data.batches:
            raise ValueError("diagnose: the loader gives no batches")
        subject.eval()
        found = _concluded(_gathered(known, data))
    return _of_wrapped(found) if wrapped else found


def _of_wrapped(diagnosis: Diagnosis) -> Diagnosis:
    """Remedies for a model whose modules are those of another inside it."""

    def inside(finding: Finding) -> Finding:
        remedy = finding.remedy.replace("model.get_submodule(", "model.module.get_submodule(")
        return replace(finding, remedy=remedy)

    return replace(diagnosis, findings=tuple(map(inside, diagnosis.findings)))


def _of_tensors(state: Mapping[str, Any]) -> Diagnosis:
    norms = norms_in(state)
    found = _concluded(Facts(nn.Module(), norms)) if norms else None
    if found is not None and (found.findings or any(norm.label != SCALE for norm in norms)):
        return found
    alone = f"; {len(norms)} vectors are scales of RMS norms, or of activations" if norms else ""
    return Diagnosis(f"none found: no tensors that look like those of a norm{alone}")


def _gathered(known: Facts, data: Data) -> Facts:
    """The facts; norms in the order they run, those never called last."""
    found = measure(known.model, known.norms, data)
    if isinstance(found, Norm):
        return replace(known, refused=found)
    order = {name: seen.order for name, seen in found.seen.items()}
    norms = sorted(known.norms, key=lambda norm: order.get(norm.name, len(order)))
    return replace(known, norms=tuple(norms), measured=found)


def _concluded(facts: Facts) -> Diagnosis:
    found = [f for check in CHECKS for s in check(facts) for f in _tried(facts, s)]
    found.sort(key=lambda f: (-SEVERITIES.index(f.severity), -(f.effect or 0.0)))
    return Diagnosis(
        words.summary(facts, found),
        tuple(found),
        tuple(_row(norm, facts.measured) for norm in facts.norms),
        facts.measured.losses if facts.measured else None,
        words.conditions(facts.measured) if facts.measured else "",
    )


def _tried(facts: Facts, suspicion: Suspicion) -> Iterator[Finding]:
    """The finding, with what its remedy did to a copy; nothing where that refutes it."""
    m, finding = facts.measured, suspicion.finding
    tried = None
    if m is not None and suspicion.recalibrates:
        tried = m.recalibrated
    elif m is not None and suspicion.mend is not None:
        result = on_copy(facts.model, m.data, suspicion.mend)
        tried = None if result is None else compared(m.evaluation, result)
    if suspicion.expects == "same" and (tried is None or not tried.change <= UNCHANGED):
        return
    if suspicion.expects != "better" and tried is not None:
        tried = Tried(None, None, tried.change)
    if m is not None and suspicion.expects == "better" and finding.effect is None:
        effect = _effect(m, finding, tried)
        finding = replace(finding, effect=None if effect is None or effect < 0 else effect)
    alone = finding.remedy == RECALIBRATE and finding.severity == "warning"
    if alone and _is_worse(tried):
        finding = replace(finding, severity="note")
    yield replace(finding, tried=tried)


def _is_worse(tried: Tried | None) -> bool:
    """Whether the model was better off without the remedy."""
    if tried is None or tried.before is None or tried.after is None:
        return False
    return tried.after > tried.before


def _effect(m: Measured, finding: Finding, tried: Tried | None) -> float | None:
    """In units of the loss: the parts of the gap, or what the remedy took off."""
    if m.losses.unit != "loss":
        return None
    if m.parts:
        return sum(m.parts[name].effect for name in finding.where if name in m.parts)
    if tried is None or tried.before is None or tried.after is None:
        return None
    return fall(tried.before, tried.after)


def _row(norm: Norm, m: Measured | None) -> Row:
    if m is None or norm.name not in m.seen:
        return Row(norm.name, norm.kind)
    off = statistics.drift(norm, m) or (None, None)
    part = m.parts.get(norm.name)
    shares = (part.share, part.effect, part.among) if part else (None, None, 1)
    return Row(norm.name, norm.kind, m.seen[norm.name].values or None, *off, *shares)


def _unwrapped(model: nn.Module) -> tuple[nn.Module, int]:
    """The model without wrappers, and in how many processes a wrapper trains it."""
    ranks = 0
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            ranks = dist.get_world_size() if dist.is_initialized() else torch.cuda.device_count()
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model, ranks


def _alike(model: nn.Module, batches: list[Any]) -> tuple[Any, ...]:
    """Without a smaller last one, whose statistics are not those of training."""
    sizes = [_samples(given(model, batch)) for batch in batches]
    return tuple(batches[:-1] if len(sizes) > 1 and sizes[-1] < sizes[0] else batches)


def _samples(batch: Given) -> int:
    values = (*batch.args, *batch.kwargs.values())
    return next((len(v) for v in values if isinstance(v, Tensor) and v.ndim), 0)


def _tail(loader: object) -> int:
    """Samples in the last batch of a DataLoader where that is smaller than the others."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None or loader.drop_last:
        return 0
    size = getattr(loader.sampler, "__len__", None)
    return 0 if size is None else int(size()) % loader.batch_size


@contextmanager
def _same_order(loader: Iterable[Any]) -> Generator[None]:
    """A loader with a generator of its own draws the same order again afterwards."""
    generator = loader.generator if isinstance(loader, DataLoader) else None
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)
