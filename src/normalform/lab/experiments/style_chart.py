"""The picture of style transfer: photographs with one another's style, and what judges say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normalform.lab.experiments import classify_charts as charts
from normalform.lab.experiments.experiment import Results
from normalform.lab.experiments.raster import Array, grid
from normalform.lab.experiments.strips import SEEDS, strips
from normalform.lab.experiments.style import ARMS, INSTANCE, PHOTOGRAPHS, exchange

CONTENTS = ("astronaut", "chelsea", "rocket")
STYLES = ("coffee", "hubble", "retina")
SIZE, SMALLER = 56, 2  # pixels in the chart; how often the photographs are made smaller
AXIS = "%, of the patches or of the distance"
MEASURES = {
    "style": "taken for the style's photograph",
    "own": "taken for the content's photograph",
    "found": "found again: the content's patch",
    "left": "style distance left, of that before",
}


def chart(results: Results, arms: Sequence[str], photographs: Tensor) -> Any:
    """The picture.

    Args:
        results: of the experiment.
        arms: in the order to show them.
        photographs: all of them, (K, 3, H, W).
    """
    norms = {arm: arm.partition(",")[0].replace("untouched", "none") for arm in arms}
    return charts.stack(
        [_exchanged(photographs), strips(results, norms, MEASURES, AXIS)],
        "Statistics of a picture's channels are its style",
        "Left column and top row: photographs. The others",
        "have the content of their row, and mean and deviation",
        "of each band from the photograph above them.",
        "Below, what judges say of small patches.",
        SEEDS,
    ).resolve_scale(color="independent", shape="independent")


def _exchanged(photographs: Tensor) -> Any:
    small = torch.nn.functional.avg_pool2d(photographs, SMALLER)
    own = {name: small[i : i + 1] for i, name in enumerate(PHOTOGRAPHS)}
    top: list[Array | None] = [None, *(_shown(own[style]) for style in STYLES)]
    rows: list[list[Array | None]] = [top]
    for content in CONTENTS:
        made = [exchange(own[content], own[style], **ARMS[INSTANCE]) for style in STYLES]
        rows.append([_shown(own[content]), *map(_shown, made)])
    return grid(rows, ["style", *CONTENTS], ["content", *STYLES], SIZE)


def _shown(x: Tensor) -> Array:
    """The one picture as (H, W, 3)."""
    return x[0].permute(1, 2, 0).numpy()
