"""Data for a network of the user's own: any shape, labels or maps of labels or numbers to meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from normalform.lab import data as pictures
from normalform.lab.data import FEWEST, TRAIN_SHARE, Dataset
from normalform.lab.metrics import IGNORED, metric_named

Array = NDArray[Any]
UNLABELLED = 255  # the customary mark of a pixel without a label
_FORMS = "a tensor or array each for x and y, a Dataset or DataLoader of such pairs, or two of them"


def take(source: Any, metric: str) -> Dataset:
    """The data as a comparison holds it.

    Args:
        source: what :func:`normalform.lab.data.load` takes, or ``(x, y)``, a
            :class:`torch.utils.data.Dataset` or :class:`~torch.utils.data.DataLoader` of such
            pairs, or ``(train, test)`` of one of these. They are read once, into memory, a
            shuffling loader in an order of its own that is always the same. Without a test part
            30 % are set aside. ``uint8`` pictures are standardized by channel; all other values
            stay as they are.
        metric: ``error``: y is one label a sample. ``miou``: one label a pixel, 255 or negative
            where there is none. ``mse``: numbers.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it cannot be used.
    """
    metric_named(metric)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_file():
            return _dataset(path.stem, path.name, pictures.read_npz(path), metric)
        found = pictures.load(source)
        if metric != "error":
            raise ValueError(f"data {found.name} has labels of pictures: metric {metric} needs y")
        return found
    try:
        if _is_pair(source) and not _plain(source[0]):
            (x, y), (x_test, y_test) = _part(source[0]), _part(source[1])
            arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
        else:
            x, y = _part(source)
            arrays = {"x": x, "y": y}
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"data of type {type(source).__name__}: {error}; give {_FORMS}") from None
    return _dataset("own", "own data", arrays, metric)


def _plain(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(cast(Sequence[Any], value)) == 2


def _part(source: Any) -> tuple[Array, Array]:
    """The x and y of one part."""
    if _is_pair(source) and _plain(source[0]):
        return _array(source[0]), _array(source[1])
    if isinstance(source, DataLoader):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the order of a shuffling loader
            batches = [_pair(batch) for batch in cast(Iterable[Any], source)]
        if not batches:
            raise ValueError("data: the DataLoader is empty")
        return (np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches]))
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not _is_pair(source):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of transforms that draw
            found = [_pair(source[i]) for i in range(len(source))]
        if not found:
            raise ValueError("data: the Dataset is empty")
        return np.stack([x for x, _ in found]), np.stack([y for _, y in found])
    raise TypeError("x and y cannot be found in it")


def _pair(item: Any) -> tuple[Array, Array]:
    if not isinstance(item, tuple | list) or len(cast(Sequence[Any], item)) != 2:
        raise TypeError("its items are not pairs of x and y")
    x, y = (_array(value) for value in cast(Sequence[Any], item))
    return x, y


def _array(value: Any) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    if not isinstance(value, np.ndarray | np.generic | int | float):
        raise TypeError(f"it holds a {type(value).__name__}, not a tensor")
    return np.asarray(value)


def _dataset(name: str, title: str, arrays: Mapping[str, Array], metric: str) -> Dataset:
    try:
        parts = _split(arrays, metric) if "x" in arrays else dict(arrays)
        whole = arrays["x"] if "x" in arrays else arrays["x_train"]
        x_train, x_test = _inputs("x_train", parts, whole), _inputs("x_test", parts, whole)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"x_train has shape {x_train.shape}, x_test {x_test.shape}")
        y_train, y_test, classes = _targets(parts, arrays, metric)
    except ValueError as error:
        raise ValueError(f"data {name}: {error}") from None
    scaled = whole.dtype == np.uint8
    return Dataset(name, title, x_train, y_train, x_test, y_test, classes, metric, scaled)


def _split(arrays: Mapping[str, Array], metric: str) -> dict[str, Array]:
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: one y a sample is needed")
    if metric == "error":
        return pictures.split(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    train = np.sort(order[: int(np.ceil(TRAIN_SHARE * len(x)))])
    test = np.setdiff1d(order, train)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def _inputs(key: str, parts: Mapping[str, Array], whole: Array) -> Array:
    x, y = parts[key], parts[key.replace("x", "y", 1)]
    fewest = FEWEST if key == "x_train" else 1
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{key} holds {x.dtype}, not numbers")
    if x.ndim < 2:
        raise ValueError(f"{key} has shape {x.shape}; samples are along the first axis of several")
    if y.ndim < 1 or len(x) != len(y):
        raise ValueError(f"{key} has shape {x.shape}, its y {y.shape}: one y a sample is needed")
    if len(x) < fewest:
        raise ValueError(f"{key} has {len(x)} samples; at least {fewest} are needed")
    if whole.dtype == np.uint8 and x.ndim == 3:
        x = x[:, None]
    elif whole.dtype == np.uint8 and x.ndim == 4 and x.shape[1] > 4 >= x.shape[3]:
        x = np.moveaxis(x, 3, 1)
    if x.dtype.kind in "iu" and x.dtype != np.uint8:
        return np.ascontiguousarray(x, np.int64)  # as an embedding takes them
    with np.errstate(over="ignore"):  # what does not fit float32 becomes inf and is refused below
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"{key} holds values that are NaN, infinite or above 3e38")
    return x


def _targets(
    parts: Mapping[str, Array], arrays: Mapping[str, Array], metric: str
) -> tuple[Array, Array, tuple[str, ...]]:
    if metric == "error":
        if parts["y_train"].ndim != 1 or parts["y_test"].ndim != 1:
            shape = parts["y_train"].shape
            raise ValueError(f"y has shape {shape}; metric error takes one label a sample")
        return pictures.labels(parts, arrays.get("classes"))
    found = [_numbers(key, parts[key], metric) for key in ("y_train", "y_test")]
    if found[0].shape[1:] != found[1].shape[1:]:
        raise ValueError(f"y_train has shape {found[0].shape}, y_test {found[1].shape}")
    top = max(int(y.max()) for y in found) + 1 if metric == "miou" else 0
    if metric == "miou" and top < 2:
        raise ValueError("y holds fewer than two classes")
    return found[0], found[1], tuple(str(label) for label in range(top))


def _numbers(key: str, y: Array, metric: str) -> Array:
    """A label a pixel, or any numbers."""
    known = "iub" if metric == "miou" else "iubf"
    if y.dtype.kind not in known:
        what = "whole numbers" if metric == "miou" else "numbers"
        raise ValueError(f"{key} holds {y.dtype}; metric {metric} takes {what}")
    if metric == "miou":
        if y.ndim < 2:
            raise ValueError(f"{key} has shape {y.shape}; metric miou takes one label a pixel")
        y = y.astype(np.int64)
        return np.where((y < 0) | (y == UNLABELLED), IGNORED, y)
    y = np.ascontiguousarray(y, np.float32)
    if not np.isfinite(y).all():
        raise ValueError(f"{key} holds values that are NaN or infinite")
    return y
