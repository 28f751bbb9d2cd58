"""The page of every norm: one file that opens without network and carries all it needs."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from string import Template

from rich.console import Console
from rich.table import Table

from normalform.drawing import Sets
from normalform.drawing.sets import Element
from normalform.drawing.style import css
from normalform.drawing.svg import MARK, inline, live, still
from normalform.drawing.views import block, flat
from normalform.lab.environment import version
from normalform.lab.explain import analogy, subject
from normalform.lab.explain.files import refuse_other_files
from normalform.lab.explain.numbers import Numbers, short
from normalform.lab.explain.relations import RELATIONS, SETUP, Outcome, Relation, run
from normalform.lab.explain.subject import Subject
from normalform.lab.folders import replace
from normalform.recipes import NORMS, named

_RUN = (
    "Each pair was run when this page was made, as it is typed, forward and backward (dx is the "
    "gradient of x), after"
)
_LENGTHS = {"n": (4,), "c": (6,), "s": (2, 2)}
_TITLES = {
    "layer": "layer, over the sample",
    "token": "layer, over the token",
    "rms": "RMS",
    "switch": "switchable",
    "ghost": "ghost batch",
}


def make(path: Path, console: Console) -> int:
    """Write the page and print what its relations gave; 1 where one does not hold, else 0.

    Raises:
        ValueError: something else stands at ``path``, or it does not end in ``.html``.
        FileNotFoundError: there is no such folder.
    """
    refuse_other_files(path, (".html",))
    outcomes = [run(relation) for relation in RELATIONS]
    replace(path, page(outcomes).encode())
    table = Table(box=None, pad_edge=False)
    for column, side in (("", "left"), ("y", "right"), ("dx", "right")):
        table.add_column(column, justify=side)  # pyright: ignore[reportArgumentType]
    for each in outcomes:
        style = "" if each.holds else "bold red"
        table.add_row(each.relation.claim, f"{each.y:.2g}", f"{each.dx:.2g}", style=style)
    console.print("Run for the page, the largest difference of each pair:")
    console.print(table)
    wrong = sum(not each.holds for each in outcomes)
    said = f"{wrong} of {len(outcomes)} do not hold" if wrong else "All hold as they are said"
    console.print(f"{said}. The page is {path}.", markup=False, soft_wrap=True)
    return 1 if wrong else 0


def page(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    norms = [_example(name) for name in NORMS]
    numbers = [Numbers.of(each.said.laid, each.said.shape) for each in norms]
    body = [*_introduction(norms), '<section><h2>Every norm</h2><div class="norms">']
    body += [part for pair in zip(norms, numbers, strict=True) for part in _norm(*pair)]
    body.append("</div></section>")
    body += [*_relations(outcomes), *_notation(), *_origin()]
    said = {
        one.name: {_at(e): _sentence(one, its, e) for e in one.sets[0].elements()}
        for one, its in zip(norms, numbers, strict=True)
    }
    report = resources.files("normalform.lab") / "report" / "template" / "report.css"
    return Template(_template("gallery.html")).substitute(
        mark=MARK,
        css=f"{report.read_text('utf-8')}{css()}{_template('gallery.css')}",
        body="\n".join(body),
        said=json.dumps(said, separators=(",", ":")).replace("<", "\\u003c"),
        script=_template("gallery.js"),
    )


def _example(name: str) -> Subject:
    """A norm of the table on the tensor of the page."""
    recipe = named(NORMS[name].recipe or "instance")
    shape = [length for axis in recipe.axes for length in _LENGTHS[axis.name]]
    return subject.read(name, shape)


def _introduction(norms: Sequence[Subject]) -> Iterator[str]:
    yield "<h1>What each norm does</h1>"
    yield (
        '<p class="lead">Every norm subtracts a mean and divides by a standard deviation: '
        "<code>y = weight * (x - mean) / sqrt(var + eps) + bias</code>. What differs is which "
        "elements share the mean and the variance.</p>"
    )
    yield (
        "<p>The tensor is the same in every picture. As the source articles tell it: "
        f"{_text(analogy.pile(norms[0].sets[0]).rstrip('.').lower())}; a sample is a book, a "
        "channel a page, and its positions are lines of characters. On the left all of it is in "
        "sight, on the right it stands as the block of the papers. Elements with the same letter "
        "share one mean, and one variance, which is the average of the squared differences.</p>"
    )
    yield (
        "<p>Point at an element, or go to a picture with the Tab key and walk with the arrow keys: "
        "the set it belongs to lights up, and its numbers stand below. They come from the float64 "
        "reference; weight and bias go by channel, whatever shares a mean.</p>"
    )
    links = "".join(f'<li><a href="#{_id(n)}">{_text(_title(n))}</a></li>' for n in norms)
    yield f'<nav aria-label="Norms"><ul class="jump">{links}'
    yield '<li><a href="#equal">what is equal</a></li></ul></nav>'


def _norm(one: Subject, numbers: Numbers) -> Iterator[str]:
    """A norm: its sets, what it says of an element, in words, as books, by hand."""
    blend = len(one.sets) > 1
    notation = "a blend" if blend else str(one.sets[0].recipe)
    first = one.sets[0].example()
    yield f'<article class="norm{" wide" if blend else ""}" id="{_id(one)}">'
    yield f"<h3>{_text(_title(one))} <code>{_text(notation)}</code></h3>"
    meaning = one.row.summary if one.row else ""
    yield f"<p>{_text(meaning[:1].upper() + meaning[1:])}.</p>"
    yield f'<figure data-norm="{_text(one.name)}" data-first="{_at(first)}">'
    yield '<div class="branches">'
    for i, sets in enumerate(one.sets):
        yield from _branch(one, sets, walked=i == 0)
    yield "</div>"
    readout = _text(_sentence(one, numbers, first))
    yield f'<p class="readout" role="status" aria-live="polite">{readout}</p></figure>'
    yield f"<p><strong>As books.</strong> {_text(' '.join(one.books))}</p>"
    yield from _facts(one)
    hand = _text("\n".join(numbers.by_hand(first)))
    index = _text(", ".join(map(str, first.at)))
    yield f"<details><summary>x[{index}] by hand</summary><pre>{hand}</pre></details>"
    yield "</article>"


def _branch(one: Subject, sets: Sets, *, walked: bool) -> Iterator[str]:
    """The sets of one recipe; the keyboard walks in the first of a norm."""
    lit = sets.set_of(sets.example())
    label = f"{_title(one)}. {sets}"
    yield '<div class="branch" data-branch>'
    if len(one.sets) > 1:
        yield f"<h4><code>{_text(sets.recipe)}</code></h4>"
    keys = "Arrow keys walk through the elements." if walked else ""
    yield f'<div class="flat">{inline(flat(sets), live(flat(sets), sets, lit), label, keys)}</div>'
    solid = inline(block(sets), live(block(sets), sets, lit), f"{label} As a block.")
    yield f'<div class="block">{solid}</div></div>'


def _facts(one: Subject) -> Iterator[str]:
    said = one.said
    tensors = ", ".join(f"{name} {shape}" for name, shape in said.tensors) or "none by default"
    facts = {
        "command": f"normalform explain {one.name}",
        "formula": said.formula,
        "sets": "; ".join(_counted(sets) for sets in one.sets),
        "parameters": tensors,
        "layer": said.norm if "(" in said.norm else f'nf.norm(x, "{said.norm}")',
        "PyTorch": f"torch.nn.{one.row.torch}" if one.row and one.row.torch else "has none",
        "kernel": str(said.choice).removeprefix("kernel "),
        "paper": one.row.paper if one.row else "",
    }
    rows = (f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    yield f"<dl>{''.join(rows)}</dl>"


def _relations(outcomes: Sequence[Outcome]) -> Iterator[str]:
    parts = (
        ("equal", "What is equal", f"{_RUN}</p><pre>{_text(SETUP)}</pre>"),
        ("different", "What only looks equal", "These were run too, and are different.</p>"),
    )
    for name, title, lead in parts:
        found = [each for each in outcomes if each.relation.same == (name == "equal")]
        yield f'<section id="{name}"><h2>{title}</h2><p>{lead}<div class="relations">'
        yield from map(_relation, found)
        yield "</div></section>"


def _relation(outcome: Outcome) -> str:
    relation = outcome.relation
    sign = "=" if relation.same else "\N{NOT EQUAL TO}"
    drawn = f'<span class="sign" aria-hidden="true">{sign}</span>'.join(_sides(relation))
    pictures = f'<div class="sides">{drawn}</div>' if drawn else ""
    code = f"{relation.left}\n{'==' if relation.same else '!='} {relation.right}"
    kind = "outcome" if outcome.holds else "outcome wrong"
    return (
        f'<article class="relation"><h3>{_text(relation.claim)}</h3>{pictures}'
        f"<pre>{_text(code)}</pre><p>{_text(relation.why)}</p>"
        f'<p class="{kind}">{_text(verdict(outcome))}</p></article>'
    )


def verdict(outcome: Outcome) -> str:
    """What running a relation gave, in words."""
    y, dx = f"{outcome.y:.2g}", f"{outcome.dx:.2g}"
    if not outcome.holds:
        return f"This does not hold: the largest difference is {y} in y and {dx} in dx."
    if not outcome.relation.same:
        return f"They differ by up to {y} in y and {dx} in dx."
    if outcome.y == outcome.dx == 0:
        return "The same bits: the largest difference is 0 in y and 0 in dx."
    return f"The largest difference is {y} in y and {dx} in dx, the rounding of float32."


def _sides(relation: Relation) -> Iterator[str]:
    for name, shape in relation.norms:
        sets = subject.read(name, shape).sets[0]
        view = flat(sets, 9, words=False)
        label = f"{name} on {'x'.join(map(str, shape))}"
        drawn = inline(view, still(view, sets, sets.set_of(sets.example())), label)
        yield f'<figure>{drawn}<figcaption aria-hidden="true">{_text(label)}</figcaption></figure>'


def _notation() -> Iterator[str]:
    yield "<section><h2>How a norm is written</h2>"
    yield (
        "<p><code>n</code> is the samples, <code>c</code> the channels, <code>s</code> all "
        "positions, in the order of the tensor. Brackets mark what is averaged: "
        "<code>[n] c [s]</code> averages samples and positions and keeps channels apart, which is "
        "batch norm. Parentheses cut an axis first: <code>(g [c])</code> averages inside each of g "
        "groups of channels, <code>(b [n])</code> inside each of b blocks of samples.</p>"
    )
    yield "<p>Any of them can be drawn, also one that has no name:</p>"
    command = 'normalform explain "(b [n]) (g [c]) [s]" --size n=2,g=3 --shape 4,6,2,2'
    yield f"<pre>{_text(command)}</pre></section>"


def _origin() -> Iterator[str]:
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    versions = f"normalform {version('normalform')}, PyTorch {version('torch')}"
    by = "<code>normalform explain --all</code>"
    yield f'<p class="soft">Made by {by} on {made}: {versions}.</p>'


def _sentence(one: Subject, numbers: Numbers, element: Element) -> str:
    """Where an element stands, what it shares, and how it becomes y."""
    at = element.at
    places = ("row", "column") if len(element.position) == 2 else ("position",)
    names = [f"sample {element.sample + 1}", f"channel {element.channel + 1}"]
    names += [f"{k} {i + 1}" for k, i in zip(places, element.position, strict=True)]
    where = ", ".join(names)
    shared = [
        f"{sets.marks()[sets.set_of(element)]} ({sets.count_of(element)} elements)"
        for sets in one.sets
    ]
    word = "Set" if len(shared) == 1 else "Sets"
    lines = numbers.by_hand(element)[-2:]
    statistics = f"variance {short(numbers.var[at])}"
    if one.sets[0].recipe.center:
        statistics = f"mean {short(numbers.mean[at])}, {statistics}"
    else:
        statistics = f"mean square {short(numbers.var[at])}"
    index = ", ".join(map(str, at))
    return (
        f"{where[0].upper()}{where[1:]}: x[{index}] = {short(numbers.x[at])}. "
        f"{word} {', '.join(shared)}: {statistics}. {lines[0]}; {lines[1]}."
    )


def _counted(sets: Sets) -> str:
    counts = " or ".join(map(str, sets.counts))
    return f"{sets.number} of {counts} elements"


def _title(one: Subject) -> str:
    stem = one.name.partition(":")[0]
    return _TITLES.get(stem, stem)


def _id(one: Subject) -> str:
    return one.name.partition(":")[0]


def _at(element: Element) -> str:
    return ",".join(map(str, element.at))


def _text(raw: object) -> str:
    return html.escape(str(raw))


def _template(name: str) -> str:
    return (resources.files("normalform.lab.explain") / "template" / name).read_text("utf-8")
