"""A finished run as a row of results.csv, and the table read and written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One run in results.csv. Errors are fractions; None is an empty cell.

    Attributes:
        run_id: made of everything that decides the result; equal ids, equal runs.
        data: name of the data set.
        metric: what is measured: ``error``, ``miou`` (as 1 - mIoU, so that less is better) or
            ``mse``.
        network: ``stride8`` or ``stride32``, or the user's own.
        last_map: size of the last maps, ``4x4``.
        arm: label of the arm, ``batch 8``.
        norm: the norm, ``batch``.
        nbs: samples that share batch statistics, None where a norm has none.
        sgd_batch: samples in a gradient step.
        seed: runs of equal network and seed start with equal weights and see equal batches.
        epochs: passes over the training set.
        lr: the learning rate at the start, the chosen one where several were tried.
        status: ``ok``, ``diverged`` or ``impossible``.
        reason: why it is not ok.
        test_error: the metric, with running statistics, after the last epoch.
        test_error_recalibrated: with running statistics measured anew over the training set.
        train_error: the metric over the steps of the last epoch, batch statistics.
        train_loss: likewise.
        seconds: of training and measuring.
        train_images: size of the training set.
        test_images: size of the test set.
        parameters: trainable numbers of the network.
        values_per_statistic_min: fewest values behind a mean in any layer (of the batch branch for
            ``switch``), None for ``none``.
        python: version.
        torch: version.
        numpy: version.
        normalform: version.
        machine: model of the processor.
        cores: that the process could use.
        platform: operating system.
        commit: of the checkout, "" outside one.
        date: when the run ended, UTC.
        device: that computed it: ``cpu``, or ``cuda`` and its model.
        precision: ``float32``, or ``bfloat16`` or ``float16`` where it is mixed.
    """

    run_id: str
    data: str
    metric: str
    network: str
    last_map: str
    arm: str
    norm: str
    nbs: int | None
    sgd_batch: int
    seed: int
    epochs: int
    lr: float
    status: str
    reason: str
    test_error: float | None
    test_error_recalibrated: float | None
    train_error: float | None
    train_loss: float | None
    seconds: float
    train_images: int
    test_images: int
    parameters: int | None
    values_per_statistic_min: int | None
    python: str
    torch: str
    numpy: str
    normalform: str
    machine: str
    cores: int
    platform: str
    commit: str
    date: str
    device: str = "cpu"
    precision: str = "float32"


ADDED = {"metric": "error", "device": "cpu", "precision": "float32"}
"""What holds for rows that were written before there was such a column."""


_PARSERS: Mapping[str, Callable[[str], str | int | float]] = {
    "str": str,
    "int": int,
    "float": float,
}
_FIELDS = {field.name: str(field.type) for field in fields(Row)}


def to_csv(rows: Iterable[Row]) -> str:
    """The table as text, with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def read_rows(path: Path) -> dict[str, Row]:
    """The table's rows by id; none where there is no file.

    Raises:
        ValueError: a line is not a row of ours.
    """
    if not path.exists():
        return {}
    rows: dict[str, Row] = {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            lines = csv.reader(file)
            header = next(lines)
            for cells in lines:
                row = _row(dict(zip(header, cells, strict=True)))
                rows[row.run_id] = row
        except (KeyError, ValueError, StopIteration, csv.Error) as error:
            raise ValueError(
                f"{path}: row {len(rows) + 1} is not ours ({error!r}); move the file away and run "
                "again: the rows are rebuilt from details/"
            ) from None
    return rows


def _row(cells: Mapping[str, str]) -> Row:
    known = {**ADDED, **cells}
    values: dict[str, Any] = {name: _parse(kind, known[name]) for name, kind in _FIELDS.items()}
    return Row(**values)


def _parse(kind: str, cell: str) -> str | int | float | None:
    optional = kind.endswith(" | None")
    return None if optional and not cell else _PARSERS[kind.removesuffix(" | None")](cell)
