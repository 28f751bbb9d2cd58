"""The user's own network found: by ``package.module:name``, in one of the forms that are known."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

_PARAMETER = "norm_layer"


def resolve(source: Any, *, alone: bool = False) -> Any:
    """The constructor or model that ``source`` names, or is.

    Args:
        source: its name, or itself.
        alone: it is called once, without a norm.

    Raises:
        ValueError: it has another form than those of this module.
        ImportError: it cannot be imported.
    """
    found = _imported(source) if isinstance(source, str) else source
    label = source if isinstance(source, str) else getattr(found, "__name__", type(found).__name__)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ValueError(f"model {label}: neither a model nor a function that makes one")
    if alone and (needed := _needed(found)):
        raise ValueError(
            f"model {label} takes {', '.join(needed)}: name a function that takes nothing"
        )
    if needed := _needed(found, besides=_PARAMETER):
        raise ValueError(
            f"model {label} takes {', '.join(needed)}: give it one parameter {_PARAMETER}, "
            "called with each norm, or none, and its norms are exchanged"
        )
    return found


def takes_norm(found: Any) -> bool:
    """Whether it is a constructor to be called with a norm layer."""
    if isinstance(found, nn.Module):
        return False
    takes = any(p.name == _PARAMETER for p in _parameters(found))
    return takes and not _needed(found, besides=_PARAMETER)


def sources_of(found: Any, model: nn.Module) -> str:
    """Fingerprint of a model: its form, and the files its classes were written in.

    PyTorch's and ours are known by their versions.
    """
    owners: list[Any] = [found, *(type(module) for module in model.modules())]
    paths: set[str] = set()
    for owner in owners:
        if str(getattr(owner, "__module__", "")).partition(".")[0] in ("torch", "normalform"):
            continue
        try:
            path = inspect.getsourcefile(inspect.unwrap(owner))
        except TypeError:  # an instance, or made without a file
            continue
        if path and Path(path).is_file():
            paths.add(path)
    digest = hashlib.sha256(repr(model).encode())
    for content in sorted(Path(path).read_bytes() for path in paths):
        digest.update(content)
    if isinstance(found, nn.Module):  # its weights are part of what it is
        for value in found.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def said(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError) and text
    return text if known else f"{type(error).__name__}: {text}".rstrip(": ")


def _imported(text: str) -> Any:
    name, colon, attribute = text.partition(":")
    if not (name and colon and attribute):
        raise ValueError(f"model {text!r} is not of the form package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportError(f"model {text}: no module {error.name} here or installed") from None
        raise ImportError(f"model {text}: importing {name} failed: {said(error)}") from None
    except Exception as error:
        raise ImportError(f"model {text}: importing {name} failed: {said(error)}") from None
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError:
            raise ValueError(f"model {text}: module {name} has no {attribute}") from None
    return found


def _parameters(found: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return []


def _needed(found: Any, besides: str | None = None) -> list[str]:
    """The parameters that have to be given."""
    loose = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    required = [p for p in _parameters(found) if p.default is p.empty and p.kind not in loose]
    return [p.name for p in required if p.name != besides]
