"""The norms of a model exchanged for others, by exact type and under their dotted names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from normalform import layers

Make = Callable[[int, nn.Module], nn.Module]  # channels and the old norm -> the new norm

# Norms over channels at dimension 1: what one of them takes, any other takes too. Layer and RMS
# norm over trailing dimensions do not belong to them.
EXCHANGED: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    layers.BatchNorm1d,
    layers.BatchNorm2d,
    layers.BatchNorm3d,
    layers.InstanceNorm1d,
    layers.InstanceNorm2d,
    layers.InstanceNorm3d,
    layers.GroupNorm,
)


def exchange(model: nn.Module, make: Make) -> dict[str, nn.Module]:
    """Put a new norm in the place of each batch, instance and group norm of ``model``.

    Exact types only: a subclass may do something else and is left. A norm that stands under two
    names is exchanged once. Weight and bias are taken over where both norms have them.

    Args:
        model: changed in place.
        make: called with the channels and the old norm; a ValueError of it is raised again with
            the name of the module.

    Returns:
        The new norms by dotted name, in the order of the model.

    Raises:
        ValueError: ``make`` refuses a norm, or the model itself is one.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    >>> exchange(model, lambda channels, old: torch.nn.GroupNorm(2, channels))
    {'1': GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)}
    """
    if type(model) in EXCHANGED:
        raise ValueError(f"the model is itself a norm, {type(model).__name__}: nothing around it")
    named = list(model.named_modules(remove_duplicate=False))
    old = [(name, module) for name, module in named if type(module) in EXCHANGED]
    new: dict[int, nn.Module] = {}
    found: dict[str, nn.Module] = {}
    for name, module in old:
        if id(module) not in new:
            found[name] = new[id(module)] = _made(name, module, make)
    for name, module in old:  # only now, so that a refusal leaves the model as it was
        model.set_submodule(name, new[id(module)])
    return found


def _made(name: str, old: nn.Module, make: Make) -> nn.Module:
    channels: int = getattr(old, "num_features", None) or getattr(old, "num_channels")  # noqa: B009
    try:
        made = make(channels, old)
    except ValueError as error:
        kind = type(old).__name__
        raise ValueError(f"{name}, a {kind} of {channels} channels: {error}") from None
    parameters = dict(old.named_parameters(recurse=False))
    for key, parameter in made.named_parameters(recurse=False):
        if key in parameters and parameters[key].shape == parameter.shape:
            parameter.data.copy_(parameters[key].data)
    first = next(iter(parameters.values()), None)
    if first is not None:
        made.to(first.device, first.dtype)
    return made.train(old.training)
