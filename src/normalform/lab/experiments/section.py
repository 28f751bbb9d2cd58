"""One experiment on the page: its claim, its figure, its rule and its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from normalform.lab.experiments.experiment import Experiment, Verdict, judged
from normalform.lab.experiments.store import Finished, Kept
from normalform.lab.folders import replace
from normalform.lab.report.markup import keys, slot, still, table, text
from normalform.lab.report.pictures import Picture, picture

WIDE = 520  # pixels from which a figure stands above its numbers, not beside them
_UNKNOWN = "this version knows no experiment of that name; its numbers are shown as they are"


@dataclass(frozen=True)
class Section:
    """An experiment of a folder, judged and drawn.

    Attributes:
        name: on the command line.
        mark: what its names on the page begin with.
        told: what stands in run.json of it, with the present words where it is known.
        runs: those that are finished.
        verdict: on them.
        size: ``quick``, ``default`` or ``full``; empty for settings of the user's own.
        seeds: how many, where it is not what ``size`` has.
        figure: None where it cannot be drawn.
        why: not.
        former: the rule that stood when the runs were planned, where it is another.
        data: what it was given in the place of its own data.
    """

    name: str
    mark: str
    told: Mapping[str, Any]
    runs: Sequence[Finished]
    verdict: Verdict
    size: str
    seeds: int | None
    figure: Picture | None
    why: str
    former: str = ""
    data: str = ""

    @staticmethod
    def of(kept: Kept, name: str, experiment: Experiment | None, mark: str) -> Section:
        """Judge and draw an experiment of a folder; ``experiment`` is None where it is unknown."""
        told, runs, results = kept.meta["experiments"][name], kept.runs(name), kept.results(name)
        if experiment is None:
            verdict = Verdict(False, (f"cannot be judged: {_UNKNOWN}",))
            return Section(name, mark, told, runs, verdict, "", None, None, _UNKNOWN)
        former = told["rule"] if told["rule"] != experiment.rule else ""
        told = {**told, **{k: getattr(experiment, k) for k in ("title", "claim", "setup", "rule")}}
        verdict = judged(experiment, results, kept.missing(name))
        size, seeds, data = _size(told["settings"], experiment)
        figure, why = None, ""
        try:
            figure = picture(experiment.picture(results))
        except Exception as error:  # of a picture that needs what is not finished
            why = f"{type(error).__name__}: {error}"
        return Section(name, mark, told, runs, verdict, size, seeds, figure, why, former, data)

    @property
    def id(self) -> str:
        """Of the section and of its chart on the page."""
        return f"{self.mark}{self.name}"

    @property
    def title(self) -> str:
        """What to call it."""
        return self.told["title"]

    @property
    def claim(self) -> str:
        """What is tried."""
        return self.told["claim"]

    @property
    def planned(self) -> int:
        """How many runs it has."""
        return len(self.told["runs"])

    @property
    def missing(self) -> int:
        """How many of them are not finished."""
        return self.planned - len(self.runs)

    @property
    def kind(self) -> str:
        """How the verdict is coloured."""
        return "open" if self.missing else "better" if self.verdict.met else "worse"

    @property
    def said(self) -> str:
        """The verdict in words."""
        if not self.runs:
            return "no result yet"
        word = "met" if self.verdict.met else "not met"
        word += " at quick settings" * (self.size == "quick")
        return f"{word} so far" if self.missing else word

    @property
    def specs(self) -> dict[str, Any]:
        """Its chart, by name."""
        return {self.id: self.figure.spec} if self.figure else {}

    def save(self, folder: Path) -> None:
        """Write its figure as files."""
        if self.figure:
            replace(folder / f"{self.name}.svg", self.figure.svg.encode())
            replace(folder / f"{self.name}.png", self.figure.png())

    def html(self) -> str:
        """The whole section."""
        wide = " wide" if self.figure is None or self.figure.width > WIDE else ""
        badge = f'<strong class="{self.kind}">{text(self.said)}</strong>'
        return (
            f'<section class="experiment" id="{self.id}">'
            f"<h2>{text(self.title)}: {badge}</h2>"
            f"<p>{text(self.claim)}</p>"
            f'<div class="halves{wide}">{self._figure()}<div>{self._judged()}</div></div>'
            f"{self._numbers()}</section>"
        )

    def _figure(self) -> str:
        if self.figure is None:
            return f'<p class="none">No figure: {text(self.why)}</p>'
        label = f"{self.title}. {' '.join(self.verdict.numbers)}"
        legend = keys(self.id, [(k.field, k.value, k.colour, k.shape) for k in self.figure.keys])
        return (
            f'<figure><div class="live">{legend}{slot(self.id, label, {})}</div>'
            f"{still(self.figure.svg, label)}</figure>"
        )

    def _judged(self) -> str:
        lines = "".join(f"<li>{text(line)}</li>" for line in self.verdict.numbers)
        failed = "".join(
            f"<li>{text(run_id)} failed: {text(why)}</li>"
            for run_id, why in self.told.get("failed", {}).items()
        )
        return (
            f"<h3>Verdict: {text(self.said)}</h3><ul>{lines}{failed}</ul>"
            f"<h3>Rule</h3><p>{text(self.told['rule'])}</p>{self._changed()}"
            f"<h3>Set-up</h3><p>{text(self.told['setup'])}</p>{self._unlike()}"
            f"<h3>Again</h3><p><code>{text(self.command)}</code></p>"
        )

    def _changed(self) -> str:
        """That the verdict is not by the rule the runs were planned with."""
        if not self.former:
            return ""
        said = "The rule was another when these runs were planned, and was fixed anew since:"
        return f"<p><strong>{said}</strong> {text(self.former)}</p>"

    def _unlike(self) -> str:
        """What is not as the set-up says."""
        if self.size == "default" and self.seeds is None and not self.data:
            return ""
        settings = ", ".join(f"{name} {value}" for name, value in self.told["settings"].items())
        which = f"{self.size} settings" if self.size else "settings of its own"
        return f"<p><strong>Here with {which}:</strong> {text(settings)}.</p>"

    @property
    def command(self) -> str:
        """What makes it again."""
        size = f" --{self.size}" if self.size in ("quick", "full") else ""
        seeds = f" --seeds {self.seeds}" if self.seeds is not None else ""
        data = f" --data {shlex.quote(self.data)}" if self.data else ""
        return f"normalform compare --experiment {self.name}{size}{seeds}{data}"

    def _numbers(self) -> str:
        if not self.runs:
            return ""
        columns = list(dict.fromkeys(name for run in self.runs for name in run.values))
        head = ["arm", "seed", *(text(name.replace("_", " ")) for name in columns), "seconds"]
        rows = [
            [text(run.arm), str(run.seed)]
            + [_cell(run.values.get(name, "")) for name in columns]
            + [_cell(run.seconds)]
            for run in self.runs
        ]
        return (
            "<details><summary>All numbers</summary>"
            f"{self._means(columns)}{table('Every run', head, rows)}</details>"
        )

    def _means(self, columns: Sequence[str]) -> str:
        arms = list(dict.fromkeys(run.arm for run in self.runs))
        rows = [[text(arm), *self._arm(arm, columns)] for arm in arms]
        head = ["arm", "seeds", *(text(name.replace("_", " ")) for name in columns)]
        return table("Means over the seeds", head, rows)

    def _arm(self, arm: str, columns: Sequence[str]) -> list[str]:
        runs = [run for run in self.runs if run.arm == arm]
        values = ([run.values[name] for run in runs if name in run.values] for name in columns)
        return [str(len(runs)), *(_mean(found) for found in values)]


def _size(settings: Mapping[str, Any], experiment: Experiment) -> tuple[str, int | None, str]:
    """Which of the experiment's settings these are, and the seeds and data where they differ."""
    data = settings.get("data", "")
    given = data if data != experiment.default.get("data", "") else ""
    other = {"data": given} if given else {}
    sizes = {size: {**getattr(experiment, size), **other} for size in ("default", "quick", "full")}
    for size, known in sizes.items():
        if known == settings:
            return size, None, given
    seeds = settings.get("seeds")
    for size, known in sizes.items():
        if {**known, "seeds": seeds} == settings:
            return size, seeds, given
    return "", None, given


def _mean(values: Sequence[Any]) -> str:
    """The mean of numbers; words as they are."""
    if any(isinstance(value, str) for value in values):
        return text(", ".join(dict.fromkeys(map(str, values))))
    return _cell(fmean(values)) if values else ""


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)
