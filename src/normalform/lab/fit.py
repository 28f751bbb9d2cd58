"""Whether the user's own network and data go together, tried before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normalform.lab.arms import SGD_BATCH, Arm
from normalform.lab.data import Dataset
from normalform.lab.exchange import EXCHANGED
from normalform.lab.found import resolve, said, sources_of, takes_norm
from normalform.lab.models import REFERENCE, Layer, OwnNetwork, own_network, seeded, shapes_at

_TRIED = 2  # samples


def look(source: Any, arms: Iterable[Arm], data: Dataset) -> OwnNetwork:
    """The network with the shapes at its norms, after a step forward on the first samples.

    Args:
        source: see :func:`normalform.lab.models.own_network`.
        arms: each is built once.
        data: what it will train on.

    Raises:
        ValueError: it cannot be built with a norm, has none, or does not take or give what the
            data hold.
        ImportError: it cannot be imported.
    """
    network = own_network(source, min(max(len(data.shape) - 1, 1), 3))
    model = network.build(Arm(REFERENCE, SGD_BATCH), 0)
    if not model.norms:
        raise ValueError(f"model {network.name} {_without_norms(resolve(source), model.model)}")
    x_train, _ = data.standardized()
    x = torch.as_tensor(x_train[:_TRIED])
    outputs: list[Any] = []
    try:
        with seeded(0), torch.no_grad():
            found = shapes_at(model.norms, lambda: outputs.append(model.train()(x)))
    except Exception as error:
        raise ValueError(
            f"model {network.name} does not take data {data.name}, of shape {tuple(x.shape)}: "
            f"{said(error)}"
        ) from None
    _check_output(network.name, outputs[0], data)
    reached = zip(model.names, found, strict=True)
    layers = tuple(Layer(name, shape[1:]) for name, shape in reached if shape)
    names = [layer.name for layer in layers]
    for arm in arms:
        built = network.build(arm, 0)
        if not set(names) <= set(built.names):
            raise ValueError(
                f"model {network.name} has {len(model.names)} norms with {REFERENCE}, "
                f"{len(built.names)} others with {arm.norm}: arms could not be compared"
            )
    return replace(network, layers=layers, fingerprint=sources_of(resolve(source), model.model))


def _without_norms(found: Any, model: nn.Module) -> str:
    if takes_norm(found):
        return "keeps no norm that norm_layer made"
    kinds = {type(m) for m in model.modules() if "Norm" in type(m).__name__} - set(EXCHANGED)
    others = ", ".join(sorted(kind.__name__ for kind in kinds))
    return (
        "has no batch, instance or group norm to exchange"
        + (f", only {others}" if others else "")
        + "; write it as a function of norm_layer that calls norm_layer(channels)"
    )


def _check_output(name: str, outputs: Any, data: Dataset) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model {name} gives {type(outputs).__name__}, not one tensor")
    shape: tuple[int, ...] = tuple(outputs.shape)
    y = data.y_train[:_TRIED]
    given = f"model {name} gives shape {shape}, data {data.name}"
    if data.metric == "mse":
        if outputs.numel() != y.size:
            raise ValueError(f"{given} y of shape {y.shape}: one number for each is needed")
        return
    classes = len(data.classes)
    wanted = [len(y), classes, *y.shape[1:]]
    if len(shape) != len(wanted) or list(outputs[:, :classes].shape) != wanted:
        raise ValueError(f"{given} has {classes} classes: shape {tuple(wanted)} is needed")
