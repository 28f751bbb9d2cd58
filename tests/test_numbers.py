"""The numbers of an example, against plain loops over the elements that share a mean."""

import itertools
import math
import re

import numpy as np
import pytest

from normalform import reference
from normalform.lab.explain import subject
from normalform.lab.explain.numbers import Numbers
from normalform.recipes import NORMS, named
from sharing import partition


def moments_by_loops(x, groups):
    """Mean and biased variance of each element's set, by plain loops."""
    mean, var = np.empty_like(x), np.empty_like(x)
    for index in np.ndindex(*x.shape):
        values = [x[other] for other in groups[index]]
        middle = sum(values) / len(values)
        mean[index] = middle
        var[index] = sum((value - middle) ** 2 for value in values) / len(values)
    return mean, var


@pytest.mark.parametrize("name", ["batch", "layer", "instance", "group:2", "ghost:2", "position"])
def test_numbers(name):
    shape = (4, 4, 2, 3)
    found = Numbers.of([named(name)], shape)
    truth = partition(lambda x: reference.norm(x, name).xhat, shape)
    mean, var = moments_by_loops(found.x, truth)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.var, var, atol=1e-12)
    np.testing.assert_allclose(found.xhat, (found.x - mean) / np.sqrt(var + 1e-5), atol=1e-12)
    channel = np.arange(4).reshape(1, 4, 1, 1)
    weight, bias = np.where(channel % 2, 2, 1), 10 * channel
    np.testing.assert_allclose(found.y, weight * found.xhat + bias, atol=1e-12)
    assert set(np.unique(found.x)) <= set(range(1, 10))


def test_numbers_of_a_blend():
    shape, over = (2, 4, 2, 2), NORMS["switch"].over
    found = Numbers.of([named(each) for each in over], shape)
    each = [
        moments_by_loops(found.x, partition(lambda x, k=k: reference.norm(x, k).xhat, shape))
        for k in over
    ]
    np.testing.assert_allclose(found.mean, sum(m for m, _ in each) / 3, atol=1e-12)
    np.testing.assert_allclose(found.var, sum(v for _, v in each) / 3, atol=1e-12)


@pytest.mark.parametrize("name", [*NORMS, "(b [n]) (g [c]) s"])
def test_what_is_computed_by_hand_is_right(name):
    found = subject.read(name)
    numbers = Numbers.of(found.said.laid, found.said.shape)
    for element in itertools.islice(found.sets[0].elements(), 0, None, 7):
        lines = numbers.by_hand(element)
        for line in lines:
            for left, right in re.findall(r"= ([^=]+) = (-?[\d.]+)", line.replace("sqrt", "")):
                sums = re.sub(r"squared differences|, shares.*|[a-z]+ [a-z]+", "", left).strip()
                if " / (" in sums or "/ (" in sums:  # xhat: divided by a root
                    top, root = sums.split(" / ")
                    value = eval(top) / math.sqrt(eval(root))
                else:
                    value = eval(sums)
                assert value == pytest.approx(float(right), abs=2e-3), line
        listed = [line for line in lines if line.startswith("set ")]
        for line, sets in zip(listed, found.sets, strict=True):
            values = list(map(int, line.split(": ")[1].split()))
            assert len(values) == sets.count_of(element)
            assert numbers.x[element.at] in values
        assert lines[-1].endswith(f" = {numbers.y[element.at]:.4f}".rstrip("0").rstrip("."))
