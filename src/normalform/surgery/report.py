"""What was done to the norms of a model, and what was not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from normalform.surgery.effect import Effect

WIDEST = 40  # column of names; a norm shared under many does not push the others away


@dataclass(frozen=True)
class Converted:
    """A norm that was touched.

    Args:
        names: every dotted name it has in the model, more than one where it is shared.
        before: what it was, as ``"nn.BatchNorm2d"``.
        after: what it is now.
        note: what to know about it, or nothing.
        carried: the parameters and buffers it has kept.
        initialised: those it did not have before.
        aside: those it has no more, until it is reverted.
        returned: those that are back.
        dropped: those that it had only in between.
    """

    names: tuple[str, ...]
    before: str
    after: str
    note: str = ""
    carried: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def tensors(self) -> str:
        """What became of its parameters and buffers, in words."""
        said = (
            ("carried", self.carried),
            ("initialised", self.initialised),
            ("put aside", self.aside),
            ("back as before", self.returned),
            ("dropped", self.dropped),
        )
        return "; ".join(f"{what} {', '.join(names)}" for what, names in said if names)


@dataclass(frozen=True)
class Left:
    """A norm that was found and not touched.

    Args:
        names: every dotted name it has in the model.
        kind: what it is.
        reason: why it was left.
    """

    names: tuple[str, ...]
    kind: str
    reason: str


@dataclass(frozen=True, repr=False)
class Report:
    """Every norm of a model; prints as a table, and is true where any was touched.

    Args:
        converted: those that were touched, in the order of the model; ``len()`` counts them.
        left: those that were not, and why.
        effect: by how much the outputs for an example change, None without one.
        sought: what was looked for.
    """

    converted: tuple[Converted, ...] = ()
    left: tuple[Left, ...] = ()
    effect: Effect | None = None
    sought: str = "norms"

    def __len__(self) -> int:
        return len(self.converted)

    def __str__(self) -> str:
        if not self.converted and not self.left:
            return f"no {self.sought} found"
        head = f"converted {_counted([row.before for row in self.converted])}"
        if self.left:
            head += f"; left {_counted([row.kind for row in self.left])}"
        said = [text for row in self.converted for text in _notes(row)]
        notes = list(dict.fromkeys(said))
        rows = [(_joined(row.names), _change(row, notes)) for row in self.converted]
        rows += [(_joined(row.names), f"{row.kind} left: {row.reason}") for row in self.left]
        width = min(WIDEST, max(len(names) for names, _ in rows))
        table = [f"  {names:{width}}  {text}" for names, text in rows]
        last = [] if self.effect is None else [str(self.effect)]
        return "\n".join([head, *table, *(f"[{i}] {n}" for i, n in enumerate(notes, 1)), *last])

    __repr__ = __str__


def _counted(kinds: list[str]) -> str:
    found = Counter(kind.rpartition(".")[2] for kind in kinds).most_common()
    counts = ", ".join(f"{name} {count}" for name, count in found)
    return f"{len(kinds)}: {counts}" if kinds else "0"


def _joined(names: tuple[str, ...]) -> str:
    return ", ".join(name or "(the model)" for name in names)


def _notes(row: Converted) -> list[str]:
    return [text for text in (row.tensors, row.note) if text]


def _change(row: Converted, notes: list[str]) -> str:
    marks = "".join(f" [{notes.index(text) + 1}]" for text in _notes(row))
    return f"{row.before} -> {row.after}{marks}"
