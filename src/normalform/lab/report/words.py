"""What a comparison says in plain words, computed from its results.

"No difference seen" never stands alone: beside it stands the smallest difference the run could have
detected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from normalform.lab.metrics import METRICS, Metric
from normalform.lab.metrics import capital as capital
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
_ABOUT_OWN = (
    "What hurts is few values behind a statistic: NBS x height x width, not NBS alone. The steps, "
    "the schedule and SGD are this command's; training in use elsewhere has its own."
)
_ABOUT_DATA = (
    "The training {samples} were the same in every run; no interval says what others would give."
)


def title(arm: Arm) -> str:
    """An arm in words: ``"batch norm at NBS 8"``."""
    text = _TITLES.get(arm.stem, f"{arm.stem} norm")
    number = arm.norm.partition(":")[2]
    if number:
        text += f" ({number} groups)" if arm.stem == "group" else f" ({number})"
    if arm.key == "sgd":
        return f"{text} with steps of {arm.sgd_batch} {arm.samples}"
    return text if arm.nbs is None else f"{text} at NBS {arm.nbs}"


def key_title(findings: Findings, key: str) -> str:
    """What a legend calls a key of :attr:`Arm.key`."""
    if key != "sgd":
        return key
    arms = [a for n in findings.networks for a in n.arms if a.key == "sgd"]
    return f"{arms[0].norm}, SGD batch {arms[0].sgd_batch}"


def points(difference: float, *, sign: bool = False, metric: Metric = METRICS["error"]) -> str:
    """A difference of fractions in percentage points; of other numbers as it is.

    >>> points(0.0123, sign=True), points(0.0123, metric=METRICS["mse"])
    ('+1.2', '0.0123')
    """
    size = f"{abs(100 * difference):.1f}" if metric.percent else f"{abs(difference):.3g}"
    if float(size) == 0:
        return size
    plus = "+" if sign else ""
    return (MINUS if difference < 0 else plus) + size


def unit(metric: Metric) -> str:
    """What follows a difference."""
    return " points" if metric.percent else ""


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


def listed(rates: Iterable[float]) -> str:
    """Learning rates in a row."""
    return ", ".join(f"{lr:g}" for lr in rates)


def verdict(comparison: Comparison) -> str:
    """The answer in a few words."""
    found, metric = comparison.estimate, comparison.a.metric
    if comparison.a.impossible or comparison.b.impossible:
        return "cannot run"
    if found is None:
        return "no result yet"
    if found.identical:
        return "the same mistakes" if metric.name == "error" else "the same results"
    here = " with this one seed" if found.seeds == 1 else ""
    if found.differs:
        side = "worse" if found.mean > 0 else "better"
        return f"{points(abs(found.mean), metric=metric)}{unit(metric)} {side}{here}"
    said = "two seeds cannot tell" if found.seeds == 2 else f"no difference seen{here}"
    return f"{said} (detectable: {points(found.detectable, metric=metric)}{unit(metric)})"


def sentence(comparison: Comparison) -> str:
    """The answer in full: both errors, the difference, its interval, what could be detected."""
    a, b, found = comparison.a, comparison.b, comparison.estimate
    for arm in (a, b):
        if arm.impossible:
            return f"{capital(title(arm))} cannot run here: {arm.impossible.rstrip('.')}."
    if found is None:
        return f"No seed is finished for both {title(a)} and {title(b)}."
    seeds = sorted(set(a.judged) & set(b.judged))
    metric = a.metric
    error_a, error_b = (metric.shown(float(arm.wrong(seeds).mean())) for arm in (a, b))
    other = f"at NBS {b.nbs}" if a.norm == b.norm and a.key == b.key else title(b)
    if metric.name == "error":
        said = [f"{capital(title(a))} was wrong on {error_a} of the test {a.samples}, "]
        said[0] += f"{other} on {error_b}."
    else:
        said = [f"{capital(title(a))} had a test {metric.quantity} of {error_a}, "]
        said[0] += f"{other} of {error_b}."
    said.append(_difference(found, a))
    said.extend(_doubts(found, a, b))
    return " ".join(said)


def _difference(found: Estimate, arm: Arm) -> str:
    metric = arm.metric
    if found.identical:
        what = "made the same mistakes" if metric.name == "error" else "gave the same results"
        return f"Both {what}, on every {arm.samples[:-1]} and with every seed."
    low, mean, high = (
        points(value, sign=True, metric=metric) for value in (found.low, found.mean, found.high)
    )
    return (
        f"Difference {mean}{unit(metric)}, 95 % interval {low} to {high}; this run could have "
        f"detected {points(found.detectable, metric=metric)}."
    )


def _doubts(found: Estimate, a: Arm, b: Arm) -> Iterable[str]:
    if found.seeds == 1:
        yield f"One seed: the interval is about other test {a.samples}, not about other seeds."
    elif found.seeds < min(a.planned, b.planned):
        yield f"Only {found.seeds} of {min(a.planned, b.planned)} seeds are finished for both."
    elif found.seeds == 2:
        yield "Two seeds say little; the interval is wide for that reason."
    for arm in (a, b):
        if arm.diverged:
            yield (
                f"Of the runs of {title(arm)}, {arm.diverged} of {len(arm.rows)} diverged; "
                + (
                    "diverged runs count with the errors they made."
                    if len(arm.errors) == len(arm.rows)
                    else "diverged runs without a finite error are left out."
                )
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
            places = ", ".join(
                verdict(c) + ("" if c.network.own else f" at {c.network.ends}") for c in same
            )
            said.append(f"{capital(title(same[0].a))} against {title(same[0].b)}: {places}.")
    return [*said, _behind(findings, small)] if said else []


def _side(arm: Arm) -> tuple[str, int | None]:
    return ("sgd" if arm.key == "sgd" else arm.stem, arm.nbs)


def _behind(findings: Findings, nbs: int) -> str:
    """How many values stand behind a batch statistic of the last layer, in each network."""
    if findings.own:
        batch = findings.networks[0].select("batch", nbs)[0]
        fewest = next((r.values_per_statistic_min for r in batch.rows.values()), None)
        said = "" if fewest is None else f" stand at least {count(fewest, 'value')}"
        return f"Behind a batch mean, at NBS {nbs},{said or ' the values are not known yet'}."
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
    size = f"{data['train']:,} {findings.samples} to train on, {data['test']:,} to test on"
    said = [
        _ABOUT_OWN if findings.own else _ABOUT_VALUES,
        f"The data are small: {size}. {_ABOUT_DATA.format(samples=findings.samples)}",
    ]
    rates = config.get("choices", [])
    said.append(
        (
            f"Few learning rates ({listed(rates)})"
            if rates
            else f"One learning rate ({config['lr']:g})"
        )
        + f" and {config['epochs']} epochs for all. "
        "A norm that loses here may win with settings of its own."
    )
    said.append(about_seeds(seeds, findings.samples))
    if comparisons > 1:
        said.append(
            f"{comparisons} differences are tested at 95 % each. Where nothing differs, about one "
            "in twenty will still look real."
        )
    return said


def about_seeds(seeds: int, samples: str) -> str:
    """What the number of seeds allows to say."""
    if seeds == 1:
        return (
            "One seed is too few to say anything about the norms in general. The intervals cover "
            f"other test {samples} only; another seed may turn a difference round."
        )
    few = "Two seeds say little; the intervals are wide for that reason. " if seeds == 2 else ""
    return (
        f"{few}The intervals are made for other seeds and other test {samples} of the same kind, "
        f"from {seeds} seeds."
    )
