"""The paired analysis: against closed forms, and its coverage and power by simulation."""

import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from normalform.lab import statistics
from normalform.lab.statistics import crossed_mean, paired_difference

LAB = Path(statistics.__file__).parent
Table = NDArray[np.float64]


def table(rng: np.random.Generator, seeds: int, seed: float, image: float, rest: float) -> Table:
    """Values with mean zero: a part of the seed, a part of the image, and a rest."""
    images = 200
    return (
        seed * rng.normal(size=(seeds, 1))
        + image * rng.normal(size=(1, images))
        + rest * rng.normal(size=(seeds, images))
    )


def share(times: int, trial: Callable[[np.random.Generator], bool]) -> float:
    rng = np.random.default_rng(20)
    return sum(trial(rng) for _ in range(times)) / times


def covers(rng: np.random.Generator, seeds: int, *parts: float) -> bool:
    found = crossed_mean(table(rng, seeds, *parts))
    return found.low <= 0 <= found.high


def test_mean_squares_by_plain_loops() -> None:
    values = np.random.default_rng(1).normal(size=(3, 4))
    values += np.array([[0.0], [2.0], [5.0]]) + np.array([0.0, 3.0, 1.0, 6.0])
    grand = math.fsum(values.ravel()) / 12
    rows = [math.fsum(row) / 4 for row in values]
    columns = [math.fsum(column) / 3 for column in values.T]
    seed = math.fsum(4 * (r - grand) ** 2 for r in rows) / 2
    image = math.fsum(3 * (c - grand) ** 2 for c in columns) / 3
    rest = math.fsum(
        (values[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(3) for i in range(4)
    )
    rest /= 6
    assert min(seed, image) > rest  # all three parts count
    whole = seed + image - rest
    found = crossed_mean(values)
    df = 2 * (whole / seed) ** 2
    assert found.mean == pytest.approx(grand, rel=1e-14)
    assert found.error**2 == pytest.approx(whole / 12, rel=1e-12)
    assert found.df == pytest.approx(df, rel=1e-12)
    half = stats.t.ppf(0.975, df) * found.error
    assert (found.low, found.high) == pytest.approx((grand - half, grand + half), rel=1e-12)


def test_one_seed_is_the_interval_of_the_images() -> None:
    values = np.random.default_rng(2).normal(size=(1, 30)) + 0.4
    found = crossed_mean(values)
    expected = stats.t.interval(0.95, 29, values.mean(), stats.sem(values[0]))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-10)
    assert (found.seeds, found.images) == (1, 30)


@pytest.mark.parametrize(
    ("seeds", "seed", "image", "rest"),
    [
        (2, 0.05, 0.2, 0.4),
        (3, 0.02, 0.2, 0.4),
        (3, 0.05, 0.0, 0.1),
        (5, 0.02, 0.2, 0.4),
        (5, 0.05, 0.2, 0.4),
        (5, 0.0, 0.5, 0.1),
        (10, 0.02, 0.2, 0.4),
    ],
)
def test_coverage(seeds: int, seed: float, image: float, rest: float) -> None:
    # of 4000 trials at a true coverage of 0.95, between 0.94 and 0.96 cover it nearly always
    rate = share(4000, lambda rng: covers(rng, seeds, seed, image, rest))
    assert 0.94 <= rate <= 0.99


def test_coverage_of_wrong_images() -> None:
    """Arms of equal skill: thresholds on a difficulty of the image plus luck of the seed."""

    def trial(rng: np.random.Generator) -> bool:
        hard = rng.normal(size=400)
        a, b = (
            1.5 * hard + 0.15 * rng.normal(size=(5, 1)) + rng.normal(size=(5, 400)) > 1.5
            for _ in "ab"
        )
        found = paired_difference(a, b)
        return found.low <= 0 <= found.high

    assert 0.94 <= share(4000, trial) <= 0.99


def test_the_simulation_tells_a_wrong_interval() -> None:
    """Seeds alone, or all values as if independent: both miss, so the check above has teeth."""

    def seeds_alone(rng: np.random.Generator) -> bool:
        means = table(rng, 5, 0.02, 0.4, 0.2).mean(axis=1)
        return abs(stats.ttest_1samp(means, 0).pvalue) > 0.05

    def independent(rng: np.random.Generator) -> bool:
        return abs(stats.ttest_1samp(table(rng, 5, 0.05, 0.2, 0.4).ravel(), 0).pvalue) > 0.05

    assert share(300, seeds_alone) < 0.85
    assert share(300, independent) < 0.85


def test_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    parts = (5, 0.05, 0.2, 0.4)
    detectable = np.mean([crossed_mean(table(rng, *parts)).detectable for _ in range(500)])
    rate = share(4000, lambda r: crossed_mean(table(r, *parts) + detectable).differs)
    assert 0.74 <= rate <= 0.88


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_detectable_by_the_noncentral_t(seeds: int) -> None:
    found = crossed_mean(table(np.random.default_rng(4), seeds, 0.05, 0.2, 0.4))
    critical = stats.t.ppf(0.975, found.df)
    power = stats.nct.sf(critical, found.df, found.detectable / found.error)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_seeds_that_agree_by_luck_do_not_shrink_the_interval() -> None:
    values = np.random.default_rng(5).normal(size=(2, 500))
    values -= values.mean(axis=1, keepdims=True)  # both rows have mean zero: no seed effect seen
    found = crossed_mean(values)
    assert found.error >= 0.9 / math.sqrt(1000)
    assert found.df >= 1


def test_differences_are_paired_and_signed() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random((3, 50)) < 0.5, rng.random((3, 50)) < 0.2
    found, mirrored = paired_difference(a, b), paired_difference(b, a)
    assert found.mean == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), rel=1e-12)
    assert found.differs
    assert found.low > 0


def test_equal_arms_are_identical() -> None:
    wrong = np.random.default_rng(7).random((2, 40)) < 0.3
    found = paired_difference(wrong, wrong)
    assert found.identical
    assert not found.differs
    assert (found.mean, found.low, found.high, found.detectable) == (0, 0, 0, 0)


def test_a_constant_difference_is_certain() -> None:
    found = crossed_mean(np.ones((3, 10)))
    assert (found.low, found.high, found.differs) == (1, 1, True)


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match=r"not one of shape \(3,\)"):
        crossed_mean([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"not one of shape \(0, 4\)"):
        crossed_mean(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="not finite"):
        crossed_mean([[0.0, math.nan]])
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 1\)"):
        paired_difference([[0, 1]], [[0], [1]])


@pytest.mark.parametrize(
    ("package", "module"),
    [("vl_convert", "report/plots.py"), ("altair", "report/canvas.py"), ("scipy", "statistics.py")],
)
def test_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "normalform\[lab\]"'):
        runpy.run_path(str(LAB / module))
