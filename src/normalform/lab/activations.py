"""What goes on inside a network while it trains: activations and switch weights, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.models import OwnModel, OwnNetwork, seeded
from normalform.lab.networks import Network, Probe

PROBE_IMAGES = 64
MOST_LAYERS = 8  # of a deep network these many are recorded, from the first to the last
MOST_VALUES = 2**24  # that the recorded norms get of all the samples together
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Recorder:
    """Takes a network's activations on the same samples again and again.

    Args:
        arm: its SGD batch and NBS are those the samples go through in.
        network: which network it is.
        samples: (N, C, *); the same 64 of them are used in every run, 32 where those are large.
    """

    def __init__(self, arm: Arm, network: Network | OwnNetwork, samples: Tensor) -> None:
        self.maps = network.maps(*samples.shape[2:])
        self.places = [network.place(i) for i in range(len(self.maps))]
        self.shown = np.linspace(0, len(self.maps) - 1, min(len(self.maps), MOST_LAYERS)).astype(
            int
        )
        values = sum(math.prod(self.maps[i]) for i in self.shown)
        count = PROBE_IMAGES if values * PROBE_IMAGES <= MOST_VALUES else SGD_BATCH
        chosen = np.random.default_rng(0).permutation(len(samples))[:count]
        probe, size = samples[torch.as_tensor(chosen, device=samples.device)], arm.sgd_batch
        self.batches = [probe[i : i + size] for i in range(0, len(probe) // size * size, size)]
        self.branches = arm.branches
        self.values = np.array(arm.values(network, *samples.shape[2:]), np.int64)[self.shown]
        self.probe = isinstance(network, Network)
        self.epochs: list[dict[str, NDArray[Any]]] = []

    def record(self, network: Probe | OwnModel) -> None:
        """Add what the network does now; nothing of it changes, its running statistics included."""
        norms = [network.norms[i] for i in self.shown]
        layers = [
            _statistics(before, after, relu=self.probe)
            for before, after in self._activations(network, norms)
        ]
        self.epochs.append({key: np.array([layer[key] for layer in layers]) for key in layers[0]})
        if len(self.branches) > 1:
            self.epochs[-1].update(self._switch_weights(norms))

    def arrays(self, epochs: int) -> dict[str, NDArray[Any]]:
        """All records, index 0 before training, NaN where a run stopped before ``epochs``."""
        missing = epochs + 1 - len(self.epochs)
        stacked = {key: np.stack([epoch[key] for epoch in self.epochs]) for key in self.epochs[0]}
        shapes = [self.maps[i] for i in self.shown]
        return {
            "channels": np.array([shape[0] for shape in shapes]),
            "maps": np.array(["x".join(map(str, shape[1:])) or "1" for shape in shapes]),
            "places": np.array([self.places[i] for i in self.shown]),
            "branches": np.array(self.branches, np.str_),
            "values": self.values,
            **{
                key: np.pad(
                    rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=np.nan
                )
                for key, rows in stacked.items()
            },
        }

    def _activations(
        self, network: Probe | OwnModel, norms: Sequence[nn.Module]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """What each norm gets and gives, as in training, over all the samples."""
        seen: dict[nn.Module, list[tuple[NDArray[np.float32], NDArray[np.float32]]]]
        seen = {norm: [] for norm in norms}

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            before = _numbers(inputs[0]).copy()  # copied: a ReLU may work in place
            if all(part.shape[1:] == before.shape[1:] for part, _ in seen[module][:1]):
                seen[module].append((before, _numbers(output).copy()))

        handles = [norm.register_forward_hook(note) for norm in norms]
        buffers = [buffer.clone() for buffer in network.buffers()]
        network.train()
        try:
            with seeded(0), torch.no_grad():
                for batch in self.batches:
                    network(batch)
                for buffer, kept in zip(network.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
        finally:
            for handle in handles:
                handle.remove()
        return [
            (np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]))
            for parts in seen.values()
        ]

    def _switch_weights(self, norms: Sequence[Any]) -> dict[str, NDArray[np.float64]]:
        layers = list(zip(norms, self.values > 1, strict=True))
        return {
            "mean_weights": np.stack([_softmax(norm.mean_weight, used) for norm, used in layers]),
            "var_weights": np.stack([_softmax(norm.var_weight, used) for norm, used in layers]),
        }


def _statistics(
    before: NDArray[np.float32], after: NDArray[np.float32], *, relu: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "conv_std": before.std(dtype=np.float64),
        "pre_mean": after.mean(dtype=np.float64),
        "pre_std": after.std(dtype=np.float64),
        "pre_quantiles": np.quantile(after, QUANTILES),
    }
    if not relu:  # what comes after the norm is the user's affair
        return found
    active = np.maximum(after, 0)
    return found | {
        "act_mean": active.mean(dtype=np.float64),
        "act_std": active.std(dtype=np.float64),
        "act_zero": np.mean(active == 0),
    }


def _numbers(x: Tensor) -> NDArray[np.float32]:
    return x.detach().float().cpu().numpy()


def _softmax(logits: Tensor, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Softmax over the branches in use: one with a single value behind its mean is left out."""
    weights = np.zeros(len(used))
    weights[used] = torch.softmax(logits.detach().cpu().double()[torch.as_tensor(used)], 0).numpy()
    return weights
