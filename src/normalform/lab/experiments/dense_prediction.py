"""Segmentation at a true batch of 2: what the statistics of two scenes are good for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from normalform.lab.arms import SGD_BATCH, TRUE_BATCH, Arm
from normalform.lab.data import Dataset, load
from normalform.lab.experiments.classify import RULE, above, verdict
from normalform.lab.experiments.descent import batches, descend
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.experiments.scenes import CLASSES, scenes
from normalform.lab.experiments.unet import UNet
from normalform.lab.metrics import loss, scores, tally
from normalform.lab.networks import initialize
from normalform.lab.train import INIT, TEST_BATCH, Images

BATCH, GROUP = "batch", "group"
LARGE, ACCUMULATED, FROZEN = "batch, 32 at once", "batch, 16 times 2", "batch, frozen"
ARMS: Mapping[str, Mapping[str, Any]] = {
    LARGE: {"norm": "batch", "size": SGD_BATCH},
    ACCUMULATED: {"norm": "batch", "accumulate": SGD_BATCH // TRUE_BATCH},
    BATCH: {"norm": "batch"},
    FROZEN: {"norm": "batch", "frozen": True},
    "switch": {"norm": "switch"},
    GROUP: {"norm": "group:4"},
    "layer": {"norm": "layer"},
    "instance": {"norm": "instance"},
    "no norm": {"norm": "none"},
}
DEFAULT: Mapping[str, Any] = {
    "seeds": 3, "scenes": [384, 96], "pixels": 32, "widths": [16, 32, 64, 64],
    "epochs": 5, "lr": 0.5,
}  # fmt: skip
LIMIT = 1  # point of mIoU
_TRAIN, _TEST = 100, 101  # seeds of the scenes, the same in every trial


def measure(
    seed: int,
    norm: str,
    scenes: Sequence[int],
    pixels: int,
    widths: Sequence[int],
    epochs: int,
    lr: float,
    size: int = TRUE_BATCH,
    accumulate: int = 1,
    frozen: bool = False,
) -> Measured:
    """Train a U-Net and say how well it segments, by running and by batch statistics.

    Args:
        seed: of the initial weights and the order.
        norm: as :class:`normalform.lab.arms.Arm` names it.
        scenes: to train on, and to test on.
        pixels: a side of a scene.
        widths: of the network's levels.
        epochs: passes over the scenes.
        lr: the learning rate for steps of 32 scenes; steps of fewer scale it down linearly.
        size: scenes that share batch statistics.
        accumulate: batches whose gradients make one step.
        frozen: norms use the running statistics of the first half of training in the second.
    """
    images = scene_images(*scenes, pixels)
    network = build(seed, norm, widths)

    def batch_loss(batch: Tensor) -> Tensor:
        return loss("miou", network(images.x_train[batch]), images.y_train[batch])

    order = batches(seed, len(images.x_train), epochs, size)
    step = size * accumulate
    training = descend(network, batch_loss, order, lr * step / SGD_BATCH, accumulate=accumulate)
    steps: dict[str, list[float]] = {"epoch": [], "loss": [], "running": []}
    for epoch in range(epochs):
        network.train()
        for layer in network.norms if frozen and epoch >= epochs // 2 else ():
            layer.eval()
        steps["epoch"].append(epoch + 1)
        steps["loss"].append(next(training))
        steps["running"].append(miou(copy.deepcopy(network).eval(), images, TEST_BATCH))
    by_batch = miou(copy.deepcopy(network).train(), images, size)
    ends = {key: steps[key][-1] for key in ("loss", "running")}
    return Measured({**ends, "by_batch": by_batch}, steps)


def build(seed: int, norm: str, widths: Sequence[int]) -> UNet:
    """The network with its initial weights, which are those of every norm."""
    network = UNet(widths, Arm(norm, _nbs(norm)).norm_layer(), len(CLASSES), bias=norm == "none")
    initialize(cast(Any, network), np.random.default_rng((seed, INIT)))
    return network


def _nbs(norm: str) -> int | None:
    """Batch statistics are those of whole batches, whatever their size."""
    return SGD_BATCH if norm in ("batch", "switch") else None


@lru_cache(maxsize=1)
def scene_images(train: int, test: int, pixels: int) -> Images:
    """The scenes: training garments in those to train on, test garments in those to test on."""
    data = load("fashion")
    x_train, y_train, x_test, y_test = (
        part
        for x, y, count, seed in (
            (data.x_train, data.y_train, train, _TRAIN),
            (data.x_test, data.y_test, test, _TEST),
        )
        for part in scenes(x[:, 0] / 255, y, count, pixels, np.random.default_rng(seed))
    )
    return Images(
        Dataset("scenes", "composed scenes", x_train, y_train, x_test, y_test, CLASSES, "miou")
    )


def miou(network: nn.Module, images: Images, size: int) -> float:
    """Mean intersection over union of the test scenes, taken this many at a time."""
    with torch.no_grad():
        tallies = [
            tally("miou", network(x), y)
            for x, y in zip(images.x_test.split(size), images.y_test.split(size), strict=True)
        ]
    return 1 - float(scores("miou", tallies).mean())


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Every arm with every seed."""
    common = {key: value for key, value in settings.items() if key != "seeds"}
    return [
        Trial(arm, seed, measure, {**common, **own})
        for seed in range(settings["seeds"])
        for arm, own in ARMS.items()
    ]


def judge(results: Results) -> Verdict:
    """Group norm against batch norm, and whether accumulating repairs batch norm."""
    return verdict(
        above(results, GROUP, BATCH, "running", LIMIT, "test mIoU"),
        above(results, LARGE, ACCUMULATED, "running", LIMIT, "test mIoU"),
    )


def picture(results: Results) -> Any:
    """A scene and what is to be found in it; below, how well each arm finds it."""
    from normalform.lab.experiments.dense_chart import chart

    data = load("fashion")
    arms = {arm: str(own["norm"]) for arm, own in ARMS.items()}
    return chart(results, arms, data.x_test[:, 0] / 255, data.y_test)


EXPERIMENT = Experiment(
    name="dense-prediction",
    title="Dense prediction at a batch of 2",
    claim=(
        "Where memory holds two images, as in segmentation, group norm does better than batch "
        "norm (Wu & He, Group Normalization, 2018), and adding up the gradients of such batches "
        "does not repair batch norm, whose statistics remain those of two images."
    ),
    setup=(
        "Scenes of 32x32 pixels: one or two garments of Fashion-MNIST on a ground with six "
        "strokes of clutter, each scene under a light of its own (gain 0.5 to 1.5). Each pixel "
        "is ground, top, trousers, shoe or bag. 384 scenes to train on, 96 with other garments to "
        "test on. U-Net of 16-32-64-64 channels, 4x4 maps at its bottom, one 3x3 convolution a "
        "level, each with a norm and ReLU. SGD with momentum 0.9, cosine schedule, 5 epochs, "
        "learning rate 0.5 for steps of 32 scenes and in proportion for fewer; 3 seeds. Every arm "
        "takes batches of 2 scenes, one of 32; one adds up 16 batches for a step; in one the "
        "running statistics of the first half are used, and left alone, in the second. "
        "Group norm has 4 groups."
    ),
    rule=(
        f"Test mIoU with running statistics: group norm is more than {LIMIT} point above batch "
        "norm, both at an SGD batch of 2; and batch norm at an SGD batch of 32 more than "
        f"{LIMIT} point above batch norm that accumulates 16 batches of 2. {RULE}"
    ),
    default=DEFAULT,
    quick={**DEFAULT, "seeds": 2, "scenes": [32, 8], "pixels": 16, "epochs": 2, "widths": [4, 8]},
    full={
        "seeds": 10, "scenes": [8192, 512], "pixels": 64, "widths": [32, 64, 128, 256],
        "epochs": 40, "lr": 0.5,
    },
    trials=trials,
    judge=judge,
    picture=picture,
)  # fmt: skip
