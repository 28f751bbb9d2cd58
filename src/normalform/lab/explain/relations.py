"""What is equal between norms, and what only looks so: each is run, never only said.

The two sides are Python as a reader would type it, and that text is what is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import normalform as nf

SETUP = """torch.manual_seed(0)
x = (3 + torch.randn(4, 6, 2, 2)).requires_grad_()  # N, C, H, W
one = x[:1]  # a batch of one sample
point = x[:, :, :1, :1]  # images of 1x1
last = x.movedim(1, -1)  # channels last, as in a transformer
only = torch.eye(3).log()  # only[k]: all weight on branch k of a switch"""
EQUAL = 2e-6  # what float32 may lose of numbers up to 4
DIFFERENT = 1e-2


@dataclass(frozen=True)
class Relation:
    """Two norms, and whether they are the same.

    Attributes:
        claim: in words.
        left: Python that gives a tensor, from the names of ``SETUP``.
        right: likewise.
        why: the reason.
        norms: what is drawn: name and shape for each side that has sets of its own.
        same: whether they are equal.
    """

    claim: str
    left: str
    right: str
    why: str
    norms: tuple[tuple[str, tuple[int, ...]], ...] = ()
    same: bool = True


@dataclass(frozen=True)
class Outcome:
    """What running both sides gave: the largest differences of y and of the gradient of x."""

    relation: Relation
    y: float
    dx: float

    @property
    def holds(self) -> bool:
        """Equal within rounding where that is claimed, clearly apart where not."""
        if self.relation.same:
            return self.y <= EQUAL and self.dx <= EQUAL
        return self.y >= DIFFERENT


_NCHW, _NHWC = (4, 6, 2, 2), (4, 2, 2, 6)
RELATIONS: Sequence[Relation] = (
    Relation(
        "Group norm with one group is layer norm over the sample",
        "nf.GroupNorm(1, 6)(x)",
        "nf.LayerNorm((6, 2, 2))(x)",
        "One group holds all channels. Their weights differ: GroupNorm has one a channel, "
        "LayerNorm one an element.",
        (("group:1", _NCHW), ("layer", _NCHW)),
    ),
    Relation(
        "Group norm with a group for each channel is instance norm",
        "nf.GroupNorm(6, 6)(x)",
        "nf.InstanceNorm2d(6)(x)",
        "A group of one channel is that channel.",
        (("group:6", _NCHW), ("instance", _NCHW)),
    ),
    Relation(
        "Batch norm of a batch of one sample is instance norm",
        "nf.BatchNorm2d(6)(one)",
        "nf.InstanceNorm2d(6)(one)",
        "There is no other sample to average over, while training.",
        (("batch", (1, 6, 2, 2)), ("instance", (1, 6, 2, 2))),
    ),
    Relation(
        "Ghost batch norm with the batch as its block is batch norm",
        "nf.GhostBatchNorm2d(6, block=4)(x)",
        "nf.BatchNorm2d(6)(x)",
        "There is one block.",
        (("ghost:4", _NCHW), ("batch", _NCHW)),
    ),
    Relation(
        "Ghost batch norm with blocks of one sample is instance norm",
        "nf.GhostBatchNorm2d(6, block=1)(x)",
        "nf.InstanceNorm2d(6)(x)",
        "Each block is a batch of one sample.",
        (("ghost:1", _NCHW), ("instance", _NCHW)),
    ),
    Relation(
        "Switchable norm with all weight on a branch is that branch: instance",
        "nf.functional.switch_norm(x, None, None, only[0], only[0])",
        "nf.InstanceNorm2d(6)(x)",
        "A softmax of 1, 0, 0 mixes nothing.",
        (("instance", _NCHW),),
    ),
    Relation(
        "Switchable norm with all weight on a branch is that branch: layer",
        "nf.functional.switch_norm(x, None, None, only[1], only[1])",
        "nf.GroupNorm(1, 6)(x)",
        "A softmax of 0, 1, 0 mixes nothing.",
        (("layer", _NCHW),),
    ),
    Relation(
        "Switchable norm with all weight on a branch is that branch: batch",
        "nf.functional.switch_norm(x, None, None, only[2], only[2])",
        "nf.BatchNorm2d(6)(x)",
        "A softmax of 0, 0, 1 mixes nothing.",
        (("batch", _NCHW),),
    ),
    Relation(
        "Layer norm over the token, at images of 1x1, is layer norm over the sample",
        "nf.LayerNorm(6)(point.movedim(1, -1)).movedim(-1, 1)",
        "nf.GroupNorm(1, 6)(point)",
        "With one position, all that a sample has are its channels.",
        (("token", (4, 1, 1, 6)), ("layer", (4, 6, 1, 1))),
    ),
    Relation(
        "Layer norm over the token and position norm are the same in another order of axes",
        "nf.LayerNorm(6)(last)",
        'nf.norm(x, "n [c] s").movedim(1, -1)',
        "Both average the channels at each position; the token has them last.",
        (("token", _NHWC), ("position", _NCHW)),
    ),
    Relation(
        "Instance norm is batch norm of one sample that has the channels of all",
        "nf.InstanceNorm2d(6)(x)",
        "nf.BatchNorm2d(24)(x.reshape(1, 24, 2, 2)).reshape(x.shape)",
        "Each channel of each sample becomes a channel by itself.",
        (("instance", _NCHW), ("batch", (1, 24, 2, 2))),
    ),
    Relation(
        "RMS norm of tokens that have mean 0 is layer norm",
        "nf.RMSNorm(6, eps=1e-5)(last - last.mean(-1, keepdim=True))",
        "nf.LayerNorm(6)(last)",
        "The mean square about 0 is then the variance, and there is nothing to subtract.",
        (("rms", _NHWC), ("token", _NHWC)),
    ),
    Relation(
        "GroupNorm(C, C) is not layer norm, as an article has it",
        "nf.GroupNorm(6, 6)(x)",
        "nf.GroupNorm(1, 6)(x)",
        "It is instance norm: a mean for each channel of a sample, where layer norm has one.",
        (("group:6", _NCHW), ("layer", _NCHW)),
        same=False,
    ),
    Relation(
        "Layer norm over the sample is not layer norm over the token",
        "nf.GroupNorm(1, 6)(x)",
        "nf.LayerNorm(6)(last).movedim(-1, 1)",
        "Both are called layer norm: the articles mean the first, transformers use the second.",
        (("layer", _NCHW), ("token", _NHWC)),
        same=False,
    ),
    Relation(
        "Batch norm of one sample is not instance norm in evaluation",
        "nf.BatchNorm2d(6).eval()(one)",
        "nf.InstanceNorm2d(6).eval()(one)",
        "Batch norm then uses its running statistics, 0 and 1 in a fresh layer.",
        same=False,
    ),
    Relation(
        "torch.var is not the variance of a norm",
        "(x - x.mean((2, 3), True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()",
        "nf.InstanceNorm2d(6)(x)",
        "torch.var divides by n - 1, norms by n. With n = 4 that is 13 % of y; with larger n it is "
        "the whole of the differences that two articles print.",
        same=False,
    ),
)


def run(relation: Relation) -> Outcome:
    """Execute both sides, forward and backward, and compare."""
    left, right = _executed(relation.left), _executed(relation.right)
    y, dx = ((a - b).abs().max().item() for a, b in zip(left, right, strict=True))
    return Outcome(relation, y, dx)


def _executed(code: str) -> tuple[Tensor, Tensor]:
    """The value of ``code`` and the gradient of x under a weighted sum of its elements."""
    names: dict[str, Any] = {"nf": nf, "torch": torch}
    with torch.random.fork_rng(devices=[]):
        exec(SETUP, names)
        y: Tensor = eval(code, names)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (dx,) = torch.autograd.grad((y * weights).sum(), names["x"])
    return y.detach(), dx
