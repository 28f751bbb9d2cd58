"""One comparison by several processes, each of which normalizes its own part of the batch.

::

    torchrun --nproc-per-node 2 -m normalform.cli compare --norms batch,switch --seeds 1

This is what "32 images on 16 GPUs" means to a norm. Every SGD batch of 32 is cut into one part a
process, in its order; ``DistributedDataParallel`` averages the gradients; the normalization batch
size (NBS) is the part, or a divisor of it. Weights, order and schedule of a seed are those of a
single process, which normalizes blocks of the same NBS inside its batch of 32: the loss, the
weights and what is recalibrated are equal up to the order of float32 sums.

Running statistics are not. A single process averages them over all blocks of a batch;
DistributedDataParallel keeps those of process 0, which has seen its own parts only, so that the
test error with running statistics is a little noisier. It is process 0 that is judged and recorded.
The training metric is the mean of the processes', which for ``miou`` is not that of the union.

With ``--device cuda`` each process takes a CUDA device of its own as far as there are some; they
talk over gloo there too. That was not run.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, cast

import torch
from torch import distributed as dist

from normalform.lab.arms import SGD_BATCH
from normalform.lab.comparison import compare as run_comparison
from normalform.lab.comparison import dataset_of
from normalform.lab.data import Dataset
from normalform.lab.devices import device_named
from normalform.lab.models import OwnModel
from normalform.lab.networks import Probe
from normalform.lab.plan import Options
from normalform.lab.train import Images, Run, batches, epochs, train
from normalform.lab.workers import Done, prepare


def compare(options: Options) -> None:
    """Compare, in every process that ``torchrun`` has started; process 0 plans, keeps and shows.

    Args:
        options: as of any comparison; by default the NBS is a process's part of the batch.

    Raises:
        RuntimeError: this PyTorch is built without ``torch.distributed``.
        ValueError: an option does not go with several processes, or as in any comparison.
    """
    if not dist.is_available():
        raise RuntimeError("this PyTorch is built without torch.distributed; start one process")
    options = divided(options, int(os.environ["WORLD_SIZE"]))
    if device_named(options.device) == "cuda":  # each process its own, as far as they go
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with group():
        if dist.get_rank():
            _follow(options)
        else:
            run_comparison(options, _lead)
            _tell(None)


def divided(options: Options, processes: int) -> Options:
    """The options of a comparison by so many processes.

    Raises:
        ValueError: they do not go together.

    >>> divided(Options(), 16).nbs
    (2,)
    """
    part, rest = divmod(SGD_BATCH, processes)
    if rest:
        raise ValueError(
            f"{processes} processes: the SGD batch of {SGD_BATCH} must divide into equal parts; "
            "start 2, 4, 8, 16 or 32"
        )
    nbs = (part,) if options.nbs is None else tuple(options.nbs)
    for size in nbs:
        if size < 1 or part % size:
            raise ValueError(
                f"nbs {size}: each of {processes} processes has {part} samples of a batch, which "
                "must divide into blocks of that size"
            )
    if options.workers is not None:
        raise ValueError("--workers does not go with torchrun, whose processes do the work")
    if isinstance(options.lr, tuple) and len(options.lr) > 1:
        raise ValueError("--lr: under torchrun one learning rate, not the best of several")
    return replace(options, nbs=nbs, processes=processes)


@contextmanager
def group() -> Generator[None, None, None]:
    """The processes that ``torchrun`` has started, as a group that talks over gloo."""
    if dist.is_initialized():
        yield
        return
    # DistributedDataParallel imports it, and where a group is there by then, its functions keep
    # that as their default: the threads of the group would still run when Python ends, and abort.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def epochs_together(
    run: Run, network: Probe | OwnModel, images: Images
) -> Iterator[tuple[float, float]]:
    """Train as :func:`normalform.lab.train.epochs`, this process on its part of every batch.

    Loss and metric are means over the processes, so that all see one of them stop being finite.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    together = cast(Probe, torch.nn.parallel.DistributedDataParallel(network))
    orders = (order.chunk(processes, dim=1)[rank] for order in batches(run, images))
    for measured in epochs(run, together, images, orders=orders):
        means = torch.tensor(measured, dtype=torch.float64) / processes
        dist.all_reduce(means)
        mean_loss, error = means.tolist()
        yield mean_loss, error


def _lead(runs: Mapping[str, Run], data: Dataset) -> Iterator[Done]:
    """In process 0: have each run trained by all."""
    images = Images(data)
    for run_id, run in runs.items():
        _tell(run)
        yield Done(run_id, _train(run, images))


def _follow(options: Options) -> None:
    """In the others: train what process 0 says."""
    images: Images | None = None
    while (run := _told()) is not None:
        images = images or Images(dataset_of(options))
        _train(run, images)


def _train(run: Run, images: Images) -> Any:
    prepare(run.device)
    return train(run, images, trainer=epochs_together)


def _tell(run: Run | None) -> None:
    dist.broadcast_object_list([run])


def _told() -> Run | None:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard)
    return heard[0]
