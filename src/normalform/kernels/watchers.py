"""Who sees the operators of a call: an exporter, a compiler, a tracer, a mode, a transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

_FLAG = "_is_exporting_flag"
_has_flag = hasattr(torch.compiler, _FLAG)


def exporting() -> bool:
    """Whether a graph for other runtimes is made: they know PyTorch's operators, not ours."""
    # Before 2.13 torch.compile takes is_exporting() for True, whatever it compiles
    # (https://github.com/pytorch/pytorch/issues/176347); it reads the flag as it is.
    flag = getattr(torch.compiler, _FLAG) if _has_flag else torch.compiler.is_exporting()
    return flag or torch.jit.is_tracing()


def is_watched() -> bool:
    """Whether somebody watches the operators: a compiler, a tracer, a mode, a transform."""
    return is_watched_by_mode() or bool(
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or peek_interpreter_stack() is not None
    )


def is_watched_by_mode() -> bool:
    """The part of it that how torch would dispatch the operators of a tensor does not tell."""
    return (
        is_dynamo_compiling()
        or _len_torch_dispatch_stack() + _len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a hand-written gradient is safe: ordinary tensors, and nobody watching the operators.

    Under compilation, tracing, torch.func transforms, forward-mode differentiation and tensor
    subclasses the recipe runs as ordinary differentiable operators instead.
    """
    if is_watched():
        return False
    for t in tensors:
        if t is not None and type(t) is not Tensor and type(t) is not Parameter:
            return False
    return True
