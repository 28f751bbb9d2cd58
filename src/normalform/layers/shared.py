"""What all layers do alike: answer ``torch.fx``, and find what they hold."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn

from normalform.kernels import RUNNING as RUNNING


def is_traced(x: object) -> bool:
    """Whether a symbolic tracer is asking; what is no tensor, nor stands for one, is refused."""
    if isinstance(x, torch.fx.Proxy):
        return True
    if not isinstance(x, Tensor) and not hasattr(x, "__torch_function__"):
        raise TypeError(f"a norm takes a tensor, got {type(x).__name__}: torch.as_tensor(x)")
    return False


def as_leaf(module: nn.Module, x: Any) -> Tensor:
    """One ``call_module`` node, as tracers make for the norms of torch.nn.

    The layer stays one node, so that train() and eval() still work.
    """
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})


PARAMETERS = "weight", "bias"
COUNTER = ("num_batches_tracked",)


def held(layer: nn.Module, store: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Attributes of a layer that stand in ``store``, its parameters or its buffers.

    nn.Module searches for each in Python: four of them take as long as a kernel on a small tensor.
    It does so where they do not stand there, as after pruning, or where the class or the layer
    answers before that, as the class of a parametrization does.
    """
    found: list[Any] = []
    if _searches(type(layer)):
        own = layer.__dict__
        for name in names:
            if name in own or name not in store:
                break
            found.append(store[name])
        else:
            return found
    return [getattr(layer, name) for name in names]


_plain: dict[type, bool] = {}


def _searches(kind: type) -> bool:
    """Whether a class finds what it holds as nn.Module does, and has no such attributes itself."""
    if kind not in _plain:
        if len(_plain) >= 1000:  # parametrizations make a class for each layer
            _plain.clear()
        names = *PARAMETERS, *RUNNING, *COUNTER
        finds: Any = kind  # pyright does not know that classes answer for their instances
        usual = finds.__getattr__ is nn.Module.__getattr__
        usual = usual and kind.__getattribute__ is object.__getattribute__
        _plain[kind] = usual and not any(hasattr(kind, name) for name in names)
    return _plain[kind]


# As torch.compiler.assume_constant_result does, which imports the compiler: run, not traced.
_searches._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
