"""Experiments of tiny functions, some of which fail, for the tests of how experiments are run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch

from normalform.lab.experiments.experiment import Experiment, Measured, Trial, Verdict
from normalform.lab.workers import Done


def draw(seed, level, pause=0.0, log=""):
    """Numbers from every generator there is, none of them seeded here."""
    if log:
        with Path(log).open("a") as file:
            file.write(f"{'high' if level else 'low'}_s{seed}\n")
    time.sleep(pause)
    error = level + torch.rand(()) / 100
    curve = np.random.rand(3) + random.random()  # noqa: NPY002
    return Measured(
        {"error": error, "word": "a, b", "count": np.int64(seed), "nothing": float("nan")},
        {"step": range(3), "loss": curve, "level": [level] * 3},
    )


def draw_other(seed, level):
    return Measured({"accuracy": 1 - level})


def fail(seed, level):
    raise OSError(f"no such file as level {level}")


def die(seed, level):
    os.kill(os.getpid(), signal.SIGKILL)


def uneven(seed):
    return Measured({}, {"step": [0, 1], "loss": [0.5]})


def taken(seed):
    return Measured({"seconds": 3.0})


def no_number(seed):
    return Measured({"error": None})


def judge(results):
    """The claim: "high" is more than 1 above "low"."""
    difference = min(results.differences("high", "low", "error"))
    met = difference > 1
    said = f"at least {difference:.1f} apart, more than 1 needed: {'met' if met else 'not met'}"
    return Verdict(met, (said,))


def experiment(name, measures, *, rule=judge, **settings):
    """An experiment with one arm for each ``arm=(measure, settings)``."""

    def trials(chosen):
        return [
            Trial(arm, seed, measure, {**settings, **more})
            for seed in range(chosen["seeds"])
            for arm, (measure, more) in measures.items()
        ]

    return Experiment(
        name=name,
        title=name.capitalize(),
        claim=f"High is above low, says {name}.",
        setup="None.",
        rule="More than 1 apart.",
        default={"seeds": 3},
        quick={"seeds": 1},
        full={"seeds": 5},
        trials=trials,
        judge=rule,
        picture=lambda results: None,
    )


def sound(name="sound", high=2.0, **settings):
    """Met where ``high`` is above 1.01."""
    arms = {"low": (draw, {"level": 0.0}), "high": (draw, {"level": high})}
    return experiment(name, arms, **settings)


def other(name="other"):
    """With other columns."""
    arms = {"a": (draw_other, {"level": 0.25})}
    return experiment(
        name, arms, rule=lambda results: Verdict(True, (f"{len(results.runs)} runs",))
    )


def failing(name="failing"):
    """One arm raises, one kills its worker, two are sound."""
    arms = {
        "raises": (fail, {"level": 7.0}),
        "low": (draw, {"level": 0.0}),
        "dies": (die, {"level": 0.0}),
        "high": (draw, {"level": 2.0}),
    }
    return experiment(name, arms)


def in_this_process(trials, begin, workers):
    """In the place of the pool, where what workers do is not what is tested."""
    do = begin()
    for run_id, trial in trials.items():
        yield Done(run_id, do(trial, lambda: None))


def table(*experiments):
    return {each.name: each for each in experiments}
