"""What goes on inside a network while it trains: activations and switch weights, epoch by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normalform.lab.arms import Arm
from normalform.lab.networks import Network, Probe

PROBE_IMAGES = 64
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Recorder:
    """Takes a network's activations on the same pictures again and again.

    Args:
        arm: its SGD batch and NBS are those the pictures go through in.
        network: which network it is.
        pictures: (N, C, H, W); the same 64 of them are used in every run.
    """

    def __init__(self, arm: Arm, network: Network, pictures: Tensor) -> None:
        chosen = np.random.default_rng(0).permutation(len(pictures))[:PROBE_IMAGES]
        probe, size = pictures[torch.as_tensor(chosen)], arm.sgd_batch
        self.batches = [probe[i : i + size] for i in range(0, len(probe) // size * size, size)]
        self.maps = network.maps(*pictures.shape[2:])
        self.branches = arm.branches
        self.values = np.array(arm.values(network, *pictures.shape[2:]), np.int64)
        self.epochs: list[dict[str, NDArray[Any]]] = []

    def record(self, network: Probe) -> None:
        """Add what the network does now; nothing of it changes, its running statistics included."""
        layers = [_statistics(before, after) for before, after in self._activations(network)]
        self.epochs.append({key: np.array([layer[key] for layer in layers]) for key in layers[0]})
        if len(self.branches) > 1:
            self.epochs[-1].update(self._switch_weights(network))

    def arrays(self, epochs: int) -> dict[str, NDArray[Any]]:
        """All records, index 0 before training, NaN where a run stopped before ``epochs``."""
        missing = epochs + 1 - len(self.epochs)
        stacked = {key: np.stack([epoch[key] for epoch in self.epochs]) for key in self.epochs[0]}
        return {
            "channels": np.array([size.channels for size in self.maps]),
            "maps": np.array([(size.height, size.width) for size in self.maps]),
            "branches": np.array(self.branches, np.str_),
            "values": self.values,
            **{
                key: np.pad(
                    rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1), constant_values=np.nan
                )
                for key, rows in stacked.items()
            },
        }

    def _activations(self, network: Probe) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Each layer's maps before and after its norm, as in training, over all the pictures."""
        buffers = [buffer.clone() for buffer in network.buffers()]
        network.train()
        with torch.no_grad():
            traces = [list(network.trace(batch)) for batch in self.batches]
            for buffer, kept in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        return [
            (
                np.concatenate([before.numpy() for before, _ in layer]),
                np.concatenate([after.numpy() for _, after in layer]),
            )
            for layer in zip(*traces, strict=True)
        ]

    def _switch_weights(self, network: Probe) -> dict[str, NDArray[np.float64]]:
        norms: list[Any] = list(network.norms)
        layers = list(zip(norms, self.values > 1, strict=True))
        return {
            "mean_weights": np.stack([_softmax(norm.mean_weight, used) for norm, used in layers]),
            "var_weights": np.stack([_softmax(norm.var_weight, used) for norm, used in layers]),
        }


def _statistics(before: NDArray[np.float32], after: NDArray[np.float32]) -> dict[str, Any]:
    active = np.maximum(after, 0)
    return {
        "conv_std": before.std(dtype=np.float64),
        "pre_mean": after.mean(dtype=np.float64),
        "pre_std": after.std(dtype=np.float64),
        "pre_quantiles": np.quantile(after, QUANTILES),
        "act_mean": active.mean(dtype=np.float64),
        "act_std": active.std(dtype=np.float64),
        "act_zero": np.mean(active == 0),
    }


def _softmax(logits: Tensor, used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Softmax over the branches in use: one with a single value behind its mean is left out."""
    weights = np.zeros(len(used))
    weights[used] = torch.softmax(logits.detach().double()[torch.as_tensor(used)], 0).numpy()
    return weights
