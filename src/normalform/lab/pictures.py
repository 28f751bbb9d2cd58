"""Reading a folder with one subfolder of pictures a class."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 32  # every picture is resized to SIDE x SIDE
_GREY = ("1", "L")
_DEEP = ("I", "F")  # more than 8 bits a channel: Pillow would clip them without a word


def read_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Pictures ``x`` (N, 32, 32) or (N, 3, 32, 32) and the names of their folders ``y`` (N,).

    Grey where every picture is grey, else RGB. Files that are no pictures by their ending are
    passed over.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'a folder of pictures needs Pillow: pip install "normalform[lab]"'
        ) from None
    endings = Image.registered_extensions()
    found: list[Picture] = []
    labels: list[str] = []
    for group in _class_folders(folder):
        files = sorted(path for path in group.iterdir() if path.suffix.lower() in endings)
        if not files:
            raise ValueError(f"data {folder.name}: class folder {group.name} holds no pictures")
        found += [_read(path, folder) for path in files]
        labels += [group.name] * len(files)
    mode = "L" if all(picture.mode in _GREY for picture in found) else "RGB"
    arrays = [
        np.asarray(picture.convert(mode).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for picture in found
    ]
    x = np.stack(arrays)
    return {"x": np.moveaxis(x, 3, 1) if mode == "RGB" else x, "y": np.array(labels)}


def _class_folders(folder: Path) -> list[Path]:
    groups = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(groups) < 2:
        raise ValueError(
            f"data {folder.name}: {len(groups)} subfolders; one a class is needed, two at least"
        )
    return groups


def _read(path: Path, folder: Path) -> Picture:
    from PIL import Image

    where = f"data {folder.name}: {path.relative_to(folder)}"
    try:
        picture: Picture = Image.open(BytesIO(path.read_bytes()))
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be read as a picture: {error}") from None
    if picture.mode.startswith(_DEEP):
        raise ValueError(f"{where} has more than 8 bits a channel; save such pictures as .npz")
    return picture
