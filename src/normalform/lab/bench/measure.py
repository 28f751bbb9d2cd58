"""A case measured: its rows, one a competitor."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from normalform.lab.bench import models, norms
from normalform.lab.bench.floors import INFERENCE, STEP, floor, l2_bytes
from normalform.lab.bench.load import Load, Others, Patience
from normalform.lab.bench.rows import Row
from normalform.lab.bench.timing import ROUNDS, Clock, Timing, Work, interleaved
from normalform.lab.environment import environment, version

_US = 1e6


@dataclass(frozen=True)
class How:
    """How to measure.

    Attributes:
        kernel: that our layers run.
        compiled: whether ``torch.compile`` competes.
        seconds: the rounds of a case go on for.
        steps: rounds at least of a network's training.
        latencies: rounds at least of its inference; a 99th percentile needs 100.
        tries: at most, while something disturbs.
        patience: for a machine that lets threads share a core; None to not look.
        memory_kept: whether the process keeps its memory.
        clock: seconds that pass.
    """

    kernel: str = "auto"
    compiled: bool = False
    seconds: float = 0.4
    steps: int = 20
    latencies: int = 100
    tries: int = 3
    patience: Patience | None = None
    memory_kept: bool = False
    clock: Clock = time.perf_counter


def measured(case: norms.Case | models.Case, how: How) -> list[Row]:
    """The rows of a case, after a look at whether the results agree."""
    return _model(case, how) if isinstance(case, models.Case) else _norm(case, how)


def difference(found: Any, ours: Any) -> float:
    """The largest difference from our result, in units of the largest value of its tensor.

    >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]))
    0.25
    """
    pairs = zip(_tensors(found), _tensors(ours), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def undisturbed(
    works: Mapping[str, Work], how: How, least: int = ROUNDS
) -> tuple[dict[str, Timing], Load]:
    """Timings while nothing disturbed, and what did.

    Where something did in each of ``how.tries``, the try that was disturbed least: rather by other
    programs than by cores that threads shared.
    """
    threads = torch.get_num_threads()
    tries: list[tuple[dict[str, Timing], Load]] = []
    for _ in range(how.tries):
        ratios = [how.patience.wait(threads)] if how.patience else []
        others = Others()
        timings = interleaved(works, how.seconds, least, how.clock)
        cores = others.cores()
        ratios += [how.patience.look(threads)] if how.patience else []
        found = Load(cores, min((each for each in ratios if each is not None), default=None))
        tries.append((timings, found))
        if not found.disturbs(threads):
            break
    return min(tries, key=lambda each: (each[1].shares_cores(threads), each[1].others or 0.0))


def _norm(case: norms.Case, how: How) -> list[Row]:
    works = norms.works(case, how.kernel, compiled=how.compiled)
    with torch.set_grad_enabled(case.what == STEP):
        ours = works["ours"]()
        differences = {
            name: difference(work(), ours)
            for name, work in works.items()
            if name not in ("ours", "copy")
        }
        timings, load = undisturbed(works, how)
    itemsize = norms.DTYPES[case.dtype].itemsize
    least = floor(case.norm, case.shape, case.what, itemsize, l2_bytes())
    common = {
        "kind": "norm",
        "name": case.norm,
        "layout": case.layout,
        "dtype": case.dtype,
        "floor": least,
        "others": load.others,
        "together": load.together,
    }
    return _rows(case, common, timings, differences, how)


def _model(case: models.Case, how: How) -> list[Row]:
    networks = models.pair(case, how.kernel)
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        differences = {"torch": difference(networks["torch"](x), networks["ours"](x))}
    with torch.set_grad_enabled(case.what != INFERENCE):
        works = models.works(case, networks, x)
        least = how.latencies if case.what == INFERENCE else how.steps
        timings, load = undisturbed(works, how, least)
    common = {
        "kind": "model",
        "name": case.name,
        "layout": "contiguous",
        "dtype": "float32",
        "floor": None,
        "others": load.others,
        "together": load.together,
    }
    return _rows(case, common, timings, differences, how)


def _rows(
    case: norms.Case | models.Case,
    common: Mapping[str, Any],
    timings: Mapping[str, Timing],
    differences: Mapping[str, float],
    how: How,
) -> list[Row]:
    where: dict[str, Any] = dict(environment())
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        Row(
            shape="x".join(map(str, case.shape)),
            elements=math.prod(case.shape),
            what=case.what,
            competitor=name,
            us=_US * timing.best,
            p50_us=_US * timing.p50,
            p99_us=None if timing.p99 is None else _US * timing.p99,
            paired=timing.over(timings["ours"]),
            rounds=len(timing.turns),
            calls=len(timing.calls),
            difference=differences.get(name),
            kernel=how.kernel,
            l2=l2_bytes(),
            memory_kept=int(how.memory_kept),
            threads=torch.get_num_threads(),
            numba=version("numba"),
            date=now,
            **common,
            **where,
        )
        for name, timing in timings.items()
    ]


def _tensors(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    several = [result] if isinstance(result, Tensor) else result
    return [each.detach() for each in several]
