"""Calls that were made before: their checks have passed, and their kernels are chosen.

A small tensor takes as long as whatever stands between a call and its kernel, and in a network that
has driven all of it out of the caches, a larger one as well. Checks and layouts depend on the
options of a call and on how its tensors lie in memory; what torch.compile guards its graphs with
compares all of the latter in one go.
"""

from __future__ import annotations

from ctypes import c_int64
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from normalform.kernels import Steps, differentiable
from normalform.kernels.plan import Pair
from normalform.kernels.watchers import is_plain, is_watched, is_watched_by_mode


class Alike(Protocol):
    """Whether tensors are what some tensors were in all but their values.

    And whether torch would dispatch their operators as it did then: under a transform or a tracer
    it does not; of what else watches :func:`is_watched_by_mode` knows.
    """

    def check(self, *tensors: Tensor) -> bool:
        """Whether these are, too."""
        ...


_Remembered = tuple[Alike, Steps, bool]
_remembered: dict[tuple[Any, ...], list[_Remembered]] = {}
_MOST, _MOST_ALIKE = 4096, 16  # keys, and layouts of a key
_OURS, _ORDINARY = ("auto", "cpu"), (Tensor, Parameter)


def known(
    options: tuple[Any, ...],
    kernel: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None = None,
    running: Pair | None = None,
    momentum: float | Tensor = 0.0,
) -> Tensor | None:
    """The result, if the same call was made before on tensors that lay in memory as these do."""
    if is_watched_by_mode() or kernel not in _OURS or type(x) not in _ORDINARY:
        return None
    key, tensors = _asked(options, x, weight, bias, logits, running)
    found = _remembered.get(key)
    if found is not None:
        for each, steps, learns in found:
            if each.check(*tensors):
                return differentiable(
                    steps, learns, x, weight, bias, logits, running, float(momentum)
                )
    return None


def remember(
    options: tuple[Any, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
    steps: Steps,
    learns: bool,
) -> None:
    """For :func:`known`."""
    if len(_remembered) >= _MOST:
        _remembered.clear()
    key, tensors = _asked(options, x, weight, bias, logits, running)
    found = _remembered.setdefault(key, [])
    if len(found) >= _MOST_ALIKE:
        found.clear()
    found.append((alike(tensors), steps, learns))


def count(counter: Tensor) -> None:
    """``counter += 1``. In torch's operator that takes a quarter of a small batch norm."""
    if not is_watched_by_mode() and _is_counter(counter) and (at := counter.data_ptr()):
        c_int64.from_address(at).value += 1
        increment_version(counter)
    else:
        counter.add_(1)


def is_ordinary(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
) -> bool:
    """Whether the compiled kernels may read the memory of these tensors."""
    _, tensors = _asked((), x, weight, bias, logits, running)
    if not is_plain(*tensors) or any(t._is_zerotensor() for t in tensors):
        return False
    return x.is_cpu and x.layout is torch.strided and not x.is_neg()


def _asked(
    options: tuple[Any, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    logits: Pair | None,
    running: Pair | None,
) -> tuple[tuple[Any, ...], list[Tensor]]:
    """What such calls are found by, and the tensors that they compare."""
    tensors = [x]
    if weight is not None:
        tensors.append(weight)
    if bias is not None:
        tensors.append(bias)
    if logits is not None:
        tensors += logits
    if running is not None:
        tensors += running
    key = options, x.shape, weight is None, bias is None, logits is None, running is None
    return key, tensors


_counters: list[Alike] = []


def _is_counter(t: Tensor) -> bool:
    """Whether it is a scalar whose memory may be written to, by what such ones were."""
    for each in _counters:
        if each.check(t):
            return True
    usual = is_ordinary(t, None, None, None, None) and not t.is_inference()
    if usual and t.dtype is torch.int64 and t.ndim == 0 and len(_counters) < _MOST_ALIKE:
        _counters.append(alike([t]))  # one for each state of the thread, as under autocast
    return False


class _Described:
    """The same in Python: torch's own takes no tensor twice."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.were = [_described(t) for t in tensors]

    def check(self, *tensors: Tensor) -> bool:
        """See :class:`Alike`."""
        return not is_watched() and [_described(t) for t in tensors] == self.were


def _described(t: Tensor) -> tuple[Any, ...]:
    return (
        type(t), t.dtype, t.shape, t.stride(), t.requires_grad,
        t.layout, t.device, t.is_neg(), t.is_conj(), t._is_zerotensor(), t.is_inference(),
    )  # fmt: skip


def alike(tensors: list[Tensor]) -> Alike:
    """Which may have any values."""
    try:
        guard: Any = torch._C._dynamo.guards.TensorGuards(  # pyright: ignore[reportAttributeAccessIssue]
            *tensors,
            dynamic_dims_sizes=[[*t.shape] for t in tensors],
            dynamic_dims_strides=[[*t.stride()] for t in tensors],
        )
    except (AttributeError, TypeError):  # none of torch's promises
        return _Described(tensors)
    return guard if guard.check(*tensors) else _Described(tensors)
