"""One run of a comparison: arms are what they say, runs are paired, repeatable and honest."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from normalform.lab.activations import Recorder
from normalform.lab.arms import FAMILIES, Arm, plan_arms
from normalform.lab.data import Dataset
from normalform.lab.networks import NETWORKS, STRIDE8, STRIDE32, Network
from normalform.lab.train import (
    Images,
    Run,
    batches,
    build,
    epochs,
    judge,
    recalibrated_error,
    train,
)

ARMS = plan_arms(FAMILIES, (32, 8, 2))
WEIGHTS = [f"{name}.weight" for name in ("convs.0", "convs.1", "convs.2", "linear")]


@pytest.fixture(scope="module")
def images() -> Images:
    """Three classes that differ in brightness; 70 pictures make two batches and a rest."""
    rng = np.random.default_rng(0)
    y = np.arange(100) % 3
    x = (rng.standard_normal((100, 1, 28, 28)) + y[:, None, None, None]).astype(np.float32)
    data = Dataset("made", "made", x[:70], y[:70], x[70:], y[70:], ("a", "b", "c"))
    return Images(data)


def run_of(arm: Arm, network: Network = STRIDE8, seed: int = 0, epochs: int = 2, lr: float = 0.05):
    return Run(network, arm, seed, epochs, lr)


def trace(network, x):
    """What each convolution gives, and what its norm makes of it."""
    found = []
    for conv, norm in zip(network.convs, network.norms, strict=True):
        found.append((conv(x), norm(conv(x))))
        x = found[-1][1].relu()
    return found


def test_the_arms():
    assert [arm.label for arm in ARMS] == [
        "none", "batch 32", "batch 8", "batch 2", "batch 2, SGD batch 2", "layer", "instance",
        "group:4", "switch 32", "switch 8", "switch 2",
    ]  # fmt: skip
    assert [arm.label for arm in plan_arms(["group", "group:8", "group"], (32,))] == [
        "group:4",
        "group:8",
    ]
    assert [arm.label for arm in plan_arms(["batch"], (32,))] == ["batch 32"]


@pytest.mark.parametrize(
    ("norms", "nbs", "words"),
    [
        (["batch"], [64], "nbs 64.*32, 16, 8, 4, 2, 1"),
        (["batch"], [12], "nbs 12"),
        (["batch"], [0], "nbs 0"),
        (["bach"], [32], "'bach'.*none, batch, layer"),
        (["group:x"], [32], "'group:x'"),
        (["group:0"], [32], "'group:0'"),
        (["layer:2"], [32], "'layer:2'"),
        ([], [32], "no norms"),
    ],
)
def test_arms_that_are_refused(norms, nbs, words):
    with pytest.raises(ValueError, match=words):
        plan_arms(norms, nbs)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_an_arm_shares_statistics_among_nbs_samples(arm):
    """Change one sample; the outputs of exactly those that share statistics with it change."""
    torch.manual_seed(0)
    layer = arm.norm_layer()(16).train()
    x = torch.randn(arm.sgd_batch, 16, 4, 4)
    other = x.clone()
    other[0] = torch.randn(16, 4, 4)
    changed = (layer(x) != layer(other)).flatten(1).any(1)
    together = arm.nbs or 1
    assert changed[:together].all()
    assert not changed[together:].any()


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_every_norm_has_one_weight_and_bias_a_channel(arm):
    found = {
        name: tuple(parameter.shape)
        for name, parameter in arm.norm_layer()(16).named_parameters()
        if not name.endswith("_weight")
    }
    assert found == ({} if arm.norm == "none" else {"weight": (16,), "bias": (16,)})


@pytest.mark.parametrize(
    ("arm", "stride8", "stride32"),
    [
        (Arm("none"), [], []),
        (Arm("batch", 32), [512], [32]),
        (Arm("batch", 2), [32], [2]),
        (Arm("batch", 2, 2), [32], [2]),
        (Arm("layer"), [512], [64]),
        (Arm("instance"), [16], [1]),
        (Arm("group:4"), [128], [16]),
        (Arm("switch", 8), [16, 512, 128], [1, 64, 8]),
    ],
)
def test_values_behind_a_mean_in_the_last_layer(arm, stride8, stride32):
    assert arm.values(STRIDE8, 28, 28)[-1] == stride8
    assert arm.values(STRIDE32, 28, 28)[-1] == stride32


def test_networks_end_on_the_maps_they_say(images):
    for network, last in ((STRIDE8, (32, 4, 4)), (STRIDE32, (64, 1, 1))):
        probe = build(run_of(Arm("none"), network), images)
        maps = [tuple(after.shape[1:]) for _, after in trace(probe, images.x_test)]
        assert maps[-1] == last
        assert maps == [tuple(size) for size in network.maps(28, 28)]
        assert network.last_map(28, 28) == f"{last[1]}x{last[2]}"
        assert probe(images.x_test).shape == (30, 3)


def test_runs_of_a_seed_start_with_equal_weights(images):
    for network in NETWORKS:
        first = build(run_of(ARMS[0], network, seed=3), images).state_dict()
        for arm in ARMS[1:]:
            other = build(run_of(arm, network, seed=3), images).state_dict()
            assert all(torch.equal(first[name], other[name]) for name in WEIGHTS)
    another = build(run_of(ARMS[0], network, seed=4), images).state_dict()
    assert not any(torch.equal(first[name], another[name]) for name in WEIGHTS)


def test_initial_weights_have_hes_scale(images):
    probe = build(run_of(Arm("none"), STRIDE32), images)
    for conv in probe.convs:
        fan_in = conv.weight[0].numel()
        assert abs(conv.weight.std().item() * (fan_in / 2) ** 0.5 - 1) < 0.25
        assert conv.bias.abs().max() == 0
    assert build(run_of(Arm("layer")), images).convs[0].bias is None


def test_runs_of_a_seed_see_equal_images_in_equal_order(images):
    orders = [
        torch.stack([epoch.flatten() for epoch in batches(run_of(arm, seed=3), images)])
        for arm in ARMS
    ]
    assert all(torch.equal(orders[0], order) for order in orders)
    assert orders[0].shape == (2, 64)
    assert not torch.equal(orders[0][0], orders[0][1])
    assert len(orders[0][0].unique()) == 64
    sizes = [next(batches(run_of(arm), images)).shape for arm in ARMS]
    assert sizes == [(2, 32) if arm.sgd_batch == 32 else (32, 2) for arm in ARMS]
    other = torch.stack([epoch.flatten() for epoch in batches(run_of(ARMS[0], seed=4), images)])
    assert not torch.equal(orders[0], other)


def test_weights_and_order_come_from_streams_of_their_own():
    run = run_of(Arm("layer"))
    assert run.rng(0).random() != run.rng(1).random()
    assert run.rng(0).random() == replace(run, arm=Arm("none"), network=STRIDE32).rng(0).random()


def test_every_step_trains_with_batch_statistics(images):
    """Also after the network was tested in between."""
    run = run_of(Arm("batch", 8), epochs=3)
    network = build(run, images)
    for _ in epochs(run, network, images):
        judge(network, images)
    assert network.norms[0].num_batches_tracked == 3 * 2


@pytest.mark.parametrize("arm", [Arm("switch", 8), Arm("batch", 2, 2)], ids=lambda arm: arm.label)
def test_the_same_run_gives_the_same_bits(images, arm):
    def bits(outcome):
        return {name: array.tobytes() for name, array in outcome.details.items()}

    first, again = (train(run_of(arm, STRIDE32), images) for _ in range(2))
    assert bits(first) == bits(again)
    assert (first.test_error, first.train_loss) == (again.test_error, again.train_loss)
    assert bits(train(run_of(arm, STRIDE32, seed=1), images)) != bits(first)


def test_the_learning_rate_falls_along_a_cosine_and_scales_with_the_batch(images, monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: (seen.append(self.param_groups[0]["lr"]), step(self))[1],
    )
    run = run_of(Arm("batch", 2, 2), epochs=3, lr=0.32)
    list(epochs(run, build(run, images), images))
    assert run.peak_lr == pytest.approx(0.02)
    assert np.allclose(seen, 0.01 * (1 + np.cos(np.pi * np.arange(96) / 96)))


def test_training_learns_and_the_numbers_are_its_own(images):
    outcome = train(run_of(Arm("batch", 32), epochs=6), images)
    details = outcome.details
    assert outcome.status == "ok"
    assert outcome.test_error_recalibrated < 0.2
    assert outcome.test_error == (~details["correct"]).mean() == details["test_error"][-1]
    assert outcome.train_error == details["train_error"][-1]
    assert outcome.train_loss == details["train_loss"][-1]
    assert details["train_loss"][-1] < details["train_loss"][0]
    assert outcome.parameters == 9 * 16 * (1 + 32) + 9 * 32 * 32 + 2 * 80 + 33 * 3


def test_instance_norm_on_one_value_is_impossible_and_torch_agrees(images):
    run = run_of(Arm("instance"), STRIDE32)
    outcome = train(run, images)
    assert (outcome.status, outcome.test_error, outcome.details) == ("impossible", None, {})
    assert outcome.reason.startswith("conv5 has 1x1 maps")
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        build(run, images)(images.x_train)
    possible = {
        (network.name, arm.label)
        for network in NETWORKS
        for arm in ARMS
        if arm.impossible(network, 28, 28) is None
    }
    assert len(possible) == 2 * len(ARMS) - 1


def test_divergence_is_recorded(images):
    outcome = train(run_of(Arm("none"), epochs=4, lr=1e18), images)
    assert outcome.status == "diverged"
    assert outcome.reason.startswith("the loss became")
    assert outcome.test_error == 1  # logits that are not numbers are never right
    assert np.isnan(outcome.train_loss)
    details = outcome.details
    assert details["test_error"].shape == (4,)
    assert np.isnan(details["test_error"]).all()
    assert details["act_mean"].shape == (5, 3)
    assert np.isfinite(details["act_mean"][0]).all()
    assert np.isnan(details["act_mean"][1:]).all()


def test_recalibration_averages_over_one_pass(images):
    run = run_of(Arm("batch", 8))
    network = build(run, images)
    list(epochs(run, network, images))
    before = network.norms[0].running_mean.clone()
    used = images.x_train[next(batches(run, images)).flatten()]
    expected = network.convs[0](used).double().mean((0, 2, 3))
    error = recalibrated_error(run, network, images)
    assert torch.allclose(network.norms[0].running_mean.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before.double(), expected, rtol=1e-3)
    assert error == judge(network, images).mean()
    plain = run_of(Arm("layer"))
    assert recalibrated_error(plain, build(plain, images), images) is None


def test_recorder_sees_the_network_and_leaves_it_alone(images):
    arm = Arm("switch", 8)
    run = run_of(arm)
    network = build(run, images)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    recorder = Recorder(arm, STRIDE8, images.x_train)
    recorder.record(network)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        network.norms[1].mean_weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
    recorder.record(network)
    found = recorder.arrays(epochs=3)
    network.train()
    pictures = images.x_train[np.random.default_rng(0).permutation(70)[:64]]
    parts = [trace(network, batch) for batch in pictures.split(32)]
    before, after = (torch.cat([part[2][k] for part in parts]).detach().double() for k in (0, 1))
    assert found["conv_std"][1, 2] == pytest.approx(before.std(correction=0).item(), rel=1e-6)
    assert found["pre_std"][1, 2] == pytest.approx(after.std(correction=0).item(), rel=1e-6)
    assert found["pre_mean"][1, 2] == pytest.approx(after.mean().item(), abs=1e-6)
    assert found["act_mean"][1, 2] == pytest.approx(after.relu().mean().item(), rel=1e-6)
    assert found["act_std"][1, 2] == pytest.approx(after.relu().std(correction=0).item(), rel=1e-6)
    assert found["act_zero"][1, 2] == pytest.approx((after <= 0).double().mean().item())
    assert found["pre_quantiles"][1, 2, 2] == pytest.approx(after.median().item(), abs=1e-3)
    weights = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    assert np.allclose(found["mean_weights"][1, 1], weights)
    assert np.allclose(found["var_weights"][1, 1], 1 / 3)
    assert np.isnan(found["mean_weights"][2:]).all()
    assert found["branches"].tolist() == ["instance", "layer", "batch"]
    assert found["values"].tolist() == arm.values(STRIDE8, 28, 28)


def test_switch_weight_of_a_branch_left_out_is_zero(images):
    outcome = train(run_of(Arm("switch", 2), STRIDE32, epochs=1), images)
    weights = outcome.details["mean_weights"]
    assert np.array_equal(weights[:, 4, 0], [0, 0])
    assert np.allclose(weights[0, 4, 1:], 1 / 2)
    assert np.allclose(weights.sum(2), 1)
    assert (weights[1] != weights[0]).any(1).all()


def test_progress_is_told_after_each_epoch(images):
    told = []
    train(run_of(Arm("layer"), epochs=3), images, lambda: told.append(1))
    assert len(told) == 3
