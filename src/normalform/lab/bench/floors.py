"""The limit: how often the memory has to pass a tensor, in copies (read x, write y).

    forward              1.0   x is read and y written: statistics while x is in the cache
                         1.5   x is read twice: no sample can be written before all are read
    forward + backward   2.5   and dx written from x and dy, each read once: 1.5 copies
                         4.0   x and dy are read twice: 2.5 copies

Norms that share statistics among samples have the second; the others the first, as long as one
cell, the elements that share statistics, fits the cache a core has for itself (L2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from normalform.lab.cases import groups

FORWARD, STEP, INFERENCE = "forward", "forward+backward", "inference"
_ONCE = {FORWARD: 1.0, STEP: 2.5, INFERENCE: 1.0}
_TWICE = {FORWARD: 1.5, STEP: 4.0, INFERENCE: 1.5}
_USUAL_L2 = 2**20
_UNITS = {"K": 2**10, "M": 2**20}


def floor(norm: str, shape: Sequence[int], what: str, itemsize: int, l2: int) -> float:
    """Copies a norm needs at least.

    Args:
        norm: one of :data:`normalform.lab.cases.NORMS`.
        shape: of the input.
        what: ``FORWARD`` (by the input's own statistics), ``STEP`` or ``INFERENCE`` (in evaluation
            mode, where a batch norm only maps).
        itemsize: bytes of an element.
        l2: bytes of the cache a core has for itself.

    >>> floor("instance", (8, 64, 28, 28), "forward", 4, l2=2**20)
    1.0
    >>> floor("batch", (8, 64, 28, 28), "forward+backward", 4, l2=2**20)
    4.0
    >>> floor("instance", (1, 16, 1024, 1024), "forward+backward", 4, l2=2**20)
    4.0
    """
    if what == INFERENCE and norm in ("batch", "ghost"):
        return _ONCE[what]
    if what != INFERENCE and norm in ("batch", "ghost", "switch"):
        return _TWICE[what]
    fits = cell(norm, shape) * itemsize <= l2
    return (_ONCE if fits else _TWICE)[what]


def cell(norm: str, shape: Sequence[int]) -> int:
    """Elements of one sample that share statistics.

    >>> [cell(norm, (8, 64, 7, 7)) for norm in ("instance", "group", "layer")]
    [49, 98, 3136]
    """
    if norm in ("token", "rms"):
        return shape[-1]
    channels, positions = shape[1], math.prod(shape[2:])
    if norm in ("layer", "switch"):
        return channels * positions
    return channels // groups(channels) * positions if norm == "group" else positions


@cache
def l2_bytes() -> int:
    """The size of a core's own second-level cache; 1 MiB where the system does not say."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "level").read_text().strip() == "2":
                size = (index / "size").read_text().strip()
                return int(size.rstrip("KM")) * _UNITS.get(size[-1:], 1)
        except (OSError, ValueError):
            break
    return _USUAL_L2
