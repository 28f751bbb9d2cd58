"""A norm becomes another one in place, and remembers what it was.

Class and attributes of the module change, the module stays: so do its names, its hooks, everything
that shares or refers to it, its mode, and the parameters and buffers that both norms have. What the
new norm has no use for is put aside in one attribute, ``_exchanged_from``, and given back later.
There it is in no state_dict and no list of parameters or buffers, but in every copy and pickle.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BEFORE = "_exchanged_from"
# What the constructors of norms set, beside parameters and buffers.
OPTIONS = (
    *("num_features", "eps", "momentum", "affine", "track_running_stats", "process_group"),
    *("num_groups", "num_channels", "normalized_shape", "elementwise_affine"),
    *("block", "over", "trainable"),
)
REMEMBERED = frozenset((*OPTIONS, BEFORE, "_non_persistent_buffers_set", "kernel"))
OWN = frozenset((*OPTIONS, BEFORE, "_parameters", "_buffers", "_non_persistent_buffers_set"))

Held = Mapping[str, Tensor | None]


@dataclass(eq=False)
class Before:
    """A norm as it was, without the tensors that it goes on to have.

    Attributes:
        kind: its class.
        own: the attributes of a norm that it had, without its tensors.
        parameters: their names, in order.
        buffers: their names, in order.
        aside: those tensors that the next norm does not hold, by name.
        copied: the names among them that the next norm holds a copy of.
        place: device and type that the tensors had.
        digests: of the tensors that are held on, to see later whether they have changed.
    """

    kind: type[nn.Module]
    own: dict[str, Any]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    aside: dict[str, Tensor]
    copied: frozenset[str]
    place: tuple[torch.device, torch.dtype] | None
    digests: dict[str, bytes]


class Form(NamedTuple):
    """What a module is to become.

    Attributes:
        kind: its class.
        attributes: all of them.
        carried: the tensors it has kept.
        fresh: those it has been given.
        aside: those it has lost.
        changed: of those kept, the ones that have changed since it was this before.
    """

    kind: type[nn.Module]
    attributes: dict[str, Any]
    carried: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def become(old: nn.Module, made: nn.Module) -> Form:
    """``old`` as a norm such as ``made``, with all of its own that this one can have."""
    held, wanted = tensors(old), tensors(made)
    fits = {k for k, t in held.items() if t is not None and _shape(wanted.get(k)) == t.shape}
    parameters = {k: _as(made, k, held[k]) if k in fits else t for k, t in made._parameters.items()}
    buffers = {k: _as(made, k, held[k]) if k in fits else t for k, t in made._buffers.items()}
    now: dict[str, Tensor | None] = {**parameters, **buffers}
    aside = {k: t for k, t in held.items() if t is not None and now.get(k) is not t}
    before = Before(
        type(old),
        {k: v for k, v in vars(old).items() if k in REMEMBERED},
        tuple(old._parameters),
        tuple(old._buffers),
        aside,
        frozenset(fits & aside.keys()),
        _place(held),
        {k: _digest(held[k]) for k in fits},
    )
    attributes = {k: v for k, v in vars(old).items() if k not in OWN}
    attributes |= {k: v for k, v in vars(made).items() if k in OWN}
    attributes |= {"_parameters": parameters, "_buffers": buffers, BEFORE: before}
    fresh = tuple(k for k, t in now.items() if t is not None and k not in fits)
    lost = tuple(k for k in aside if k not in fits)
    return Form(type(made), attributes, tuple(k for k in now if k in fits), fresh, lost)


def remembered(module: nn.Module) -> Before | None:
    """What ``module`` was before it was exchanged, None where it was not."""
    return vars(module).get(BEFORE)


def unwound(module: nn.Module, model: nn.Module, while_: Callable[[nn.Module], bool]) -> Form:
    """``module`` as it was before its exchanges, one after the other while there is a reason to."""
    shadow, steps = copy.copy(module), list[Form]()
    while remembered(shadow) is not None and while_(shadow):
        steps.append(_back(shadow, model))
        _set(shadow, steps[-1].kind, steps[-1].attributes)
    then = [name for name, t in tensors(shadow).items() if t is not None]
    carried = tuple(name for name in then if all(name in step.carried for step in steps))
    return Form(
        type(shadow),
        dict(vars(shadow)),
        carried,
        fresh=tuple(name for name in then if name not in carried),
        aside=tuple(k for k, t in tensors(module).items() if t is not None and k not in carried),
        changed=tuple(name for name in carried if name in steps[-1].changed),
    )


def _back(module: nn.Module, model: nn.Module) -> Form:
    """``module`` as it was before its last exchange.

    Tensors that it has had all the time it keeps as they are now. Those that were put aside come
    back as they were, on the device and of the type that the others have now.
    """
    before = vars(module)[BEFORE]
    held = tensors(module)
    _move(before, _place({k: held.get(k) for k in before.digests}), model)
    then = {k: held.get(k) for k in before.digests} | before.aside
    changed = tuple(k for k, digest in before.digests.items() if _digest(held.get(k)) != digest)
    for name in before.copied:
        _write(then[name], held.get(name))
    attributes = {k: v for k, v in vars(module).items() if k not in OWN} | before.own
    attributes["_parameters"] = {k: then.get(k) for k in before.parameters}
    attributes["_buffers"] = {k: then.get(k) for k in before.buffers}
    return Form(before.kind, attributes, tuple(before.digests), changed=changed)


def form_of(module: nn.Module) -> Form:
    """``module`` as it is."""
    return Form(type(module), dict(vars(module)))


@contextmanager
def assigned(forms: Sequence[tuple[nn.Module, Form]]) -> Generator[None]:
    """Give modules their forms; none of them where that fails, or what is done inside."""
    before = [(module, form_of(module)) for module, _ in forms]
    try:
        for module, form in forms:
            _set(module, form.kind, form.attributes)
        yield
    except BaseException:
        for module, form in before:
            _set(module, form.kind, form.attributes)
        raise


def _set(module: nn.Module, kind: type[nn.Module], attributes: dict[str, Any]) -> None:
    if type(module) is not kind:
        module.__class__ = kind
    own = vars(module)
    for name in [name for name in own if name not in attributes]:
        del own[name]
    own.update(attributes)


def tensors(module: nn.Module) -> dict[str, Tensor | None]:
    """Its own parameters and buffers."""
    return {**module._parameters, **module._buffers}


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _as(made: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
    """A tensor as ``made`` holds those of this name: itself, or a copy as parameter or buffer."""
    assert tensor is not None
    if isinstance(tensor, nn.Parameter) == (name in made._parameters):
        return tensor
    twin = tensor.detach().clone()
    wanted = made._parameters.get(name)
    return twin if wanted is None else nn.Parameter(twin, wanted.requires_grad)


def _place(held: Held) -> tuple[torch.device, torch.dtype] | None:
    """Of the first floating point tensor."""
    found = (t for t in held.values() if t is not None and t.is_floating_point())
    first = next(found, None)
    return None if first is None else (first.device, first.dtype)


def _move(before: Before, now: tuple[torch.device, torch.dtype] | None, model: nn.Module) -> None:
    """What was put aside, to where the other tensors have gone in the meantime."""
    if before.place is None:
        return
    if now is None:  # nothing of it was held on: the model shows the way
        first = next(model.parameters(), None)
        now = before.place if first is None else (first.device, before.place[1])
    if now == before.place:
        return
    holder = nn.Module()
    holder._parameters = {k: t for k, t in before.aside.items() if isinstance(t, nn.Parameter)}
    holder._buffers = {k: t for k, t in before.aside.items() if k not in holder._parameters}
    holder.to(*now)
    moved = tensors(holder)
    before.aside |= {k: t for k, t in moved.items() if t is not None}
    before.place = now


def _write(tensor: Tensor | None, value: Tensor | None) -> None:
    if tensor is not None and value is not None and _digest(tensor) != _digest(value):
        with torch.no_grad():
            tensor.copy_(value)


def _digest(tensor: Tensor | None) -> bytes:
    """Of the bits of a small tensor."""
    if tensor is None or tensor.is_meta:
        return b""
    raw = tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).digest()
