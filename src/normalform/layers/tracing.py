"""How a layer answers ``torch.fx``: it stays one node, so that train() and eval() still work."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn


def is_traced(x: object) -> bool:
    """Whether a symbolic tracer is asking."""
    return isinstance(x, torch.fx.Proxy)


def as_leaf(module: nn.Module, x: Any) -> Tensor:
    """One ``call_module`` node, as tracers make for the norms of torch.nn."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})
