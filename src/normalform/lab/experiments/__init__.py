"""The experiments that ship: published claims about norms, each with a rule that can fail.

``EXPERIMENTS`` is the table; an experiment is imported when it is asked for. The experiment
"small-batches" is ``EXPERIMENT`` in ``small_batches.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from normalform.lab.experiments.experiment import Experiment

NAMES = (
    "small-batches",
    "dense-prediction",
    "instance-hurts",
    "contrast",
    "recurrent",
    "precise-statistics",
    "frozen-tail",
    "leakage",
    "switch-weights",
    "depth",
    "style",
)


class _Table(Mapping[str, Experiment]):
    def __getitem__(self, name: str) -> Experiment:
        if name not in NAMES:
            raise KeyError(name)
        module = import_module(f"{__name__}.{name.replace('-', '_')}")
        return module.EXPERIMENT

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


EXPERIMENTS: Mapping[str, Experiment] = _Table()
