"""Data sets of torchvision by their name, as ``torchvision:CIFAR10``; imported when asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalform.lab.found import said

PREFIX = "torchvision:"
_TEST = ("test", "val")  # what a split for testing is called


def read_torchvision(source: str) -> dict[str, NDArray[Any]]:
    """The arrays of a data set of torchvision, downloaded where it is not there yet.

    Args:
        source: ``torchvision:NAME`` or ``torchvision:NAME:ROOT``. NAME is any class of
            ``torchvision.datasets`` that gives pictures of one size with a label each. Without
            ROOT it lies in ``$TORCH_HOME/data``, by default ``~/.cache/torch/data``.

    Returns:
        ``x_train``, ``y_train``, ``x_test``, ``y_test`` by its ``train=`` or ``split=``; ``x`` and
        ``y`` where it has neither. ``classes`` where it names them.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported.
        ValueError: there is no such data set, it cannot be had, or does not hold such pictures.
    """
    name, _, place = source.removeprefix(PREFIX).partition(":")
    made = _class(source, name)
    root = Path(place) if place else Path(torch.hub.get_dir()).parent / "data"
    try:
        parts = _parts(made, root)
        arrays: dict[str, NDArray[Any]] = {}
        for suffix, items in parts.items():
            arrays[f"x{suffix}"], arrays[f"y{suffix}"] = _pictures(items)
    except Exception as error:  # of torchvision, of the network or of the disk
        raise ValueError(f"data {source}: {said(error)} (its folder is {root})") from None
    classes: Any = getattr(next(iter(parts.values())), "classes", ())
    named = bool(classes) and all(isinstance(label, str) for label in classes)
    return arrays | ({"classes": np.array(classes)} if named else {})


def _class(source: str, name: str) -> Any:
    try:
        datasets: Any = importlib.import_module("torchvision.datasets")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise
        raise ModuleNotFoundError(
            f"data {source} needs torchvision: pip install torchvision; --data takes a folder of "
            "pictures and a .npz file too"
        ) from None
    except Exception as error:  # a torchvision made for another PyTorch
        raise ImportError(
            f"data {source}: importing torchvision failed beside torch {torch.__version__}: "
            f"{said(error)}; --data takes a folder of pictures and a .npz file too"
        ) from None
    found = getattr(datasets, name, None)
    if not inspect.isclass(found):
        near = difflib.get_close_matches(name, dir(datasets), 3)
        more = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(f"data {source}: torchvision.datasets has no {name!r}{more}")
    return found


def _parts(made: Any, root: Path) -> dict[str, Any]:
    """The parts for training and testing by the ends of their names; the whole by an empty one."""
    takes = inspect.signature(made).parameters
    options = {"download": True} if "download" in takes else {}
    if "train" in takes:
        return {
            f"_{part}": made(str(root), train=part == "train", **options)
            for part in ("train", "test")
        }
    if "split" not in takes:
        return {"": made(str(root), **options)}
    train = made(str(root), split="train", **options)
    for split in _TEST[:-1]:
        try:
            return {"_train": train, "_test": made(str(root), split=split, **options)}
        except ValueError:  # it has no split of that name
            continue
    return {"_train": train, "_test": made(str(root), split=_TEST[-1], **options)}


def _pictures(items: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    pictures: list[NDArray[Any]] = []
    labels: list[int] = []
    for i in range(len(items)):
        picture, label = items[i]
        if not isinstance(label, int | np.integer):
            raise ValueError(f"its labels are {type(label).__name__}, not whole numbers")
        pictures.append(np.asarray(picture))
        labels.append(int(label))
    shapes = list(dict.fromkeys(picture.shape for picture in pictures))
    if len(shapes) > 1:
        raise ValueError(
            f"it holds pictures of {shapes[0]} and {shapes[1]}; give a folder of pictures, which "
            "are brought to one size"
        )
    return np.stack(pictures), np.array(labels)
