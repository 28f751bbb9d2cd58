"""Names that every docstring example may use, and memory that shows who reads it too early."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    import numpy as np
    import torch

    import normalform as nf

    torch.manual_seed(0)
    doctest_namespace.update(nf=nf, torch=torch, np=np)


@pytest.fixture
def unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New memory is full of NaN, that of the kernels too: freed memory often holds right answers.

    A result that a kernel forgot to write would be that of the call before.
    """
    import torch

    from normalform.kernels import known, op
    from normalform.kernels.cpu import steps

    monkeypatch.setattr(steps, "_LARGEST", -1)  # no memory is kept from call to call
    monkeypatch.setattr(known, "_remembered", {})
    monkeypatch.setattr(op, "_found", {})
    torch.use_deterministic_algorithms(True)  # which fill what is empty
    yield
    torch.use_deterministic_algorithms(False)
