"""The diagnosis in one sentence, and what it was measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from normalform.diagnose.facts import Facts, Measured
from normalform.diagnose.finding import Finding, Losses, said
from normalform.diagnose.gap import BATCHES, PASSES
from normalform.diagnose.statistics import GAP


def summary(facts: Facts, findings: Sequence[Finding]) -> str:
    """The sentence that is read first."""
    measured = facts.measured
    if facts.refused is not None:
        refusing = f"{facts.refused.name} refuses what it gets"
        return f"{refusing}, so that nothing was measured: {_worst(findings)}"
    if measured is None:
        if any(norm.label for norm in facts.norms):
            kinds = Counter(norm.label for norm in facts.norms)
            told = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
            return f"{_norms(facts)} by their tensors alone ({told}): {_worst(findings)}"
        return f"{_norms(facts)}, looked at without data: {_worst(findings)}"
    start = _losses(measured.losses)
    gap = next((finding for finding in findings if finding.check == GAP), None)
    if gap is None or gap.severity == "note":
        even = "no gap to speak of" if gap is None else "no statistics are stale, though"
        return f"{start}: {even}; {_norms(facts)}: {_worst(findings)}"
    share = 100 * measured.parts[gap.where[0]].share
    values = measured.seen[gap.where[0]].values
    others = [f for f in findings if f.severity == "error" and f.check != gap.check]
    also = f"; first see to the {others[0].check} of {others[0].where[0]}" if others else ""
    return (
        f"{start}; {share:.0f} % of the gap comes from {gap.where[0]}, {values:,} values per "
        f"statistic; mend it with: {gap.remedy}{also}"
    )


def conditions(measured: Measured) -> str:
    """What the numbers were measured on, and what they are not."""
    count = len(measured.data.batches)
    samples = max((seen.samples for seen in measured.seen.values()), default=0)
    text = (
        f"Measured on {count} {'batch' if count == 1 else 'batches'}, {samples:,} samples; dropout "
        "off throughout. With the statistics of the batch: all norms that keep running ones."
    )
    if measured.parts:
        text += (
            f" Shares of the gap: norms go over to the batch's statistics one after the other, in "
            f"the order they run, on the first {min(count, BATCHES)} batches, at most {PASSES} "
            "passes; the copy was recalibrated on the same batches."
        )
    return text


def _losses(losses: Losses) -> str:
    after = losses.recalibrated
    if losses.unit == "loss":
        text = f"eval loss {said(losses.evaluation)}; with batch statistics {said(losses.batch)}"
        return text + ("" if after is None else f"; after recalibrating a copy {said(after)}")
    text = f"outputs in evaluation are off by {said(losses.evaluation)} of their size from those "
    text += "with batch statistics"
    return text + ("" if after is None else f", {said(after)} after recalibrating a copy")


def _norms(facts: Facts) -> str:
    return f"{len(facts.norms)} norm{'s' * (len(facts.norms) != 1)}"


def _worst(findings: Sequence[Finding]) -> str:
    counts = {
        severity: sum(f.severity == severity for f in findings)
        for severity in ("error", "warning", "note")
    }
    named = [f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n]
    if not counts["error"] and not counts["warning"]:
        return "nothing wrong found" + (f", {named[0]}" if named else "")
    worst = findings[0]
    return f"{', '.join(named)}; first, {worst.check}: {worst.where[0]}"
