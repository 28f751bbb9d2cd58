"""Depth without normalization: what arrives after thirty layers, and what comes back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.data import load
from normalform.lab.experiments.classify import (
    RULE,
    Condition,
    above,
    more_than,
    verdict,
)
from normalform.lab.experiments.deep import Deep, Spread, growth, initialize, spread
from normalform.lab.experiments.descent import batches, descend
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import INIT, Images

PLAIN, BATCH = "no norm", "batch"
TORCH, HE = 1 / 3, 2.0  # gains of the initial weights
ARMS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {"norm": "none", "gain": TORCH},
    "no norm, He's start": {"norm": "none", "gain": HE},
    BATCH: {"norm": "batch", "gain": TORCH},
    "layer": {"norm": "layer", "gain": TORCH},
    "group": {"norm": "group:4", "gain": TORCH},
    "instance": {"norm": "instance", "gain": TORCH},
}
NORMED = (BATCH, "layer", "group", "instance")
PROBE = 64  # training pictures whose activations are looked at
FADED, KEPT = 1 / 100, 10
UNTRAINED, BETTER = 80, 20  # points of training error
GROWTH = (1.10, 1.35)
DEFAULT: Mapping[str, Any] = {
    "seeds": 4, "depth": 30, "width": 16, "epochs": 6, "lr": 0.05, "pictures": 2000,
}  # fmt: skip


def measure(
    seed: int,
    norm: str,
    gain: float,
    depth: int,
    width: int,
    epochs: int,
    lr: float,
    pictures: int,
) -> Measured:
    """Train a deep plain network; its spreads by layer at the start and after each epoch.

    Args:
        seed: of the initial weights and the order.
        norm: as :class:`normalform.lab.arms.Arm` names it.
        gain: of the initial weights' variance.
        depth: convolutions.
        width: channels.
        epochs: passes over the pictures.
        lr: the learning rate to start from.
        pictures: to train on.
    """
    images = fashion(pictures)
    nbs = SGD_BATCH if norm == "batch" else None
    network = Deep(depth, width, Arm(norm, nbs).norm_layer(), images.classes, bias=norm == "none")
    initialize(network, np.random.default_rng((seed, INIT)), gain)

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(network(images.x_train[batch]), images.y_train[batch])

    training = descend(network, loss, batches(seed, pictures, epochs, SGD_BATCH), lr)
    steps: dict[str, list[float]] = {"epoch": [], "layer": [], **{n: [] for n in Spread._fields}}
    ends: dict[str, float] = {}
    for epoch in range(epochs + 1):
        if epoch:
            network.train()
            ends["loss"] = next(training)
        found = spread(copy.deepcopy(network), images.x_train[:PROBE], images.y_train[:PROBE])
        if not epoch:
            ends["ratio"] = float(found.activation[-1] / found.activation[0])
            ends["growth"] = growth(found.gradient)
        for name, column in found._asdict().items():
            steps[name] += column.tolist()
        steps["epoch"] += [epoch] * depth
        steps["layer"] += list(range(1, depth + 1))
    return Measured(ends | {"train": training_error(network, images)}, steps)


@lru_cache(maxsize=1)
def fashion(pictures: int) -> Images:
    """The embedded pictures, the first of them in an order shuffled once and for all."""
    images = Images(load("fashion"))
    chosen = torch.as_tensor(np.random.default_rng(0).permutation(len(images.x_train))[:pictures])
    images.x_train, images.y_train = images.x_train[chosen], images.y_train[chosen]
    return images


def training_error(network: nn.Module, images: Images) -> float:
    """The share of the training pictures given a wrong label, as in training, 32 at a time."""
    twin = copy.deepcopy(network).train()
    with torch.no_grad():
        wrong = [
            (twin(x).argmax(1) != y).double()
            for x, y in zip(
                images.x_train.split(SGD_BATCH), images.y_train.split(SGD_BATCH), strict=True
            )
        ]
    return float(torch.cat(wrong).mean())


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Every arm with every seed."""
    common = {key: value for key, value in settings.items() if key != "seeds"}
    return [
        Trial(arm, seed, measure, {**common, **own})
        for seed in range(settings["seeds"])
        for arm, own in ARMS.items()
    ]


def judge(results: Results) -> Verdict:
    """What fades without a norm is kept by each, what stands still learns with each."""
    errors = list(results.by_seed(PLAIN, "train").values())
    return verdict(
        _between(results, PLAIN, "ratio", "last layer's std over the first's", 0, FADED),
        *(
            _between(results, arm, "ratio", "last layer's std over the first's", 1 / KEPT, KEPT)
            for arm in NORMED
        ),
        more_than(UNTRAINED, f"training error, {PLAIN}", errors),
        *(above(results, PLAIN, arm, "train", BETTER, "training error") for arm in NORMED),
        _between(results, BATCH, "growth", "gradient's growth a layer", *GROWTH),
    )


def _between(results: Results, arm: str, key: str, what: str, low: float, high: float) -> Condition:
    """Every seed's value lies between the two limits."""
    values = list(results.by_seed(arm, key).values())
    met = all(low <= value <= high for value in values)
    line = (
        f"{what}, {arm}: {min(values):.3g} to {max(values):.3g} over {len(values)} seeds, "
        f"{low:g} to {high:g} needed: {'' if met else 'not '}met"
    )
    return Condition(met, line)


def picture(results: Results) -> Any:
    """Spreads by layer, before and after training, and the training error that was reached."""
    from normalform.lab.experiments.depth_chart import chart

    return chart(results, {arm: str(own["norm"]) for arm, own in ARMS.items()})


EXPERIMENT = Experiment(
    name="depth",
    title="Depth without normalization",
    claim=(
        "Norms keep the scale of activations from layer to layer, so that deep networks train "
        "whatever scale their weights start with (Ioffe & Szegedy, Batch Normalization, 2015); "
        "but batch norm makes gradients grow with each layer on their way back, by a factor of "
        "1.21 in wide networks with ReLU (Yang et al., A Mean Field Theory of Batch "
        "Normalization, 2019)."
    ),
    setup=(
        "2,000 images of Fashion-MNIST; 30 convolutions 3x3 of 16 channels in a row, without "
        "shortcuts, the first two of stride 2, so that the others see 7x7 maps, each with a norm "
        "and ReLU; global average pooling and a linear layer. Initial weights have PyTorch's "
        "default scale, variance 1 / (3 inputs); one arm without norms has He's, 2 / inputs. SGD "
        "with momentum 0.9, learning rate 0.05, cosine schedule, batch 32, 6 epochs, 4 seeds. "
        "Spreads are standard deviations over the values of 64 training images, of what a layer "
        "hands on and of the gradient of the loss with respect to it; also shown is how far the "
        "same value differs from image to image, as a share of that. Group norm has 4 groups."
    ),
    rule=(
        "At the start, in every seed: without norm the last layer's standard deviation is under "
        f"1/{1 / FADED:.0f} of the first's, with batch, layer, group and instance norm between "
        f"1/{KEPT} and {KEPT} times, and batch norm's gradient grows by {GROWTH[0]:.2f} to "
        f"{GROWTH[1]:.2f} a layer. After training, without norm the training error is above "
        f"{UNTRAINED} %, and more than {BETTER} points above that with each norm. {RULE}"
    ),
    default=DEFAULT,
    quick={**DEFAULT, "seeds": 2, "depth": 12, "width": 8, "epochs": 1, "pictures": 64},
    full={**DEFAULT, "seeds": 20, "depth": 60, "width": 64, "epochs": 30, "pictures": 2000},
    trials=trials,
    judge=judge,
    picture=picture,
)
