"""Cut the embedded set from Fashion-MNIST: the first 200 images of each class, training and test.

Debian's package dataset-fashion-mnist installs the four original files. The cut keeps their
order, so the result is the same wherever it is made::

    python scripts/cut_fashion_mnist.py [folder of the four .gz files] [file.npz to write]
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[1] / "src/normalform/lab/data/fashion.npz"
PER_CLASS = 200
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read(source: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 28, 28) and labels (N,) of ``part``, "train" or "t10k"."""
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.reshape(np.frombuffer(images, np.uint8, offset=16), (-1, 28, 28)),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def cut(source: Path) -> dict[str, NDArray[np.uint8]]:
    """The first ``PER_CLASS`` images of each class in both parts, in the order of the files."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    for part, name in (("train", "train"), ("t10k", "test")):
        x, y = read(source, part)
        first = [np.flatnonzero(y == label)[:PER_CLASS] for label in range(len(CLASSES))]
        chosen = np.sort(np.concatenate(first))
        arrays[f"x_{name}"], arrays[f"y_{name}"] = x[chosen], y[chosen]
    return arrays


def main() -> None:
    """Cut and write; the size is printed because the package promises to stay small."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else TARGET
    if not source.is_dir():
        raise SystemExit(f"{source} is not there: apt-get install dataset-fashion-mnist")
    arrays = cut(source)
    np.savez_compressed(
        target,
        x_train=arrays["x_train"],
        y_train=arrays["y_train"],
        x_test=arrays["x_test"],
        y_test=arrays["y_test"],
        classes=np.array(CLASSES),
    )
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
