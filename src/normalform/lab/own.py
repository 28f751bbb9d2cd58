"""The user's own tensors: arrays and pictures from a file, read as (N, C, *)."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIMIT = 2**16  # values of an array that are checked: the exact result takes its time
MOST = 8  # arrays of a file that are checked
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
KINDS = ".npy, .npz, .pt, .pth or a picture (.png, .jpg, ...)"
_AXES = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}

Array = NDArray[Any]


@dataclass(frozen=True)
class Own:
    """An array of the user's.

    Attributes:
        name: of the file, with that of the array where the file has several.
        x: (N, C, *), float32 or float64, at most about ``LIMIT`` values.
        notes: how the file was read, in words.
    """

    name: str
    x: Tensor
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """What a file holds: arrays to check, and why others are left out."""

    arrays: tuple[Own, ...]
    left_out: tuple[str, ...]


def read(path: Path, key: str | None = None) -> Content:
    """Read ``.npy``, ``.npz``, ``.pt`` or a picture.

    Args:
        path: the file.
        key: the one array wanted of a file that holds several; None for all that fit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds nothing that a norm could take.
        ImportError: a picture, without Pillow.
    """
    if not path.exists():
        raise FileNotFoundError(f"input {path}: no such file")
    if not path.is_file():
        raise ValueError(f"input {path}: not a file; give {KINDS}")
    try:
        found = dict(_load(path))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"input {path}: cannot be read as {path.suffix}: {reason}") from None
    if key is not None:
        if key not in found:
            raise ValueError(f"input {path}: no array {key!r}; it holds {_listed(found)}")
        found = {key: found[key]}
    arrays: list[Own] = []
    left_out: list[str] = []
    for name, array in found.items():
        try:
            arrays.append(_own(f"{path.name}: {name}" if name else path.name, array, path))
        except ValueError as error:
            left_out.append(f"{name}: {error}" if name else str(error))
    if not arrays:
        raise ValueError(f"input {path}: {'; '.join(left_out) or 'it holds no arrays'}")
    if len(arrays) > MOST:
        left_out.append(f"{len(arrays) - MOST} more arrays: choose one with --key")
    return Content(tuple(arrays[:MOST]), tuple(left_out))


def _load(path: Path) -> Iterator[tuple[str, Array | Tensor]]:
    """Every array with its name; a name is empty where the file holds one."""
    kind = path.suffix.lower()
    if kind in (".npy", ".npz"):
        yield from _numpy(path)
    elif kind in (".pt", ".pth"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # a damaged pickle can raise anything
            raise ValueError(
                f"input {path}: not a file of plain tensors; it is read with weights_only=True"
            ) from None
        yield from _tensors("", content)
    elif kind in PICTURES:
        yield "", _picture(path)
    else:
        raise ValueError(f"input {path}: {kind or 'no ending'} is not known; give {KINDS}")


def _numpy(path: Path) -> Iterator[tuple[str, Array]]:
    try:
        content = np.load(path, allow_pickle=False)
    except ValueError:
        raise ValueError(f"input {path}: not a file of plain numbers") from None
    if isinstance(content, np.ndarray):
        yield "", content
        return
    with content:
        for name in content.files:
            try:
                yield name, content[name]
            except ValueError:  # objects, which would have to be unpickled
                yield name, np.empty(0, object)


def _tensors(name: str, content: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings and sequences, named by the way to them."""
    if isinstance(content, Tensor):
        yield name, content.detach()
        return
    items: list[tuple[object, object]] = []
    if isinstance(content, Mapping):
        items = list(cast(Mapping[object, object], content).items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(cast(Sequence[object], content)))
    for step, item in items:
        yield from _tensors(f"{name}.{step}" if name else str(step), item)


def _picture(path: Path) -> Array:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ImportError('a picture needs Pillow: pip install "normalform[lab]"') from None
    try:
        picture = Image.open(BytesIO(path.read_bytes()))
        picture.load()
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None
    if picture.mode in ("1", "L", "LA"):
        return np.asarray(picture.convert("L"))
    if picture.mode.startswith(("I", "F")):  # more than 8 bits a pixel
        return np.asarray(picture)
    return np.asarray(picture.convert("RGB"))


def _own(name: str, array: Array | Tensor, path: Path) -> Own:
    """Bring an array into the form that norms take, or say why it has none."""
    notes: list[str] = []
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_quantized:
            raise ValueError(f"a {array.layout} tensor of {array.dtype}, not plain numbers")
        if array.dtype.is_floating_point and array.dtype != torch.float64:
            array = array.float()
        array = array.resolve_conj().numpy()
    if array.dtype.kind not in "fiub":
        raise ValueError(f"holds {array.dtype}, not real numbers")
    if array.size == 0:
        raise ValueError(f"is empty, of shape {array.shape}")
    picture = path.suffix.lower() in PICTURES
    x, meaning = _axes(array, picture)
    notes.append(f"shape {array.shape} read as {meaning}")
    if array.dtype.kind != "f":
        notes.append(f"{array.dtype} converted to float32")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
    values = torch.from_numpy(np.ascontiguousarray(x, np.float64 if wide else np.float32))
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"holds {wrong:,} values that are NaN or infinite, so there is nothing to compare with"
        )
    part = _part(values)
    if part.shape != values.shape:
        notes.append(f"a part of it is checked, of shape {tuple(part.shape)}")
    return Own(name, part.contiguous(), tuple(notes))


def _axes(array: Array, picture: bool) -> tuple[Array, str]:
    """The array as (N, C, *), and in words how it was taken."""
    pixels = picture or array.dtype == np.uint8
    if picture and array.ndim == 2:
        return array[None, None], "a picture (H, W): one sample, one channel"
    if pixels and array.ndim == 3 and array.shape[2] in (3, 4):
        return np.moveaxis(array, 2, 0)[None], "a picture (H, W, C): one sample"
    if pixels and array.ndim == 4 and array.shape[3] in (3, 4):
        return np.moveaxis(array, 3, 1), "pictures (N, H, W, C)"
    if array.ndim not in _AXES:
        wanted = ", ".join(_AXES.values())
        raise ValueError(f"has shape {array.shape}; a norm takes {wanted}")
    return array, _AXES[array.ndim]


def _part(x: Tensor) -> Tensor:
    """About ``LIMIT`` values at most: fewer samples, then fewer positions, then fewer channels."""
    x = x[: max(2, LIMIT // math.prod(x.shape[1:]))]
    while x.numel() > LIMIT and max(x.shape[2:], default=1) > 1:
        longest = max(range(2, x.ndim), key=lambda d: x.shape[d])
        x = x[(slice(None),) * longest + (slice(None, None, 2),)]
    return x[:, : max(2, LIMIT // (x.numel() // x.shape[1]))]


def _listed(found: Mapping[str, object]) -> str:
    names = [repr(name) if name else "one array without a name" for name in found]
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
