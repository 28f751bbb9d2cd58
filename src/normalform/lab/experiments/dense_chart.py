"""The picture of dense prediction: scenes and their classes; below, how well each arm does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normalform.lab.experiments import classify_charts as charts
from normalform.lab.experiments.experiment import Results
from normalform.lab.experiments.raster import Array, grid
from normalform.lab.experiments.scenes import CLASSES, scenes
from normalform.lab.experiments.strips import SEEDS, strips

try:
    import altair as alt
except ImportError as missing:
    raise ImportError('the pictures need Altair: pip install "normalform[lab]"') from missing

SHOWN, PIXELS, SIZE, SEED = 4, 48, 58, 1  # of the examples
COLOURS = ("#1b1e23", "#AA4499", "#44AA99", "#999933", "#882255")  # of the classes
MEASURES = {"running": "running statistics", "by_batch": "statistics of two test scenes"}


def chart(results: Results, arms: Mapping[str, str], pictures: Array, labels: Array) -> Any:
    """The picture.

    Args:
        results: of the experiment.
        arms: in the order to show them, each with its norm.
        pictures: garments to compose examples of.
        labels: theirs.
    """
    same = [(arm, "by_batch") for arm, norm in arms.items() if norm not in ("batch", "switch")]
    quality = strips(
        results, arms, MEASURES, "test mIoU, % (more is better)",
        legend="at test time, norms of the batch take", skip=same,
    )  # fmt: skip
    return charts.stack(
        [_examples(pictures, labels), quality],
        "Segmentation at a batch of two scenes",
        "Above: scenes and what is to be found in them.",
        "Below: how well each norm's network finds it.",
        SEEDS,
    ).resolve_scale(color="independent", shape="independent")


def _examples(pictures: Array, labels: Array) -> Any:
    """A few scenes and the classes of their pixels."""
    x, y = scenes(pictures, labels, SHOWN, PIXELS, np.random.default_rng(SEED))
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS]) / 255
    columns = [str(i) for i in range(SHOWN)]
    panel = grid([list(x[:, 0]), list(palette[y])], ["scene", "classes"], columns, SIZE, enlarged=3)
    scale = alt.Scale(domain=list(CLASSES), range=list(COLOURS))
    legend = alt.Legend(title=None, orient="top", columns=3, symbolType="square", symbolOpacity=1)
    # Marks that are not seen carry the legend.
    key = charts.chart({"name": name} for name in CLASSES).mark_square(opacity=0)
    colour = alt.Color("name:N", scale=scale, legend=legend, sort=None)
    return panel.encode(x=alt.X("column:N", axis=None)) + key.encode(color=colour)
