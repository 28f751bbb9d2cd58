"""``normalform compare``: plan, train what is missing, keep every run, show, report."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalform.lab.data import Dataset, load
from normalform.lab.devices import model_of
from normalform.lab.environment import environment
from normalform.lab.plan import Options, Settings, cost, describe, folder_of, planned, settle
from normalform.lab.records import Writer, read
from normalform.lab.rows import Row
from normalform.lab.samples import take
from normalform.lab.train import Outcome, Run
from normalform.lab.workers import Done, Epoch, side_by_side, train_all, train_here

if TYPE_CHECKING:
    from rich.console import Console

_EXTRA = {
    "rich": "rich",
    "altair": "altair",
    "vl_convert": "vl-convert-python",
    "PIL": "pillow",
    "scipy": "scipy",
}


Trained = Callable[[Mapping[str, Run], Dataset], Iterable[Epoch | Done]]


def compare(options: Options, trained: Trained | None = None) -> Path:
    """Train every arm that has no finished run yet, print a table, write the report.

    Args:
        options: what to compare; the defaults are the main comparison.
        trained: trains the runs and reports as it goes; by default workers do.

    Returns:
        The path of ``report.html``, or of the folder where none is wanted.

    Raises:
        ModuleNotFoundError: a package of the extra ``lab`` is missing.
        FileNotFoundError: there is no such data.
        ValueError: the data, an option or the folder cannot be used.
        RuntimeError: a worker failed.
        KeyboardInterrupt: after a line on how to go on; finished runs are kept.
    """
    require_extra()
    from rich.console import Console

    from normalform.lab.progress import results_table

    console = Console(highlight=False, markup=False, quiet=options.quiet)
    settings = settle(options)
    data = dataset_of(options)
    _require_picklable(options)
    arms, runs = planned(settings, data, options.model)
    folder = folder_of(options, data)
    meta = describe(settings, arms, runs, data, folder.name) | _dates(folder)
    meta["command"] = options.command
    with Writer(folder, meta) as writer:
        missing = {run_id: run for run_id, run in runs.items() if run_id not in writer.finished}
        _say_what_is_there(console, writer, runs, missing)
        try:
            if missing:
                _train(console, writer, missing, data, trained or _trained(options, settings))
        except KeyboardInterrupt:
            done = len(read(folder).rows)
            console.print(
                f"Interrupted: {done} of {len(runs)} runs are finished and kept in {folder}. "
                "The same command continues."
            )
            raise
        finished = read(folder)
        console.print(results_table(finished))
        if not options.report:
            return folder
        console.print("Drawing the report ...")
        from normalform.lab import report  # takes a second to import

        path = report.write(folder)
    console.print(f"Report: {path}", soft_wrap=True)
    return path


def dataset_of(options: Options) -> Dataset:
    """The data to compare on.

    Raises:
        FileNotFoundError: there is no such data.
        ValueError: they cannot be used.
    """
    if options.model is not None:
        return take(options.data, options.metric)
    if options.metric != "error":
        raise ValueError(f"metric {options.metric} needs a model of your own: --model")
    return load(options.data)


def require_extra() -> None:
    """Refuse to begin what could not be shown.

    Raises:
        ModuleNotFoundError: a package of the extra ``lab`` is missing.
    """
    missing = [name for module, name in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'normalform compare needs {", ".join(missing)}: pip install "normalform[lab]"'
        )


def _require_picklable(options: Options) -> None:
    if options.here or options.model is None:
        return
    try:
        pickle.dumps(options.model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the model cannot be sent to worker processes ({error}): name it as "
            '"package.module:build", or leave workers out'
        ) from None


def _dates(folder: Path) -> dict[str, str]:
    """When the comparison began and when it was last worked on."""
    at = now()
    try:
        created = str(read(folder).meta["created"])
    except (KeyError, ValueError):
        created = at
    return {"created": created, "updated": at}


def _say_what_is_there(
    console: Console, writer: Writer, runs: Mapping[str, Run], missing: Mapping[str, Run]
) -> None:
    others = [row for row in writer.rows if row.commit != environment()["commit"]]
    if others:
        console.print(
            f"{len(others)} finished runs were made with other sources than these "
            f"({others[0].commit or 'no checkout'}); choose another --name to run them again."
        )
    for run_id in writer.damaged:
        console.print(f"The details of {run_id} are damaged; the run is repeated.")
    if not missing:
        console.print(
            f"All {len(runs)} runs are finished in {writer.folder}; "
            "choose another --name to run them again."
        )
    elif writer.finished:
        console.print(f"{len(writer.finished)} of {len(runs)} runs are finished; going on.")


def _trained(options: Options, settings: Settings) -> Trained:
    if options.here:
        return train_here
    return partial(train_all, workers=side_by_side(options.workers, settings.device))


def _train(
    console: Console,
    writer: Writer,
    missing: Mapping[str, Run],
    data: Dataset,
    trained: Trained,
) -> None:
    from normalform.lab.progress import Progress, Work

    work = {run_id: Work(run.epochs, cost(run)) for run_id, run in missing.items()}
    with Progress(console, work) as progress:
        for message in trained(missing, data):
            if isinstance(message, Done):
                run = missing[message.run_id]
                writer.add(
                    _row(message.run_id, run, message.outcome, data), message.outcome.details
                )
                progress.done(message.run_id)
            else:
                progress.epoch(message.run_id)


def _row(run_id: str, run: Run, outcome: Outcome, data: Dataset) -> Row:
    size = data.shape[1:]
    values = run.arm.values(run.network, *size)
    fewest = min(row[-1] for row in values) if run.arm.branches else None
    measured: dict[str, Any] = {
        name: value for name, value in vars(outcome).items() if name != "details"
    }
    where: dict[str, Any] = dict(environment())
    return Row(
        run_id=run_id,
        data=data.name,
        network=run.network.name,
        last_map=run.network.last_map(*size),
        arm=run.arm.label,
        norm=run.arm.norm,
        nbs=run.arm.nbs,
        sgd_batch=run.arm.sgd_batch,
        seed=run.seed,
        epochs=run.epochs,
        metric=data.metric,
        train_images=len(data.x_train),
        test_images=len(data.x_test),
        values_per_statistic_min=fewest,
        device=model_of(run.device),
        precision=run.precision,
        date=now(),
        **measured,
        **where,
    )


def now() -> str:
    """The time, as it stands in every row."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
