"""Batches as people's loaders give them, given to a model."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor, nn

SOON = 2.0  # seconds before there is anything to show
PERIODS = {True: 0.5, False: 30.0}  # seconds between lines, where they replace each other or not


@dataclass(frozen=True)
class Given:
    """A batch, taken apart for a model.

    Args:
        args: the inputs.
        kwargs: those given by name.
        rest: what is left, the targets as a rule.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    rest: tuple[Any, ...] = ()


def feed(model: nn.Module, batch: Any) -> Any:
    """What ``model`` returns for the inputs in a batch, see :func:`given`.

    >>> model = torch.nn.Linear(3, 1)
    >>> x, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    >>> torch.equal(feed(model, [x, labels]), model(x))
    True
    """
    batch = given(model, batch)
    return model(*batch.args, **batch.kwargs)


def given(model: nn.Module, batch: Any) -> Given:
    """Which part of a batch is the model's input, on the device of its first parameter.

    - Of a tuple or list as many elements as ``forward`` has arguments without a default, but one
      at least: of ``(images, labels)`` the images, or both where the model computes its own loss.
    - Of a dict the entries that ``forward`` takes by name. Where it has arguments of other names,
      the whole dict is its one argument.
    - Anything else is one argument: a tensor, or an object that has a method ``to``.

    Args:
        model: a module; of those that wrap another, such as DistributedDataParallel, that one's
            ``forward`` is asked.
        batch: what a loader gives.

    Raises:
        ValueError: a tuple or list with fewer elements than ``forward`` needs.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    batch = _moved(batch, device)
    if isinstance(batch, Mapping):
        return _by_name(model, batch)
    if not isinstance(batch, tuple | list) or hasattr(batch, "to"):
        return Given((batch,))
    needed = max(1, len(_needed(model)))
    if len(batch) < needed:
        names = ", ".join(_needed(model)) or "an input"
        raise ValueError(
            f"the model's forward needs {names}; the batch is a {type(batch).__name__} of "
            f"{len(batch)}. Let the loader give tuples that begin with these, or dicts"
        )
    rest = tuple(batch[needed:])
    if needed == 1 and isinstance(batch[0], Mapping):
        first = _by_name(model, batch[0])
        return Given(first.args, first.kwargs, rest)
    return Given(tuple(batch[:needed]), rest=rest)


def inside(model: nn.Module) -> nn.Module:
    """A model without the wrappers that compile it or train it on several devices."""
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, wrappers):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def batches(loader: Iterable[Any], limit: int | None = None, *, doing: str) -> Generator[Any]:
    """The first ``limit`` batches of a loader, or all, with progress on standard error.

    Shown from two seconds on: one line that changes on a terminal, elsewhere a line now and then.

    Args:
        loader: any iterable of batches.
        limit: how many at most; None for all.
        doing: what is done with them, in words.

    Raises:
        TypeError: not an iterable of batches.
        ValueError: a limit below one.

    >>> list(batches(range(5), 3, doing="counting"))
    [0, 1, 2]
    """
    if isinstance(loader, Tensor | Mapping | str) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{doing} takes an iterable of batches, such as a DataLoader; got a "
            f"{type(loader).__name__}. One batch goes in a list: [batch]"
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"{doing}: batches={limit!r} is not a positive integer")
    total = _length(loader, limit)
    start = shown = time.monotonic()
    replaces = sys.stderr.isatty()
    try:
        for done, batch in enumerate(islice(loader, limit)):
            now = time.monotonic()
            if now - start > SOON and (shown == start or now - shown > PERIODS[replaces]):
                shown = now
                _show(f"{doing}: {_progress(done, total, now - start)}", replaces)
            yield batch
    finally:
        if shown != start and replaces:
            _show("", replaces)


def _length(loader: Iterable[Any], limit: int | None) -> int | None:
    try:
        length = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:  # has none, as that of an iterable data set
        return limit
    return length if limit is None else min(limit, length)


def _progress(done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"batch {done}, {seconds:.0f} s"
    left = seconds / done * (total - done) if done else 0.0
    return f"batch {done} of {total}, {seconds:.0f} s, {left:.0f} s left"


def _show(line: str, replaces: bool) -> None:
    print(f"\r\x1b[K{line}" if replaces else line, end="" if replaces else "\n",
          file=sys.stderr, flush=True)  # fmt: skip


def _by_name(model: nn.Module, batch: Mapping[Any, Any]) -> Given:
    parameters = _parameters(model)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    taken = {name: batch[name] for name in batch if name in known or takes_all}
    if not taken or not set(_needed(model)) <= taken.keys():
        return Given((batch,))
    return Given(kwargs=taken, rest=tuple(batch[name] for name in batch if name not in taken))


def _needed(model: nn.Module) -> list[str]:
    """The names of the arguments that ``forward`` cannot do without."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in _parameters(model) if p.default is p.empty and p.kind in kinds]


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Of ``forward``, or of that of the module inside where it only passes on."""
    inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    try:
        found = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # scripted
        found = []
    passes_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found)
    return _parameters(inner) if passes_on and isinstance(inner, nn.Module) else found


def _moved(value: Any, device: Any) -> Any:
    if device is None:
        return value
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
