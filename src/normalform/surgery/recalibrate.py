"""Running statistics made anew: those of the whole of some data, as the model is now.

Each batch norm normalizes every batch by the statistics of that batch, as in training, and what
reaches it is merged over all batches. That takes one pass, whatever the depth. The other way, to
settle one norm and then look at the next, takes a pass for each norm; the two differ by how much
the statistics of batches scatter about those of the data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normalform.surgery.feeding import batches as batches_of
from normalform.surgery.feeding import feed, inside
from normalform.surgery.keeping import kept, restored_on_error
from normalform.surgery.kinds import label, require_model
from normalform.surgery.population import Population
from normalform.surgery.ranks import gathered
from normalform.surgery.report import WIDEST, Left, _joined
from normalform.surgery.watching import Watch, watch_all, watches

UNREACHED = "no batch reached it"
SINGLE = "one value in each channel has no variance"
NOT_FINITE = "what reached it is not finite in any channel"


@dataclass(frozen=True)
class Recalibrated:
    """A norm whose running statistics were made anew.

    Args:
        names: every dotted name it has in the model, more than one where it is shared.
        kind: what it is, as ``"nn.BatchNorm2d"``.
        values: of each channel, over all batches and ranks.
        shift: by how much the mean moved, in standard deviations, in the channel where most.
        scale: least and largest factor by which a standard deviation changed.
        note: what to know about it, or nothing.
    """

    names: tuple[str, ...]
    kind: str
    values: int
    shift: float
    scale: tuple[float, float]
    note: str = ""

    def __str__(self) -> str:
        low, high = self.scale
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.kind}: {self.values:,} values a channel, mean moved by up to "
            f"{self.shift:.2g} std, std times {low:.2g} to {high:.2g}{note}"
        )


@dataclass(frozen=True, repr=False)
class Recalibration:
    """Every norm with running statistics; prints as a table, and is true where any was made anew.

    Args:
        norms: those that were recalibrated, in the order of the model; ``len()`` counts them.
        left: those that were not, and why.
        batches: how many were used, on all ranks together.
    """

    norms: tuple[Recalibrated, ...] = ()
    left: tuple[Left, ...] = ()
    batches: int = 0

    def __len__(self) -> int:
        return len(self.norms)

    def __str__(self) -> str:
        if not self.norms and not self.left:
            return "no norms with running statistics found"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        head = f"recalibrated {len(self.norms)} from {batches}"
        if self.left:
            head += f"; left {len(self.left)}"
        rows = [(_joined(row.names), str(row)) for row in self.norms]
        rows += [(_joined(row.names), f"{row.kind} left: {row.reason}") for row in self.left]
        width = min(WIDEST, max(len(names) for names, _ in rows))
        return "\n".join([head, *(f"  {names:{width}}  {text}" for names, text in rows)])

    __repr__ = __str__


def recalibrate(
    model: nn.Module, loader: Iterable[Any], *, batches: int | None = None
) -> Recalibration:
    """Set the running statistics of all batch norms to those of the data that reaches them.

    For models whose weights changed after their statistics did: averaged, pruned, quantized, fine
    tuned at another batch size, converted from another norm. For switchable norms it is what their
    authors call batch average; ghost norms get the statistics of the data, not of blocks.

    Each norm's ``running_mean`` and *unbiased* ``running_var`` become, to 1e-6 relative, those of
    all values that reach it in these batches: means and sums of squares are merged by their counts
    in float64, so that batches may differ in size and no variance is negative. What reaches it is
    as in training: the batch norms before it normalize by the batch at hand, or by all values so
    far where that has one value a channel. All else is as in evaluation, dropout for one. Nothing
    is differentiated, and one pass over the batches does for all norms.

    ``num_batches_tracked`` becomes the number of batches merged; with ``momentum=None`` training
    averages on from there. Weights, mode, gradients, hooks and random numbers are left as they
    were, and so is everything if an exception occurs, wherever it does.

    Left as they are, and named: norms that no batch reaches; frozen ones, that is
    ``FrozenBatchNorm2d`` and those in evaluation mode while the model is in training mode, or would
    be after ``model.train()``; instance norms; norms without running statistics.

    Under :mod:`torch.distributed` every rank calls it with its own share of the data, which may be
    empty on some, and all get the same statistics. ``SyncBatchNorm`` then normalizes by its rank's
    part of the batch.

    Args:
        model: the model; one inside DistributedDataParallel or :func:`torch.compile` is run itself.
        loader: batches as a DataLoader gives them: tensors, (inputs, targets) or dicts, best as
            large as in training.
        batches: how many to use at most; None for all.

    Returns:
        For each norm how many values its statistics are of, and how far they moved; prints as a
        table.

    Raises:
        TypeError: not a model, or not an iterable of batches.
        ValueError: no batches, or a first one that has one value a channel where it meets a norm.
        RuntimeError: it failed on another rank.

    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    >>> data = 100 + torch.randn(640, 3)
    >>> report = nf.recalibrate(model, data.split(64))
    >>> len(report), report.norms[0].values
    (1, 640)
    >>> torch.allclose(model[0].running_mean, data.mean(0))
    True
    """
    require_model(model, "recalibrate")
    found, left = watches(model)
    if not found:
        return Recalibration(left=tuple(left))
    count = _look(inside(model), loader, batches, found)
    if not count:
        raise ValueError(
            "recalibrate: the loader gave no batches; a generator that was used up gives none"
        )
    rows: list[Recalibrated] = []
    writes: list[tuple[Tensor, Tensor]] = []
    for watch in found:
        reason = watch.reason or _lacking(watch.population)
        if reason:
            left.append(Left(watch.names, label(watch.module), reason))
        else:
            rows.append(_settled(watch, writes))
    with restored_on_error(tensor for tensor, _ in writes):
        for tensor, value in writes:
            tensor.detach().copy_(value)
        return Recalibration(tuple(rows), tuple(left), count)


def _look(model: nn.Module, loader: Iterable[Any], limit: int | None, found: list[Watch]) -> int:
    """One pass; afterwards every rank knows what reached the norms on all, and how many batches."""
    count, failure = 0, None

    def run() -> None:
        nonlocal count
        for batch in batches_of(loader, limit, doing="recalibrate"):
            feed(model, batch)
            count += 1

    try:
        with kept(model):
            watch_all(model, found)
            _uncompiled(torch.no_grad()(run))
    except Exception as error:  # the other ranks must know before it goes on
        failure = error
    shares = gathered(_packed(found, count, failure is not None), model)
    if failure is not None:
        raise failure
    failed = [rank for rank, share in enumerate(shares) if share[0]]
    if failed:
        raise RuntimeError(f"recalibrate: it failed on rank {failed[0]}, which says why")
    _unpack(shares, found)
    return sum(int(share[1]) for share in shares)


def _packed(found: list[Watch], count: int, failed: bool) -> Tensor:
    """All that a rank knows as one vector, whose length is the same on every rank."""
    parts = [torch.tensor([failed, count], dtype=torch.float64)]
    for watch in found:
        seen = watch.population
        numbers = [seen.count, watch.calls, bool(watch.reason)]
        parts += [torch.tensor(numbers, dtype=torch.float64), seen.mean.cpu(), seen.spread.cpu()]
    return torch.cat(parts)


def _unpack(shares: list[Tensor], found: list[Watch]) -> None:
    """Merge them in the order of the ranks, so that the bits are the same on every rank."""
    start = 2
    for watch in found:
        channels = watch.population.mean.numel()
        watch.population, watch.calls = Population(channels), 0
        for share in shares:
            numbers, mean, spread = share[start:].split_with_sizes(
                [3, channels, channels, share.numel() - start - 3 - 2 * channels]
            )[:3]
            part = Population(channels)
            part.count, part.mean, part.spread = int(numbers[0]), mean, spread
            watch.population.merge(part)
            watch.calls += int(numbers[1])
            if numbers[2] and not watch.reason:
                watch.reason = "left on another rank"
        start += 3 + 2 * channels


def _uncompiled(run: Callable[[], None]) -> None:
    """Parts that :func:`torch.compile` made see no hooks."""
    if "torch._dynamo" in sys.modules:
        run = torch.compiler.set_stance("force_eager")(run)
    run()


def _lacking(seen: Population) -> str:
    """Why statistics cannot be made of these values, or nothing."""
    if seen.count < 2:
        return SINGLE if seen.count else UNREACHED
    return "" if _finite(seen).any() else NOT_FINITE


def _finite(seen: Population) -> Tensor:
    return seen.mean.isfinite() & seen.spread.isfinite()


def _settled(watch: Watch, writes: list[tuple[Tensor, Tensor]]) -> Recalibrated:
    """What is to be written, and what it says."""
    norm, seen = watch.module, watch.population
    finite = _finite(seen)
    old_mean, old_var = (t.detach().cpu().double() for t in (norm.running_mean, norm.running_var))
    mean = torch.where(finite, seen.mean, old_mean)
    var = torch.where(finite, seen.variance(), old_var)
    writes += [(norm.running_mean, mean), (norm.running_var, var)]
    if norm.num_batches_tracked is not None:
        writes.append((norm.num_batches_tracked, torch.tensor(watch.calls)))
    shift = ((mean - old_mean) / (var + norm.eps).sqrt())[finite].abs()
    scale = ((var + norm.eps) / (old_var + norm.eps))[finite].sqrt()
    kept_channels = int((~finite).sum())
    note = f"{kept_channels} of {finite.numel()} channels kept: not finite" if kept_channels else ""
    return Recalibrated(
        watch.names,
        label(norm),
        seen.count,
        float(shift.nan_to_num(torch.inf).max()),
        (float(scale.min()), float(scale.max())),
        note,
    )
