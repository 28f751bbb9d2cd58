"""Name -> layer, for code that builds networks with any norm."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from normalform.layers import frozen, mixing, plain, running
from normalform.recipes import meant, split_name

_BY_DIM: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {1: running.BatchNorm1d, 2: running.BatchNorm2d, 3: running.BatchNorm3d},
    "instance": {1: running.InstanceNorm1d, 2: running.InstanceNorm2d, 3: running.InstanceNorm3d},
    "switch": {1: mixing.SwitchNorm1d, 2: mixing.SwitchNorm2d, 3: mixing.SwitchNorm3d},
    "ghost": {1: mixing.GhostBatchNorm1d, 2: mixing.GhostBatchNorm2d, 3: mixing.GhostBatchNorm3d},
    "frozen": {
        1: frozen.FrozenBatchNorm1d,
        2: frozen.FrozenBatchNorm2d,
        3: frozen.FrozenBatchNorm3d,
    },
}
_ANY_DIM: dict[str, type[nn.Module]] = {
    "layer": plain.GroupNorm,
    "group": plain.GroupNorm,
    "token": plain.LayerNorm,
    "rms": plain.RMSNorm,
    "none": nn.Identity,
}
_NUMBERED = {"group": ":groups", "ghost": ":samples"}


def get_norm_layer(name: str, dim: int = 2, **options: Any) -> partial[nn.Module]:
    """A constructor that takes the number of channels, whatever the norm.

    ``"batch"``, ``"instance"``, ``"switch"``, ``"ghost:n"`` and ``"frozen"`` (batch norm that has
    stopped) give the class of ``dim``;
    ``"layer"`` is per sample at any image size, with weight of shape (C,), which is
    ``GroupNorm(1, C)``; ``"group:g"`` has g groups (32, the paper's, without a number);
    ``"token"`` and ``"rms"`` normalize a last axis of channels; ``"none"`` is an identity layer.

    Args:
        name: the norm.
        dim: how many axes follow the channels: 1, 2 or 3.
        options: passed on to the class, such as ``affine=True``.

    Returns:
        A :class:`functools.partial` of a class: ``.func`` says which.

    Raises:
        ValueError: an unknown name or dim; the message lists the known ones.

    >>> get_norm_layer("group:4")(64)
    GroupNorm(4, 64, eps=1e-05, affine=True, bias=True)
    >>> norm_layer = get_norm_layer("instance")
    >>> use_bias = issubclass(norm_layer.func, torch.nn.InstanceNorm2d)   # it has no bias
    >>> use_bias
    True
    """
    if not isinstance(name, str):
        raise TypeError(f'get_norm_layer takes a name such as "batch" or "none", got {name!r}')
    stem, colon, number = name.partition(":")
    if stem not in _BY_DIM and stem not in _ANY_DIM:
        known = ", ".join(k + _NUMBERED.get(k, "") for k in (*_BY_DIM, *_ANY_DIM))
        near = meant(stem, (*_BY_DIM, *_ANY_DIM))
        notation = "notation is for nf.norm and for over=; " if "[" in name else ""
        raise ValueError(f"unknown norm {name!r}; {notation or near}known: {known}")
    if dim not in (1, 2, 3):
        raise ValueError(f"get_norm_layer({name!r}, dim={dim!r}): dim is 1, 2 or 3")
    if colon and stem in ("frozen", "none"):
        raise ValueError(f"norm {stem!r} takes no number, got {name!r}")
    if colon:
        split_name(name)  # which says what is wrong with the number
    if stem == "layer":
        return partial(plain.GroupNorm, 1, **options)
    if stem == "group":
        return partial(plain.GroupNorm, int(number or 32), **options)
    if stem == "ghost":
        if not number:
            raise ValueError("ghost norm needs a block size: 'ghost:8' shares among 8 samples")
        options["block"] = int(number)
    return partial(_BY_DIM[stem][dim] if stem in _BY_DIM else _ANY_DIM[stem], **options)
