"""What ``normalform check`` measures: the cases, the layers compared, the table of worst errors."""

import itertools

import pytest
import torch
from torch import Tensor

from normalform.lab import check
from normalform.lab.accuracy import COMPILE, Measured, by_kernel, measured, worst
from normalform.lab.cases import (
    DTYPES,
    NORMS,
    Case,
    graph,
    groups,
    modes,
    plan,
    plan_compiled,
    why_not,
)


def test_everything_of_ours_is_inside_and_the_table_is_complete():
    table = check.accuracy(quick=True)
    assert [row.label for row in table] == [(norm, dtype) for norm in NORMS for dtype in DTYPES]
    assert [row.label for row in table if not row.ok] == []
    columns = {row.label[0]: list(row.ours) for row in table}
    assert columns["rms"] == ["y", "dx", "dweight"]
    assert columns["layer"] == columns["group"] == columns["token"] == [*columns["rms"], "dbias"]
    assert columns["batch"] == columns["ghost"] == [*columns["layer"], "running"]
    assert columns["switch"] == [*columns["layer"], "logits", "running"]
    for row in table:
        assert list(row.torch) == list(row.ours)
        # Nothing is measured to be exact to the last bit: an error of 0 is a comparison not made.
        assert min(row.ours.values()) > 0, row
    float32 = [row for row in table if row.label[1] == "float32" and row.label[0] != "rms"]
    assert min(row.torch["y"] for row in float32) > 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_plan_covers_modes_layouts_shapes_and_ratios(norm: str):
    cases = plan([norm], ["float32"])
    assert {case.ratio for case in cases} == {0.0, 1.0, 1e2, 1e4, 1e6}
    assert {len(case.shape) for case in cases} >= {3, 4, 5}
    assert {case.channels_last for case in cases} == {False, True}
    assert {case.training for case in cases} == (
        {True, False} if norm in ("batch", "instance", "switch", "ghost") else {True}
    )
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("last", [False, True])
def test_layout_is_that_of_the_case(norm: str, last: bool, monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []

    def remember(layer: torch.nn.Module, x: Tensor, dy: Tensor) -> dict[str, float]:
        seen.extend((x, dy))
        return {"y": 0.5}

    monkeypatch.setattr("normalform.lab.accuracy.measure", remember)
    measured(Case(norm, "float16", (3, 4, 5, 6), channels_last=last, ratio=1.0))
    token = norm in ("token", "rms")
    for t in seen:
        assert t.dtype == torch.float16
        assert t.shape == ((3, 5, 6, 4) if token else (3, 4, 5, 6))
        assert t.is_contiguous() == (last == token)
        assert t.is_contiguous(memory_format=torch.channels_last) == (last and not token)


def test_both_sides_have_the_same_parameters_and_the_right_classes(monkeypatch):
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(
        "normalform.lab.accuracy.measure", lambda layer, x, dy: seen.append(layer) or {"y": 0.5}
    )
    for norm in NORMS:
        for case in modes(Case(norm, "float32", (3, 4, 5, 6), ratio=1.0)):
            measured(case, kernel="two_float")
            ours, theirs = seen[-2:]
            assert ours.kernel == "two_float"
            assert type(ours).__module__.startswith("normalform.layers")
            assert not type(theirs).__module__.startswith("normalform.layers")
            assert type(ours).__name__ == type(theirs).__name__
            assert ours.training == theirs.training == case.training
            assert not torch.equal(ours.weight, torch.ones_like(ours.weight))
            for name, value in ours.state_dict().items():
                assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("name", ["SwitchNorm", "GhostBatchNorm"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 6), (5, 4, 3, 2), (5, 4, 3, 2, 2)])
def test_compositions_compute_the_norm_they_stand_for(
    name: str, training: bool, shape: tuple[int, ...]
):
    case = Case(
        {"SwitchNorm": "switch"}.get(name, "ghost"), "float64", shape, training=training, ratio=1.0
    )
    found = measured(case)
    assert max(found.torch.values()) < 100  # float64: right up to rounding, if not to the promise


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [("float32", "auto: cpu"), ("float64", "auto: cpu"), ("float16", "auto: eager")],
)
def test_the_kernel_that_ran_is_known(norm: str, dtype: str, kernel: str):
    case = Case(norm, dtype, (3, 4, 5, 6), ratio=1.0)
    assert measured(case).kernel == kernel
    assert measured(case, kernel="eager").kernel == "eager"


@pytest.mark.parametrize("norm", ["batch", "switch", "token"])
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_graph_has_the_errors_of_eager_mode(norm: str, training: bool):
    torch.compiler.reset()
    case = Case(norm, "float32", (3, 4, 5, 6), ratio=1e4, training=training)
    found = measured(case, kernel=COMPILE)
    assert found.kernel == "torch.compile"
    assert found.ours == measured(case).ours


def test_few_cases_are_compiled_and_their_graphs_are_used_again():
    cases = plan(NORMS, tuple(DTYPES), quick=True)
    here = plan_compiled(cases)
    assert {case.norm for case in here} == set(NORMS)
    assert {case.ratio for case in here} == {0.0, 1.0, 1e2, 1e4, 1e6}
    graphs = [graph(case) for case in here]
    changes = sum(a != b for a, b in itertools.pairwise(graphs))
    assert changes + 1 == len(set(graphs)) == len(here) / 5 < 30


def test_the_threads_are_as_before():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measured(Case("batch", "float32", (3, 4), ratio=1.0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_by_kernel_is_the_worst_of_each():
    case = Case("batch", "float32", (2, 3))
    found = [
        Measured(case, "auto: cpu", {"y": 0.1}, {"y": 3.0}),
        Measured(case, "eager", {"y": 0.3}, {"y": 3.0}),
        Measured(case, "auto: cpu", {"y": 0.2}, {"y": 1.0}),
    ]
    rows = [(row.label, row.ours, row.cases) for row in by_kernel(found)]
    assert rows == [(("auto: cpu",), {"y": 0.2}, 2), (("eager",), {"y": 0.3}, 1)]


def test_worst_is_the_largest_of_each_column():
    case = Case("batch", "float32", (2, 3))
    found = [
        Measured(case, "eager", {"y": 0.1, "dx": 0.9}, {"y": 3.0, "dx": 1.0}),
        Measured(case, "eager", {"y": 0.7}, {"y": float("inf")}),
    ]
    (row,) = worst(found, lambda each: (each.norm,))
    assert row.label == ("batch",)
    assert row.ours == {"y": 0.7, "dx": 0.9}
    assert row.torch == {"y": float("inf"), "dx": 1.0}
    assert row.cases == 2
    assert row.ok
    assert not worst([Measured(case, "eager", {"y": 1.01}, {"y": 0.0})], lambda each: (each.norm,))[
        0
    ].ok


def test_shapes_that_leave_one_value_a_mean_are_not_run():
    assert why_not("instance", (4, 3)) == (
        'every mean of "n c [s]" would be of one value, which has no variance'
    )
    assert "of one value" in why_not("batch", (1, 3))
    assert "of one value" in why_not("token", (4, 1, 5))
    assert "of one value" in why_not("switch", (1, 1))
    assert not why_not("switch", (1, 3))
    assert not why_not("ghost", (3, 3))
    assert not why_not("rms", (1, 1))
    assert [groups(channels) for channels in (1, 2, 3, 12, 64, 96)] == [1, 1, 1, 6, 32, 32]
