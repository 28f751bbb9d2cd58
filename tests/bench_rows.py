"""Rows of ``normalform bench`` with times that are made up."""

import dataclasses
from io import StringIO

import torch
from rich.console import Console

from normalform.lab.bench import command, models, norms
from normalform.lab.bench.command import Options
from normalform.lab.bench.floors import STEP
from normalform.lab.bench.rows import Row, results

US = {"ours": 10.0, "torch": 20.0, "copy": 5.0}


def rows(case, us=US, **changes):
    """Rows of a case as if measured: twice as fast as torch, two copies."""
    model = isinstance(case, models.Case)
    plain = Row(
        kind="model" if model else "norm", name=case.name if model else case.norm,
        shape="x".join(map(str, case.shape)), elements=torch.Size(case.shape).numel(),
        layout="contiguous" if model else case.layout, dtype="float32", what=case.what,
        competitor="", us=0.0, p50_us=0.0, p99_us=None, paired=1.0, rounds=7, calls=70,
        floor=None if model else 1.0, difference=None, kernel="auto", l2=2**20, memory_kept=1,
        others=None, together=None,
        threads=2, python="3.11", torch="2.13", numpy="2.4", numba="0.68", normalform="0.1",
        machine='a "fast", one', cores=2, platform="Linux", commit="", date="2026-11-21T00:00:00Z",
    )  # fmt: skip
    return [
        dataclasses.replace(
            plain,
            competitor=name,
            us=us[name],
            p50_us=us[name] * 1.1,
            paired=us[name] / us["ours"],
            difference=None if name in ("ours", "copy") else 1e-7,
            **changes,
        )
        for name in us
        if not (model and name == "copy")
    ]


def norm(name, shape=(32, 64, 56, 56), layout="contiguous", what=STEP):
    return norms.Case(name, shape, layout, what)


def measured(*cases, **changes):
    return results([row for case in cases for row in rows(case, **changes)])


def everything(**changes):
    """A made-up result of every case of the whole benchmark."""
    return measured(*command.planned(Options()), **changes)


def printed(renderable, width=80):
    console = Console(file=StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()
