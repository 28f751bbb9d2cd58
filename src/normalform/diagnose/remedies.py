"""The lines that mend, as text for the user and as what they do to a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from normalform.diagnose.norms import SHARED, Norm
from normalform.diagnose.watch import Seen
from normalform.surgery.convert import convert
from normalform.surgery.kinds import KINDS

RECALIBRATE = "nf.recalibrate(model, loader)"
ENOUGH = 16  # values of a group
NAMED = 3  # norms are named one by one; more of them are found by what is wrong with them


def part(name: str) -> str:
    """A module of the model in Python.

    >>> part("layer4.1.bn2")
    "model.get_submodule('layer4.1.bn2')"
    """
    return "model" if name == "(the model)" else f"model.get_submodule({name!r})"


def setting(norms: Sequence[Norm], attribute: str, value: Any) -> str:
    """The line that sets an attribute of these norms."""
    if len(norms) == 1:
        return f"{part(norms[0].name)}.{attribute} = {value!r}"
    alike = {(type(norm.module).__name__, getattr(norm.module, attribute)) for norm in norms}
    if len(norms) > NAMED and len(alike) == 1:
        kind, wrong = next(iter(alike))
        test = f"type(m).__name__ == {kind!r} and m.{attribute} == {wrong!r}"
        return f"for m in [m for m in model.modules() if {test}]: m.{attribute} = {value!r}"
    names = [norm.name for norm in norms]
    return f"for name in {names}: model.get_submodule(name).{attribute} = {value!r}"


def then(line: str, after: str) -> str:
    """Two lines, or one where that can be."""
    return f"{line}\n{after}" if "for " in line or "for " in after else f"{line}; {after}"


def sets(norms: Sequence[Norm], attribute: str, value: Any) -> Callable[[nn.Module], None]:
    """What that line does."""
    return partial(_set, [norm.names[0] for norm in norms], attribute, value)


def _set(names: Sequence[str], attribute: str, value: Any, model: nn.Module) -> None:
    for name in names:
        setattr(model.get_submodule(name), attribute, value)


def grouping(norms: Sequence[Norm], seen: Mapping[str, Seen]) -> str:
    """The line that makes these, and all of their kind, group norms."""
    return f"nf.convert(model, {_to_groups(norms, seen)!r})".replace("'", '"')


def grouped(norms: Sequence[Norm], seen: Mapping[str, Seen]) -> Callable[[nn.Module], object]:
    """What that line does."""
    return partial(convert, mapping=_to_groups(norms, seen))


def _to_groups(norms: Sequence[Norm], seen: Mapping[str, Seen]) -> dict[str, str]:
    """The paper's 32 groups, or fewer where a mean would not have :data:`ENOUGH` values."""
    sizes = [math.prod(seen[norm.name].shape[1:]) for norm in norms if norm.name in seen]
    groups = 32
    while groups > 1 and min(sizes, default=math.inf) / groups < ENOUGH:
        groups //= 2
    return dict.fromkeys([norm.family for norm in norms], f"group:{groups}")


def freezing(norms: Sequence[Norm]) -> str:
    """The line that freezes statistics and affine."""
    frozen = [norm for norm in norms if norm.family in SHARED and type(norm.module) in KINDS]
    names, does = (
        [norm.name for norm in frozen or norms],
        "nf.freeze({})" if frozen else "{}.eval()",
    )
    if len(names) == 1:
        return does.format(part(names[0]))
    return f"for name in {names}: {does.format('model.get_submodule(name)')}"
