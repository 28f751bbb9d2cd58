"""What must hold between norms, and between inputs, whatever the shape and the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normalform import normal_form, reference
from normalform.reference import Result

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@st.composite
def arrays(draw: st.DrawFn, samples: int = 1) -> np.ndarray:
    """(N, C, H, W) with an even C, of any spread and several times it from zero."""
    sizes = [draw(st.integers(low, 4)) for low in (samples, 1, 1, 1)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(
        draw(st.sampled_from([0.0, -3.0, 1e4])), size=(sizes[0], 2 * sizes[1], *sizes[2:])
    )
    return x * 10.0 ** draw(st.integers(-6, 6))


def gradient(result: Result) -> np.ndarray:
    return result.backward(np.random.default_rng(0).normal(size=result.y.shape)).x


def assert_same(a: Result, b: Result) -> None:
    np.testing.assert_array_equal(a.y, b.y)
    np.testing.assert_array_equal(gradient(a), gradient(b))


@given(arrays())
def test_norms_that_are_special_cases(x: np.ndarray) -> None:
    samples, channels = x.shape[:2]
    assert_same(reference.group_norm(x, 1), reference.layer_norm(x))
    assert_same(reference.group_norm(x, channels), reference.instance_norm(x))
    assert_same(reference.batch_norm(x, block=samples), reference.batch_norm(x))
    assert_same(reference.batch_norm(x, block=1), reference.instance_norm(x))
    assert_same(reference.batch_norm(x[:1]), reference.instance_norm(x[:1]))
    assert_same(reference.norm(x, "[n] c [s]"), reference.batch_norm(x))


@given(arrays(), st.integers(0, 2))
def test_a_switch_turned_all_the_way(x: np.ndarray, k: int) -> None:
    names = ("layer", "group:2", "position")
    logits = np.where(np.arange(3) == k, 1e9, 0.0)
    if (4 if k == 1 else 2) <= x.shape[1]:  # a cell of one value has no share to give
        assert_same(
            reference.switch_norm(x, logits, logits, over=names), reference.norm(x, names[k])
        )


@given(arrays())
def test_a_blend_of_a_norm_with_itself(x: np.ndarray) -> None:
    blend = reference.switch_norm(x, [0.0, 0.0], [0.0, 0.0], over=("layer", "layer"))
    layer = reference.layer_norm(x)
    np.testing.assert_array_equal(blend.y, layer.y)
    terms = layer.backward(np.random.default_rng(0).normal(size=x.shape)).terms
    assert (np.abs(gradient(blend) - gradient(layer)) <= 1e-15 * terms).all()


@given(arrays(samples=2), st.randoms())
def test_the_order_of_samples_does_not_matter(x: np.ndarray, random: np.random.Generator) -> None:
    order = list(range(len(x)))
    random.shuffle(order)
    for name in ("batch", "layer", "instance"):
        y = reference.norm(x, name).y
        np.testing.assert_allclose(reference.norm(x[order], name).y, y[order], 0, 1e-14)


@given(arrays(samples=2))
def test_samples_do_not_see_each_other(x: np.ndarray) -> None:
    changed = x.copy()
    changed[0] = 7.0
    for name in ("layer", "instance", "group:2", "position"):
        np.testing.assert_array_equal(
            reference.norm(changed, name).y[1:], reference.norm(x, name).y[1:]
        )


@given(arrays(), st.integers(-20, 20), st.sampled_from(["batch", "layer", "instance", "position"]))
def test_the_unit_of_x_does_not_matter(x: np.ndarray, power: int, name: str) -> None:
    scaled = reference.norm(x * 2.0**power, name, eps=0)
    np.testing.assert_array_equal(scaled.y, reference.norm(x, name, eps=0).y)
    np.testing.assert_array_equal(
        gradient(scaled) * 2.0**power, gradient(reference.norm(x, name, eps=0))
    )


CELLS = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3), "position": (1,)}


@given(arrays(), st.sampled_from(sorted(CELLS)), st.sampled_from([1e-3, 1e3]))
def test_what_a_cell_sums_to(x: np.ndarray, name: str, eps: float) -> None:
    result, axes = reference.norm(x, name, eps=eps), CELLS[name]
    var = np.broadcast_to(result.var, x.shape)
    np.testing.assert_allclose(result.y.mean(axes), 0, atol=1e-14)
    np.testing.assert_allclose((result.y**2).mean(axes), (var / (var + eps)).mean(axes), 1e-13)
    dx, terms = (
        gradient(result),
        result.backward(np.random.default_rng(0).normal(size=x.shape)).terms,
    )
    assert (np.abs(dx.sum(axes)) <= 1e-15 * terms.sum(axes)).all()


@given(arrays(samples=2), st.sampled_from(["batch", "layer"]))
def test_dx_has_no_part_along_xhat(x: np.ndarray, name: str) -> None:
    result = reference.norm(x, name, eps=0)
    gradients = result.backward(np.random.default_rng(0).normal(size=x.shape))
    along = (gradients.x * result.xhat).sum(CELLS[name])
    assert (np.abs(along) <= 4e-15 * (gradients.terms * np.abs(result.xhat)).sum(CELLS[name])).all()


@given(arrays(samples=2))
def test_the_gradient_is_linear_in_dy(x: np.ndarray) -> None:
    result = reference.switch_norm(x, [0.0, 1.0], [0.5, 0.0], over=("layer", "batch"))
    a, b = np.random.default_rng(1).normal(size=(2, *x.shape))
    both, one, other = (result.backward(dy) for dy in (a + b, a, b))
    terms = both.terms + one.terms + other.terms
    assert (np.abs(both.x - one.x - other.x) <= 1e-15 * terms.max()).all()


@given(arrays(samples=2))
def test_evaluation_by_the_batchs_own_statistics(x: np.ndarray) -> None:
    trained = reference.batch_norm(x)
    running = {"running_mean": trained.mean.ravel(), "running_var": trained.var.ravel()}
    evaluated = reference.batch_norm(x, **running, training=False)
    room = 1e-15 * (1 + np.abs(trained.mean) / np.sqrt(trained.var + 1e-5))  # the mean, rounded
    assert (np.abs(evaluated.y - trained.y) <= room * (1 + np.abs(trained.y))).all()


@pytest.mark.parametrize("name", ["batch", "layer", "instance"])
def test_sum_of_y_has_no_gradient(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 5))
    gradients = reference.norm(x, name).backward(np.ones(x.shape))
    assert np.abs(gradients.x).max() < 64 * np.finfo(normal_form.WIDEST).eps
    assert gradients.terms.min() > 1
