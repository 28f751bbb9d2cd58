"""The images a comparison trains on: the embedded cut, those of packages, or the user's own.

Whatever the source, a :class:`Dataset` holds pictures (N, C, H, W) and labels 0, 1, 2 ... split
into a training and a test part, always in the same order.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from normalform.lab.pictures import read_folder
from normalform.lab.vision import PREFIX, read_torchvision

SMALLEST = 8  # pixels a side: the networks halve a picture three or five times
FEWEST = 32  # training images: one SGD batch
TRAIN_SHARE = 0.7

Pictures = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Samples and what is to be found in them; pictures and labels unless they are the user's.

    Attributes:
        name: short, goes into file names and tables.
        title: one line for people.
        x_train: training pictures (N, C, H, W), pixel values as they came.
        y_train: their labels (N,), indices into ``classes``.
        x_test: test pictures.
        y_test: test labels.
        classes: the name of each class; none where y are numbers.
        metric: what y is for, see :mod:`normalform.lab.metrics`.
        scaled: whether the pictures are standardized before training.
    """

    name: str
    title: str
    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    classes: tuple[str, ...]
    metric: str = "error"
    scaled: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample: channels, height and width of a picture."""
        return self.x_train.shape[1:]

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of all pictures and labels: two runs with equal ones saw the same data."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def standardized(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Training and test pictures less the training mean, over the training std, per channel."""
        if not self.scaled:
            return self.x_train, self.x_test
        axes = (0, *range(2, self.x_train.ndim))
        mean = self.x_train.mean(axes, dtype=np.float64, keepdims=True)
        std = self.x_train.std(axes, dtype=np.float64, keepdims=True)
        std[std == 0] = 1.0
        train, test = ((x - mean) / std for x in (self.x_train, self.x_test))
        return train.astype(np.float32), test.astype(np.float32)


def load(source: str | Path) -> Dataset:
    """Load the data called ``source``.

    Args:
        source: ``"fashion"`` (embedded: 2,000 + 2,000 images of Fashion-MNIST), ``"digits"``
            (scikit-learn's 8x8 digits), a ``.npz`` file with the arrays ``x_train``, ``y_train``,
            ``x_test``, ``y_test`` or ``x``, ``y``, a folder with one subfolder of pictures a
            class, or ``"torchvision:CIFAR10"`` or another data set of torchvision, see
            :func:`normalform.lab.vision.read_torchvision`. Without a split of its own, 70 % of each
            class is for training. Pictures in arrays are (N, H, W), (N, C, H, W) or (N, H, W, C);
            ``classes`` may name the labels.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: the package that reads it is not installed, or cannot be imported.
        ValueError: it can be read but not trained on; the message says why.

    >>> load("fashion").x_train.shape
    (2000, 1, 28, 28)
    """
    name = name_of(source)
    if source == "fashion":
        with as_file(files("normalform.lab") / "data" / "fashion.npz") as path:
            arrays = read_npz(path)
        return _dataset("fashion", "Fashion-MNIST, 2,000 + 2,000 images", arrays)
    if source == "digits":
        return _dataset("digits", "scikit-learn's digits", _read_digits())
    if str(source).startswith(PREFIX):
        return _dataset(name, f"{name} of torchvision", read_torchvision(str(source)))
    path = Path(source)
    if path.is_dir():
        return _dataset(name, f"pictures in {path.name}", read_folder(path))
    if not path.exists():
        raise FileNotFoundError(
            f"data {str(source)!r}: no such file or folder; give fashion, digits, "
            "torchvision:CIFAR10, a .npz file or a folder with one subfolder of pictures a class"
        )
    return _dataset(name, path.name, read_npz(path))


def name_of(source: str | Path) -> str:
    """The short name of the data that :func:`load` finds there.

    >>> name_of("torchvision:CIFAR10:/data"), name_of("mine/faces.npz")
    ('CIFAR10', 'faces')
    """
    if str(source).startswith(PREFIX):
        return str(source).split(":")[1]
    path = Path(source)
    return path.resolve().name if path.is_dir() else path.stem


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file that holds a data set, with a split of its own or without."""
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an .npz file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            known = set(archive.files)
            split = known.issuperset(wanted)
            if not split and not known.issuperset(("x", "y")):
                found = ", ".join(sorted(known)) or "nothing"
                raise ValueError(f"it holds {found}, not {', '.join(wanted)} or x, y")
            keys = (*(wanted if split else ("x", "y")), *(known & {"classes"}))
            return {key: archive[key] for key in keys}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects, not plain arrays"
        raise ValueError(f"data {path.name}: cannot be used as .npz: {reason}") from None


def _read_digits() -> dict[str, NDArray[Any]]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "data digits needs scikit-learn: pip install scikit-learn"
        ) from None
    digits = cast(Any, load_digits())
    return {"x": digits.images, "y": digits.target}


def _dataset(name: str, title: str, arrays: Mapping[str, NDArray[Any]]) -> Dataset:
    """Check the arrays and bring them into one form."""
    try:
        if "x" in arrays:
            parts = split(arrays["x"], arrays["y"])
        else:
            parts = {key: arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")}
        x_train, x_test = _pictures("x_train", parts), _pictures("x_test", parts)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(
                f"training pictures are {_size(x_train)}, test pictures {_size(x_test)}"
            )
        if x_train.min() == x_train.max():
            raise ValueError(f"all training pixels are {x_train.min():g}: nothing to learn from")
        y_train, y_test, classes = labels(parts, arrays.get("classes"))
    except ValueError as error:
        raise ValueError(f"data {name}: {error}") from None
    return Dataset(name, title, x_train, y_train, x_test, y_test, classes)


def split(x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The first 70 % of each class, in an order shuffled once and for all, are for training."""
    if y.ndim != 1 or x.ndim < 1 or len(x) != len(y):
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: y needs one label a picture")
    order = np.random.default_rng(0).permutation(len(y))
    train = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        train[members[: int(np.ceil(TRAIN_SHARE * len(members)))]] = True
    return {"x_train": x[train], "y_train": y[train], "x_test": x[~train], "y_test": y[~train]}


def _pictures(key: str, parts: Mapping[str, NDArray[Any]]) -> Pictures:
    x, y = parts[key], parts[key.replace("x", "y", 1)]
    fewest = FEWEST if key == "x_train" else 1
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{key} holds {x.dtype}, not numbers")
    if x.ndim not in (3, 4):
        raise ValueError(f"{key} has shape {x.shape}; pictures are (N, H, W) or (N, C, H, W)")
    if y.ndim != 1 or len(x) != len(y):
        raise ValueError(f"{key} has shape {x.shape}, its labels {y.shape}: one label a picture")
    if len(x) < fewest:
        raise ValueError(f"{key} has {len(x)} pictures; at least {fewest} are needed")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] > 4 >= x.shape[3]:
        x = np.moveaxis(x, 3, 1)
    if min(x.shape[1:]) < 1 or min(x.shape[2:]) < SMALLEST:
        raise ValueError(f"{key}: pictures of {_size(x)}; at least {SMALLEST}x{SMALLEST} is needed")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes inf and is refused below
        pictures = np.ascontiguousarray(x, np.float32)
    wrong = int(np.sum(~np.isfinite(pictures)))
    if wrong:
        raise ValueError(f"{key} holds {wrong:,} values that are NaN, infinite or above 3e38")
    return pictures


def labels(
    parts: Mapping[str, NDArray[Any]], names: NDArray[Any] | None
) -> tuple[Labels, Labels, tuple[str, ...]]:
    """The labels as indices, and the name of each class."""
    y_train, y_test = parts["y_train"], parts["y_test"]
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        if y.dtype.kind not in "biufU" or (y.dtype.kind == "f" and np.any(y != np.floor(y))):
            raise ValueError(f"{key} holds {y.dtype}; labels are whole numbers or text")
    known, train = np.unique(y_train, return_inverse=True)
    if len(known) < 2:
        raise ValueError(f"all training labels are {known[0]}: two classes are needed at least")
    strange = np.setdiff1d(y_test, known)
    if strange.size:
        raise ValueError(f"label {strange[0]} is in the test part only")
    test = np.searchsorted(known, y_test)
    named = names is not None and known.dtype.kind in "iu" and known[0] >= 0
    if names is not None and named and known[-1] < len(names):
        classes = tuple(str(names[label]) for label in known)
    else:
        classes = tuple(str(label) for label in known)
    return train.astype(np.int64), test.astype(np.int64), classes


def _size(x: NDArray[Any]) -> str:
    channels, height, width = x.shape[1:]
    return f"{height}x{width}" + (f" with {channels} channels" if channels > 1 else "")
