"""What the experiments on classification share: the probe network, its errors, the conditions.

A trial trains the probe network of the main comparison once (:mod:`normalform.lab.train`). Arms
are compared seed by seed: equal initial weights, equal images in equal order. A condition is met
where the whole 95 % interval of the mean difference, for new seeds, lies beyond its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.data import load
from normalform.lab.experiments.experiment import Measured, Results, Trial, Verdict
from normalform.lab.networks import Network
from normalform.lab.statistics import crossed_mean
from normalform.lab.train import Images, Outcome, Run

STRIDE8 = [16, 32, 32]  # channels of each convolution; on 28x28 pictures the last map is 4x4
STRIDE16 = [16, 32, 64, 64]  # 2x2
STRIDE32 = [16, 32, 64, 64, 64]  # 1x1
WIDE = 4  # times the channels in the full configurations
RULE = "Differences of equal seeds; met where the whole 95 % interval for new seeds lies beyond."
_SETUP = (
    "Fashion-MNIST cut to 2,000 training and 2,000 test images; 3x3 convolutions of stride 2 "
    "({widths} channels, last map {last}), each with a norm and ReLU, global average pooling and a "
    "linear layer; SGD with momentum 0.9 and a cosine schedule, {steps}. By default "
    "{epochs} epochs and {seeds} seeds. "
)
STEPS = "learning rate 0.05, batch 32"
_TASK = ("data", "widths", "epochs", "lr")


class Task(NamedTuple):
    """What a trial trains, and on what."""

    run: Run
    images: Images


def task(
    seed: int,
    data: str,
    widths: Sequence[int],
    epochs: int,
    lr: float,
    norm: str,
    nbs: int | None = None,
    sgd_batch: int = SGD_BATCH,
) -> Task:
    """A training, from the settings of its trial."""
    network = Network(f"stride{2 ** len(widths)}", tuple(widths))
    return Task(Run(network, Arm(norm, nbs, sgd_batch), seed, epochs, lr), images(data))


@lru_cache(maxsize=1)
def images(data: str) -> Images:
    """The data of this name as tensors; a worker loads them once."""
    return Images(load(data))


def settings(
    widths: Sequence[int],
    seeds: int,
    epochs: int,
    *,
    data: str = "fashion",
    lr: float = 0.05,
    **more: Any,
) -> dict[str, Any]:
    """The settings of an experiment: what every training of it has in common, and ``more``."""
    common = {"data": data, "widths": list(widths), "seeds": seeds, "epochs": epochs, "lr": lr}
    return common | more


def full(widths: Sequence[int], **more: Any) -> dict[str, Any]:
    """The settings of a full configuration: a network four times as wide, 20 seeds, 50 epochs."""
    numbers: dict[str, Any] = {"seeds": 20, "epochs": 50, **more}
    return settings([WIDE * width for width in widths], **numbers)


def setup(widths: Sequence[int], last: str, seeds: int, epochs: int, steps: str = STEPS) -> str:
    """The set-up in words."""
    names = "-".join(map(str, widths))
    return _SETUP.format(widths=names, last=last, seeds=seeds, epochs=epochs, steps=steps)


def arm(norm: str, nbs: int | None = None) -> str:
    """What the reader sees.

    >>> arm("batch", 2), arm("group:4"), arm("none")
    ('batch, NBS 2', 'group', 'no norm')
    """
    name = "no norm" if norm == "none" else norm.partition(":")[0]
    return name if nbs is None else f"{name}, NBS {nbs}"


def arms(norms: Sequence[str], nbs: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What each arm adds to the common settings; a norm of the batch has an arm for each NBS."""
    return {
        arm(norm, size): {"norm": norm, "nbs": size}
        for norm in norms
        for size in (nbs if norm in ("batch", "switch") else [None])
    }


def errors(outcome: Outcome) -> dict[str, float]:
    """The errors of the last epoch. A training that diverged gets everything wrong.

    Args:
        outcome: of a training.

    Returns:
        ``train``: by batch statistics, while training. ``test``: by running statistics.
        ``recalibrated``: by statistics of one pass over the training set; where a norm has none,
        ``test``.

    Raises:
        ValueError: the norm has nothing to normalize on these pictures.
    """
    if outcome.status == "impossible":
        raise ValueError(outcome.reason)
    if outcome.status != "ok":
        return {"train": 1.0, "test": 1.0, "recalibrated": 1.0}
    train, test = cast(float, outcome.train_error), cast(float, outcome.test_error)
    anew = outcome.test_error_recalibrated
    return {"train": train, "test": test, "recalibrated": test if anew is None else anew}


def trials(
    measure: Callable[..., Measured],
    chosen: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
) -> list[Trial]:
    """One trial for each seed and arm, seeds outermost: what is interrupted has whole pairs."""
    common = {name: chosen[name] for name in _TASK}
    return [
        Trial(name, seed, measure, {**common, **own})
        for seed in range(chosen["seeds"])
        for name, own in arms.items()
    ]


class Condition(NamedTuple):
    """A part of a rule: whether it held, and the line that says so."""

    met: bool
    line: str


def more_than(limit: float, what: str, differences: Sequence[float]) -> Condition:
    """The mean of the differences, one a seed, lies above the limit with its whole interval.

    Args:
        limit: in points, hundredths.
        what: which difference, in words.
        differences: as shares of 1.

    >>> more_than(10, "a less b", [0.30, 0.31, 0.32]).line
    'a less b: +31.0 points (95 % +28.5 to +33.5), more than 10 needed: met'
    """
    mean, low, high = interval(differences)
    return _condition(low > limit, what, (mean, low, high), f"more than {limit:g}")


def less_than(limit: float, what: str, differences: Sequence[float]) -> Condition:
    """The mean of the differences lies below the limit with its whole interval."""
    mean, low, high = interval(differences)
    return _condition(high < limit, what, (mean, low, high), f"less than {limit:g}")


def within(limit: float, what: str, differences: Sequence[float]) -> Condition:
    """The mean of the differences lies within the limit of zero with its whole interval."""
    mean, low, high = interval(differences)
    return _condition(-limit < low and high < limit, what, (mean, low, high), f"within {limit:g}")


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and ends of the 95 % interval for new seeds, in points; one seed leaves all open."""
    mean = 100 * float(np.mean(differences))
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    found = crossed_mean(np.array(differences, dtype=np.float64)[:, None])
    return mean, 100 * found.low, 100 * found.high


def _condition(met: bool, what: str, numbers: tuple[float, float, float], needed: str) -> Condition:
    mean, low, high = numbers
    said = f"95 % {low:+.1f} to {high:+.1f}" if math.isfinite(low) else "one seed, no interval"
    line = f"{what}: {mean:+.1f} points ({said}), {needed} needed: {'' if met else 'not '}met"
    return Condition(met, line)


def above(
    results: Results, one: str, other: str, key: str, limit: float, what: str = "test error"
) -> Condition:
    """One arm's value lies above another's by more than the limit, in points."""
    means = [100 * results.mean(name, key) for name in (one, other)]
    said = f"{what}, {one} ({means[0]:.1f} %) less {other} ({means[1]:.1f} %)"
    return more_than(limit, said, results.differences(one, other, key))


def verdict(*conditions: Condition) -> Verdict:
    """All conditions together."""
    return Verdict(all(c.met for c in conditions), tuple(c.line for c in conditions))
