"""Processes that train, one run at a time each, with one thread each.

Every worker has a pipe of its own to the parent. When the parent is gone, however it went, the pipe
breaks at the next epoch and the worker ends; nothing is left training in the background.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

import torch

from normalform.lab.data import Dataset
from normalform.lab.train import Images, Outcome, Run, train


class Epoch(NamedTuple):
    """A worker has finished an epoch of this run."""

    run_id: str


class Done(NamedTuple):
    """A worker has finished this run."""

    run_id: str
    outcome: Outcome


class Failed(NamedTuple):
    """A worker met an error of the program in this run."""

    run_id: str
    traceback: str


def train_all(runs: Mapping[str, Run], data: Dataset, workers: int) -> Iterator[Epoch | Done]:
    """Train the runs in their order, and report as they go.

    Raises:
        RuntimeError: a worker failed or was killed. What was reported before stays finished.
    """
    waiting = deque(runs.items())
    pool: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, str] = {}
    try:
        for _ in range(min(workers, len(runs))):
            connection, process = _start(data)
            pool[connection] = process
            busy[connection] = _send(connection, waiting)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                message = _receive(connection, busy[connection], pool[connection])
                yield message
                if isinstance(message, Done):
                    del busy[connection]
                    if waiting:
                        busy[connection] = _send(connection, waiting)
    finally:
        for connection, process in pool.items():
            connection.close()
            process.terminate()
        for process in pool.values():
            process.join()


def train_here(runs: Mapping[str, Run], data: Dataset) -> Iterator[Epoch | Done]:
    """Train the runs in their order in this process, with the same bits as in a worker."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    images = Images(data)
    for run_id, run in runs.items():
        _prepare()
        try:
            outcome = train(run, images)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)
        yield Done(run_id, outcome)


def _prepare() -> None:
    """One thread, and no operation that could give other bits the next time."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _start(data: Dataset) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, data), daemon=True)
    process.start()
    theirs.close()
    return cast(Connection, ours), process


def _send(connection: Connection, waiting: deque[tuple[str, Run]]) -> str:
    item = waiting.popleft()
    with suppress(OSError):  # a worker that is gone already is met when its answer is read
        connection.send(item)
    return item[0]


def _receive(connection: Connection, run_id: str, process: BaseProcess) -> Epoch | Done:
    try:
        message: Any = connection.recv()
    except (EOFError, OSError):
        process.join(timeout=5)
        raise RuntimeError(
            f"a worker ended during {run_id} (exit code {process.exitcode}; it may have run out of "
            "memory); finished runs are kept and the same command continues"
        ) from None
    if isinstance(message, Failed):
        raise RuntimeError(f"{message.run_id} failed:\n{message.traceback}")
    return message


def _work(connection: Connection, data: Dataset) -> None:
    """The life of a worker: until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _prepare()
    images = Images(data)
    try:
        while True:
            _work_on(connection, connection.recv(), images)
    except (EOFError, OSError):
        return  # the parent is gone


def _work_on(connection: Connection, task: tuple[str, Run], images: Images) -> None:
    run_id, run = task
    try:
        outcome = train(run, images, lambda: connection.send(Epoch(run_id)))
        connection.send(Done(run_id, outcome))
    except OSError:
        raise  # of the pipe, which is broken
    except Exception:
        connection.send(Failed(run_id, traceback.format_exc()))
