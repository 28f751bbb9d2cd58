"""Draw docs/norms.svg, the picture-table of the README, from the table the code runs on."""

from __future__ import annotations

from pathlib import Path

from normalform.drawing.card import sheet as draw

TARGET = Path(__file__).parent.parent / "docs" / "norms.svg"

if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")
