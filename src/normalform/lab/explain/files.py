"""Pictures and pages as files, which replace earlier ones of ours and no other file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from normalform.drawing.svg import MARK
from normalform.lab.folders import replace

_HEADER = 33  # bytes of a PNG before its second chunk


def refuse_other_files(path: Path, kinds: Sequence[str]) -> None:
    """Raise where writing would destroy something or cannot succeed.

    Raises:
        ValueError: another kind of file is wanted, or something else stands there.
        FileNotFoundError: there is no such folder.
    """
    if path.suffix not in kinds:
        raise ValueError(f"out {path}: its name ends in {' or '.join(kinds)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"out {path}: a folder; give the name of a file")
    if path.exists() and MARK.encode() not in path.read_bytes()[:300]:
        raise ValueError(f"out {path}: another file stands there; give another name")


def save(path: Path, svg: str) -> None:
    """Write a picture as SVG, or as PNG by the ending of its name.

    Raises:
        ImportError: a PNG, without vl-convert.
    """
    if path.suffix == ".svg":
        replace(path, svg.encode())
        return
    try:
        import vl_convert
    except ImportError as missing:
        raise ImportError('a PNG needs vl-convert: pip install "normalform[lab]"') from missing
    png = vl_convert.svg_to_png(svg, scale=2)
    said = b"tEXtSoftware\0" + MARK.encode()
    chunk = struct.pack(">I", len(said) - 4) + said + struct.pack(">I", zlib.crc32(said))
    replace(path, png[:_HEADER] + chunk + png[_HEADER:])
