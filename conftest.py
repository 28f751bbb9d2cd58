"""Names that every docstring example may use."""

import os

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, object]) -> None:
    import numpy as np
    import torch

    import normalform as nf

    torch.manual_seed(0)
    doctest_namespace.update(nf=nf, torch=torch, np=np)
