"""A network of the user's own: found by its name or given, and built with any norm.

Two forms are known. A constructor that takes ``norm_layer``, as the source articles write networks,
is called with each norm. Any other model, an instance or a function without arguments that makes
one, gets its batch, instance and group norms exchanged (:mod:`normalform.lab.exchange`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from normalform.lab.exchange import exchange
from normalform.lab.found import resolve, said, takes_norm

if TYPE_CHECKING:
    from normalform.lab.arms import Arm

REFERENCE = "batch"  # whose initial weights all arms take over


class Layer(NamedTuple):
    """A norm of the network: its dotted name and the shape of a sample that it gets."""

    name: str
    shape: tuple[int, ...]


class OwnModel(nn.Module):
    """A model of the user's with its norms at hand.

    Args:
        model: the model.
        norms: its norms by dotted name.
    """

    def __init__(self, model: nn.Module, norms: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(norms)
        self._norms = list(norms.values())  # a list hides them: the model has them already

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The norms that differ between the arms, in the order of the model."""
        return self._norms

    def forward(self, x: Tensor) -> Tensor:
        """What the model makes of x."""
        return self.model(x)


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the user's own before it meets a norm.

    Attributes:
        name: short, for tables: ``nets:build``.
        source: ``package.module:name``, or the model or function itself.
        dim: axes after the channels of the data, which decides between 1d, 2d and 3d norms.
        layers: its norms, filled in by :func:`look`.
        fingerprint: of its source files and its form: two runs with equal ones trained the same.
    """

    name: str
    source: Any
    dim: int
    layers: tuple[Layer, ...] = ()
    fingerprint: str = ""

    def maps(self, *size: int) -> tuple[tuple[int, ...], ...]:
        """The shape that a sample has at each norm; that of the data is known already."""
        return tuple(layer.shape for layer in self.layers)

    def place(self, index: int) -> str:
        """What to call the norm of this index."""
        return f"norm {self.layers[index].name}"

    def last_map(self, *size: int) -> str:
        """Size of the maps at the last norm as text: ``"4x4"``, ``"1"`` where there is one value.

        >>> OwnNetwork("net", None, 2, (Layer("norm", (8, 4, 4)),)).last_map()
        '4x4'
        """
        return "x".join(map(str, self.layers[-1].shape[1:])) or "1"

    def title(self, *size: int) -> str:
        """One line for people."""
        norms = f"{len(self.layers)} norm{'s' * (len(self.layers) != 1)}"
        last = self.layers[-1]
        maps = f"{last.shape[0]} channels, {self.last_map()}"
        return f"{self.name} with {norms}, the last, {last.name}, on {maps}"

    def build(self, arm: Arm, seed: int) -> OwnModel:
        """The network with the arm's norm and the initial weights of this seed.

        A constructor may draw a bias in one arm and none in another, and everything drawn after it
        would differ. So the weights of every arm are those of the network with batch norm, norms
        apart.
        """
        found = resolve(self.source)
        with seeded(seed):
            model = self._made(found, arm)
        if not takes_norm(found):
            return model
        from normalform.lab.arms import Arm as Plain

        with seeded(seed):
            reference = self._made(found, Plain(REFERENCE, arm.sgd_batch, arm.sgd_batch))
        first, own = _state(reference), _state(model)
        with torch.no_grad():
            for name, value in own.items():
                if name in first and first[name].shape == value.shape:
                    value.copy_(first[name])
        return model

    def _made(self, found: Any, arm: Arm) -> OwnModel:
        try:
            if takes_norm(found):
                noting = _Noting(arm.norm_layer(self.dim))
                model = _checked(found(norm_layer=noting), self.name)
                names = {id(module): name for name, module in model.named_modules()}
                norms = {names[id(m)]: m for m in noting.made if id(m) in names}
                order = {name: i for i, name in enumerate(names.values())}
                return self._known(model, dict(sorted(norms.items(), key=lambda n: order[n[0]])))
            made = found if isinstance(found, nn.Module) else found()
            model = copy.deepcopy(_checked(made, self.name))
            return self._known(model, exchange(model, partial(_like, arm, self.dim)))
        except Exception as error:
            raise ValueError(f"model {self.name}, norm {arm.norm}: {said(error)}") from None

    def _known(self, model: nn.Module, norms: dict[str, nn.Module]) -> OwnModel:
        """The model with the norms that a forward pass reaches, once that is known."""
        reached = [layer.name for layer in self.layers if layer.name in norms] or list(norms)
        return OwnModel(model, {name: norms[name] for name in reached}).cpu()


class _Noting(partial[nn.Module]):
    """A norm layer that remembers what it made; still the ``partial`` that networks look into."""

    made: list[nn.Module]

    def __new__(cls, norm_layer: partial[nn.Module]) -> _Noting:
        self = super().__new__(cls, norm_layer.func, *norm_layer.args, **norm_layer.keywords)
        self.made = []
        return self

    def __call__(self, *args: Any, **keywords: Any) -> nn.Module:
        self.made.append(super().__call__(*args, **keywords))
        return self.made[-1]


def own_network(source: Any, dim: int) -> OwnNetwork:
    """A network of the user's own, by name or as it is.

    Args:
        source: ``package.module:name``, a constructor or a model.
        dim: axes after the channels of the data.

    Raises:
        ValueError: it is none of these.
        ImportError: it cannot be imported.
    """
    found = resolve(source)
    if isinstance(source, str):
        return OwnNetwork(source, source, dim)
    name = getattr(found, "__qualname__", None) or type(found).__name__
    return OwnNetwork(name.rpartition(".")[2].strip("<>"), source, dim)


def _checked(model: Any, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"it returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _like(arm: Arm, dim: int, channels: int, old: nn.Module) -> nn.Module:
    """The arm's norm in the place of another, with its eps and with parameters if it has some."""
    last = type(old).__name__[-2:]
    size = {"1d": 1, "2d": 2, "3d": 3}.get(last, dim)
    made = arm.norm_layer(size, eps=getattr(old, "eps"), affine=bool(getattr(old, "affine")))  # noqa: B009
    return made(channels)


def _state(network: OwnModel) -> dict[str, Tensor]:
    """Parameters and buffers that belong to no norm of the arm."""
    theirs = {id(t) for norm in network.norms for t in (*norm.parameters(), *norm.buffers())}
    return {k: v for k, v in network.state_dict(keep_vars=True).items() if id(v) not in theirs}


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Every random number drawn inside comes from this seed; outside nothing changes."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(cuda)):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def shapes_at(
    norms: Sequence[nn.Module], run: Callable[[], object]
) -> list[tuple[int, ...] | None]:
    """The shape of the first input of each norm while ``run`` runs; None where none came."""
    found: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.setdefault(id(module), tuple(cast(Tensor, inputs[0]).shape))

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [found.get(id(norm)) for norm in norms]
