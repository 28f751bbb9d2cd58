"""Recurrent networks: statistics that belong to a step of the sequence, and steps never seen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normalform as nf
from normalform.lab.arms import SGD_BATCH
from normalform.lab.data import load
from normalform.lab.experiments.classify import RULE, above, less_than, more_than, verdict
from normalform.lab.experiments.descent import batches, descend
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.train import INIT

NORMS = ("layer", "batch", "none")
BATCHES = (32, 4)
LONGER = 2  # times each row is shown, for sequences longer than any in training
FIRST_WEIGHT = 0.1  # of batch norm, as Cooijmans and others start it
LONGEST_GRADIENT = 1.0
TRAINED, LOST, GAP = 30, 3, 5  # points
DEFAULT: Mapping[str, Any] = {
    "seeds": 5, "hidden": 64, "epochs": 8, "lr": 0.05, "images": [2000, 1000],
}  # fmt: skip


class StepBatchNorm(nn.Module):
    """Batch norm of a recurrent network: running statistics of each step, one weight and bias.

    A step later than any known is normalized with the running statistics of the last one.

    Args:
        features: of the hidden state.
        steps: of the sequences in training.

    Source: Cooijmans et al. 2016, arXiv:1603.09025.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((features,), FIRST_WEIGHT))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(steps, features))
        self.register_buffer("running_var", torch.ones(steps, features))

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Normalize the summed inputs (N, features) of a step."""
        known = min(step, len(self.running_mean) - 1)
        return nf.functional.batch_norm(
            x, self.running_mean[known], self.running_var[known], self.weight, self.bias,
            self.training,
        )  # fmt: skip


class StepLayerNorm(nf.LayerNorm):
    """Layer norm of the hidden units: every step alike.

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    def forward(self, input: Tensor, step: int = 0) -> Tensor:
        """Normalize the summed inputs (N, features); the step does not matter."""
        return super().forward(input)


class StepBias(nn.Module):
    """No norm, only the bias that norms have as well."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Add the bias."""
        return x + self.bias


class Recurrent(nn.Module):
    """Classifies sequences by their last hidden state, ``h' = tanh(norm(W h + U x))``.

    Args:
        norm: one of ``NORMS``.
        inputs: numbers a step.
        hidden: units of the state.
        classes: how many.
        steps: of the sequences in training.
    """

    def __init__(self, norm: str, inputs: int, hidden: int, classes: int, steps: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, hidden, bias=False)
        self.hidden = nn.Linear(hidden, hidden, bias=False)
        self.read = nn.Linear(hidden, classes)
        self.norm: nn.Module
        if norm == "batch":
            self.norm = StepBatchNorm(hidden, steps)
        else:
            self.norm = StepLayerNorm(hidden) if norm == "layer" else StepBias(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of sequences (N, steps, inputs)."""
        state = x.new_zeros(len(x), self.hidden.in_features)
        for step, summed in enumerate(self.inputs(x).unbind(1)):
            state = torch.tanh(self.norm(summed + self.hidden(state), step))
        return self.read(state)


def initialize(network: Recurrent, rng: np.random.Generator) -> None:
    """An orthogonal W, the others normal of variance 1 / inputs: the same for every norm."""
    for layer in (network.inputs, network.hidden, network.read):
        values = rng.standard_normal(tuple(layer.weight.shape)) / np.sqrt(layer.in_features)
        if layer is network.hidden:
            values = np.linalg.qr(values)[0]
        layer.weight.data.copy_(torch.as_tensor(values))
    network.read.bias.data.zero_()


class Sequences(NamedTuple):
    """Pictures row by row (N, steps, inputs), and their labels."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


@lru_cache(maxsize=1)
def sequences(train: int, test: int) -> Sequences:
    """Fashion-MNIST as sequences of 14 rows of 14 values, each the mean of 2x2 pixels."""
    data = load("fashion")
    order = np.random.default_rng(0).permutation(len(data.x_train))
    parts = (torch.as_tensor(x) for x in data.standardized())
    x_train, x_test = (F.avg_pool2d(x, 2)[:, 0] for x in parts)
    y_train, y_test = torch.as_tensor(data.y_train), torch.as_tensor(data.y_test)
    first, second = order[:train], order[:test]
    return Sequences(x_train[first], y_train[first], x_test[second], y_test[second])


def measure(
    seed: int, norm: str, batch: int, hidden: int, epochs: int, lr: float, images: list[int]
) -> Measured:
    """Train a recurrent network; its test error at the length it knows and at twice that.

    Args:
        seed: of the initial weights and the order.
        norm: one of ``NORMS``.
        batch: sequences in a step of SGD.
        hidden: units of the state.
        epochs: passes over the sequences.
        lr: the learning rate for batches of 32; smaller ones scale it down linearly.
        images: to train on, and to test on.
    """
    data = sequences(*images)
    network = Recurrent(norm, data.x_train.shape[2], hidden, 10, data.x_train.shape[1])
    initialize(network, np.random.default_rng((seed, INIT)))

    def batch_loss(chosen: Tensor) -> Tensor:
        return F.cross_entropy(network(data.x_train[chosen]), data.y_train[chosen])

    order = batches(seed, len(data.x_train), epochs, batch)
    training = descend(network, batch_loss, order, lr * batch / SGD_BATCH, longest=LONGEST_GRADIENT)
    losses: list[float] = []
    errors: list[float] = []
    for _ in range(epochs):
        network.train()
        losses.append(next(training))
        errors.append(error(network, data.x_test, data.y_test))
    longer = error(network, data.x_test.repeat_interleave(LONGER, 1), data.y_test)
    return Measured(
        {"loss": losses[-1], "test": errors[-1], "longer": longer, "batch": batch},
        {"epoch": list(range(1, epochs + 1)), "loss": losses, "test": errors},
    )


def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of sequences given a wrong label, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        return float((network(x).argmax(1) != y).double().mean())


def arm(norm: str, batch: int) -> str:
    """What the reader sees.

    >>> arm("layer", 4), arm("none", 32)
    ('layer, SGD batch 4', 'no norm, SGD batch 32')
    """
    return f"{'no norm' if norm == 'none' else norm}, SGD batch {batch}"


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Every norm at both batches, with every seed."""
    common = {key: value for key, value in settings.items() if key != "seeds"}
    return [
        Trial(arm(norm, batch), seed, measure, {**common, "norm": norm, "batch": batch})
        for seed in range(settings["seeds"])
        for norm in NORMS
        for batch in BATCHES
    ]


def judge(results: Results) -> Verdict:
    """Layer norm trains at both batches, loses little at the smaller, and stands longer input."""
    large, small = BATCHES
    trained = [
        less_than(TRAINED, f"test error, {name}", list(results.by_seed(name, "test").values()))
        for name in (arm("layer", large), arm("layer", small))
    ]
    layer, batch = (
        results.differences(arm(norm, small), arm(norm, large), "test")
        for norm in ("layer", "batch")
    )
    excess = np.subtract(batch, layer).tolist()
    return verdict(
        *trained,
        less_than(LOST, f"layer norm loses from batch {large} to {small}", layer),
        more_than(0, "batch norm loses more than layer norm by", excess),
        above(
            results, arm("batch", large), arm("layer", large), "longer", GAP,
            "test error at twice the length",
        ),
    )  # fmt: skip


def picture(results: Results) -> Any:
    """Each norm at each batch: the error at the known length, and at twice that."""
    from normalform.lab.experiments import classify_charts as charts
    from normalform.lab.experiments.strips import SEEDS, strips

    measures = {"test": "sequences as long as in training", "longer": "twice as long"}
    arms = {arm(norm, batch): norm for norm in NORMS for batch in BATCHES}
    return charts.stack(
        [strips(results, arms, measures, "test error, % (less is better)")],
        "A recurrent network reads pictures row by row",
        SEEDS,
    )


EXPERIMENT = Experiment(
    name="recurrent",
    title="Recurrent networks",
    claim=(
        "Layer norm suits recurrent networks: it computes the same at every step, at any batch "
        "size and for sequences longer than in training (Ba, Kiros & Hinton, Layer Normalization, "
        "2016), where batch norm needs statistics of each step (Cooijmans et al., Recurrent Batch "
        "Normalization, 2016) and has none for later ones."
    ),
    setup=(
        "Fashion-MNIST, 2,000 training and 1,000 test images, the mean of 2x2 pixels each, read "
        "as 14 rows of 14 values; a recurrent layer of 64 units, h' = tanh(norm(W h + U x)), and a "
        "linear layer on the last state. Layer norm starts with weights of 1, batch norm with 0.1 "
        "as its authors have it; batch norm keeps running statistics of each of the 14 steps and "
        "uses the last ones beyond. SGD with momentum 0.9, cosine schedule, learning rate 0.05 "
        "at a batch of 32 and in proportion at 4, gradients cut at a norm of 1, 8 epochs, 5 seeds. "
        "Longer sequences: the test images with each row given twice."
    ),
    rule=(
        f"Test error: layer norm stays under {TRAINED} % at both batches, and at 4 is less than "
        f"{LOST} points above itself at 32; batch norm loses more than layer norm by the smaller "
        "batch; and with sequences twice as long, trained at 32, batch norm is more than "
        f"{GAP} points above layer norm. {RULE}"
    ),
    default=DEFAULT,
    quick={**DEFAULT, "seeds": 2, "hidden": 16, "epochs": 1, "images": [64, 100]},
    full={**DEFAULT, "seeds": 20, "hidden": 256, "epochs": 50, "images": [2000, 2000]},
    trials=trials,
    judge=judge,
    picture=picture,
)
