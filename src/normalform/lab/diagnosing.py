"""What ``normalform diagnose`` does: find the model, its data and its loss; say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
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
        batches: how many are looked at; 4 by default.
        batch_size: of the batches that a file is cut into; 32 by default.
        json: where to write all of it as JSON.
        html: where to write the page.
        run_pickled_code: read a file of weights that is more than tensors.
    """

    source: str
    data: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    batches: int | None = None
    batch_size: int | None = None
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
    if options.data is None and (options.batches, options.batch_size) != (None, None):
        raise ValueError("batches and batch-size are of --data, which is not given")
    loader = None if options.data is None else _loader(options)
    loss = None if options.loss is None else _loss(options.loss)
    optimizer = None
    if options.optimizer is not None:
        make = _named(options.optimizer, "optimizer")
        with _names_who_raises(f"optimizer {options.optimizer}"):
            optimizer = make(subject)
    batches = 4 if options.batches is None else options.batches
    with _names_who_raises(options.source):
        return diagnose(subject, loader, loss, optimizer=optimizer, batches=batches)


@contextmanager
def _names_who_raises(who: str) -> Generator[None]:
    """What the user's own code raises, which can be anything, as one line that begins so."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except ValueError as error:
        said_already = str(error).startswith(("diagnose", "loss "))
        raise ValueError(str(error) if said_already else f"{who}: {said(error)}") from error
    except Exception as error:
        raise ValueError(f"{who}: {said(error)}") from error


def _subject(options: Options) -> nn.Module | Mapping[str, Any]:
    path = Path(options.source)
    if path.suffix in WEIGHTS and ":" not in path.name:
        found = _weights(path, options.run_pickled_code)
        if isinstance(found, nn.Module | Mapping):
            return cast(Any, found)
        raise ValueError(f"{path} holds a {type(found).__name__}, neither tensors nor a model")
    found = resolve(options.source, alone=True)
    with _names_who_raises(f"model {options.source}"):
        model = found if isinstance(found, nn.Module) else found()
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
        return _cut(path, 32 if options.batch_size is None else options.batch_size)
    if options.batch_size is not None:
        raise ValueError(
            f"batch-size {options.batch_size}: of the batches that a file is cut into; "
            f"data {options.data} makes its own"
        )
    found = _named(options.data, "data")
    with _names_who_raises(f"data {options.data}"):
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
    if y is not None and len(y) != len(x):
        raise ValueError(f"data {path}: x has {len(x)} samples and y {len(y)}")
    if y is None:
        return [(part,) for part in x.split(size)]
    return list(zip(x.split(size), y.split(size), strict=True))


def _loss(text: str) -> Callable[..., float]:
    function = _named(text, "loss") if ":" in text else getattr(F, text, None)
    if not callable(function):
        raise ValueError(
            f"loss {text!r}: not in torch.nn.functional, as cross_entropy and mse_loss are; or "
            "give package.module:function"
        )

    def loss(output: Any, *targets: Any) -> float:
        count = f"{len(targets)} target" + "s" * (len(targets) != 1)
        with _names_who_raises(f"loss {text} of the model's output and {count} of a batch"):
            found: Any = function(output, *targets)
            return float(found)

    return loss


def _refuse_other_files(path: Path) -> None:
    if path.suffix != ".html":
        raise ValueError(f"html {path}: its name ends in .html")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"html {path}: there is no folder {path.parent}")
    if path.exists() and MARK.encode() not in path.read_bytes()[:300]:
        raise ValueError(f"html {path}: another file stands there; give another name")
