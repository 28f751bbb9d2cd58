"""One run: train one network with one norm from one seed, and write down what happened.

Stochastic gradient descent with momentum 0.9 and a learning rate that falls from ``lr`` to 0 along
a cosine. A seed fixes the initial weights and the order of the images, each from a stream of its
own, so that runs of equal seed differ in their norm alone. An epoch is as many whole batches of 32
as the training set holds, in every arm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from normalform.lab.activations import Recorder
from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.data import Dataset
from normalform.lab.networks import Network, Probe, initialize

MOMENTUM = 0.9
TEST_BATCH = 100  # small enough for the cache
_INIT, _ORDER = range(2)  # random streams of a seed


@dataclass(frozen=True)
class Run:
    """What is to be trained: everything that decides the result, the data apart.

    Attributes:
        network: one of the probe networks.
        arm: the norm and its batch sizes.
        seed: fixes initial weights and order.
        epochs: passes over the training set.
        lr: the learning rate at an SGD batch of 32; smaller batches scale it down linearly.
    """

    network: Network
    arm: Arm
    seed: int
    epochs: int
    lr: float

    @property
    def peak_lr(self) -> float:
        """The learning rate the run starts with."""
        return self.lr * self.arm.sgd_batch / SGD_BATCH

    def rng(self, stream: int) -> np.random.Generator:
        """The seed's random numbers for one purpose; arm and network have no part in them."""
        return np.random.default_rng((self.seed, stream))


@dataclass(frozen=True)
class Outcome:
    """What came of a run; the fields are those of :class:`normalform.lab.records.Row`."""

    status: str
    reason: str = ""
    test_error: float | None = None
    test_error_recalibrated: float | None = None
    train_error: float | None = None
    train_loss: float | None = None
    seconds: float = 0.0
    parameters: int | None = None
    details: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])


class Images:
    """A data set as tensors, standardized by its training part."""

    def __init__(self, data: Dataset) -> None:
        x_train, x_test = data.standardized()
        self.x_train, self.y_train = torch.as_tensor(x_train), torch.as_tensor(data.y_train)
        self.x_test, self.y_test = torch.as_tensor(x_test), torch.as_tensor(data.y_test)
        self.channels, self.height, self.width = data.shape
        self.classes = len(data.classes)


def train(run: Run, images: Images, progress: Callable[[], None] = lambda: None) -> Outcome:
    """Train and measure one run.

    Args:
        run: what to train.
        images: on what.
        progress: called after each epoch.

    Returns:
        The outcome. A loss that stops being finite ends the training with the status "diverged";
        a norm that would have one value behind its statistics has the status "impossible".
    """
    started = time.perf_counter()
    reason = run.arm.impossible(run.network, images.height, images.width)
    if reason is not None:
        return Outcome("impossible", reason)
    reason = ""
    network = build(run, images)
    recorder = Recorder(run.arm, run.network, images.x_train)
    recorder.record(network)
    losses, errors, tests = (np.full(run.epochs, np.nan) for _ in range(3))
    right = np.empty(0, bool)
    for epoch, (loss, error) in enumerate(epochs(run, network, images)):
        right = correct(network, images)
        if not math.isfinite(loss):
            reason = f"the loss became {loss} in epoch {epoch + 1} of {run.epochs}"
            break
        losses[epoch], errors[epoch], tests[epoch] = loss, error, (~right).mean()
        recorder.record(network)
        progress()
    return Outcome(
        "diverged" if reason else "ok",
        reason,
        test_error=float((~right).mean()),
        test_error_recalibrated=None if reason else recalibrated_error(run, network, images),
        train_error=float(errors[-1]),
        train_loss=float(losses[-1]),
        seconds=time.perf_counter() - started,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        details={
            "train_loss": losses,
            "train_error": errors,
            "test_error": tests,
            "correct": right,
            **recorder.arrays(run.epochs),
        },
    )


def build(run: Run, images: Images) -> Probe:
    """The run's network with its initial weights."""
    network = Probe(
        run.network.widths,
        run.arm.norm_layer(),
        images.channels,
        images.classes,
        bias=run.arm.norm == "none",
    )
    initialize(network, run.rng(_INIT))
    return network


def batches(run: Run, images: Images) -> Iterator[torch.Tensor]:
    """The batches of each epoch, as indices (steps, SGD batch) of training images.

    Only whole batches of 32 are used, also where the SGD batch is smaller, so that every arm of a
    seed sees the same images in the same order.
    """
    rng = run.rng(_ORDER)
    used = len(images.x_train) // SGD_BATCH * SGD_BATCH
    for _ in range(run.epochs):
        order = rng.permutation(len(images.x_train))[:used]
        yield torch.as_tensor(order).reshape(-1, run.arm.sgd_batch)


def epochs(run: Run, network: Probe, images: Images) -> Iterator[tuple[float, float]]:
    """Train; after each epoch give the mean training loss and error of its steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=run.peak_lr, momentum=MOMENTUM)
    step = 0
    for order in batches(run, images):
        network.train()
        loss_sum, wrong = 0.0, 0
        for batch in order.unbind():
            progress = step / (len(order) * run.epochs)
            optimizer.param_groups[0]["lr"] = run.peak_lr * (1 + math.cos(math.pi * progress)) / 2
            labels = images.y_train[batch]
            logits = network(images.x_train[batch])
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
            loss_sum += loss.item()
            wrong += int((logits.argmax(1) != labels).sum())
            step += 1
        yield loss_sum / len(order), wrong / order.numel()


def correct(network: Probe, images: Images) -> NDArray[np.bool_]:
    """Which test images the network gets right, with running statistics; NaN logits are wrong."""
    network.eval()
    with torch.no_grad():
        starts = range(0, len(images.x_test), TEST_BATCH)
        logits = torch.cat([network(images.x_test[i : i + TEST_BATCH]) for i in starts])
    right = (logits.argmax(1) == images.y_test) & logits.isfinite().all(1)
    return right.numpy()


def recalibrated_error(run: Run, network: Probe, images: Images) -> float | None:
    """Test error after the running statistics are measured anew, or None where there are none.

    They become plain averages over one pass of the training set instead of a moving average of the
    last steps. What this changes was the moving average's fault, the rest is the training's.
    """
    norms: list[Any] = list(network.norms)
    tracking = [norm for norm in norms if getattr(norm, "running_mean", None) is not None]
    if not tracking:
        return None
    for norm in tracking:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches since the reset
    network.train()
    with torch.no_grad():
        for batch in next(batches(run, images)).unbind():
            network(images.x_train[batch])
    return float((~correct(network, images)).mean())
