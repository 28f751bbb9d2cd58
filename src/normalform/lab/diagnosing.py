"""What ``normalform diagnose`` does: find the model, its data and its loss; say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normalform.diagnose import Diagnosis, diagnose
from normalform.drawing.svg import MARK
from normalform.lab.folders import replace
from normalform.lab.found import _imported, resolve, said

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        source: ``package.module:factory``, or a file of weights.
        data: ``package.module:loader`` or a file with x and y, None for the model alone.
        loss: ``package.module:function``, or a name in :mod:`torch.nn.functional`.
        optimizer: ``package.module:function`` of the model.
        batches: how many are looked at.
        batch_size: of the batches that a file is cut into.
        json: where to write all of it as JSON.
        html: where to write the page.
        run_pickled_code: read a file of weights that is more than tensors.
    """

    source: str
    data: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    batches: int = 4
    batch_size: int = 32
    json: Path | None = None
    html: Path | None = None
    run_pickled_code: bool = False


def run(options: Options) -> int:
    """Print the diagnosis and write what was asked for; 1 where anything is worse than a note.

    Raises:
        ValueError: the model, its data or a file cannot be used.
        FileNotFoundError: there is no such file.
        ImportError: the model, its data or its loss cannot be imported.
    """
    if options.html is not None:
        _refuse_other_files(options.html)
    found = _examined(options)
    print(found)
    if options.json is not None:
        replace(options.json, (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    if options.html is not None:
        replace(options.html, found.html().encode())
    return found.status


def _examined(options: Options) -> Diagnosis:
    subject = _subject(options)
    if isinstance(subject, Mapping):
        if options.data is not None:
            raise ValueError(
                f"{options.source} holds tensors and no model to run: give --data with a model, "
                "as package.module:factory"
            )
        return diagnose(subject)
    try:
        loader = None if options.data is None else _loader(options)
        loss = None if options.loss is None else _loss(options.loss)
        make = None if options.optimizer is None else _named(options.optimizer, "optimizer")
        optimizer = None if make is None else make(subject)
        return diagnose(subject, loader, loss, optimizer=optimizer, batches=options.batches)
    except (ValueError, ImportError, OSError):
        raise
    except Exception as error:  # the user's own code can raise anything
        raise ValueError(f"{options.source}: {said(error)}") from error


def _subject(options: Options) -> nn.Module | Mapping[str, Any]:
    path = Path(options.source)
    if path.suffix in WEIGHTS and ":" not in path.name:
        found = _weights(path, options.run_pickled_code)
        if isinstance(found, nn.Module | Mapping):
            return cast(Any, found)
        raise ValueError(f"{path} holds a {type(found).__name__}, neither tensors nor a model")
    found = resolve(options.source)
    try:
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # as above
        raise ValueError(f"model {options.source}: {said(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {options.source}: it returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _weights(path: Path, run_code: bool) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=not run_code)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if run_code:
            raise ValueError(f"{path}: cannot be read: {said(error)}") from None
        raise ValueError(
            f"{path}: more than plain tensors, or damaged; reading more would run code from the "
            "file. If you trust it: --run-pickled-code"
        ) from None


def _named(text: str, what: str) -> Any:
    """What ``package.module:name`` is."""
    try:
        return _imported(text)
    except (ImportError, ValueError) as error:
        raise type(error)(str(error).replace("model", what, 1)) from None


def _loader(options: Options) -> Iterable[Any]:
    assert options.data is not None
    path = Path(options.data)
    if path.suffix in (".npz", ".pt", ".pth"):
        return _cut(path, options.batch_size)
    found = _named(options.data, "data")
    return found if isinstance(found, Iterable) else found()


def _cut(path: Path, size: int) -> list[tuple[Tensor, ...]]:
    """Batches of the arrays x and y in a file, as they are, or of x alone."""
    if not path.is_file():
        raise FileNotFoundError(f"data {path}: no such file")
    if size < 1:
        raise ValueError(f"batch-size {size}: at least 1")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            arrays: Any = {name: torch.from_numpy(content[name]) for name in content.files}
    else:
        arrays = _weights(path, run_code=False)
    if not isinstance(arrays, Mapping) or not isinstance(arrays.get("x"), Tensor):
        raise ValueError(f"data {path}: no array x in it; the targets are y")
    x, y = arrays["x"], arrays.get("y")
    x = x.float() if x.dtype in (torch.uint8, torch.float64) else x
    if y is None:
        return [(part,) for part in x.split(size)]
    return list(zip(x.split(size), y.split(size), strict=True))


def _loss(text: str) -> Callable[..., Any]:
    if ":" in text:
        return _named(text, "loss")
    found = getattr(F, text, None)
    if not callable(found):
        raise ValueError(
            f"loss {text!r}: not in torch.nn.functional, as cross_entropy and mse_loss are; or "
            "give package.module:function"
        )
    return found


def _refuse_other_files(path: Path) -> None:
    if path.suffix != ".html":
        raise ValueError(f"html {path}: its name ends in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"html {path}: there is no folder {path.parent}")
    if path.exists() and MARK.encode() not in path.read_bytes()[:300]:
        raise ValueError(f"html {path}: another file stands there; give another name")
