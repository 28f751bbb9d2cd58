"""Processes that work, one task at a time each, with one thread each.

What a task is, and how it is done, the pool does not know: :func:`work_all` is given a function
that makes every worker able, once, to do its tasks. Every worker has a pipe of its own to the
parent. When the parent is gone, however it went, its workers end at once; nothing is left training
in the background.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar, cast

import torch

from normalform.lab.data import Dataset
from normalform.lab.devices import kind_of
from normalform.lab.environment import cores
from normalform.lab.train import Images, Run, train

T = TypeVar("T")
Tick = Callable[[], None]
Able = Callable[[T, Tick], Any]
MOST_WORKERS = 8


class Epoch(NamedTuple):
    """A worker has done a part of this task: an epoch of this run."""

    run_id: str


class Done(NamedTuple):
    """A worker has finished this task."""

    run_id: str
    outcome: Any


class Failed(NamedTuple):
    """A worker met an error of the program in this task, or died of it."""

    run_id: str
    why: str
    traceback: str


def side_by_side(asked: int | None, device: str = "cpu") -> int:
    """How many workers there are: as asked, or one a core, and one where a GPU does the work.

    Raises:
        ValueError: less than one is asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"workers {asked}: at least 1 is needed")
    return asked or (min(cores(), MOST_WORKERS) if kind_of(device) == "cpu" else 1)


def train_all(runs: Mapping[str, Run], data: Dataset, workers: int) -> Iterator[Epoch | Done]:
    """Train the runs in their order, and report as they go.

    Raises:
        RuntimeError: a worker failed or was killed. What was reported before stays finished.
    """
    with closing(work_all(runs, partial(_trainer, data), workers)) as messages:
        for message in messages:
            if isinstance(message, Failed):
                told = f"{message.run_id} failed:\n{message.traceback}"
                kept = f"{message.why}; finished runs are kept and the same command continues"
                raise RuntimeError(told if message.traceback else kept)
            yield message


def train_here(runs: Mapping[str, Run], data: Dataset) -> Iterator[Epoch | Done]:
    """Train the runs in their order in this process, with the same bits as in a worker."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    images = Images(data)
    for run_id, run in runs.items():
        prepare(run.device)
        try:
            outcome = train(run, images)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
        yield Done(run_id, outcome)


def _trainer(data: Dataset) -> Able[Run]:
    images = Images(data)

    def do(run: Run, tick: Tick) -> Any:
        prepare(run.device)
        return train(run, images, tick)

    return do


def work_all(
    tasks: Mapping[str, T], begin: Callable[[], Able[T]], workers: int
) -> Generator[Epoch | Done | Failed, None, None]:
    """Do the tasks in their order, and report as they go.

    A task that fails is reported and the others are done; where its worker died, another begins.

    Args:
        tasks: by id; they are pickled.
        begin: called once in each worker; what it gives is called with each task and a function to
            call after each part of it. Pickled.
        workers: how many side by side.
    """
    waiting = deque(tasks.items())
    pool: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, str] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                idle = next((connection for connection in pool if connection not in busy), None)
                if idle is None:
                    idle, process = _start(begin)
                    pool[idle] = process
                busy[idle] = _send(idle, waiting)
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                message, alive = _receive(connection, busy[connection], pool[connection])
                if not isinstance(message, Epoch):
                    del busy[connection]
                if not alive:
                    del pool[connection]
                    connection.close()
                yield message
    finally:
        for connection, process in pool.items():
            connection.close()
            process.terminate()
        for process in pool.values():
            process.join()


def prepare(device: str = "cpu") -> None:
    """One thread, and no operation that could give other bits the next time.

    Beside the CPU some operations have no other form: they run, and PyTorch warns.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's bits may differ
    torch.use_deterministic_algorithms(True, warn_only=kind_of(device) != "cpu")


def _start(begin: Callable[[], Able[Any]]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, begin), daemon=True)
    process.start()
    theirs.close()
    return cast(Connection, ours), process


def _send(connection: Connection, waiting: deque[tuple[str, Any]]) -> str:
    item = waiting.popleft()
    with suppress(OSError):  # a worker that is gone already is met when its answer is read
        connection.send(item)
    return item[0]


def _receive(
    connection: Connection, run_id: str, process: BaseProcess
) -> tuple[Epoch | Done | Failed, bool]:
    """The next message, and whether the worker lives."""
    try:
        return connection.recv(), True
    except (EOFError, OSError):
        process.join(timeout=5)
        why = (
            f"a worker ended during {run_id} (exit code {process.exitcode}; it may have run out of "
            "memory, or belong to a script that starts it outside `if __name__ == '__main__':`)"
        )
        return Failed(run_id, why, ""), False


def _work(connection: Connection, begin: Callable[[], Able[Any]]) -> None:
    """The life of a worker: until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    prepare()
    do = begin()
    try:
        while True:
            _work_on(connection, connection.recv(), do)
    except (EOFError, OSError):
        return  # the parent is gone


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_on(connection: Connection, task: tuple[str, Any], do: Able[Any]) -> None:
    run_id, what = task
    try:
        connection.send(Done(run_id, do(what, lambda: connection.send(Epoch(run_id)))))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        connection.send(Failed(run_id, why, traceback.format_exc()))
