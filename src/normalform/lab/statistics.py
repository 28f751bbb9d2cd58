"""What a difference between two arms is worth: its size, its interval, what could have been seen.

An arm's results are a matrix: one row a seed, one column a test image, 1 where the image was
classified wrongly. Both the seeds and the images are samples, of all the trainings and all the
pictures there could have been, and each seed meets each image: the two are *crossed*. An interval
from the seeds alone is silent about other test images, one from the images alone about other
seeds. This file counts both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from scipy import special
except ImportError as error:
    raise ImportError('the comparison needs SciPy: pip install "normalform[lab]"') from error

_student_quantile = cast("Callable[[float, float], float]", special.stdtrit)
_noncentrality = cast("Callable[[float, float, float], float]", special.nctdtrinc)
_MANY = 1e6  # degrees of freedom beyond which Student's t is the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and test images, with what the sampling of both leaves open.

    Attributes:
        mean: the mean over all seeds and images.
        low: lower end of the interval.
        high: upper end of the interval.
        detectable: the smallest true mean that such a run tells from zero with the asked power.
        seeds: how many seeds stand behind it. With one, nothing is known about other seeds and
            the interval is about the sampling of test images only.
        images: how many test images stand behind it.
        error: the standard error the interval is made from.
        df: its degrees of freedom.
        identical: every value is zero: the two arms made the same mistakes on every image.
    """

    mean: float
    low: float
    high: float
    detectable: float
    seeds: int
    images: int
    error: float
    df: float
    identical: bool

    @property
    def differs(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def crossed_mean(values: ArrayLike, *, level: float = 0.95, power: float = 0.8) -> Estimate:
    r"""The mean of a table of seeds by images, with an interval for new seeds *and* new images.

    The model is ``value[s, i] = mean + seed[s] + image[i] + rest[s, i]``, the three random and
    independent. From the two-way table of mean squares come the three variances, each at least
    zero, and ::

        error^2 = var_seed / S + var_image / I + var_rest / (S I)

    The interval is Student's. Seeds are few and images many, so the degrees of freedom are the
    S - 1 of the seeds, more where the images' share makes the seeds' share matter less:
    ``df = (S - 1) (error^2 / seeds' part of it)^2``, which is Hillis's rule for many readers of
    many cases (Statistics in Medicine 26, 2007). The seeds' part is never taken below
    ``var_rest / (S I)``: two or three seeds agree by luck too often.

    With one seed the images alone are counted, with I - 1 degrees of freedom.

    The smallest detectable mean is the one whose test at this level succeeds with probability
    ``power`` if the standard error is the one found (noncentral t).

    Args:
        values: numbers of shape (S, I).
        level: the probability the interval is made for.
        power: the probability a difference of size ``detectable`` is found with.

    Raises:
        ValueError: the table is empty, is not two-dimensional or holds NaN.

    >>> rng = np.random.default_rng(0)
    >>> table = 0.05 + 0.02 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(5, 2000))
    >>> found = crossed_mean(table)
    >>> found.low < 0.05 < found.high, found.seeds, found.images
    (True, 5, 2000)
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"a table of seeds by images is needed, not one of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("the table of seeds by images holds values that are not finite")
    seeds, images = table.shape
    variance, df = _one_seed(table) if seeds == 1 else _crossed(table)
    error = math.sqrt(variance)
    critical = float(_student_quantile(df, (1 + level) / 2))
    mean = float(table.mean())
    return Estimate(
        mean=mean,
        low=mean - critical * error,
        high=mean + critical * error,
        detectable=float(_noncentrality(df, 1 - power, critical)) * error,
        seeds=seeds,
        images=images,
        error=error,
        df=df,
        identical=not table.any(),
    )


def paired_difference(
    wrong_a: ArrayLike, wrong_b: ArrayLike, *, level: float = 0.95, power: float = 0.8
) -> Estimate:
    """How much more often arm a is wrong than arm b, on the same seeds and the same images.

    Args:
        wrong_a: shape (S, I), 1 or True where arm a with seed s errs on image i.
        wrong_b: the same for arm b, its rows the same seeds and its columns the same images.
        level: see :func:`crossed_mean`.
        power: see :func:`crossed_mean`.

    Raises:
        ValueError: the tables differ in shape.

    >>> paired_difference([[1, 1, 0, 0]], [[1, 0, 0, 0]]).mean
    0.25
    """
    a, b = np.asarray(wrong_a, dtype=np.float64), np.asarray(wrong_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"paired arms need the same seeds and images; got tables of shape {a.shape} "
            f"and {b.shape}"
        )
    return crossed_mean(a - b, level=level, power=power)


def _one_seed(table: NDArray[np.float64]) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom, from the images of a single seed."""
    images = table.shape[1]
    if images == 1:
        return 0.0, 1.0
    return float(table.var(ddof=1)) / images, images - 1.0


def _crossed(table: NDArray[np.float64]) -> tuple[float, float]:
    """Variance of the mean of a crossed table, and its degrees of freedom."""
    seeds, images = table.shape
    if images == 1:
        return float(table.var(ddof=1)) / seeds, seeds - 1.0
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    mean_square_rest = _squares(rest) / ((seeds - 1) * (images - 1))
    mean_square_seed = images * float(rows.var(ddof=1))
    mean_square_image = seeds * float(columns.var(ddof=1))
    seed_part = max(mean_square_seed, mean_square_rest)
    whole = seed_part + max(mean_square_image - mean_square_rest, 0.0)
    if whole == 0:
        return 0.0, seeds - 1.0
    df = (seeds - 1) * (whole / seed_part) ** 2 if seed_part else _MANY
    return whole / (seeds * images), min(df, _MANY)


def _squares(values: NDArray[Any]) -> float:
    return float(np.square(values).sum())
