"""Checks of running statistics against those of the batches, and of what they do to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from normalform.diagnose.facts import Facts, Measured
from normalform.diagnose.finding import Losses, Suspicion, said, suspect
from normalform.diagnose.gap import fall
from normalform.diagnose.norms import Norm, exact
from normalform.diagnose.remedies import RECALIBRATE, grouped, grouping

# A running mean half a standard deviation off moves a tenth of the values to the other side of a
# ReLU; a running variance off by two moves what was 1 to 0.7 or 1.4. Both besides three standard
# errors of what the measured samples themselves can say.
MEAN_OFF, VAR_OFF = 0.5, 2.0
IN_PART = 0.1  # of the gap: a norm with less is not the one to look at
GAP = "train/eval gap"
EXPLODED = 30.0  # a normalized channel has size 1
MENDED = 0.75  # of the gap: what a remedy has to take away to be the remedy
DOUBLE = 2.0  # an evaluation loss so many times the other is an error, not a warning


def drift(norm: Norm, measured: Measured) -> tuple[float, float] | None:
    """How far running mean and variance are from the batch's, see :class:`Row`."""
    batch = statistics_of_batch(norm, measured)
    if batch is None or norm.running is None:
        return None
    mean, var = batch
    running_mean, running_var = map(exact, norm.running)
    eps = norm.eps or 0.0
    off = (running_mean - mean).square() / (var + eps)
    ratio = ((running_var + eps) / (var + eps)).log().abs().median().exp()
    return float(off.mean().sqrt()), float(ratio)


def statistics_of_batch(norm: Norm, measured: Measured) -> tuple[Tensor, Tensor] | None:
    """Mean and unbiased variance as the norm itself found them, averaged over the batches."""
    seen = measured.fed.get(norm.name)
    if seen is None or not seen.batch:
        return None
    means, variances = (torch.stack(found) for found in zip(*seen.batch, strict=True))
    return means.mean(0), variances.mean(0)


def train_eval_gap(facts: Facts) -> Iterator[Suspicion]:
    """What running statistics cost in evaluation, and where."""
    m = facts.measured
    if m is None or not m.parts:
        return
    share = {name: part.share for name, part in m.parts.items()}
    norms = sorted((n for n in facts.norms if n.name in share), key=lambda n: -share[n.name])
    where = [norm for norm in norms if share[norm.name] >= IN_PART] or norms[:1]
    losses, top, severity = m.losses, where[0].name, _severity(facts, m)
    evidence: dict[str, float] = {"evaluation": losses.evaluation}
    if losses.unit == "loss":
        what = f"running statistics make the loss in evaluation {said(losses.evaluation)} instead "
        what += f"of {said(losses.batch)}"
        evidence["statistics of the batch"] = losses.batch
    else:  # of outputs, whose distance is that from those with the statistics of the batch
        what = "running statistics change the outputs in evaluation by "
        what += f"{said(losses.evaluation)} of their size"
    evidence |= {"share of the first": share[top], "values per statistic": m.seen[top].values}
    if severity == "note":
        what += ", though none of them is stale: other data than in training? A loss would tell"
        yield suspect(severity, GAP, where, what, evidence)
        return
    helped = _recalibration_helps(losses)
    if not helped:
        what += f", and {said(losses.recalibrated)} after recalibrating a copy: what comes out "
        what += "depends on the rest of the batch"
    yield suspect(
        severity, GAP, where, f"{what}; {100 * share[top]:.0f} % of that comes from {top}",
        evidence, RECALIBRATE if helped else grouping(where, m.seen),
        None if helped else grouped(where, m.seen), recalibrates=helped,
        expects="better" if helped else "training",
        effect=fall(losses.evaluation, losses.batch) if losses.unit == "loss" else None,
    )  # fmt: skip


def _severity(facts: Facts, m: Measured) -> str:
    """Of the gap. Nobody knows which outputs are better without a loss: a cause has to be seen."""
    if m.losses.unit != "loss":
        return "warning" if _drifted(facts.norms, m) else "note"
    return "warning" if m.losses.gap < (DOUBLE - 1) * abs(m.losses.batch) else "error"


def _recalibration_helps(losses: Losses) -> bool:
    """Where it could not be tried it is still the first thing to do."""
    if losses.recalibrated is None:
        return True
    if not math.isfinite(losses.recalibrated):
        return False
    return not math.isfinite(losses.gap) or (
        losses.evaluation - losses.recalibrated > MENDED * losses.gap
    )


def stale(facts: Facts) -> Iterator[Suspicion]:
    """Running statistics that are not those of the data."""
    m = facts.measured
    if m is None:
        return
    found = _drifted(facts.norms, m)
    share = {name: part.share for name, part in m.parts.items()}
    found.sort(key=lambda row: (-share.get(row[0].name, 0.0), -row[1] - math.log(row[2])))
    unknown = m.losses.unit != "loss"  # what it costs: then it is a warning
    for felt in (True, False):
        rows = [r for r in found if (unknown or share.get(r[0].name, 0.0) >= IN_PART) == felt]
        if rows:
            _, mean_off, var_off = rows[0]
            evidence = {"mean off": mean_off, "variance off": var_off, "norms": len(rows)}
            yield suspect(
                "warning" if felt else "note", "stale statistics", [row[0] for row in rows],
                f"running statistics are not those of the data: the mean is {said(mean_off)} "
                f"standard deviations off, the variance by a factor of {said(var_off)}"
                + ("" if felt else ", with little effect here"),
                evidence, RECALIBRATE, recalibrates=True,
            )  # fmt: skip


def _drifted(norms: tuple[Norm, ...], m: Measured) -> list[tuple[Norm, float, float]]:
    """Norms whose statistics are off by more than chance, and how far."""
    found: list[tuple[Norm, float, float]] = []
    for norm in norms:
        off = drift(norm, m)
        noise = 3 / math.sqrt(max(1, m.seen[norm.name].samples)) if off else 0.0
        if off and (off[0] > MEAN_OFF + noise or off[1] > VAR_OFF + 2 * noise):
            found.append((norm, *off))
    return found


def exploding(facts: Facts) -> Iterator[Suspicion]:
    """Channels that evaluation makes far larger than 1, and the first output that is not finite."""
    m = facts.measured
    if m is None:
        return
    found: list[tuple[Norm, int, float]] = []
    for norm in facts.norms:
        size = _size_in_evaluation(norm, m)
        if size is not None and (large := int((size > EXPLODED).sum())):
            found.append((norm, large, float(size.max())))
    if found:
        norm, large, size = found[0]
        yield suspect(
            "warning", "exploding channels", [row[0] for row in found],
            f"{large} channels leave the normalization {said(size)} times as large as they should: "
            "their running variance is too small, or the mean wrong",
            {"channels": large, "largest": size, "norms": len(found)},
            RECALIBRATE, recalibrates=True,
        )  # fmt: skip
    broken = [n for n in facts.norms if n.name in m.seen and not m.seen[n.name].finite_out]
    if broken:
        came = "already comes in" if not m.seen[broken[0].name].finite_in else "is made here"
        yield suspect(
            "error", "non-finite activations", broken,
            f"NaN or infinity in the output in evaluation; it {came}",
            {"norms": len(broken)},
            "look at what feeds it" if came.startswith("already") else RECALIBRATE,
            recalibrates=not came.startswith("already"),
        )  # fmt: skip


def _size_in_evaluation(norm: Norm, m: Measured) -> Tensor | None:
    """Root mean square of each channel after normalization with running statistics."""
    batch = statistics_of_batch(norm, m)
    if batch is None or norm.running is None:
        return None
    running_mean, running_var = map(exact, norm.running)
    mean, var = batch
    size = (var + (mean - running_mean).square()) / (running_var + (norm.eps or 0.0))
    return size.clamp_min(0).sqrt().nan_to_num(0.0)
