"""The questions a comparison can answer, and the paired differences that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from normalform.lab.report.findings import Arm, Findings, Network, compare
from normalform.lab.statistics import Estimate

_TRUE = (
    "In one arm the optimizer itself steps on so few {samples}, at a learning rate scaled down in "
    "proportion. It takes many more steps, so more than one thing changes."
)
_Side = tuple[str, int | None]  # a norm and its NBS


@dataclass(frozen=True)
class Comparison:
    """Arm ``a`` against arm ``b`` in one network; no estimate where they share no seed."""

    network: Network
    a: Arm
    b: Arm
    estimate: Estimate | None


@dataclass(frozen=True)
class Question:
    """A question, why it is asked, and its comparisons in every network."""

    text: str
    why: str
    comparisons: tuple[Comparison, ...]


def questions(findings: Findings) -> list[Question]:
    """The questions that the arms of this plan can answer."""
    sizes = findings.nbs
    labels = findings.metric.name == "error"
    asked = [*_of_batch(sizes), *_of_others(sizes, labels=labels)] if sizes else []
    found = [(text, why, tuple(_pairs(findings, pairs))) for text, why, pairs in asked]
    found.append(
        (
            "Is a small block inside a large step the same as a truly small step?",
            _TRUE,
            tuple(_true_batches(findings)),
        )
    )
    samples = findings.samples
    return [
        Question(text, why.format(samples=samples, sample=samples[:-1]), comparisons)
        for text, why, comparisons in found
        if comparisons
    ]


def _of_batch(sizes: tuple[int, ...]) -> Iterator[tuple[str, str, list[tuple[_Side, _Side]]]]:
    large, small = sizes[0], sizes[-1]
    yield (
        "Does a smaller normalization batch hurt batch norm?",
        "The optimizer takes the same steps; only fewer {samples} share each mean.",
        [(("batch", nbs), ("batch", large)) for nbs in sizes[1:]],
    )
    for nbs in dict.fromkeys((small, large)):
        yield (
            f"At NBS {nbs}, batch norm or a norm that ignores the batch?",
            "Group and layer norm take their statistics inside one {sample}.",
            [(("batch", nbs), (free, None)) for free in ("group", "layer")],
        )


def _of_others(
    sizes: tuple[int, ...], *, labels: bool
) -> Iterator[tuple[str, str, list[tuple[_Side, _Side]]]]:
    large = sizes[0]
    yield (
        "Does switchable norm do better than batch norm?",
        "It learns how much of instance, layer and batch statistics to use.",
        [(("switch", nbs), ("batch", nbs)) for nbs in sizes],
    )
    yield (
        f"Is instance norm good enough{' to tell classes apart' * labels}?",
        "It takes away each {sample}'s own contrast, channel by channel.",
        [(("instance", None), ("batch", large))],
    )
    yield (
        "Is a norm needed at all?",
        "Without norms the same learning rate may be far from the best one.",
        [(("none", None), ("batch", large))],
    )


def _pairs(findings: Findings, pairs: Iterable[tuple[_Side, _Side]]) -> Iterator[Comparison]:
    for network in findings.networks:
        for left, right in pairs:
            for a, b in product(network.select(*left), network.select(*right)):
                yield Comparison(network, a, b, compare(a, b))


def _true_batches(findings: Findings) -> Iterator[Comparison]:
    for network in findings.networks:
        for a in network.arms:
            if a.key == "sgd":
                for b in network.select(a.stem, a.nbs):
                    yield Comparison(network, a, b, compare(a, b))
