"""Scenes to segment: garments of Fashion-MNIST on a cluttered ground, each under its own light.

Every pixel has a class: ground and clutter, or the kind of garment that is to be seen there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("ground", "top", "trousers", "shoe", "bag")
# of Fashion-MNIST's ten labels: T-shirt, trouser, pullover, dress, coat, sandal, shirt, ...
KINDS = np.array([1, 2, 1, 1, 1, 3, 1, 3, 4, 3])
GARMENTS = (1, 2)  # in a scene, fewest and most
HEIGHTS = (0.4, 0.7)  # of the scene's height
CLUTTER = 6  # strokes, one or two pixels wide
GAIN = (0.5, 1.5)  # of a scene's light
NOISE = 0.02

Array = NDArray[Any]


def scenes(
    pictures: Array, labels: Array, count: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compose scenes.

    Args:
        pictures: garments (N, H, W), zero around the garment, one where it is brightest.
        labels: Fashion-MNIST's, (N,).
        count: how many scenes.
        size: their height and width in pixels.
        rng: draws everything.

    Returns:
        The scenes (count, 1, size, size) and the class of each pixel (count, size, size).
    """
    x = np.empty((count, 1, size, size), np.float32)
    y = np.zeros((count, size, size), np.int64)
    for scene, classes in zip(x[:, 0], y, strict=True):
        scene[:] = _ground(size, rng)
        for _ in range(rng.integers(GARMENTS[0], GARMENTS[1] + 1)):
            kind = int(rng.integers(1, len(CLASSES)))
            picture = pictures[rng.choice(np.flatnonzero(KINDS[labels] == kind))]
            side = round(size * rng.uniform(*HEIGHTS))
            _place(scene, classes, resized(picture, side), kind, rng)
        scene *= rng.uniform(*GAIN)
        scene += NOISE * rng.standard_normal((size, size))
    return x, y


def resized(picture: Array, side: int) -> Array:
    """The picture with this many pixels a side, each the nearest of the old ones.

    >>> resized(np.array([[1, 2], [3, 4]]), 3)
    array([[1, 1, 2],
           [1, 1, 2],
           [3, 3, 4]])
    """
    rows, columns = (np.arange(side) * n // side for n in picture.shape)
    return picture[np.ix_(rows, columns)]


def _ground(size: int, rng: np.random.Generator) -> Array:
    """A slope of grey with strokes across it, dark and bright."""
    down, right = rng.uniform(-0.2, 0.2, 2)
    slope = np.linspace(-0.5, 0.5, size)
    ground = rng.uniform(0, 0.4) + down * slope[:, None] + right * slope
    for _ in range(CLUTTER):
        height, width = rng.permutation([rng.integers(1, 3), rng.integers(3, size // 2)])
        top, left = rng.integers(0, size - 1, 2)
        ground[top : top + height, left : left + width] = rng.uniform(0, 1)
    return ground


def _place(
    scene: Array, classes: Array, garment: Array, kind: int, rng: np.random.Generator
) -> None:
    """Lay a garment on the scene, over what is there, mirrored or not."""
    side = len(garment)
    top, left = rng.integers(0, len(scene) - side + 1, 2)
    garment = garment[:, ::-1] if rng.random() < 0.5 else garment
    where = np.s_[top : top + side, left : left + side]
    seen = garment > 0
    scene[where][seen] = garment[seen]
    classes[where][seen] = kind
