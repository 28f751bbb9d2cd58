"""Checks of how the norms of a model are fed, from a few batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normalform.diagnose.facts import Facts
from normalform.diagnose.finding import Suspicion, joined, said, suspect
from normalform.diagnose.norms import BY_CHANNEL, ROWS, SHARED, Norm
from normalform.diagnose.remedies import grouped, grouping, sets, setting
from normalform.diagnose.static import DEAD_SHARE

# The relative error of a variance from n values is sqrt(2 / (n - 1)): 37 % at 16. It is noise only
# where other samples decide it; a norm of one sample computes the same of 3 values every time, but
# of 2 nothing is left but a sign.
FEWEST, FEWEST_OWN = 16, 4
FEWEST_SAMPLES = 16  # of a process: below, batch norm loses accuracy (arXiv:1803.08494, figure 1)


def one_value(facts: Facts) -> Iterator[Suspicion]:
    """Cells of a single value."""
    found = _with_values(facts, 1, 1)
    if facts.refused:
        found = [facts.refused]
    if not found:
        return
    first, seen = found[0], facts.measured.seen if facts.measured else {}
    trains = first.family in (*SHARED, "instance")
    yield suspect(
        "error", "one value", found,
        "a mean over one value is the value: "
        + ("in training the norm refuses it" if trains else "the output is the bias, always"),
        {"values per statistic": 1, "norms": len(found)},
        grouping(found, seen) if trains else "larger groups, or no norm here",
        grouped(found, seen) if trains and not facts.refused else None, expects="training",
    )  # fmt: skip


def last_batch(facts: Facts) -> Iterator[Suspicion]:
    """A last batch of the loader with a single value for a statistic."""
    m = facts.measured
    if m is None or not facts.tail:
        return
    shapes = {name: seen.shape for name, seen in m.seen.items() if facts.tail == 1}
    found = [
        norm
        for norm in facts.norms
        if norm.family in SHARED and norm.name in shapes and math.prod(shapes[norm.name][2:]) == 1
    ]
    if found:
        yield suspect(
            "warning", "one value", found,
            "the last batch of the loader has one sample, of one value each: training refuses it",
            {"samples": facts.tail, "norms": len(found)}, "DataLoader(..., drop_last=True)",
        )  # fmt: skip


def few_values(facts: Facts) -> Iterator[Suspicion]:
    """Statistics that stand on few values."""
    shared = [n for n in _with_values(facts, 2, FEWEST - 1) if n.family in SHARED]
    own = [n for n in _with_values(facts, 2, FEWEST_OWN - 1) if n.family not in (*SHARED, "switch")]
    measured = facts.measured
    if shared and measured is not None:
        shared.sort(key=lambda norm: measured.seen[norm.name].values)
        values = measured.seen[shared[0].name].values
        yield suspect(
            "warning", "few values", shared,
            f"{values} values stand behind each mean and variance in training: the variance is off "
            f"by {100 * math.sqrt(2 / (values - 1)):.0f} % of itself, at random",
            {"values per statistic": values, "norms": len(shared)},
            grouping(shared, measured.seen), grouped(shared, measured.seen), expects="training",
        )  # fmt: skip
    if own and measured is not None:
        values = measured.seen[own[0].name].values
        yield suspect(
            "warning", "few values", own,
            f"{values} values stand behind each mean and variance: little but signs is left",
            {"values per statistic": values, "norms": len(own)},
            "larger groups, or larger maps before it",
        )  # fmt: skip


def never_called(facts: Facts) -> Iterator[Suspicion]:
    """Norms that no forward pass reaches."""
    idle = facts.measured.idle if facts.measured else ()
    found = [norm for norm in facts.norms if norm.name in idle]
    if found:
        yield suspect(
            "note", "never called", found,
            "no forward pass calls it, in evaluation or training: it never learns, and goes into "
            "every checkpoint, unless its weights are used in another way",
            {"norms": len(found), "of": len(facts.norms)},
            "call it in forward, or delete it",
        )  # fmt: skip


def data_parallel(facts: Facts) -> Iterator[Suspicion]:
    """Batch norm of each process by itself, where it gets few samples."""
    apart = [
        norm
        for norm in facts.norms
        if isinstance(norm.module, _BatchNorm) and not isinstance(norm.module, nn.SyncBatchNorm)
    ]
    if facts.ranks < 2 or not apart:
        return
    measured = facts.measured
    samples = [
        measured.seen[norm.name].samples // len(measured.data.batches)
        for norm in apart
        if measured is not None and norm.name in measured.seen
    ]
    evidence = {"processes": facts.ranks, "norms": len(apart)}
    if samples:
        evidence["samples of a process"] = min(samples)
    small = bool(samples) and min(samples) < FEWEST_SAMPLES
    yield suspect(
        "warning" if small else "note", "not synchronized", apart,
        f"each of {facts.ranks} processes normalizes with its own samples alone"
        + (f", {min(samples)} at a time" if samples else ""),
        evidence,
        "model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before it is wrapped",
    )  # fmt: skip


def dead_channels(facts: Facts) -> Iterator[Suspicion]:
    """Channels that are the same for every sample and position, and weights that are zero."""
    measured = facts.measured
    shares: dict[str, tuple[Norm, int, int]] = {}
    for norm in facts.norms:
        seen = measured.seen.get(norm.name) if measured else None
        if seen is None or norm.family in ROWS or seen.all.count < 2:
            continue
        every = seen.all
        dead = int((every.variance() <= 1e-12 * every.mean.square() + 1e-30).sum())
        if dead:
            shares[norm.name] = norm, dead, every.mean.numel()
    for severe in (True, False):
        rows = [row for row in shares.values() if (row[1] >= DEAD_SHARE * row[2]) == severe]
        if rows:
            norm, dead, channels = rows[0]
            yield suspect(
                "warning" if severe else "note", "dead channels", [row[0] for row in rows],
                f"{dead} of {channels} channels come in constant, and go out as the bias",
                {"channels": dead, "of": channels, "norms": len(rows)},
                "a smaller learning rate, or a new start for what feeds them; or cut them out",
            )  # fmt: skip
    zero = [n for n in facts.norms if (w := n.affine.get("weight")) is not None and not w.any()]
    if zero:
        yield suspect(
            "note", "dead channels", zero,
            "weight is 0 in every channel: only the bias goes out, as at the start of a branch",
            {"norms": len(zero)},
        )  # fmt: skip


def dominant_eps(facts: Facts) -> Iterator[Suspicion]:
    """An eps above the variance it is added to: the norm hardly normalizes."""
    if facts.measured is None:
        return
    found = [
        norm
        for norm in facts.norms
        if norm.eps and norm.name in facts.measured.fed
        and 0 < facts.measured.fed[norm.name].cell_var < norm.eps
    ]  # fmt: skip
    if found:
        var, eps = facts.measured.fed[found[0].name].cell_var, found[0].eps or 0.0
        right = 10 ** min(math.floor(math.log10(var * 1e-3)), -5)
        yield suspect(
            "warning", "eps", found,
            f"eps={eps:g} exceeds the variance of the input, {said(var)} in the median: the norm "
            "leaves small what it should make 1",
            {"eps": eps, "median variance": var, "norms": len(found)},
            setting(found, "eps", right), sets(found, "eps", right),
        )  # fmt: skip


def cancelled_bias(facts: Facts) -> Iterator[Suspicion]:
    """A bias that the norm after it subtracts again."""
    if facts.measured is None:
        return
    pairs: list[tuple[str, Norm]] = []
    for norm in facts.norms:
        feeder = facts.measured.seen[norm.name].feeder if norm.name in facts.measured.seen else ""
        bias = getattr(facts.model.get_submodule(feeder), "bias", None) if feeder else None
        if bias is not None and norm.family in BY_CHANNEL:
            pairs.append((feeder, norm))
    if pairs:
        feeder, norm = pairs[0]
        biases = [facts.model.get_submodule(name).get_parameter("bias") for name, _ in pairs]
        yield suspect(
            "note", "cancelled bias", [norm for _, norm in pairs],
            f"the bias of {feeder} is subtracted again with the mean",
            {"layers": len(pairs), "parameters": sum(b.numel() for b in biases)},
            f"bias=False in {joined([name for name, _ in pairs])}; of a trained model "
            "subtract the bias from running_mean", partial(_without_biases, pairs), expects="same",
        )  # fmt: skip


def _without_biases(pairs: list[tuple[str, Norm]], model: nn.Module) -> None:
    for name, norm in pairs:
        feeder, module = model.get_submodule(name), model.get_submodule(norm.names[0])
        if norm.running is not None:
            module.get_buffer("running_mean").sub_(feeder.get_parameter("bias").detach())
        feeder.register_parameter("bias", None)


def _with_values(facts: Facts, low: int, high: int) -> list[Norm]:
    """Norms whose statistics stand on so many values."""
    seen = facts.measured.seen if facts.measured else {}
    return [n for n in facts.norms if n.name in seen and low <= seen[n.name].values <= high]
