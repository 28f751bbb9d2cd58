"""The experiments beyond the probe network: what they measure, and that their rules can fail."""

import copy
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normalform.lab.experiments import (
    deep,
    dense_prediction,
    depth,
    filters,
    recurrent,
    scenes,
    style,
)
from normalform.lab.experiments.descent import batches, descend
from normalform.lab.experiments.experiment import Results

EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (dense_prediction, recurrent, depth, style)
}


# ---------------------------------------------------------------- rules


def planted(arms, jitter=0.002):
    """Results of four seeds that scatter a little about the given values."""
    runs = [
        {"arm": arm, "seed": seed, **{key: v + jitter * (seed - 1.5) * i for key, v in own.items()}}
        for i, (arm, own) in enumerate(arms.items())
        for seed in range(4)
    ]
    return Results(runs, [])


DENSE = {
    "group": {"running": 0.45},
    "batch": {"running": 0.40},
    dense_prediction.LARGE: {"running": 0.47},
    dense_prediction.ACCUMULATED: {"running": 0.41},
}
RECURRENT = {
    "layer, SGD batch 32": {"test": 0.20, "longer": 0.40},
    "layer, SGD batch 4": {"test": 0.21, "longer": 0.40},
    "batch, SGD batch 32": {"test": 0.20, "longer": 0.60},
    "batch, SGD batch 4": {"test": 0.30, "longer": 0.60},
}
NORMED = {"ratio": 0.8, "train": 0.30, "growth": 1.0}
DEPTH = {
    "no norm": {"ratio": 1e-9, "train": 0.90, "growth": 0.4},
    "batch": {**NORMED, "growth": 1.21},
    "layer": NORMED,
    "group": NORMED,
    "instance": NORMED,
}
STYLE = {
    style.INSTANCE: {"style": 0.80, "found": 0.97, "left": 0.30},
    style.POOLED: {"style": 0.30, "found": 0.97, "left": 0.60},
}
PASSES = {"dense-prediction": DENSE, "recurrent": RECURRENT, "depth": DEPTH, "style": STYLE}
FAILS = {  # one value changed, the condition that must see it
    "group_no_better": ("dense-prediction", "group", "running", 0.405, 0),
    "group_worse": ("dense-prediction", "group", "running", 0.35, 0),
    "accumulating_repairs": ("dense-prediction", dense_prediction.ACCUMULATED, "running", 0.47, 1),
    "layer_untrained_at_32": ("recurrent", "layer, SGD batch 32", "test", 0.35, 0),
    "layer_untrained_at_4": ("recurrent", "layer, SGD batch 4", "test", 0.35, 1),
    "layer_loses": ("recurrent", "layer, SGD batch 4", "test", 0.25, 2),
    "batch_loses_no_more": ("recurrent", "batch, SGD batch 4", "test", 0.21, 3),
    "batch_stands_longer": ("recurrent", "batch, SGD batch 32", "longer", 0.42, 4),
    "nothing_fades": ("depth", "no norm", "ratio", 0.5, 0),
    "batch_fades": ("depth", "batch", "ratio", 0.01, 1),
    "instance_explodes": ("depth", "instance", "ratio", 20.0, 4),
    "plain_trains": ("depth", "no norm", "train", 0.60, 5),
    "layer_does_not_train": ("depth", "layer", "train", 0.85, 7),
    "gradient_steady": ("depth", "batch", "growth", 1.0, 10),
    "style_stays": ("style", style.INSTANCE, "style", 0.50, 0),
    "batch_does_as_well": ("style", style.POOLED, "style", 0.75, 1),
    "content_lost": ("style", style.INSTANCE, "found", 0.80, 2),
    "distance_left": ("style", style.INSTANCE, "left", 0.60, 3),
}


def judged(name, arms, **options):
    return EXPERIMENTS[name].judge(planted(arms, **options))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_rule_is_met_by_results_that_bear_the_claim_out(name: str):
    verdict = judged(name, PASSES[name])
    assert verdict.met, verdict.numbers
    assert all(line.endswith(": met") for line in verdict.numbers)


@pytest.mark.parametrize(("name", "arm", "key", "value", "line"), FAILS.values(), ids=FAILS)
def test_a_rule_fails_by_the_condition_that_is_broken(name, arm, key, value, line):
    arms = copy.deepcopy(PASSES[name])
    arms[arm][key] = value
    verdict = judged(name, arms)
    assert not verdict.met
    assert verdict.numbers[line].endswith("not met"), verdict.numbers


@pytest.mark.parametrize("name", ["dense-prediction", "recurrent", "style"])
def test_a_mean_that_seeds_disagree_about_is_not_enough(name: str):
    verdict = judged(name, PASSES[name], jitter=0.2)
    assert not verdict.met


# ---------------------------------------------------------------- the experiments as a whole


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_from_end_to_end(name: str):
    experiment = EXPERIMENTS[name]
    runs, steps = [], []
    for trial in experiment.trials(experiment.quick):
        settings = json.loads(json.dumps(trial.settings))
        values, columns = trial.measure(seed=trial.seed, **settings)
        runs.append({"arm": trial.arm, "seed": trial.seed, **values})
        lengths = {len(column) for column in columns.values()}
        assert len(lengths) <= 1
        steps += [
            {"arm": trial.arm, "seed": trial.seed, **{k: v[i] for k, v in columns.items()}}
            for i in range(max(lengths, default=0))
        ]
        assert all(math.isfinite(v) for v in values.values()), (trial.arm, values)
    results = Results(runs, steps)
    assert len(experiment.judge(results).numbers) >= 2
    drawn = json.dumps(experiment.picture(results).to_dict())
    for arm in {trial.arm for trial in experiment.trials(experiment.quick)}:
        assert f'"{arm}"' in drawn, f"{arm} is not in the picture"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_settings_differ_in_numbers_alone(name: str):
    experiment = EXPERIMENTS[name]
    default, quick, full = experiment.default, experiment.quick, experiment.full
    assert set(default) == set(quick) == set(full)
    arms = [{t.arm for t in experiment.trials(chosen)} for chosen in (default, quick, full)]
    assert arms[0] == arms[1] == arms[2]
    assert len(experiment.trials(default)) == default["seeds"] * len(arms[0])


def test_equal_seeds_give_equal_bits_and_others_do_not():
    tiny = {"norm": "batch", "batch": 4, "hidden": 8, "epochs": 1, "lr": 0.05, "images": [64, 50]}
    first, second, other = (recurrent.measure(seed=seed, **tiny) for seed in (1, 1, 2))
    assert first == second
    assert first.values["loss"] != other.values["loss"]


# ---------------------------------------------------------------- descent


class Slope(nn.Module):
    """Its loss is its one parameter, so that the gradient is always one."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(("accumulate", "longest"), [(1, math.inf), (4, math.inf), (1, 0.25)])
def test_descent_is_momentum_along_a_cosine(accumulate: int, longest: float):
    network = Slope()
    order = batches(0, samples=64, epochs=3, size=4)
    training = descend(
        network, lambda _: network.place.sum(), order, 0.1, accumulate=accumulate, longest=longest
    )
    for _ in training:
        pass
    place, speed, steps = 0.0, 0.0, 3 * 16 // accumulate
    for step in range(steps):
        speed = 0.9 * speed + min(1.0, longest)
        place -= 0.1 * (1 + math.cos(math.pi * step / steps)) / 2 * speed
    assert network.place.item() == pytest.approx(place, rel=1e-5)


def test_every_arm_sees_the_same_samples_in_the_same_order():
    small, large = (batches(3, samples=70, epochs=2, size=size) for size in (2, 32))
    assert torch.equal(small.flatten(1), large.flatten(1))
    assert not torch.equal(small, batches(4, samples=70, epochs=2, size=2))
    assert sorted(set(small[0].flatten().tolist())) == sorted(small[0].flatten().tolist())


def test_batches_that_do_not_fill_a_step_are_refused():
    network = Slope()
    order = batches(0, samples=32, epochs=1, size=2)
    with pytest.raises(ValueError, match="16 batches an epoch do not divide into steps of 3"):
        next(descend(network, lambda _: network.place.sum(), order, 0.1, accumulate=3))


def one_step(norm: str, size: int, accumulate: int) -> torch.Tensor:
    """All parameters of the U-Net after one step on four scenes."""
    network = dense_prediction.build(0, norm, [8, 16])
    images = dense_prediction.scene_images(32, 2, 16)
    order = torch.arange(4).reshape(1, -1, size)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(images.x_train[batch]), images.y_train[batch])

    next(descend(network, loss, order, 0.5, accumulate=accumulate))
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("norm", ["none", "group:4", "layer", "instance"])
def test_accumulated_gradients_are_those_of_the_large_batch(norm: str):
    moved = (one_step(norm, 4, 1) - one_step(norm, 4, 1)).abs().max()
    assert moved == 0
    assert (one_step(norm, 2, 2) - one_step(norm, 4, 1)).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["batch", "switch"])
def test_accumulating_does_not_make_the_statistics_of_a_large_batch(norm: str):
    assert (one_step(norm, 2, 2) - one_step(norm, 4, 1)).abs().max() > 1e-3


# ---------------------------------------------------------------- dense prediction


class Fixed(nn.Module):
    """Answers each scene with the class its pixels name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.one_hot(x[:, 0].long(), 3).movedim(-1, 1).float()


@pytest.mark.parametrize("size", [1, 2])
def test_mean_intersection_over_union_by_hand(size: int):
    answers = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [1, 1]]])
    labels = torch.tensor([[[0, 0], [0, 1]], [[0, 1], [1, 0]]])
    images = SimpleNamespace(x_test=answers[:, None].float(), y_test=labels)
    # class 0: both 3, either 5; class 1: both 3, either 5; class 2 nowhere
    assert dense_prediction.miou(Fixed(), images, size) == pytest.approx(3 / 5)
    labels[0, 0, 0] = 2  # class 0: both 2, either 5; class 1: 3 of 5; class 2: 0 of 1
    assert dense_prediction.miou(Fixed(), images, size) == pytest.approx((2 / 5 + 3 / 5 + 0) / 3)


def running_means(monkeypatch: pytest.MonkeyPatch, **settings) -> list[torch.Tensor]:
    """The first norm's running mean at the end of each epoch."""
    seen: list[torch.Tensor] = []
    original = dense_prediction.miou

    def note(network, images, size):
        seen.append(network.norms[0].running_mean.clone())
        return original(network, images, size)

    monkeypatch.setattr(dense_prediction, "miou", note)
    dense_prediction.measure(
        seed=0, norm="batch", scenes=[32, 4], pixels=16, widths=[4, 8], epochs=4, lr=0.1, **settings
    )
    return seen[:4]


def test_frozen_norms_leave_their_statistics_alone(monkeypatch: pytest.MonkeyPatch):
    first, second, third, fourth = running_means(monkeypatch, frozen=True)
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert torch.equal(third, fourth)


def test_norms_that_are_not_frozen_go_on_counting(monkeypatch: pytest.MonkeyPatch):
    means = running_means(monkeypatch)
    assert all(not torch.equal(a, b) for a, b in pairwise(means))


def test_only_norms_of_the_batch_care_which_statistics_are_used():
    small = {"scenes": [32, 8], "pixels": 16, "widths": [4, 8], "epochs": 1, "lr": 0.5}
    group = dense_prediction.measure(seed=0, norm="group:4", **small).values
    batch = dense_prediction.measure(seed=0, norm="batch", **small).values
    assert group["running"] == group["by_batch"]
    assert batch["running"] != batch["by_batch"]


def test_a_pixel_has_the_class_of_what_is_seen_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes, "GAIN", (1, 1))
    monkeypatch.setattr(scenes, "NOISE", 0)
    monkeypatch.setattr(scenes, "_ground", lambda size, rng: np.zeros((size, size)))
    labels = np.arange(10)
    grey = (1 + labels) / 10  # each label's garment is of one grey
    pictures = np.zeros((10, 28, 28))
    pictures[:, 4:20, 6:22] = grey[:, None, None]
    x, y = scenes.scenes(pictures, labels, 40, 32, np.random.default_rng(0))
    garment = np.rint(10 * x[:, 0]).astype(int)
    expected = np.where(garment > 0, scenes.KINDS[garment - 1], 0)
    assert np.array_equal(y, expected)
    assert set(np.unique(y)) == {0, 1, 2, 3, 4}


def test_kinds_agree_with_the_names_of_the_classes():
    names = {"T-shirt/top": 1, "Trouser": 2, "Pullover": 1, "Dress": 1, "Coat": 1, "Sandal": 3,
             "Shirt": 1, "Sneaker": 3, "Bag": 4, "Ankle boot": 3}  # fmt: skip
    data = dense_prediction.load("fashion")
    assert [names[name] for name in data.classes] == scenes.KINDS.tolist()


# ---------------------------------------------------------------- recurrent


def by_hand(network: recurrent.Recurrent, x: np.ndarray, normalize) -> np.ndarray:
    """The logits, with NumPy; ``normalize`` is called with the summed inputs and the step."""
    u, w, read = (
        layer.weight.detach().double().numpy()
        for layer in (network.inputs, network.hidden, network.read)
    )
    state = np.zeros((len(x), len(w)))
    for step in range(x.shape[1]):
        state = np.tanh(normalize(x[:, step] @ u.T + state @ w.T, step))
    return state @ read.T + network.read.bias.detach().double().numpy()


def make(norm: str, steps: int = 5) -> recurrent.Recurrent:
    network = recurrent.Recurrent(norm, 3, 8, 4, steps)
    recurrent.initialize(network, np.random.default_rng(0))
    for parameter in network.norm.parameters():
        parameter.data += 0.3 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    return network


def test_batch_norm_keeps_statistics_of_each_step_and_the_last_ones_beyond():
    network = make("batch")
    weight, bias = (p.detach().double().numpy() for p in (network.norm.weight, network.norm.bias))
    x = np.random.default_rng(1).standard_normal((6, 5, 3))
    means, variances = np.zeros((5, 8)), np.ones((5, 8))

    def training(summed, step):
        mean, var = summed.mean(0), summed.var(0)
        means[step] = 0.9 * means[step] + 0.1 * mean
        variances[step] = 0.9 * variances[step] + 0.1 * var * 6 / 5
        return weight * (summed - mean) / np.sqrt(var + 1e-5) + bias

    expected = by_hand(network, x, training)
    network.train()
    found = network(torch.as_tensor(x).float()).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(network.norm.running_mean.numpy(), means, atol=2e-6)
    np.testing.assert_allclose(network.norm.running_var.numpy(), variances, atol=2e-6)

    def evaluation(summed, step):
        known = min(step, 4)
        return weight * (summed - means[known]) / np.sqrt(variances[known] + 1e-5) + bias

    longer = np.random.default_rng(2).standard_normal((3, 9, 3))
    network.eval()
    found = network(torch.as_tensor(longer).float()).detach().numpy()
    np.testing.assert_allclose(found, by_hand(network, longer, evaluation), atol=2e-5)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_layer_norm_and_no_norm_do_the_same_at_every_step(norm: str):
    network = make(norm)
    parameters = {k: p.detach().double().numpy() for k, p in network.norm.named_parameters()}

    def normalize(summed, step):
        if norm == "layer":
            mean, var = summed.mean(1, keepdims=True), summed.var(1, keepdims=True)
            summed = parameters["weight"] * (summed - mean) / np.sqrt(var + 1e-5)
        return summed + parameters["bias"]

    x = np.random.default_rng(1).standard_normal((6, 9, 3))
    found = network(torch.as_tensor(x).float()).detach().numpy()
    np.testing.assert_allclose(found, by_hand(network, x, normalize), atol=2e-5)


def test_all_norms_start_from_the_same_orthogonal_weights():
    first, *others = (recurrent.Recurrent(norm, 3, 8, 4, 5) for norm in recurrent.NORMS)
    for network in (first, *others):
        recurrent.initialize(network, np.random.default_rng(7))
    w = first.hidden.weight.detach().double()
    assert (w @ w.T - torch.eye(8)).abs().max() < 1e-6
    for other in others:
        for name in ("inputs", "hidden", "read"):
            assert torch.equal(getattr(first, name).weight, getattr(other, name).weight)


def test_sequences_are_rows_of_the_pictures():
    data = recurrent.sequences(64, 50)
    whole = recurrent.load("fashion").standardized()[0]
    first = np.random.default_rng(0).permutation(2000)[0]
    rows = whole[first, 0].reshape(14, 2, 14, 2).mean((1, 3))
    np.testing.assert_allclose(data.x_train[0].numpy(), rows, atol=1e-6)


# ---------------------------------------------------------------- depth


class Linear:
    """Square matrices in a row, each entry of this deviation over the root of the width."""

    def __init__(self, layers: int, width: int, deviation: float):
        draw = torch.Generator().manual_seed(0)
        self.weights = [
            deviation / width**0.5 * torch.randn(width, width, generator=draw)
            for _ in range(layers)
        ]

    def activations(self, x):
        found = [x]
        for weight in self.weights:
            found.append(found[-1] @ weight.T)
            found[-1].requires_grad_()
        return found[1:]

    def read(self, last):
        return last[:, :2]


@pytest.mark.parametrize("deviation", [0.7, 1.3])
def test_spreads_of_a_linear_network_are_powers(deviation: float):
    layers, width = 6, 600
    network = Linear(layers, width, deviation)
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = deep.spread(network, x, torch.arange(200) % 2)
    powers = deviation ** np.arange(1, layers + 1)
    np.testing.assert_allclose(found.activation, powers, rtol=0.06)
    gradients = found.gradient[:-1] / found.gradient[1:]
    # The last gradient meets two outputs alone; from there each layer multiplies by the deviation.
    np.testing.assert_allclose(gradients, deviation, rtol=0.15)
    assert deep.growth(found.gradient) == pytest.approx(deviation, rel=0.05)
    # Independent inputs stay apart: nothing is common to all samples.
    np.testing.assert_allclose(found.apart, 1, atol=0.01)


def test_what_all_samples_have_in_common_does_not_set_them_apart():
    class Shifted(Linear):
        def activations(self, x):
            return [a + 5 * torch.linspace(-1, 1, 50) for a in super().activations(x)]

    x = torch.randn(400, 50, generator=torch.Generator().manual_seed(1))
    found = deep.spread(Shifted(1, 50, 0.5), x, torch.arange(400) % 2)
    common = 5 * np.linspace(-1, 1, 50).std()
    assert found.apart[0] == pytest.approx(0.5 / math.hypot(0.5, common), rel=0.05)


def start(norm: str, gain: float) -> np.ndarray:
    """Activations by layer of a new deep network."""
    images = depth.fashion(64)
    network = deep.Deep(12, 32, depth.Arm(norm, 32).norm_layer(), 10, bias=norm == "none")
    deep.initialize(network, np.random.default_rng(0), gain)
    return deep.spread(network, images.x_train, images.y_train).activation


def test_without_norm_the_scale_follows_the_initial_weights():
    # ReLU halves the second moment, so a layer multiplies the deviation by sqrt(gain / 2), and on
    # 7x7 maps the zeros around them make up all but (19 / 21)^2 of what a convolution sees.
    torch_s, he_s = start("none", depth.TORCH), start("none", depth.HE)
    fall = (torch_s[-1] / torch_s[2]) ** (1 / 9)
    assert fall == pytest.approx(19 / 21 * math.sqrt(1 / 6), rel=0.1)
    # Biases are zero, so scaling every weight scales what each layer gives by a known power.
    np.testing.assert_allclose(he_s / torch_s, math.sqrt(6) ** np.arange(1, 13), rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "layer", "group:4", "instance"])
def test_with_a_norm_the_initial_scale_does_not_matter(norm: str):
    torch_s, he_s = start(norm, depth.TORCH), start(norm, depth.HE)
    np.testing.assert_allclose(torch_s, he_s, rtol=0.02)
    half_normal = math.sqrt(1 / 2 - 1 / (2 * math.pi))  # deviation of a rectified standard normal
    np.testing.assert_allclose(torch_s, half_normal, rtol=0.25)


def test_depth_records_every_layer_at_every_epoch():
    small = {"depth": 6, "width": 4, "epochs": 2, "lr": 0.05, "pictures": 64}
    found = depth.measure(seed=0, norm="batch", gain=depth.TORCH, **small)
    places = list(zip(found.steps["epoch"], found.steps["layer"], strict=True))
    assert places == [(epoch, layer) for epoch in range(3) for layer in range(1, 7)]
    first = found.steps["activation"][:6]
    assert found.values["ratio"] == first[-1] / first[0]
    assert first != found.steps["activation"][-6:], "nothing was trained between the records"


# ---------------------------------------------------------------- style


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_adain_gives_exactly_the_mean_and_deviation_of_the_style():
    content, other = noise(3, 4, 8, 8), 5 + 3 * noise(3, 4, 8, 8, seed=1)
    made = filters.adain(content, other).numpy()
    np.testing.assert_allclose(made.mean((2, 3)), other.numpy().mean((2, 3)), rtol=1e-12)
    np.testing.assert_allclose(made.std((2, 3)), other.numpy().std((2, 3)), rtol=1e-10)
    # Content: what is left when mean and deviation are taken away is as it was.
    left = [
        (a - a.mean((2, 3), keepdims=True)) / a.std((2, 3), keepdims=True)
        for a in (made, content.numpy())
    ]
    np.testing.assert_allclose(left[0], left[1], atol=1e-9)


def test_batch_statistics_do_not_take_a_picture_s_own_style_away():
    content = (
        noise(3, 4, 8, 8) * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None, None, None]
    )
    other = noise(3, 4, 8, 8, seed=1)
    made = filters.adain(content, other, "[n] c [s]").numpy()
    ratio = made.std((2, 3)) / other.numpy().std((2, 3))
    assert (ratio[2] / ratio[0] > 3).all()


def test_filters_put_together_what_they_took_apart():
    masks = filters.bank(32, scales=3, directions=4)
    x = noise(2, 3, 32, 32)
    bands = filters.take_apart(x, masks)
    assert bands.shape == (2, 3 * 14, 32, 32)
    assert (filters.put_together(bands, masks) - x).abs().max() < 1e-12
    # The filters are even, so that the bands of a real picture are real.
    flipped = masks.flip(1, 2).roll((1, 1), (1, 2))
    inside = torch.ones(32, 32, dtype=torch.bool)
    inside[16], inside[:, 16] = False, False  # the highest frequency is its own negative
    assert (masks - flipped)[:, inside].abs().max() < 1e-12


@pytest.mark.parametrize("direction", [0, 1])
def test_a_grating_passes_the_filter_of_its_scale_and_direction(direction: int):
    masks = filters.bank(32, scales=3, directions=2)
    wave = torch.cos(2 * math.pi * 4 / 32 * torch.arange(32, dtype=torch.float64))
    x = wave.expand(32, 32) if direction == 0 else wave[:, None].expand(32, 32)
    power = filters.take_apart(x[None, None], masks)[0].square().mean((1, 2))
    # Frequency 4 of 32 is a quarter of the highest: bands are high, 3 scales x 2 directions, low.
    assert int(power.argmax()) == 1 + 2 * 1 + direction
    assert power.max() > 0.99 * power.sum()


def test_a_picture_keeps_its_own_style():
    x = style.right_halves(64).x[:3]
    for filtered in (True, False):
        assert (style.exchange(x, x, "n c [s]", filtered) - x).abs().max() < 1e-6
    assert style.exchange(x, x.flip(0), None, False) is x


def test_the_judges_of_style_have_references_that_are_known():
    data = style.right_halves(64)
    assert style.style_distance(0, data.x, data.x) == 0
    other = data.x[style.partners(0, data.y)]
    assert style.style_distance(0, data.x, other) > 0.2
    # A Gram matrix forgets places; the patch moved round by whole steps is of the same style.
    moved = data.x.roll((16, 32), (2, 3))
    assert style.style_distance(0, moved, data.x) < 0.2 * style.style_distance(0, other, data.x)
    assert torch.equal(style.nearest(0.2 + 0.5 * data.x, data.x), torch.arange(len(data.x)))
    assert (style.nearest(other, data.x) == style.partners(0, data.y)).all()


def test_patches_to_learn_from_and_to_judge_do_not_overlap():
    photographs = style.photographs()
    data = style.right_halves(64)
    assert torch.equal(data.x[9], photographs[1, :, 0:64, 192:256])
    assert data.y.tolist() == [k for k in range(6) for _ in range(8)]
    right, left = photographs.clone(), photographs.clone()
    right[..., :128], left[..., 128:] = 0, 0
    taught = style.left_halves(0, 64, 4)
    for x, y in zip(taught.x, taught.y, strict=True):
        windows = left[y].unfold(1, 64, 1).unfold(2, 64, 1)[:, :, :65]
        same = (windows[:, :, :, [0], :][..., 0, :] == x[:, None, None, 0]).all(-1).all(0)
        mirrored = (
            (windows[:, :, :, [0], :][..., 0, :] == x.flip(2)[:, None, None, 0]).all(-1).all(0)
        )
        assert (same | mirrored).any()


def test_partners_are_of_another_photograph():
    owner = style.right_halves(64).y
    for seed in range(3):
        assert (owner[style.partners(seed, owner)] != owner).all()
    assert not torch.equal(style.partners(0, owner), style.partners(1, owner))


def test_the_licence_names_every_photograph():
    folder = style.files("normalform.lab") / "data" / "photographs"
    text = (folder / "LICENSE").read_text(encoding="utf-8")
    pictures = {file.name for file in folder.iterdir() if file.name.endswith(".jpg")}
    assert pictures == {f"{name}.jpg" for name in style.PHOTOGRAPHS}
    assert all(name in text for name in pictures)
    assert style.photographs().shape == (6, 3, 256, 256)
