"""One run: train one network with one norm from one seed, and write down what happened.

Stochastic gradient descent with momentum 0.9 and a learning rate that falls from ``lr`` to 0 along
a cosine. A seed fixes the initial weights and the order of the images, each from a stream of its
own, so that runs of equal seed differ in their norm alone. An epoch is as many whole batches of 32
as the training set holds, in every arm; of larger ones where the SGD batch is larger.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalform.lab.activations import Recorder
from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.data import Dataset
from normalform.lab.devices import kind_of, place
from normalform.lab.metrics import loss, scores, tally
from normalform.lab.models import OwnModel, OwnNetwork, seeded
from normalform.lab.networks import Network, Probe, initialize

MOMENTUM = 0.9
TEST_BATCH = 100  # small enough for the cache
HELD_OUT = 5  # every fifth training sample chooses the learning rate, where there is a choice
INIT, ORDER = range(2)  # random streams of a seed


@dataclass(frozen=True)
class Run:
    """What is to be trained: everything that decides the result, the data apart.

    Attributes:
        network: one of the probe networks, or the user's own.
        arm: the norm and its batch sizes.
        seed: fixes initial weights and order.
        epochs: passes over the training set.
        lr: the learning rate at an SGD batch of 32; other batches scale it linearly.
        choices: learning rates of which the run takes the best, see :func:`choose`; none where
            ``lr`` is fixed.
        processes: that share each SGD batch, see :mod:`normalform.lab.distributed`.
        device: where it trains and is judged, see :mod:`normalform.lab.devices`.
        precision: ``float32``; ``bfloat16`` or ``float16`` under :class:`torch.autocast`.
    """

    network: Network | OwnNetwork
    arm: Arm
    seed: int
    epochs: int
    lr: float
    choices: tuple[float, ...] = ()
    processes: int = 1
    device: str = "cpu"
    precision: str = "float32"

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
    lr: float | None = None
    details: dict[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])


class Images:
    """A data set as tensors, standardized by its training part where it is of pictures."""

    def __init__(self, data: Dataset) -> None:
        x_train, x_test = data.standardized()
        self.x_train, self.y_train = torch.as_tensor(x_train), torch.as_tensor(data.y_train)
        self.x_test, self.y_test = torch.as_tensor(x_test), torch.as_tensor(data.y_test)
        self.shape = data.shape
        self.classes = len(data.classes)
        self.metric = data.metric

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of a picture; whatever follows the channels."""
        return self.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.x_train.device

    def to(self, device: str) -> Images:
        """The same on a device; the very tensors where they lie there already."""
        found = copy.copy(self)
        for name in ("x_train", "y_train", "x_test", "y_test"):
            setattr(found, name, getattr(self, name).to(device))
        return found

    def held_out(self) -> Images:
        """The training part alone, with every fifth sample of it in the place of the test part."""
        order = np.random.default_rng(0).permutation(len(self.x_train))
        last, rest = (
            torch.as_tensor(part, device=self.device)
            for part in (order[::HELD_OUT], order[np.arange(len(order)) % HELD_OUT > 0])
        )
        found = copy.copy(self)
        found.x_train, found.y_train = self.x_train[rest], self.y_train[rest]
        found.x_test, found.y_test = self.x_train[last], self.y_train[last]
        return found


Trainer = Callable[[Run, Probe | OwnModel, Images], Iterable[tuple[float, float]]]


def train(
    run: Run,
    images: Images,
    progress: Callable[[], None] = lambda: None,
    trainer: Trainer | None = None,
) -> Outcome:
    """Train and measure one run.

    Args:
        run: what to train.
        images: on what.
        progress: called after each epoch.
        trainer: by default :func:`epochs`.

    Returns:
        The outcome. A loss that stops being finite ends the training with the status "diverged";
        a norm that would have one value behind its statistics has the status "impossible".
    """
    started = time.perf_counter()
    reason = run.arm.impossible(run.network, *images.size)
    if reason is not None:
        return Outcome("impossible", reason, lr=run.peak_lr)
    images = images.to(run.device)
    chosen, tried = choose(run, images, progress)
    with seeded(run.seed):
        outcome = _train(chosen, images, progress, trainer or epochs)
    details = outcome.details | ({"lr_scores": np.array(tried)} if tried else {})
    return replace(outcome, seconds=time.perf_counter() - started, details=details)


def choose(
    run: Run, images: Images, progress: Callable[[], None] = lambda: None
) -> tuple[Run, list[float]]:
    """The run with the best of its learning rates, and how each did.

    Every rate trains a network of this arm and seed on four fifths of the training samples and is
    judged on the last fifth; the test part has no say. The first of equals wins.
    """
    if not run.choices:
        return run, []
    part, tried = images.held_out(), list[float]()
    for lr in run.choices:
        with seeded(run.seed):
            tried.append(_try(replace(run, lr=lr, choices=()), part, progress))
    best = run.choices[int(np.argmin(tried))]
    return replace(run, lr=best, choices=()), tried


def _try(run: Run, images: Images, progress: Callable[[], None]) -> float:
    """The metric after training; infinite where it diverged."""
    network = build(run, images)
    for mean_loss, _ in epochs(run, network, images):
        if not math.isfinite(mean_loss):
            return math.inf
        progress()
    value = float(judge(network, images).mean())
    return value if math.isfinite(value) else math.inf


def _train(run: Run, images: Images, progress: Callable[[], None], trainer: Trainer) -> Outcome:
    reason = ""
    network = build(run, images)
    recorder = Recorder(run.arm, run.network, images.x_train)
    recorder.record(network)
    losses, errors, tests = (np.full(run.epochs, np.nan) for _ in range(3))
    wrong = np.empty(0)
    for epoch, (mean_loss, error) in enumerate(trainer(run, network, images)):
        wrong = judge(network, images)
        if not math.isfinite(mean_loss):
            reason = f"the loss became {mean_loss} in epoch {epoch + 1} of {run.epochs}"
            break
        losses[epoch], errors[epoch], tests[epoch] = mean_loss, error, wrong.mean()
        recorder.record(network)
        progress()
    finite = bool(np.isfinite(wrong).all())
    return Outcome(
        "diverged" if reason else "ok",
        reason,
        test_error=float(wrong.mean()) if finite else None,
        test_error_recalibrated=None if reason else recalibrated_error(run, network, images),
        train_error=float(errors[-1]),
        train_loss=float(losses[-1]),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        lr=run.peak_lr,
        details={
            "train_loss": losses,
            "train_error": errors,
            "test_error": tests,
            **(_verdicts(images.metric, wrong) if finite else {}),
            **recorder.arrays(run.epochs),
        },
    )


def _verdicts(metric: str, wrong: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """What each test sample counts, as it is kept."""
    return {"correct": wrong == 0} if metric == "error" else {"scores": wrong}


def build(run: Run, images: Images) -> Probe | OwnModel:
    """The run's network with its initial weights, on its device and in its precision."""
    if isinstance(run.network, OwnNetwork):
        return place(run.network.build(run.arm, run.seed), run.device, run.precision)
    network = Probe(
        run.network.widths,
        run.arm.norm_layer(),
        images.shape[0],
        images.classes,
        bias=run.arm.norm == "none",
    )
    initialize(network, run.rng(INIT))
    return place(network, run.device, run.precision)


def batches(run: Run, images: Images) -> Iterator[torch.Tensor]:
    """The batches of each epoch, as indices (steps, SGD batch) of training images.

    Only whole batches of 32 are used, also where the SGD batch is smaller, so that every arm of a
    seed sees the same images in the same order.

    Raises:
        ValueError: there are fewer training images than a batch needs.
    """
    rng = run.rng(ORDER)
    size = max(SGD_BATCH, run.arm.sgd_batch)
    used = len(images.x_train) // size * size
    if not used:
        raise ValueError(
            f"{len(images.x_train)} training images do not fill an SGD batch of {size}"
        )
    for _ in range(run.epochs):
        order = rng.permutation(len(images.x_train))[:used]
        yield torch.as_tensor(order).reshape(-1, run.arm.sgd_batch)


def epochs(
    run: Run,
    network: Probe | OwnModel,
    images: Images,
    *,
    orders: Iterable[torch.Tensor] | None = None,
    frozen: int = 0,
) -> Iterator[tuple[float, float]]:
    """Train; after each epoch give the mean training loss and metric of its steps.

    Args:
        run: what to train.
        network: with the weights to start from.
        images: on what.
        orders: the batches of each epoch, ``run.epochs`` of them; by default :func:`batches`.
        frozen: in this many last epochs the norms use their running statistics and leave them as
            they are; weight and bias go on learning.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=run.peak_lr, momentum=MOMENTUM)
    scaler = torch.amp.GradScaler(kind_of(run.device), enabled=run.precision == "float16")
    step = 0
    for epoch, order in enumerate(batches(run, images) if orders is None else orders):
        network.train()
        for norm in network.norms if epoch >= run.epochs - frozen else ():
            norm.eval()
        loss_sum, tallies = 0.0, list[NDArray[np.float64]]()
        for batch in order.to(images.device).unbind():
            progress = step / (len(order) * run.epochs)
            optimizer.param_groups[0]["lr"] = run.peak_lr * (1 + math.cos(math.pi * progress)) / 2
            y = images.y_train[batch]
            outputs = network(images.x_train[batch])
            value = loss(images.metric, outputs, y)
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(value))
            scaler.step(optimizer)
            scaler.update()
            loss_sum += value.item()
            tallies.append(tally(images.metric, outputs.detach(), y))
            step += 1
        yield loss_sum / len(order), float(scores(images.metric, tallies).mean())


def judge(network: Probe | OwnModel, images: Images) -> NDArray[np.float64]:
    """What each test sample counts, less is better, with running statistics; 1 for a wrong label.

    The mean is the metric, see :func:`normalform.lab.metrics.scores`.
    """
    network.eval()
    with torch.no_grad():
        tallies = [
            tally(images.metric, network(x), y)
            for x, y in zip(
                images.x_test.split(TEST_BATCH), images.y_test.split(TEST_BATCH), strict=True
            )
        ]
    return scores(images.metric, tallies)


def recalibrated_error(run: Run, network: Probe | OwnModel, images: Images) -> float | None:
    """Test error after the running statistics are measured anew, or None where there are none.

    What this changes was the moving average's fault, the rest is the training's.
    """
    return float(judge(network, images).mean()) if recalibrate(run, network, images) else None


def recalibrate(run: Run, network: Probe | OwnModel, images: Images) -> bool:
    """Measure the running statistics anew; whether there are any.

    They become plain averages over one pass of the training set instead of a moving average of the
    last steps.
    """
    norms: list[Any] = list(network.norms)
    tracking = [norm for norm in norms if getattr(norm, "running_mean", None) is not None]
    for norm in tracking:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches since the reset
    network.train()
    with torch.no_grad():
        for batch in next(batches(run, images)).to(images.device).unbind() if tracking else ():
            network(images.x_train[batch])
    return bool(tracking)
