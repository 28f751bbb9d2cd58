"""Checks that need the model alone, and the optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn

from normalform.diagnose.facts import Facts
from normalform.diagnose.finding import Suspicion, suspect
from normalform.diagnose.norms import Norm
from normalform.diagnose.remedies import RECALIBRATE, freezing, sets, setting, then

# The share of the new batch. torch's default is 0.1; 0.9 and 0.99 are what Keras, TensorFlow and
# JAX call by this name, the share of the old. Above a half the newest batch outweighs all others.
LARGEST_MOMENTUM = 0.5
EPS = 1e-5  # torch's default
NARROW = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
DEAD_SHARE = 0.5  # dead channels are common behind a ReLU; half a layer of them is not


def non_finite(facts: Facts) -> Iterator[Suspicion]:
    """Buffers and parameters that are NaN or infinite."""
    buffers, parameters = [
        [(norm, name, wrong) for norm in facts.norms for name, wrong in _wrong(norm, learned)]
        for learned in (False, True)
    ]
    if buffers:
        norm, name, wrong = buffers[0]
        yield suspect(
            "error", "non-finite statistics", (row[0] for row in buffers),
            "buffers hold NaN or infinity, and so does what evaluation makes of them",
            {f"channels of {name}": wrong, "of": norm.module.get_buffer(name).numel()},
            RECALIBRATE, recalibrates=True,
        )  # fmt: skip
    if parameters:
        norm, name, wrong = parameters[0]
        yield suspect(
            "error", "non-finite parameters", (row[0] for row in parameters),
            "weight or bias holds NaN or infinity",
            {f"values of {name}": wrong, "of": norm.affine[name].numel()},
            "load the last checkpoint that is finite",
        )  # fmt: skip


def _wrong(norm: Norm, learned: bool) -> Iterator[tuple[str, int]]:
    tensors = norm.affine.items() if learned else norm.module.named_buffers(recurse=False)
    if norm.family == "own" and not learned:
        return  # a bound may be infinite
    for name, tensor in tensors:
        wrong = int((~tensor.detach().isfinite()).sum())
        if wrong:
            yield name, wrong


def negative_variance(facts: Facts) -> Iterator[Suspicion]:
    """A running variance below zero, as one-pass formulas leave behind."""
    found = [n for n in facts.norms if n.running is not None and bool((n.running[1] < 0).any())]
    if found:
        assert found[0].running is not None
        var = found[0].running[1]
        yield suspect(
            "error", "negative variance", found,
            "running variance is negative, so evaluation gives NaN",
            {"channels": int((var < 0).sum()), "of": var.numel(), "least": float(var.min())},
            RECALIBRATE, recalibrates=True,
        )  # fmt: skip


def never_updated(facts: Facts) -> Iterator[Suspicion]:
    """Running statistics at their initial zeros and ones, all or the variance alone."""
    tracking = [norm for norm in facts.norms if norm.switchable]
    ones = [norm for norm in tracking if bool((_running(norm)[1] == 1).all())]
    whole = [norm for norm in ones if bool((_running(norm)[0] == 0).all())]
    part = [norm for norm in ones if norm not in whole]
    if whole:
        fresh = len(whole) == len(tracking) and facts.measured is None
        yield suspect(
            "note" if fresh else "warning", "never updated", whole,
            "running mean is 0 and running variance 1: no batch was counted"
            + (", as before training" if fresh else ", and evaluation uses them"),
            {"norms": len(whole), "of": len(tracking)},
            RECALIBRATE, recalibrates=True,
        )  # fmt: skip
    if part:
        yield suspect(
            "warning", "never updated", part,
            "running variance is 1 in every channel while the running mean has moved",
            {"norms": len(part), "of": len(tracking)},
            RECALIBRATE, recalibrates=True,
        )  # fmt: skip


def fallen_behind(facts: Facts) -> Iterator[Suspicion]:
    """Norms that counted fewer than half the batches that others did."""
    counts = {norm.name: c for norm in facts.norms if (c := _counted(norm))}
    most = max(counts.values(), default=0)
    found = [norm for norm in facts.norms if 0 < 2 * counts.get(norm.name, 0) < most]
    if found:
        yield suspect(
            "note", "stale statistics", found,
            f"it counted {counts[found[0].name]:,} batches where others counted {most:,}",
            {"norms": len(found), "of": len(counts)}, RECALIBRATE, recalibrates=True,
        )  # fmt: skip


def constant_channels(facts: Facts) -> Iterator[Suspicion]:
    """A running variance of 0: channels that were constant in training."""
    rows = [
        (norm, int((_running(norm)[1] == 0).sum()), _running(norm)[1].numel())
        for norm in facts.norms
        if norm.running is not None
    ]
    found = [row for row in rows if row[1]]
    for severe in (True, False):
        part = [row for row in found if (row[1] >= DEAD_SHARE * row[2]) == severe]
        if part:
            yield suspect(
                "warning" if severe else "note", "dead channels", [row[0] for row in part],
                f"running variance is 0 in {part[0][1]} of {part[0][2]} channels: they were "
                "constant in training, and any change is now blown up by 1 / sqrt(eps)",
                {"norms": len(part)},
            )  # fmt: skip


def momentum(facts: Facts) -> Iterator[Suspicion]:
    """A momentum of the other convention, or none."""
    tracking = [norm for norm in facts.norms if norm.switchable]
    large = [norm for norm in tracking if (_momentum(norm) or 0) > LARGEST_MOMENTUM]
    if large:
        value = float(_momentum(large[0]) or 0)
        right = round(1 - value, 6) or 0.1
        keras = f"; what Keras calls {value:g} is {right:g} here" if value < 1 else ""
        yield suspect(
            "warning", "momentum", large,
            f"momentum={value:g} is the share of the new batch, so the running statistics are "
            f"nearly those of the last batch alone{keras}",
            {"momentum": value, "norms": len(large)},
            then(setting(large, "momentum", right), RECALIBRATE), recalibrates=True,
        )  # fmt: skip
    still = [norm for norm in tracking if _momentum(norm) == 0]
    if still:
        yield suspect(
            "note", "momentum", still,
            "momentum=0: training never moves the running statistics",
            {"momentum": 0.0, "norms": len(still)}, setting(still, "momentum", 0.1),
        )  # fmt: skip


def vanishing_eps(facts: Facts) -> Iterator[Suspicion]:
    """An eps that leaves a constant input without a finite scale."""
    found = [norm for norm in facts.norms if norm.eps is not None and _vanishes(norm)]
    if found:
        dtype = str(_dtype(found[0])).removeprefix("torch.")
        yield suspect(
            "warning", "eps", found,
            f"1 / sqrt(eps) is infinite in {dtype} at eps={found[0].eps:g}: constant inputs give "
            "NaN",
            {"eps": found[0].eps or 0.0, "largest of the type": torch.finfo(_dtype(found[0])).max},
            setting(found, "eps", EPS), sets(found, "eps", EPS),
        )  # fmt: skip


def half_frozen(facts: Facts) -> Iterator[Suspicion]:
    """Statistics that move where weight and bias stand still, and other halves."""
    learns = any(p.requires_grad for p in facts.model.parameters())
    frozen = {n.name: [not p.requires_grad for p in n.affine.values()] for n in facts.norms}
    apart = [n for n in facts.norms if any(frozen[n.name]) and not all(frozen[n.name])]
    apart = [norm for norm in apart if norm.switchable]  # biases alone of others learn on purpose
    still = [n for n in facts.norms if learns and frozen[n.name] and all(frozen[n.name])]
    moving = [n for n in still if n.switchable and _momentum(n) != 0 and n.name not in facts.held]
    held = [norm for norm in facts.norms if norm.switchable and norm.name in facts.held]
    if moving:
        yield suspect(
            "warning", "half frozen", moving,
            "requires_grad=False holds weight and bias, but train() still takes the statistics of "
            "the batch and moves the running ones",
            {"norms": len(moving)}, _settled_and_frozen(facts, moving), expects="training",
        )  # fmt: skip
    if apart:
        names = [name for name, p in apart[0].affine.items() if not p.requires_grad]
        yield suspect(
            "warning", "half frozen", apart,
            f"{' and '.join(names)} does not learn while the norm's other parameters do",
            {"norms": len(apart)}, freezing(apart), expects="training",
        )  # fmt: skip
    if held:
        yield suspect(
            "note", "half frozen", held,
            "eval() holds its statistics while the model trains: the next train() lets them go",
            {"norms": len(held)}, freezing(held),
        )  # fmt: skip


def weight_decay(facts: Facts) -> Iterator[Suspicion]:
    """Parameters of norms that the optimizer pulls towards zero."""
    if facts.optimizer is None:
        return
    groups = facts.optimizer.param_groups
    decays = {id(p): float(g.get("weight_decay") or 0) for g in groups for p in g["params"]}
    found = [n for n in facts.norms if any(decays.get(id(p)) for p in n.affine.values())]
    if found:
        decay = max(decays.get(id(p), 0.0) for p in found[0].affine.values())
        kind = type(facts.optimizer).__name__
        yield suspect(
            "warning", "weight decay", found,
            f"{kind} pulls weight and bias of norms towards 0",
            {"weight_decay": decay, "norms": len(found)},
            f"optimizer = {_class(facts.optimizer)}(nf.param_groups(model, weight_decay={decay:g})"
            f"{_options(facts.optimizer)})",
        )  # fmt: skip


def _class(optimizer: torch.optim.Optimizer) -> str:
    kind = type(optimizer)
    ours = getattr(torch.optim, kind.__name__, None) is kind
    return f"torch.optim.{kind.__name__}" if ours else kind.__name__


def _options(optimizer: torch.optim.Optimizer) -> str:
    """Those of its first group that differ from the defaults of its class, and its rate."""
    known = inspect.signature(type(optimizer).__init__).parameters
    given = [
        (name, value)
        for name, value in optimizer.param_groups[0].items()
        if name in known and name not in ("params", "weight_decay")
    ]
    kept = [(n, v) for n, v in given if n == "lr" or v != known[n].default]
    return "".join(f", {name}={value!r}" for name, value in kept)


def _settled_and_frozen(facts: Facts, norms: list[Norm]) -> str:
    """Freeze; where the statistics are not those of the data, after they are."""
    m = facts.measured
    after = None if m is None else m.losses.recalibrated
    stale = m is not None and after is not None and after < m.losses.evaluation
    return then(RECALIBRATE, freezing(norms)) if stale else freezing(norms)


def own_classes(facts: Facts) -> Iterator[Suspicion]:
    """Norms by their class's name, of which nobody knows what they compute."""
    found = [norm for norm in facts.norms if norm.family == "own"]
    if found:
        yield suspect(
            "note", "own class", found,
            f"{found[0].kind} is no class of PyTorch or normalform: only its parameters were "
            "looked at",
            {"norms": len(found)},
        )  # fmt: skip


def _running(norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running is not None
    return norm.running


def _momentum(norm: Norm) -> float | None:
    value = getattr(norm.module, "momentum", None)
    return float(value) if isinstance(value, int | float) else None


def _counted(norm: Norm) -> int:
    counter = getattr(norm.module, "num_batches_tracked", None)
    return int(counter) if counter is not None and counter.numel() == 1 else 0


def _dtype(norm: Norm) -> torch.dtype:
    return next((p.dtype for p in norm.affine.values()), torch.float32)


def _vanishes(norm: Norm) -> bool:
    """Whether one over the root of eps is infinite, where the norm computes it.

    PyTorch's batch and instance norm keep it in the type of the parameters; others compute in
    float32 or more.
    """
    eps = norm.eps or 0.0
    narrow = type(norm.module) in NARROW
    return eps <= 0 or eps**-0.5 > torch.finfo(_dtype(norm) if narrow else torch.float32).max
