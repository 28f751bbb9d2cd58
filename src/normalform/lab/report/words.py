"""What a comparison says in plain words, computed from its results.

"No difference seen" never stands alone: beside it stands the smallest difference the run could have
detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from normalform.lab.report.findings import Arm, Findings
from normalform.lab.report.questions import Comparison, Question
from normalform.lab.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
_TITLES = {
    "none": "the network without norms",
    "batch": "batch norm",
    "layer": "layer norm",
    "instance": "instance norm",
    "group": "group norm",
    "switch": "switchable norm",
}
_ABOUT_VALUES = (
    "What hurts is few values behind a statistic: NBS x height x width, not NBS alone. A network "
    "that ends in larger maps loses less, or nothing; that is why two are shown. The networks in "
    "use elsewhere are larger than both."
)
_ABOUT_DATA = (
    "The training images were the same in every run; no interval says what others would give."
)


def title(arm: Arm) -> str:
    """An arm in words: ``"batch norm at NBS 8"``."""
    text = _TITLES.get(arm.stem, f"{arm.stem} norm")
    number = arm.norm.partition(":")[2]
    if number:
        text += f" ({number} groups)" if arm.stem == "group" else f" ({number})"
    if arm.key == "sgd":
        return f"{text} with steps of {arm.sgd_batch} images"
    return text if arm.nbs is None else f"{text} at NBS {arm.nbs}"


def key_title(findings: Findings, key: str) -> str:
    """What a legend calls a key of :attr:`Arm.key`."""
    if key != "sgd":
        return key
    arms = [a for n in findings.networks for a in n.arms if a.key == "sgd"]
    return f"{arms[0].norm}, SGD batch {arms[0].sgd_batch}"


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of fractions in percentage points.

    >>> points(0.0123, sign=True)
    '+1.2'
    """
    size = f"{abs(100 * difference):.1f}"
    if size == "0.0":
        return size
    plus = "+" if sign else ""
    return (MINUS if difference < 0 else plus) + size


def percent(fraction: float) -> str:
    """A fraction in percent.

    >>> percent(0.1749)
    '17.5 %'
    """
    return f"{100 * fraction:.1f} %"


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "seed"), count(2000, "image")
    ('1 seed', '2,000 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def verdict(comparison: Comparison) -> str:
    """The answer in a few words."""
    found = comparison.estimate
    if comparison.a.impossible or comparison.b.impossible:
        return "cannot run"
    if found is None:
        return "no result yet"
    if found.identical:
        return "the same mistakes"
    here = " with this one seed" if found.seeds == 1 else ""
    if found.differs:
        side = "worse" if found.mean > 0 else "better"
        return f"{points(abs(found.mean))} points {side}{here}"
    said = "two seeds cannot tell" if found.seeds == 2 else f"no difference seen{here}"
    return f"{said} (detectable: {points(found.detectable)} points)"


def sentence(comparison: Comparison) -> str:
    """The answer in full: both errors, the difference, its interval, what could be detected."""
    a, b, found = comparison.a, comparison.b, comparison.estimate
    for arm in (a, b):
        if arm.impossible:
            return f"{capital(title(arm))} cannot run here: {arm.impossible.rstrip('.')}."
    if found is None:
        return f"No seed is finished for both {title(a)} and {title(b)}."
    seeds = sorted(set(a.judged) & set(b.judged))
    error_a, error_b = (percent(float(arm.wrong(seeds).mean())) for arm in (a, b))
    other = f"at NBS {b.nbs}" if a.norm == b.norm and a.key == b.key else title(b)
    said = [f"{capital(title(a))} was wrong on {error_a} of the test images, {other} on {error_b}."]
    said.append(_difference(found))
    said.extend(_doubts(found, a, b))
    return " ".join(said)


def _difference(found: Estimate) -> str:
    if found.identical:
        return "Both made the same mistakes, on every image and with every seed."
    return (
        f"Difference {points(found.mean, sign=True)} points, 95 % interval "
        f"{points(found.low, sign=True)} to {points(found.high, sign=True)}; this run could have "
        f"detected {points(found.detectable)}."
    )


def _doubts(found: Estimate, a: Arm, b: Arm) -> Iterable[str]:
    if found.seeds == 1:
        yield "One seed: the interval is about other test images, not about other seeds."
    elif found.seeds < min(a.planned, b.planned):
        yield f"Only {found.seeds} of {min(a.planned, b.planned)} seeds are finished for both."
    elif found.seeds == 2:
        yield "Two seeds say little; the interval is wide for that reason."
    for arm in (a, b):
        if arm.diverged:
            yield (
                f"Of the runs of {title(arm)}, {arm.diverged} of {len(arm.rows)} diverged; "
                "diverged runs count with the errors they made."
            )


def summary(findings: Findings, asked: Sequence[Question]) -> list[str]:
    """What matters most, a sentence each: the smallest NBS, and what stands against it."""
    if len(findings.nbs) < 2:
        return []
    large, small = findings.nbs[0], findings.nbs[-1]
    wanted = [
        (("batch", small), ("batch", large)),
        (("batch", small), ("group", None)),
        (("switch", small), ("batch", small)),
    ]
    every = [comparison for question in asked for comparison in question.comparisons]
    said: list[str] = []
    for left, right in wanted:
        same = [c for c in every if (_side(c.a), _side(c.b)) == (left, right)]
        if any(c.estimate for c in same):
            places = ", ".join(f"{verdict(c)} at {c.network.ends}" for c in same)
            said.append(f"{capital(title(same[0].a))} against {title(same[0].b)}: {places}.")
    return [*said, _behind(findings, small)] if said else []


def _side(arm: Arm) -> tuple[str, int | None]:
    return ("sgd" if arm.key == "sgd" else arm.stem, arm.nbs)


def _behind(findings: Findings, nbs: int) -> str:
    """How many values stand behind a batch statistic of the last layer, in each network."""
    last = [
        f"{count(int(arm.values[-1, -1]), 'value')} where the network ends at {network.ends}"
        for network in findings.networks
        for arm in network.select("batch", nbs)
        if arm.values is not None
    ]
    return f"Behind a batch mean of the last layer stand, at NBS {nbs}, {' and '.join(last)}."


def limits(findings: Findings, comparisons: int) -> list[str]:
    """What the run does not show."""
    data, config, seeds = findings.meta["data"], findings.meta["config"], findings.seeds
    size = f"{data['train']:,} images to train on, {data['test']:,} to test on"
    said = [_ABOUT_VALUES, f"The data are small: {size}. {_ABOUT_DATA}"]
    said.append(
        f"One learning rate ({config['lr']:g}) and {config['epochs']} epochs for all. "
        "A norm that loses here may win with settings of its own."
    )
    said.append(about_seeds(seeds))
    if comparisons > 1:
        said.append(
            f"{comparisons} differences are tested at 95 % each. Where nothing differs, about one "
            "in twenty will still look real."
        )
    return said


def about_seeds(seeds: int) -> str:
    """What the number of seeds allows to say."""
    if seeds == 1:
        return (
            "One seed is too few to say anything about the norms in general. The intervals cover "
            "other test images only; another seed may turn a difference round."
        )
    few = "Two seeds say little; the intervals are wide for that reason. " if seeds == 2 else ""
    return (
        f"{few}The intervals are made for other seeds and other test images of the same kind, "
        f"from {seeds} seeds."
    )


def capital(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
