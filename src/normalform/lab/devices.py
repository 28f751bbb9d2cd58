"""Where a comparison computes and with how many digits: the device, and mixed precision.

Initial weights are drawn on the CPU, so that a seed starts with the same ones everywhere. The same
bits again are promised on the CPU alone: elsewhere an operation that has no deterministic form
runs as it is, with PyTorch's warning, and float32 is PyTorch's own, whose convolutions on CUDA may
round their input to TF32. What is here for CUDA and MPS is PyTorch's documented calls; a
comparison was not run on such a device.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

CHOICES = "auto, cpu, cuda, cuda:1, mps"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
N = TypeVar("N", bound=nn.Module)


def device_named(asked: str) -> str:
    """The device that is meant: of ``auto`` CUDA where there is one, else the CPU.

    Raises:
        ValueError: it is none, or not to be had here.

    >>> device_named("cpu")
    'cpu'
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = asked.partition(":")
    known = kind == "cuda" and index.isdecimal() if colon else kind in ("cpu", "cuda", "mps")
    if not known:
        raise ValueError(f"device {asked!r} is not known; choose from {CHOICES}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise ValueError(
            f"device {asked}: this PyTorch finds {count or 'no'} CUDA device{'s' * (count > 1)}; "
            "choose auto or cpu"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: this PyTorch finds no such device; choose auto or cpu")
    return asked


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision that the device cannot train in.

    Raises:
        ValueError: it is not known, or ``float16`` without CUDA.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision {precision!r} is not known; choose from {', '.join(PRECISIONS)}"
        )
    if precision == "float16" and kind_of(device) != "cuda":
        raise ValueError(
            f"precision float16 needs a CUDA device; on {device} choose bfloat16 or float32"
        )


def kind_of(device: str) -> str:
    """The device without its number.

    >>> kind_of("cuda:1")
    'cuda'
    """
    return device.partition(":")[0]


def model_of(device: str) -> str:
    """What stands in results.csv of a device: its kind, and of CUDA the model."""
    kind = kind_of(device)
    return f"{kind}, {torch.cuda.get_device_name(device)}" if kind == "cuda" else kind


def place(network: N, device: str, precision: str) -> N:
    """Move a network to the device, and have it compute in this precision wherever it is called.

    Its forward pass runs under :class:`torch.autocast` and gives float32, in which the loss is
    computed; parameters stay float32.
    """
    network.to(device)
    if precision == "float32":
        return network
    inner = network.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(kind_of(device), PRECISIONS[precision]):
            return inner(x).float()

    network.forward = forward
    return network
