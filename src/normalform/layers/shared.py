"""What all layers do alike: answer ``torch.fx``, and find what they hold."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn


def is_traced(x: object) -> bool:
    """Whether a symbolic tracer is asking."""
    return isinstance(x, torch.fx.Proxy)


def as_leaf(module: nn.Module, x: Any) -> Tensor:
    """One ``call_module`` node, as tracers make for the norms of torch.nn.

    The layer stays one node, so that train() and eval() still work.
    """
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})


def held(
    layer: nn.Module, store: dict[str, Any], first: str, second: str
) -> tuple[Tensor | None, Tensor | None]:
    """Two attributes of a layer that stand in ``store``, its parameters or its buffers.

    nn.Module searches for each in Python: four of them take as long as a kernel on a small tensor.
    It does so where they do not stand there, as after pruning, or where the class answers by
    itself, as that of a parametrization does.
    """
    kind = type(layer)
    if first in store and second in store and not (hasattr(kind, first) or hasattr(kind, second)):
        return store[first], store[second]
    return getattr(layer, first), getattr(layer, second)
