"""A model lent out: whatever happens while it is examined, afterwards it is as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as preserved_version
from torch.nn.parameter import is_lazy

Undo = Callable[[], Any]


@contextmanager
def kept(model: nn.Module, *, parameters: bool = False) -> Generator[None]:
    """Whatever happens to ``model`` inside, it is undone on the way out, also by an exception.

    Undone are, for every module, changes of its class, its attributes and the lists and dicts among
    them, so of mode, momentum, hooks and parts; for every buffer, parameter and other tensor among
    the attributes, changes of ``grad`` (None inside), ``requires_grad`` and its values, bit for
    bit; the random numbers of torch, NumPy and Python and of generators that modules hold; whether
    autograd and PyTorch's fused encoder layers are on. Graphs recorded before can still be
    differentiated.

    Args:
        model: the model.
        parameters: copy the parameters' values, too. Without a copy a replaced parameter is put
            back, but one that was changed in place cannot be.

    Raises:
        ValueError: a lazy module that has not run yet: its first run cannot be undone.
        RuntimeError: a parameter was changed in place, and there was no copy.

    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    >>> with kept(model):
    ...     y = model.train()(100 + torch.randn(8, 3))
    >>> model[0].running_mean
    tensor([0., 0., 0.])
    """
    tensors = _tensors(model)
    versions = {name: _version(t) for name, t in tensors.items() if isinstance(t, nn.Parameter)}
    undoing = [*_elsewhere(), *_attributes(model)]
    for name, tensor in tensors.items():
        undoing += _tensor(tensor, copied=parameters or name not in versions)
    try:
        for tensor in tensors.values():
            if tensor.is_leaf:
                tensor.grad = None
        yield
        _all(undoing)
    except BaseException:  # of the body, or an interrupt while undoing; each step can be repeated
        _all(undoing)
        raise
    changed = [name for name, version in versions.items() if version != _version(tensors[name])]
    if changed:
        raise RuntimeError(
            f"{changed[0]} was changed in place by the model's own forward, and no copy of "
            f"it was kept; {len(changed)} of {len(versions)} parameters are not as they were"
        )


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Generator[None]:
    """An exception inside leaves these tensors as they were.

    >>> import contextlib
    >>> x = torch.ones(2)
    >>> with contextlib.suppress(KeyError), restored_on_error([x]):
    ...     _ = x.zero_()
    ...     raise KeyError
    >>> x
    tensor([1., 1.])
    """
    undoing = [step for tensor in tensors for step in _tensor(tensor, copied=True)]
    try:
        yield
    except BaseException:
        _all(undoing)
        raise


def _all(steps: list[Undo]) -> None:
    for step in steps:
        step()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors that modules hold, each once, by name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in _named_tensors(model):
        if is_lazy(tensor):
            raise ValueError(f"{name} is not initialized yet: run the model once first")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}".lstrip("."), value


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _tensor(tensor: Tensor, copied: bool) -> Iterator[Undo]:
    storage = tensor.data
    grad = tensor.grad if tensor.is_leaf else None
    requires_grad = tensor.requires_grad

    def flags() -> None:
        if tensor.dtype != storage.dtype or _place(tensor) != _place(storage):
            tensor.data = storage
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)
            tensor.grad = grad

    yield flags
    if not copied:
        return
    values = storage.clone()
    version = None if tensor.is_inference() else preserved_version(tensor)

    def bits() -> None:
        if not _same_bits(storage, values):
            storage.copy_(values)

    yield bits
    if version is not None:
        yield partial(version.__exit__)


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether they are known to be equal; of other forms than plain numbers nothing is known."""
    if a.layout != torch.strided or a.is_quantized or a.is_mkldnn or a.is_nested:
        return False
    first, second = (t.resolve_conj().resolve_neg().contiguous().reshape(-1) for t in (a, b))
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _attributes(model: nn.Module) -> Iterator[Undo]:
    """Classes, attributes and the containers among them, at their identities."""
    for module in model.modules():
        yield partial(_set_class, module, type(module))
        for value in [vars(module), *vars(module).values()]:
            if isinstance(value, dict):
                yield partial(_refill, value, dict(value), value.update)
            elif isinstance(value, set):
                yield partial(_refill, value, set(value), value.update)
            elif isinstance(value, list):
                yield partial(_refill, value, list(value), value.extend)
            elif isinstance(value, torch.Generator):
                yield partial(value.set_state, value.get_state())
        yield partial(_set_mode, module, module.training)  # which a scripted module keeps elsewhere


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def _set_mode(module: nn.Module, training: bool) -> None:
    if module.training != training:
        module.training = training


def _refill(container: Any, content: Any, fill: Callable[[Any], Any]) -> None:
    if not _same(container, content):
        container.clear()
        fill(content)


def _same(container: Any, content: Any) -> bool:
    """The same objects in the same order."""
    if isinstance(content, dict):
        return [(k, id(v)) for k, v in container.items()] == [
            (k, id(v)) for k, v in content.items()
        ]
    return [*map(id, container)] == [*map(id, content)]


def _elsewhere() -> Iterator[Undo]:
    """What lies outside the model."""
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    yield partial(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the global one
    yield partial(random.setstate, random.getstate())
    yield partial(torch._C._set_grad_enabled, torch.is_grad_enabled())
    mha = torch.backends.mha
    yield partial(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
