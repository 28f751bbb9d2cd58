"""``normalform compare --experiment``: plan, measure what is missing, keep it, judge, report."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normalform.lab.comparison import now, require_extra
from normalform.lab.environment import environment
from normalform.lab.experiments import EXPERIMENTS
from normalform.lab.experiments.experiment import Experiment, Trial, Verdict, judged
from normalform.lab.experiments.measure import Outcome, able
from normalform.lab.experiments.plan import Options, Plan, folder_of, planned
from normalform.lab.experiments.store import Finished, Kept, Writer, is_ours, read
from normalform.lab.workers import Done, Failed, side_by_side, work_all

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class _Task:
    """A run that is to be made."""

    experiment: Experiment
    trial: Trial
    weight: float


def run(options: Options, table: Mapping[str, Experiment] = EXPERIMENTS) -> Path:
    """Measure every trial that has no finished run yet, print the verdicts, write the report.

    Args:
        options: which experiments, and how large.
        table: those there are.

    Returns:
        The path of ``report.html``, or of the folder where none is wanted.

    Raises:
        ModuleNotFoundError: a package of the extra ``lab`` is missing.
        ValueError: an option or the folder cannot be used.
        RuntimeError: trials failed, after all others were made, judged and reported.
        KeyboardInterrupt: after a line on how to go on; finished runs are kept.
    """
    require_extra()
    from rich.console import Console

    console = Console(highlight=False, markup=False, quiet=options.quiet)
    workers = side_by_side(options.workers)
    folder = folder_of(options)
    plans = planned(options, table)
    described = {name: plan.describe() for name, plan in plans.items()}
    with Writer(folder, _meta(folder, options), described) as writer:
        missing = _missing(plans, writer)
        _say_what_is_there(console, plans, writer, missing)
        try:
            failed = _measure(console, writer, missing, workers)
        except KeyboardInterrupt:
            total = sum(len(plan.trials) for plan in plans.values())
            kept = read(folder)
            done = sum(len(kept.runs(name)) for name in plans)
            console.print(
                f"Interrupted: {done} of {total} runs are finished and kept in {folder}. "
                "The same command continues."
            )
            raise
        _say_verdicts(console, options, plans, writer.kept())
        path = folder
        if options.report:
            console.print("Drawing the report ...")
            from normalform.lab.experiments import page  # takes a second to import

            path = page.write(folder)
    console.print(f"{'Report' if options.report else 'Kept in'}: {path}", soft_wrap=True)
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed; the same command tries them again")
    return path


def _meta(folder: Path, options: Options) -> dict[str, str]:
    """When the experiments began and when they were last worked on, and by which command."""
    created = read(folder).meta["created"] if is_ours(folder) else now()
    return {"name": folder.name, "created": created, "updated": now(), "command": options.command}


def _say_what_is_there(
    console: Console, plans: Mapping[str, Plan], writer: Writer, missing: Mapping[str, _Task]
) -> None:
    planned = [run_id for plan in plans.values() for run_id in plan.trials]
    known = [writer.finished[run_id] for run_id in planned if run_id in writer.finished]
    others = [run for run in known if run.where["commit"] != environment()["commit"]]
    if others:
        console.print(
            f"{len(others)} finished runs were made with other sources than these "
            f"({others[0].where['commit'] or 'no checkout'}); choose another --name to run them "
            "again."
        )
    for run_id in writer.damaged:
        console.print(f"The details of {run_id} are damaged; the run is repeated.")
    if not missing:
        console.print(
            f"All {len(planned)} runs are finished in {writer.folder}; "
            "choose another --name to run them again."
        )
    elif known:
        console.print(f"{len(known)} of {len(planned)} runs are finished; going on.")


def _missing(plans: Mapping[str, Plan], writer: Writer) -> dict[str, _Task]:
    """What is to be done, experiment by experiment; each is taken to need as long as the others."""
    return {
        run_id: _Task(plan.experiment, trial, 1 / len(plan.trials))
        for plan in plans.values()
        for run_id, trial in plan.trials.items()
        if run_id not in writer.finished
    }


def _measure(
    console: Console, writer: Writer, missing: Mapping[str, _Task], workers: int
) -> list[str]:
    """Measure and keep; the ids of what failed."""
    from normalform.lab.progress import Progress, Work

    failed: list[str] = []
    left = Counter(task.experiment.name for task in missing.values())
    trials = {run_id: task.trial for run_id, task in missing.items()}
    work = {run_id: Work(1, task.weight) for run_id, task in missing.items()}
    with Progress(console, work) as progress, closing(work_all(trials, able, workers)) as messages:
        for message in messages:
            task = missing[message.run_id]
            name = task.experiment.name
            if isinstance(message, Done):
                writer.add(_finished(message.run_id, task, message.outcome))
            elif isinstance(message, Failed):
                first = not any(missing[run_id].experiment.name == name for run_id in failed)
                failed.append(message.run_id)
                writer.fail(name, message.run_id, message.why)
                console.print(f"{message.run_id} failed: {message.why}", soft_wrap=True)
                if first and message.traceback:
                    console.print(message.traceback)
            progress.done(message.run_id)
            left[name] -= 1
            if not left[name]:
                verdict = _verdict(task.experiment, writer.kept())
                console.print(f"{name}: {_word(verdict)}, numbers at the end")
    return failed


def _finished(run_id: str, task: _Task, outcome: Outcome) -> Finished:
    where = {**environment(), "date": now()}
    return Finished(run_id, task.experiment.name, task.trial.arm, task.trial.seed, *outcome, where)


def _verdict(experiment: Experiment, kept: Kept) -> Verdict:
    return judged(experiment, kept.results(experiment.name), kept.missing(experiment.name))


def _say_verdicts(
    console: Console, options: Options, plans: Mapping[str, Plan], kept: Kept
) -> None:
    verdicts = {name: _verdict(plan.experiment, kept) for name, plan in plans.items()}
    for name, verdict in verdicts.items():
        console.print(f"\n{name}: {_word(verdict)}", soft_wrap=True)
        for line in (plans[name].experiment.claim, *verdict.numbers):
            wrapped = textwrap.wrap(line, max(console.width - 4, 40))
            console.print("  " + "\n    ".join(wrapped), soft_wrap=True)
    met = sum(verdict.met for verdict in verdicts.values())
    console.print(f"\n{met} of {len(verdicts)} claims met.")
    if options.quick:
        console.print("Quick settings are too small to judge a claim by.")


def _word(verdict: Verdict) -> str:
    return "met" if verdict.met else "NOT MET"
