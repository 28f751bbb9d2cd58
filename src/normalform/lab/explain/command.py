"""``normalform explain``: a norm in the terminal and as a picture, or all of them on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normalform.drawing.card import sheet
from normalform.lab.explain import subject, terminal
from normalform.lab.explain.files import refuse_other_files, save
from normalform.lab.explain.numbers import Numbers
from normalform.recipes import NORMS

try:
    from rich.console import Console
except ModuleNotFoundError as error:
    raise ImportError('normalform explain needs rich: pip install "normalform[lab]"') from error

PAGE = Path("runs") / "gallery.html"


@dataclass(frozen=True)
class Options:
    """What ``normalform explain`` takes.

    Args:
        name: of a norm, or notation; None with ``all``.
        shape: of the tensor; None for a small one.
        groups: of channels, the size ``g``.
        size: sizes by letter, as ``{"n": 2}``.
        values: show the numbers of a small tensor.
        all: make a page of all norms.
        out: the file to draw to, ``.svg`` or ``.png``; with ``all`` also ``.html``.
    """

    name: str | None = None
    shape: Sequence[int] | None = None
    groups: int | None = None
    size: Mapping[str, int] = field(default_factory=dict[str, int])
    values: bool = False
    all: bool = False
    out: Path | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Explain a norm, or all; 1 where norms that should be equal were not, else 0.

    Raises:
        ValueError: an option cannot be used.
        FileNotFoundError: there is no folder for ``out``.
    """
    console = console or Console(highlight=False)
    if options.all:
        return _all(options, console)
    if options.name is None:
        raise ValueError(f"name a norm ({', '.join(NORMS)}, or notation), or ask for --all")
    sizes = dict(options.size)
    if options.groups is not None:
        sizes["g"] = options.groups
    asked = subject.read(options.name, options.shape, sizes)
    numbers = Numbers.of(asked.said.laid, asked.said.shape) if options.values else None
    if options.out is not None:
        refuse_other_files(options.out, (".svg", ".png"))
    terminal.show(asked, numbers, console)
    if options.out is not None:
        save(options.out, asked.svg())
        console.print(f"\nDrawn in {options.out}.", markup=False)
    return 0


def _all(options: Options, console: Console) -> int:
    alone = Options(all=True, out=options.out)
    if options != alone:
        raise ValueError("--all is about every norm: it takes --out and nothing else")
    if options.out is not None and options.out.suffix in (".svg", ".png"):
        refuse_other_files(options.out, (".svg", ".png"))
        save(options.out, sheet())
        console.print(f"Drawn in {options.out}.", markup=False)
        return 0
    from normalform.lab.explain import gallery  # it takes a second to import

    if options.out is None:
        PAGE.parent.mkdir(exist_ok=True)
    return gallery.make(options.out or PAGE, console)
