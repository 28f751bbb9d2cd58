"""Contrast and brightness that differ from picture to picture: what instance norm takes away."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from normalform.lab import train
from normalform.lab.experiments import classify
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import Images

NORMS = ("none", "batch", "layer", "group:4", "instance")
STRONGEST, WEAKEST = "batch, NBS 32", ("instance", "layer")
BETWEEN = ("no norm", "group")
JUDGED = 1.0  # the strength at which the claim is judged
_NUISANCE = 2  # random stream of a seed; train.py has 0 and 1


def measure(seed: int, strengths: Sequence[float], **settings: Any) -> Measured:
    """Train on pictures as they are; test under the nuisance, at each strength and at JUDGED."""
    run, images = classify.task(seed, **settings)
    network = train.build(run, images)
    for _ in train.epochs(run, network, images):
        pass
    errors = {
        strength: float(train.judge(network, disturbed(images, strength, seed)).mean())
        for strength in sorted({0.0, JUDGED, *strengths})
    }
    values = {"clean": errors[0], "disturbed": errors[JUDGED], "rise": errors[JUDGED] - errors[0]}
    return Measured(values, {"strength": [*errors], "error": [*errors.values()]})


def disturbed(images: Images, strength: float, seed: int) -> Images:
    """The test pictures x as ``gain * x + offset``, gain and offset drawn for each picture.

    x has standard deviation 1 over the training set. At strength s the gain lies between 1/2^s and
    2^s, its logarithm uniform, and the offset uniform between -s and s.
    """
    rng = np.random.default_rng((seed, _NUISANCE))
    u, v = rng.uniform(-strength, strength, (2, len(images.x_test), 1, 1, 1))
    gain, offset = (torch.as_tensor(part.astype(np.float32)) for part in (2**u, v))
    found = copy.copy(images)
    found.x_test = gain * images.x_test + offset
    return found


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Each norm, and none."""
    arms = classify.arms(NORMS, [32])
    more = {"strengths": settings["strengths"]}
    return classify.trials(measure, settings, {name: own | more for name, own in arms.items()})


def judge(results: Results) -> Verdict:
    """Instance below batch norm under the nuisance, and the order of the rises."""
    what = "rise of the test error under the nuisance"
    pairs = [(STRONGEST, other) for other in (*BETWEEN, *WEAKEST)]
    pairs += [(one, other) for one in BETWEEN for other in WEAKEST]
    return classify.verdict(
        classify.above(
            results, STRONGEST, "instance", "disturbed", 0, "test error under the nuisance"
        ),
        *(classify.above(results, one, other, "rise", 0, what) for one, other in pairs),
    )


def picture(results: Results) -> Any:
    """Test error against the strength of the nuisance, a line a norm."""
    import altair as alt

    from normalform.lab.experiments import classify_charts as charts

    names = {row["arm"]: row["arm"].partition(",")[0] for row in results.runs}
    rows = [
        {"norm": names[row["arm"]], "strength": row["strength"], "percent": 100 * row["error"]}
        for row in results.steps
    ]
    keys = {name: "none" if name == "no norm" else name for name in names.values()}
    x = alt.X("strength:Q", axis=charts.axis("strength s of the nuisance", tickMinStep=0.5))
    y = alt.Y("percent:Q", axis=charts.axis("test error, %"), scale=alt.Scale(zero=False))
    judged = charts.chart([{"strength": JUDGED}]).mark_rule(strokeDash=[2, 3], opacity=0.6)
    curves = charts.curves(rows, x, y, "norm", keys, columns=3)
    panel = (judged.encode(x=x) + curves).properties(width=charts.WIDTH, height=230)
    return charts.stack(
        [panel],
        "Tested on other contrast and brightness",
        "Each test picture: gain * x + offset,",
        "gain from 1/2^s to 2^s, offset up to s standard deviations.",
        "Dotted: where the claim is judged.",
        charts.SEEDS,
    )


EXPERIMENT = Experiment(
    name="contrast",
    title="Instance norm against random contrast",
    claim=(
        "Instance norm discards contrast and brightness of the single picture (Ulyanov et al., "
        "Instance Normalization, 2016), so that it helps where these are a nuisance: instance "
        "and layer norm suffer least from it, batch norm most."
    ),
    setup=classify.setup(classify.STRIDE16, "2x2", seeds=5, epochs=8)
    + "Trained on pictures as they are. In the test each picture x, standardized, becomes "
    "gain * x + offset; at strength s the logarithm of the gain is uniform between 1/2^s and 2^s, "
    "the offset between -s and s standard deviations of the training pixels. Strengths 0 to 2.",
    rule=(
        f"At strength {JUDGED:g}: the test error of batch norm is above that of instance norm; the "
        "rise of the error against undisturbed pictures is larger for batch norm than for every "
        "other arm, and larger for group norm and for no norm than for instance and for layer "
        "norm. " + classify.RULE
    ),
    default=classify.settings(classify.STRIDE16, 5, 8, strengths=[0, 0.5, 1, 1.5, 2]),
    quick=classify.settings(classify.STRIDE16, 1, 1, strengths=[0, 1]),
    full=classify.full(classify.STRIDE16, strengths=[0, 0.5, 1, 1.5, 2]),
    trials=trials,
    judge=judge,
    picture=picture,
)
