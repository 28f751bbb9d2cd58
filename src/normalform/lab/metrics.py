"""What a comparison measures: the share of wrong labels, 1 - mIoU, or the mean squared error.

Each is a mean over the test samples of one number a sample, and less is better, so that one
arithmetic of seeds by samples serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100  # a pixel without a label, as PyTorch's losses have it


@dataclass(frozen=True)
class Metric:
    """A metric and how it is said.

    Attributes:
        name: ``error``, ``miou`` or ``mse``.
        quantity: what is measured, in words; less is better.
        percent: shown as percent, differences in points; else as it is.
    """

    name: str
    quantity: str
    percent: bool

    @property
    def axis(self) -> str:
        """The quantity on the test part, with its unit."""
        return f"test {self.quantity}{', %' * self.percent}"

    @property
    def training_axis(self) -> str:
        """The quantity on the training part, with its unit."""
        return f"training {self.quantity}{', %' * self.percent}"

    def shown(self, value: float) -> str:
        """A value as it is said.

        >>> METRICS["error"].shown(0.1749), METRICS["mse"].shown(0.1749)
        ('17.5 %', '0.175')
        """
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"

    @property
    def scale(self) -> int:
        """What a value is multiplied by to be shown."""
        return 100 if self.percent else 1


METRICS = {
    "error": Metric("error", "error", percent=True),
    "miou": Metric("miou", "1 - mIoU", percent=True),
    "mse": Metric("mse", "squared error", percent=False),
}


def capital(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def metric_named(name: str) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is not known; choose from {', '.join(METRICS)}")
    return METRICS[name]


def loss(metric: str, outputs: Tensor, y: Tensor) -> Tensor:
    """What training makes small: cross entropy for labels, the mean square for numbers."""
    if metric == "mse":
        return F.mse_loss(outputs.reshape(y.shape), y)
    return F.cross_entropy(outputs, y, ignore_index=IGNORED)


def tally(metric: str, outputs: Tensor, y: Tensor) -> NDArray[np.float64]:
    """What one batch adds, a row a sample: the values :func:`scores` is made from.

    An output that is not finite is a wrong one; a squared error stays infinite or NaN.
    """
    if metric == "mse":
        square = (outputs.reshape(y.shape).cpu().double() - y.cpu().double()).square()
        return square.flatten(1).mean(1, keepdim=True).numpy() if y.ndim > 1 else _column(square)
    chosen = outputs.argmax(1).where(outputs.isfinite().all(1), outputs.shape[1])
    if metric == "error":
        return _column(chosen != y)
    classes = range(outputs.shape[1])
    known = y != IGNORED
    parts = [((chosen == c) & known, y == c) for c in classes]
    both = [(a & b).flatten(1).sum(1) for a, b in parts]
    either = [(a | b).flatten(1).sum(1) for a, b in parts]
    return torch.stack([*both, *either], 1).cpu().double().numpy()


def scores(metric: str, tallies: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    r"""One number a sample, less is better, whose mean is the metric.

    For the error 0 or 1, for the squared error its mean over the sample's outputs. The mean
    intersection over union is a ratio of sums over the whole test part, the mean over the classes
    of ``I_c / U_c``; a sample's share in it is the ratio's first order term, ::

        1 - mean_c (I_c / U_c + (I_ci - I_c / U_c * U_ci) / (U_c / n))

    The terms beside ``I_c / U_c`` add up to zero, so that the mean over the samples is exactly
    1 - mIoU, and their spread gives its standard error. Classes that nowhere occur, neither in
    the labels nor in the answers, do not count.
    """
    table = np.concatenate(tallies)
    if metric != "miou":
        return table[:, 0]
    both, either = np.split(table, 2, axis=1)
    seen = either.sum(0) > 0
    both, either = both[:, seen], either[:, seen]
    ratio = both.sum(0) / either.sum(0)
    return 1 - (ratio + (both - ratio * either) / either.mean(0)).mean(1)


def _column(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().double()[:, None].numpy()
