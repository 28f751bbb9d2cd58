"""Comparing norms on real data: data, networks, arms, training, records, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normalform.lab.records import RunFolder


def compare(
    build: Any,
    data: Any,
    norms: Sequence[str] | None = None,
    nbs: Sequence[int] | None = None,
    seeds: int | None = None,
    metric: str = "error",
    *,
    epochs: int | None = None,
    lr: float | Sequence[float] = 0.05,
    name: str | None = None,
    out: str | Path = "runs",
    workers: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    quiet: bool = False,
    report: bool = True,
) -> RunFolder:
    """Train your network with each norm at each normalization batch size, and write a report.

    In every arm the initial weights of a seed are the same, norms apart, and so are the order of
    the samples, the steps of 32 samples and the schedule: SGD with momentum 0.9, a learning rate
    that falls along a cosine. Finished runs are kept: the same call goes on where it stopped.

    Args:
        build: a function ``build(norm_layer)`` that calls ``norm_layer(channels)`` for each norm;
            or a model, or a function without arguments that makes one, whose batch, instance and
            group norms are exchanged; or the name of one of these, ``"package.module:name"``. A
            model keeps its weights, also over the seeds.
        data: ``(x, y)`` tensors, a Dataset or DataLoader of such pairs, ``(train, test)`` of one of
            these, or what ``--data`` takes. Read once, into memory.
        norms: as ``["none", "batch", "layer", "instance", "group:4", "switch"]``, the default.
        nbs: normalization batch sizes; 32, 8 and 2.
        seeds: trainings of each arm; 4.
        metric: ``"error"``, ``"miou"`` (y is a label a pixel; kept as 1 - mIoU) or ``"mse"``.
        epochs: passes over the training samples; 5.
        lr: learning rate; of several each run takes the best on a fifth of the training samples.
        name: of the folder; by default the network's and the data's.
        out: where the folder is made.
        workers: processes that train side by side, which have to import ``build``; by default
            this process trains.
        device: ``"auto"``, CUDA where there is one and else the CPU; ``"cpu"``, ``"cuda"``,
            ``"cuda:1"`` or ``"mps"``. The same bits again are promised on the CPU alone.
        precision: ``"float32"``; ``"bfloat16"``, or on CUDA ``"float16"``, by ``torch.autocast``:
            parameters stay float32.
        quiet: print nothing.
        report: write ``report.html`` into the folder.

    Returns:
        The folder: ``rows`` are the runs, ``folder / "report.html"`` is the report.

    Raises:
        ValueError: the network, the data or an option cannot be used.
        ImportError: the network cannot be imported, or a package that is needed is not installed.

    >>> def build(norm_layer):
    ...     conv = torch.nn.Conv2d(1, 4, 3, bias=False)
    ...     pool = torch.nn.AdaptiveAvgPool2d(1)
    ...     head = [torch.nn.ReLU(), pool, torch.nn.Flatten(), torch.nn.Linear(4, 2)]
    ...     return torch.nn.Sequential(conv, norm_layer(4), *head)
    >>> y = torch.arange(96) % 2
    >>> x = torch.randn(96, 1, 8, 8) + 2 * y[:, None, None, None]
    >>> run = nf.lab.compare(build, (x, y), norms=["batch", "group:2"], nbs=[32], seeds=1,
    ...                      out=getfixture("tmp_path"), quiet=True, report=False)
    >>> [(row.arm, row.status) for row in run.rows]
    [('batch 32', 'ok'), ('group:2', 'ok')]
    """
    from normalform.lab.comparison import compare as run
    from normalform.lab.plan import Options
    from normalform.lab.records import read

    path = run(
        Options(
            data,
            build,
            metric,
            seeds=seeds,
            epochs=epochs,
            nbs=nbs,
            norms=norms,
            lr=lr,
            name=name,
            out=Path(out),
            workers=workers,
            device=device,
            precision=precision,
            command="nf.lab.compare",
            here=workers is None,
            quiet=quiet,
            report=report,
        )
    )
    return read(path.parent if report else path)
