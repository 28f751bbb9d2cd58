"""The arms of a comparison: which norm, over how many samples, at which SGD batch.

Norms with batch statistics run at several normalization batch sizes (NBS). The SGD batch stays at
32 and is cut into blocks of NBS samples that are normalized apart, so that learning rate and noise
of the gradient are the same in every arm. One arm shows the other thing a small batch means: there
the SGD batch itself is 2 and the learning rate 16 times smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

import normalform as nf
from normalform.lab.models import OwnNetwork
from normalform.lab.networks import Network
from normalform.recipes import meant, named

SGD_BATCH = 32
TRUE_BATCH = 2
FAMILIES = ("none", "batch", "layer", "instance", "group:4", "switch")
_FORMS = "none, batch, layer, instance, group[:g], switch"


@dataclass(frozen=True)
class Arm:
    """One arm: a norm and the sizes of its batches.

    Attributes:
        norm: ``none``, ``batch``, ``layer``, ``instance``, ``group:g`` or ``switch``.
        nbs: samples that share batch statistics; None where a norm has none.
        sgd_batch: samples in a gradient step.
    """

    norm: str
    nbs: int | None = None
    sgd_batch: int = SGD_BATCH

    @property
    def label(self) -> str:
        """The name in tables and figures, unique among the arms of a network.

        >>> Arm("switch", 8).label, Arm("batch", 2, 2).label
        ('switch 8', 'batch 2, SGD batch 2')
        """
        label = self.norm if self.nbs is None else f"{self.norm} {self.nbs}"
        return label if self.sgd_batch == SGD_BATCH else f"{label}, SGD batch {self.sgd_batch}"

    @property
    def branches(self) -> tuple[str, ...]:
        """What the norm takes its statistics from: one name, three for ``switch``, or none."""
        if self.norm == "switch":
            return ("instance", "layer", "batch")
        return () if self.norm == "none" else (self.norm,)

    @property
    def over(self) -> tuple[str, ...]:
        """The branches as the layers are told them: ``batch`` is ``ghost:nbs`` inside a batch."""
        batch = "batch" if self.nbs == self.sgd_batch else f"ghost:{self.nbs}"
        return tuple(batch if name == "batch" else name for name in self.branches)

    def norm_layer(self, dim: int = 2, **options: Any) -> partial[nn.Module]:
        """The layer, by channel count. All have one weight and one bias a channel.

        Args:
            dim: axes after the channels.
            options: passed on to the layer, as ``eps``.
        """
        if self.norm == "switch":
            return nf.get_norm_layer("switch", dim, over=self.over, **options)
        if self.norm == "instance":  # torch's default is without
            return nf.get_norm_layer("instance", dim, **{"affine": True, **options})
        return nf.get_norm_layer(self.over[0] if self.over else "none", dim, **options)

    def values(self, network: Network | OwnNetwork, *size: int) -> list[list[int]]:
        """The fewest values behind a mean in training, a row a layer, a column a branch.

        Args:
            network: a probe network, or the user's own.
            size: height and width of the pictures.

        >>> from normalform.lab.networks import STRIDE8
        >>> Arm("batch", 2).values(STRIDE8, 28, 28)
        [[392], [98], [32]]
        """
        return [
            [min(named(name).cells((self.sgd_batch, *shape)).counts) for name in self.over]
            for shape in network.maps(*size)
        ]

    def impossible(self, network: Network | OwnNetwork, *size: int) -> str | None:
        """Why this arm cannot train on the network, or None where it can.

        >>> from normalform.lab.networks import STRIDE32
        >>> Arm("instance").impossible(STRIDE32, 28, 28)
        'conv5 has 1x1 maps: one value behind each mean, nothing to normalize'
        """
        rows = zip(network.maps(*size), self.values(network, *size), strict=True)
        for i, (shape, values) in enumerate(rows):
            if values and max(values) == 1:
                maps = "x".join(map(str, shape[1:])) or "1"
                where = f"{network.place(i)} has {maps} maps"
                return f"{where}: one value behind each mean, nothing to normalize"
        return None


def plan_arms(norms: Iterable[str], nbs: Sequence[int]) -> tuple[Arm, ...]:
    """The arms for these norms and normalization batch sizes, in the order to show them.

    The arm that truly trains at an SGD batch of 2 is there when ``batch`` and an NBS of 2 are, to
    stand beside the arm it is so often taken for.

    >>> [arm.label for arm in plan_arms(["none", "batch"], [32, 2])]
    ['none', 'batch 32', 'batch 2', 'batch 2, SGD batch 2']
    """
    for size in nbs:
        if not 1 <= size <= SGD_BATCH or SGD_BATCH % size:
            raise ValueError(
                f"nbs {size}: the SGD batch of {SGD_BATCH} must divide into blocks of that size; "
                "choose from 32, 16, 8, 4, 2, 1"
            )
    arms: list[Arm] = []
    for norm in norms:
        name = _checked(norm)
        arms += [Arm(name, size) for size in nbs] if name in ("batch", "switch") else [Arm(name)]
        if name == "batch" and TRUE_BATCH in nbs:
            arms.append(Arm("batch", TRUE_BATCH, TRUE_BATCH))
    if not arms:
        raise ValueError(f"no norms to compare; choose from {_FORMS}")
    return tuple(dict.fromkeys(arms))


def _checked(norm: str) -> str:
    stem, _, number = norm.partition(":")
    if stem == "group" and (not number or (number.isdecimal() and int(number) > 0)):
        return norm if number else "group:4"
    if norm not in FAMILIES:
        near = meant(stem, FAMILIES)
        raise ValueError(f"norm {norm!r} is not one to compare; {near}choose from {_FORMS}")
    return norm
