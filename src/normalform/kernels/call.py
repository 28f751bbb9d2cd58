"""A call of a norm: what it is, and the tensors it is given."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from normalform.cells import Cells
from normalform.kernels.plan import Pair
from normalform.recipes import Recipe
from normalform.refusals import require_channels, require_eps, require_fit, require_logits


class Call(NamedTuple):
    """Everything a result depends on, except which kernel computes it.

    Attributes:
        x: floating point, axes as the recipes name them.
        recipes: which elements share statistics; several are blended.
        weight, bias: one value for each position along ``params``, or None.
        eps: added to the variance.
        params: the axes weight and bias vary over.
        logits: those of mean and variance, one a branch, where several are blended.
        running: mean and variance (C,) of the branch ``tracked``: they stand for its own where
            ``given``, and are moved by them otherwise.
        tracked: None where nothing is running, or no branch averages over samples.
        given: see ``running``.
        momentum: the share of the new batch.
        who: is named in errors.
    """

    x: Tensor
    recipes: tuple[Recipe, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    params: str = "c"
    logits: Pair | None = None
    running: Pair | None = None
    tracked: int | None = None
    given: bool = False
    momentum: float | Tensor = 0.0
    who: object = "norm"

    @property
    def tensors(
        self,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Pair | None, Pair | None]:
        """x, weight, bias, logits and running."""
        return self.x, self.weight, self.bias, self.logits, self.running

    @property
    def moved(self) -> int | None:
        """The branch that moves the running statistics."""
        return None if self.given else self.tracked

    def laid(self) -> tuple[list[Cells], tuple[int, ...]]:
        """The recipes laid over x, and the axes of weight and bias; all tensors have to fit."""
        require_eps(self.eps, self.who)
        cells = [_cells(r, self.x.shape) for r in self.recipes]
        dims = self.recipes[0].param_dims(self.x.ndim, self.params)
        require_fit(self.x, dims, self.weight, self.bias, self.who)
        require_channels(self.x, cells[0].shape[1], self.running, self.who)
        require_logits(self.logits, len(self.recipes), self.who)
        return cells, dims

    def branches(self, cells: list[Cells]) -> tuple[Cells | None, ...]:
        """``cells``, with None for the branch that the running statistics stand for."""
        return tuple(None if self.given and k == self.tracked else c for k, c in enumerate(cells))


@lru_cache(maxsize=4096)
def _cached_cells(recipe: Recipe, shape: torch.Size) -> Cells:
    return recipe.cells(shape)


def _cells(recipe: Recipe, shape: torch.Size) -> Cells:
    if torch.compiler.is_compiling() or any(type(size) is not int for size in shape):
        return recipe.cells(shape)
    return _cached_cells(recipe, shape)
