"""The experiments on classification: judges can refuse, mechanisms are what they are called."""

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from normalform.lab import train
from normalform.lab.arms import Arm
from normalform.lab.experiments import classify, contrast, leakage, precise_statistics
from normalform.lab.experiments.experiment import Experiment, Results
from normalform.lab.networks import STRIDE8
from normalform.lab.report.pictures import picture
from normalform.lab.train import Images, Outcome, Run

NAMES = ("small_batches", "instance_hurts", "contrast", "precise_statistics", "frozen_tail",
         "leakage", "switch_weights")  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {
    name: import_module(f"normalform.lab.experiments.{name}").EXPERIMENT for name in NAMES
}
NOISE = (-0.004, 0.001, 0.0, -0.001, 0.004)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 320 + 100 pictures: ten classes, each a spot of light at a place of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(420) % 10
    x = rng.uniform(0, 60, (420, 28, 28))
    for i, label in enumerate(y):
        x[i, 4 + 4 * (label // 2) :, 4 + 12 * (label % 2) :][:4, :4] += 150
    path = tmp_path_factory.mktemp("data") / "made.npz"
    np.savez(path, x_train=x[:320], y_train=y[:320], x_test=x[320:], y_test=y[320:])
    return str(path)


@pytest.fixture(scope="module")
def images(made: str) -> Images:
    return classify.images(made)


@pytest.fixture(scope="module")
def measured(made: str) -> Callable[[str], Results]:
    """The results of an experiment's quick settings with two seeds, on the pictures above."""
    known: dict[str, Results] = {}

    def run(name: str) -> Results:
        if name not in known:
            experiment = EXPERIMENTS[name]
            trials = experiment.trials({**experiment.quick, "data": made, "seeds": 2})
            runs, steps = [], []
            for trial in trials:
                found = trial.measure(seed=trial.seed, **trial.settings)
                who = {"arm": trial.arm, "seed": trial.seed}
                runs.append(who | dict(found.values))
                columns = zip(*found.steps.values(), strict=True)
                steps += [who | dict(zip(found.steps, row, strict=True)) for row in columns]
            known[name] = Results(runs, steps)
        return known[name]

    return run


def planted(values: dict[str, dict[str, float]], noise: Iterable[float] = NOISE) -> Results:
    """Runs whose values scatter a little, in each arm and value in another order of the seeds."""
    noise, rng = list(noise), np.random.default_rng(0)
    runs = [
        {"arm": arm, "seed": seed, **{key: found[key] + scatter[key][seed] for key in found}}
        for arm, found in values.items()
        for scatter in [{key: rng.permutation(noise) for key in found}]
        for seed in range(len(noise))
    ]
    return Results(runs, [])


def changed(good: dict[str, dict[str, float]], arm: str, **values: float):
    return good | {arm: good[arm] | values}


SMALL = {
    "batch, NBS 2": {"test": 0.48},
    "batch, NBS 32": {"test": 0.17},
    "switch, NBS 2": {"test": 0.18},
    "group": {"test": 0.19},
    "layer": {"test": 0.19},
}
INSTANCE = {
    "no norm": {"test": 0.22},
    "batch, NBS 32": {"test": 0.17},
    "layer": {"test": 0.18},
    "group": {"test": 0.19},
    "instance": {"test": 0.28},
}
CONTRAST = {
    "no norm": {"rise": 0.15, "disturbed": 0.37},
    "batch, NBS 32": {"rise": 0.30, "disturbed": 0.47},
    "layer": {"rise": 0.05, "disturbed": 0.24},
    "group": {"rise": 0.12, "disturbed": 0.31},
    "instance": {"rise": 0.02, "disturbed": 0.28},
}
PRECISE = {
    "SGD batch 256": {"moving": 0.25, "precise": 0.20, "excess": 0.05},
    "SGD batch 32": {"moving": 0.18, "precise": 0.18, "excess": 0.00},
}
FROZEN = {
    "batch, NBS 2": {"test": 0.45},
    "batch, NBS 2, frozen tail": {"test": 0.25},
    "batch, NBS 32": {"test": 0.17},
    "batch, NBS 32, frozen tail": {"test": 0.17},
}
LEAKAGE = {
    "batch, NBS 8, one class a block": {"train": 0.05, "test": 0.55, "gap": 0.50},
    "batch, NBS 8, classes mixed": {"train": 0.15, "test": 0.20, "gap": 0.05},
    "group, one class a block": {"train": 0.15, "test": 0.20, "gap": 0.05},
    "group, classes mixed": {"train": 0.15, "test": 0.20, "gap": 0.05},
}
SWITCH = {
    name: {"last_mean": a, "last_variance": b, "all_mean": c, "all_variance": d}
    for name, a, b, c, d in (
        ("switch, NBS 32", 0.7, 0.6, 0.5, 0.6),
        ("switch, NBS 2", 0.1, 0.1, 0.4, 0.3),
    )
}
JUDGED = {
    "small_batches": (SMALL, [
        changed(SMALL, "batch, NBS 32", test=0.39),
        changed(SMALL, "switch, NBS 2", test=0.39),
        changed(SMALL, "group", test=0.39),
        changed(SMALL, "layer", test=0.39),
    ]),
    "instance_hurts": (INSTANCE, [
        changed(INSTANCE, "no norm", test=0.24),
        changed(INSTANCE, "batch, NBS 32", test=0.24),
        changed(INSTANCE, "layer", test=0.24),
        changed(INSTANCE, "group", test=0.24),
        changed(INSTANCE, "instance", test=0.10),
    ]),
    "contrast": (CONTRAST, [
        changed(CONTRAST, "instance", disturbed=0.48),
        changed(CONTRAST, "no norm", rise=0.31),
        changed(CONTRAST, "group", rise=0.31),
        changed(CONTRAST, "no norm", rise=0.04),
        changed(CONTRAST, "group", rise=0.03),
        changed(CONTRAST, "layer", rise=0.13),
        changed(CONTRAST, "instance", rise=0.31),
    ]),
    "precise_statistics": (PRECISE, [
        changed(PRECISE, "SGD batch 256", excess=0.0),
        changed(PRECISE, "SGD batch 256", excess=-0.05),
        changed(PRECISE, "SGD batch 32", excess=0.06),
    ]),
    "frozen_tail": (FROZEN, [
        changed(FROZEN, "batch, NBS 2, frozen tail", test=0.42),
        changed(FROZEN, "batch, NBS 32, frozen tail", test=0.19),
    ]),
    "leakage": (LEAKAGE, [
        changed(LEAKAGE, "batch, NBS 8, one class a block", gap=0.09),
        changed(LEAKAGE, "batch, NBS 8, classes mixed", gap=0.45),
        changed(LEAKAGE, "group, one class a block", test=0.23),
        changed(LEAKAGE, "group, one class a block", test=0.17),
    ]),
    "switch_weights": (SWITCH, [
        changed(SWITCH, "switch, NBS 2", last_mean=0.72),
        changed(SWITCH, "switch, NBS 2", last_variance=0.62),
        changed(SWITCH, "switch, NBS 2", all_mean=0.1),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_passes_what_is_as_claimed(name):
    verdict = EXPERIMENTS[name].judge(planted(JUDGED[name][0]))
    assert verdict.met
    assert all(line.endswith("needed: met") for line in verdict.numbers)


@pytest.mark.parametrize(
    ("name", "case"), [(name, i) for name in NAMES for i in range(len(JUDGED[name][1]))]
)
def test_a_judge_refuses_what_is_not(name, case):
    verdict = EXPERIMENTS[name].judge(planted(JUDGED[name][1][case]))
    assert not verdict.met
    assert any(line.endswith("needed: not met") for line in verdict.numbers)


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_refuses_means_that_the_seeds_do_not_bear_out(name):
    """The means are as claimed, the seeds scatter; or there is one seed."""
    good = JUDGED[name][0]
    wild = planted(good, (-0.9, 0.9, 0.3, -0.3, 0.0))
    assert not EXPERIMENTS[name].judge(wild).met
    single = EXPERIMENTS[name].judge(planted(good, [0.0]))
    assert not single.met
    assert all("one seed, no interval" in line for line in single.numbers)


def test_intervals_are_students():
    values = [0.31, 0.28, 0.35, 0.30]
    mean, low, high = classify.interval(values)
    expected = stats.t.interval(0.95, 3, 100 * np.mean(values), 100 * stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert mean == pytest.approx(31)
    assert classify.more_than(low - 0.1, "it", values).met
    assert not classify.more_than(low + 0.1, "it", values).met
    assert classify.less_than(high + 0.1, "it", values).met
    assert not classify.less_than(high - 0.1, "it", values).met
    for sign in (1, -1):
        signed = [sign * value for value in values]
        assert classify.within(high + 0.1, "it", signed).met
        assert not classify.within(high - 0.1, "it", signed).met


def test_differences_are_of_equal_seeds():
    """Arms that scatter together differ by little noise: 20 points, whichever seed."""
    runs = [{"arm": arm, "seed": s, "test": base + 0.1 * s}
            for arm, base in (("a", 0.4), ("b", 0.2)) for s in range(4)]  # fmt: skip
    found = classify.above(Results(runs[::-1], []), "a", "b", "test", 19)
    assert found.met
    assert "a (55.0 %) less b (35.0 %): +20.0 points (95 % +20.0 to +20.0)" in found.line


def test_a_training_that_diverges_gets_everything_wrong():
    diverged = Outcome("diverged", test_error=0.3, train_error=float("nan"))
    assert set(classify.errors(diverged).values()) == {1.0}
    plain = Outcome("ok", test_error=0.3, train_error=0.2)
    assert classify.errors(plain) == {"train": 0.2, "test": 0.3, "recalibrated": 0.3}
    tracked = replace(plain, test_error_recalibrated=0.25)
    assert classify.errors(tracked)["recalibrated"] == 0.25
    with pytest.raises(ValueError, match="conv4 has 1x1 maps"):
        classify.errors(Outcome("impossible", "conv4 has 1x1 maps"))


@pytest.mark.parametrize("name", NAMES)
def test_trials_are_pairs_and_fit_their_judge(name):
    """Every seed has every arm; default, quick and full differ in numbers only."""
    experiment = EXPERIMENTS[name]
    for settings in (experiment.default, experiment.quick, experiment.full):
        trials = experiment.trials(settings)
        arms = list(dict.fromkeys(trial.arm for trial in trials))
        pairs = [(trial.seed, trial.arm) for trial in trials]
        assert pairs == list(product(range(settings["seeds"]), arms))
        assert set(JUDGED[name][0]) <= set(arms)
        assert all(trial.settings["epochs"] == settings["epochs"] for trial in trials)
    assert experiment.default.keys() == experiment.quick.keys() == experiment.full.keys()
    assert experiment.default["seeds"] >= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_gives_errors_and_shares(name, measured):
    results = measured(name)
    for row in (*results.runs, *results.steps):
        signed = {"rise", "excess", "gap"} & row.keys()
        shares = [v for k, v in row.items() if isinstance(v, float) and k != "strength"]
        assert shares
        assert all(-1 <= value <= 1 for value in shares)
        assert all(row[key] >= 0 for key in row.keys() - signed - {"arm"}
                   if not isinstance(row[key], str))  # fmt: skip
    verdict = EXPERIMENTS[name].judge(results)
    assert all(re.search(r"95 % [+-][\d.]+ to [+-][\d.]+\)", line) for line in verdict.numbers)


AXES = {
    "small_batches": ["error, %", "NBS: images that share statistics", "batch norm", "group"],
    "instance_hurts": ["test error, %", "instance", "no norm"],
    "contrast": ["test error, %", "strength s of the nuisance", "instance"],
    "precise_statistics": ["test error, %", "epoch", "moving average", "precise statistics"],
    "frozen_tail": ["test error, %", "epoch", "frozen tail", "NBS 2"],
    "leakage": ["error, %", "one class a block", "classes mixed", "training"],
    "switch_weights": ["share, %", "NBS", "instance", "layer 3, 4x4"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_names_what_it_shows_and_fits_a_phone(name, measured):
    drawn = picture(EXPERIMENTS[name].picture(measured(name)))
    said = re.findall(r">([^<>]+)</(?:text|tspan)>", drawn.svg)
    assert set(AXES[name]) <= set(said)
    assert 250 < drawn.width <= 360


SHOWN = {  # the rows, and which of their values are drawn
    "small_batches": ("runs", ("train", "test", "recalibrated")),
    "instance_hurts": ("runs", ("test",)),
    "contrast": ("steps", ("error",)),
    "precise_statistics": ("steps", ("moving", "precise")),
    "frozen_tail": ("steps", ("test",)),
    "leakage": ("runs", ("train", "test")),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_draws_every_value_in_percent(name, measured):
    results = measured(name)
    table, keys = SHOWN[name]
    drawn = np.array([*numbers(EXPERIMENTS[name].picture(results).to_dict())])
    for row in getattr(results, table):
        shown = not (name == "small_batches" and row["arm"] in ("group", "layer"))
        assert all(np.isclose(drawn, 100 * row[key]).any() for key in keys if shown)
    if name == "small_batches":
        assert all(
            np.isclose(drawn, 100 * results.mean(n, "test")).any() for n in ("group", "layer")
        )


def test_the_picture_of_the_switch_weights_draws_their_means(measured):
    results = measured("switch_weights")
    spec = EXPERIMENTS["switch_weights"].picture(results).to_dict()
    drawn = [row for part in spec["vconcat"] for row in part["data"]["values"]]
    assert len(drawn) == 2 * 2 * 3 * 3
    for nbs, layer in product((32, 2), (1, 2, 3)):
        bars = [r for r in drawn if r["nbs"] == nbs and r["layer"].startswith(f"layer {layer},")]
        assert sum(row["percent"] for row in bars) == pytest.approx(200)
        wanted = [
            row["weight"]
            for row in results.steps_of(f"switch, NBS {nbs}")
            if (row["layer"], row["statistic"], row["branch"]) == (layer, "mean", "batch")
        ]
        batch = next(row for row in bars if row["branch"] == "batch")
        assert batch["percent"] == pytest.approx(100 * np.mean(wanted))


def numbers(value: Any) -> Iterable[float]:
    """Every number in a specification."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def test_small_batches_reports_what_training_found(made, images):
    from normalform.lab.experiments import small_batches

    settings = {"data": made, "widths": [16, 32, 32], "epochs": 2, "lr": 0.05}
    found = small_batches.measure(3, norm="batch", nbs=8, **settings).values
    outcome = train.train(Run(STRIDE8, Arm("batch", 8), 3, 2, 0.05), images)
    assert found["train"] == outcome.details["train_error"][-1]
    assert found["test"] == (~outcome.details["correct"]).mean()
    assert found["recalibrated"] == outcome.test_error_recalibrated
    assert len({*found.values()}) == 4


@pytest.mark.parametrize(("size", "nbs"), [(256, 256), (32, 8)])
def test_recalibrated_statistics_are_the_populations(images, size, nbs):
    """In every layer: the mean of the means, and of the unbiased variances, of all the blocks."""
    run = Run(STRIDE8, Arm("batch", nbs, size), 0, 1, 0.05)
    network = train.build(run, images)
    list(train.epochs(run, network, images))
    assert train.recalibrate(run, network, images)
    x = images.x_train[next(train.batches(run, images)).flatten()].double()
    twin = copy.deepcopy(network).double()
    for conv, norm in zip(twin.convs, twin.norms, strict=True):
        with torch.no_grad():
            blocks = conv(x).unflatten(0, (-1, nbs)).transpose(1, 2).flatten(2)
            mean, var = blocks.mean(2), blocks.var(2)
            assert torch.allclose(norm.running_mean, mean.mean(0), rtol=1e-4, atol=1e-5)
            assert torch.allclose(norm.running_var, var.mean(0), rtol=1e-4)
            shape, scale = conv(x).shape, (blocks.var(2, correction=0) + norm.eps).sqrt()
            y = ((blocks - mean[..., None]) / scale[..., None]).unflatten(2, (nbs, -1))
            y = y.transpose(1, 2).reshape(shape)
            x = (y * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()


def test_precise_statistics_are_measured_beside_the_training(made, images, monkeypatch):
    """The moving average as it is, the twin by the population; the training goes on as ever."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    judge = train.judge

    def noting(network, images):
        seen.append((network.norms[0].running_mean.clone(), network.convs[0].weight.clone()))
        return judge(network, images)

    monkeypatch.setattr(train, "judge", noting)
    settings = {"data": made, "widths": [16, 32, 32], "epochs": 3, "lr": 0.05}
    found = precise_statistics.measure(0, norm="batch", nbs=256, sgd_batch=256, **settings)
    monkeypatch.undo()
    run = Run(STRIDE8, Arm("batch", 256, 256), 0, 3, 0.05)
    plain = train.build(run, images)
    alone = [judge(plain, images).mean() for _ in train.epochs(run, plain, images)]
    assert found.steps["moving"] == alone
    assert run.peak_lr == 0.4
    used = images.x_train[next(train.batches(run, images)).flatten()]
    moving = torch.zeros(16)
    for (after, weight), (precise, same) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(weight, same)
        population = torch.conv2d(used, weight, stride=2, padding=1).mean((0, 2, 3))
        assert torch.allclose(precise, population, atol=1e-5)
        assert not torch.allclose(after, population, atol=1e-3)
        assert not torch.equal(after, moving)
        moving = after
    half = found.steps["moving"][1] - found.steps["precise"][1]
    assert found.values["excess"] == pytest.approx(half)


def test_the_middle_third():
    assert [*range(1, 13)][precise_statistics.middle(12)] == [5, 6, 7, 8]
    assert [*range(1, 4)][precise_statistics.middle(3)] == [2]
    assert [*range(1, 2)][precise_statistics.middle(1)] == [1]


def test_a_batch_that_the_training_set_does_not_fill_is_refused(images):
    run = Run(STRIDE8, Arm("batch", 512, 512), 0, 1, 0.05)
    with pytest.raises(ValueError, match="320 training images do not fill an SGD batch of 512"):
        next(train.batches(run, images))


def test_pictures_under_the_nuisance_are_gain_times_x_plus_offset(images):
    """Gain and offset are found again from the pixels of each picture."""
    found = contrast.disturbed(images, 1.5, seed=0)
    x, y = (part.flatten(1).double().numpy() for part in (images.x_test, found.x_test))
    gain, offset = np.array([np.polyfit(a, b, 1) for a, b in zip(x, y, strict=True)]).T
    assert np.abs(gain[:, None] * x + offset[:, None] - y).max() < 1e-5
    for values in (np.log2(gain), offset):
        assert len({*values}) == 100
        assert np.abs(values).max() <= 1.5
        assert stats.kstest(values, "uniform", (-1.5, 3)).pvalue > 0.01
    assert abs(np.corrcoef(np.log2(gain), offset)[0, 1]) < 0.3
    assert found.x_train is images.x_train
    assert found.y_test is images.y_test
    assert torch.equal(contrast.disturbed(images, 0.0, 0).x_test, images.x_test)
    assert torch.equal(contrast.disturbed(images, 1.5, 0).x_test, found.x_test)
    assert not torch.equal(contrast.disturbed(images, 1.5, 1).x_test, found.x_test)


def test_contrast_is_judged_at_strength_one(measured):
    results = measured("contrast")
    for run in results.runs:
        steps = {
            row["strength"]: row["error"]
            for row in results.steps_of(run["arm"])
            if row["seed"] == run["seed"]
        }
        assert run["clean"] == steps[0.0]
        assert run["disturbed"] == steps[1.0]
        assert run["rise"] == pytest.approx(steps[1.0] - steps[0.0])


def test_frozen_norms_use_their_running_statistics_and_keep_them(images):
    """Watched at the norms: the formula of evaluation in the tail, other outputs before."""
    run = Run(STRIDE8, Arm("batch", 8), 0, 3, 0.05)
    network = train.build(run, images)
    norm: Any = network.norms[1]
    by_running: list[bool] = []
    statistics: list[torch.Tensor] = []

    def note(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        mean, var, weight, bias = (
            value.detach()[:, None, None]
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        y = (inputs[0] - mean) / (var + norm.eps).sqrt() * weight + bias
        by_running.append(torch.allclose(y, output, atol=1e-4))
        statistics.append(torch.cat([norm.running_mean, norm.running_var]).clone())

    norm.register_forward_hook(note)
    weights = [
        torch.cat([norm.weight, norm.bias]).clone().detach()
        for _ in train.epochs(run, network, images, frozen=1)
    ]
    assert by_running == [False] * 20 + [True] * 10
    assert all(torch.equal(value, statistics[19]) for value in statistics[20:])
    assert len({value.sum().item() for value in statistics[:20]}) == 20
    assert norm.num_batches_tracked == 20
    assert (weights[2] != weights[1]).all()


def test_blocks_hold_one_class_or_are_mixed(images):
    """Both arms see the same images in each step; only who shares statistics differs."""
    run = Run(STRIDE8, Arm("batch", 8), 5, 2, 0.05)
    labels = images.y_train.clone()
    uneven = copy.copy(images)
    uneven.y_train = torch.where(labels == 9, 3, labels)  # 64 of one class, none of another
    for data in (images, uneven):
        make = partial(leakage.orders, run, data, 8)
        epochs = list(zip(make(one_class=True), make(one_class=False), strict=True))
        assert len(epochs) == 2
        for one_class, mixed in epochs:
            assert one_class.shape == mixed.shape == (10, 32)
            assert torch.equal(one_class.sort(1).values, mixed.sort(1).values)
            assert len(one_class.unique()) == 320
            blocks, others = (data.y_train[order].reshape(-1, 8) for order in (one_class, mixed))
            assert (blocks == blocks[:, :1]).all()
            assert (others == others[:, :1]).all(1).float().mean() < 0.3
        assert not torch.equal(epochs[0][0], epochs[1][0])


def test_what_fills_no_block_of_its_class_is_left_out(images):
    run = Run(STRIDE8, Arm("batch", 8), 0, 1, 0.05)
    part = copy.copy(images)
    part.y_train = torch.where(torch.arange(320) < 13, 0, 1)  # a block and 5; 38 blocks and 3
    (order,) = leakage.orders(run, part, 8, one_class=True)
    assert order.shape == (9, 32)
    assert (part.y_train[order].reshape(-1, 8).float().std(1) == 0).all()


def test_statistics_of_a_class_are_shared_in_training(made, images, monkeypatch):
    """The orders reach the norms: with one class a block every block of labels is constant."""
    seen: list[torch.Tensor] = []
    loss = train.loss
    monkeypatch.setattr(
        train, "loss", lambda metric, outputs, y: (seen.append(y), loss(metric, outputs, y))[1]
    )
    settings = {"data": made, "widths": [16, 32, 32], "epochs": 1, "lr": 0.05}
    for one_class in (True, False):
        seen.clear()
        leakage.measure(0, 8, one_class=one_class, norm="batch", nbs=8, **settings)
        blocks = torch.cat(seen).reshape(-1, 8)
        assert len(blocks) == 40
        assert (blocks == blocks[:, :1]).all() == one_class


def test_switch_weights_are_the_softmax_of_what_was_trained(made, images, measured):
    results = measured("switch_weights")
    run = Run(STRIDE8, Arm("switch", 2), 1, 1, 0.05)
    network = train.build(run, images)
    list(train.epochs(run, network, images))
    values = next(run for run in results.of("switch, NBS 2") if run["seed"] == 1)
    rows = [row for row in results.steps_of("switch, NBS 2") if row["seed"] == 1]
    for statistic, name in (("mean", "mean_weight"), ("variance", "var_weight")):
        logits = np.array([getattr(norm, name).detach().numpy() for norm in network.norms])
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weights = [row["weight"] for row in rows if row["statistic"] == statistic]
        assert np.allclose(np.reshape(weights, (3, 3)), expected, atol=1e-6)
        assert values[f"last_{statistic}"] == pytest.approx(expected[-1, 2], abs=1e-6)
        assert values[f"all_{statistic}"] == pytest.approx(expected[:, 2].mean(), abs=1e-6)
    assert [row["branch"] for row in rows[:3]] == ["instance", "layer", "batch"]
    assert [row["map"] for row in rows[:9:3]] == ["14x14", "7x7", "4x4"]
