"""How pictures of sets look, light and dark.

A set that is lit differs from the others by lightness as well as by colour, and its marks are bold:
nothing depends on telling colours apart. The blues are Okabe and Ito's.
"""

from __future__ import annotations

from collections.abc import Mapping

FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace"

LIGHT: Mapping[str, str] = {
    "ground": "#f7f9fb", "card": "#ffffff", "line": "#cbd2d9", "ink": "#1f2933", "quiet": "#52606d",
    "even": "#e9edf1", "odd": "#d5dbe1", "mark": "#3e4c59", "lit": "#0072b2", "on": "#ffffff",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ground": "#14181d", "card": "#1c2229", "line": "#3a434d", "ink": "#e6e9ec", "quiet": "#a3adb8",
    "even": "#2b333c", "odd": "#3a444f", "mark": "#c3ccd5", "lit": "#56b4e9", "on": "#08131b",
}  # fmt: skip

_SHAPES = f"""
text {{ font-family: {FONT} }}
.mono, .mark {{ font-family: {MONO} }}
.middle, .mark {{ text-anchor: middle }} .end {{ text-anchor: end }}
.name {{ font-weight: 600 }}
.shade {{ fill: #000000; fill-opacity: 0.12; pointer-events: none }}
"""
_COLOURS = """
.ground {{ fill: {ground} }} .card {{ fill: {card}; stroke: {line} }} .edge {{ stroke: {card} }}
.ink {{ fill: {ink} }} .quiet {{ fill: {quiet} }} .mark {{ fill: {mark} }}
.even {{ fill: {even} }} .odd {{ fill: {odd} }} .lit {{ fill: {lit} }}
.lit .mark {{ fill: {on}; font-weight: 700 }}
"""


def css() -> str:
    """The rules all pictures are drawn with; a browser takes the dark ones if the reader does."""
    light, dark = _COLOURS.format(**LIGHT), _COLOURS.format(**DARK)
    return f"{_SHAPES}{light}@media (prefers-color-scheme: dark) {{{dark}}}\n"
