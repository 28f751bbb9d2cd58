"""Cut the embedded photographs from the sample images of scikit-image, which are in its wheel.

Each is the square named here, 256 pixels wide, JPEG of quality 92::

    python scripts/cut_photographs.py [folder of the sample images] [folder to write]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).parents[1] / "src/normalform/lab/data/photographs"
SIZE = 256
SQUARES = {  # left, upper, right, lower
    "astronaut.png": (0, 0, 512, 512),
    "chelsea.png": (75, 0, 375, 300),
    "coffee.png": (60, 0, 460, 400),
    "hubble_deep_field.jpg": (64, 0, 936, 872),
    "retina.jpg": (255, 255, 1155, 1155),
    "rocket.jpg": (213, 0, 640, 427),
}


def main(source: Path, target: Path) -> None:
    """Write all photographs."""
    target.mkdir(parents=True, exist_ok=True)
    for name, square in SQUARES.items():
        picture = Image.open(source / name).convert("RGB").crop(square)
        small = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        small.save(target / f"{name.partition('.')[0].partition('_')[0]}.jpg", quality=92)


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:3]]
    if not given:
        import skimage.data

        given = [Path(skimage.data.__file__).parent]
    main(given[0], given[1] if len(given) > 1 else TARGET)
