"""What is measured of single layers: norms, shapes, layouts; and who competes.

``ours`` is this library's layer, ``torch`` PyTorch's own with the same parameters, ``copy`` the
clone of the input. PyTorch has no switchable and no ghost norm: ``torch`` is there a layer of its
operators. That of switchable norm takes the moments of instance norm from the tensor and those of
layer and batch norm from them, which is twice as fast as taking all three from the tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import normalform as nf
from normalform.lab import plain
from normalform.lab.bench.floors import FORWARD, INFERENCE, STEP
from normalform.lab.cases import DTYPES, NORMS, groups

Work = Callable[[], Any]

LAYOUTS = ("contiguous", "channels_last")
DEFAULT = tuple(norm for norm in NORMS if norm != "ghost")
MOST_ELEMENTS = 30_000_000
IMAGES = (
    (2, 8, 4, 4),
    (2, 16, 14, 14),
    (8, 32, 14, 14),
    (8, 64, 28, 28),
    (32, 512, 7, 7),
    (1, 64, 128, 128),
    (32, 2048, 7, 7),
    (32, 64, 56, 56),
    (1, 16, 1024, 1024),
    (32, 64, 112, 112),
)  # N, C, H, W
TOKENS = (
    (2, 4, 32),
    (8, 8, 64),
    (4, 64, 256),
    (8, 128, 384),
    (8, 197, 768),
    (64, 1024, 32),
    (16, 512, 768),
    (8, 1024, 3072),
)  # B, T, C
_QUICK = (*IMAGES[:2], IMAGES[3], IMAGES[5], *TOKENS[:2], TOKENS[4])
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
OVER_TOKENS = ("token", "rms")
_BLOCK = 8  # samples that share statistics in ghost norm


@dataclass(frozen=True)
class Case:
    """A norm on one input.

    Attributes:
        norm: one of ``NORMS``.
        shape: (N, C, *); token and rms normalize the last axis of any shape.
        layout: one of ``LAYOUTS``.
        what: ``FORWARD`` is that of training, by the input's own statistics, without a graph;
            ``STEP`` is that with a graph and the gradients of input and parameters; ``INFERENCE``
            is evaluation mode, of the norms where that is something else.
        dtype: one of :data:`normalform.lab.cases.DTYPES`, of input and parameters.
    """

    norm: str
    shape: tuple[int, ...]
    layout: str
    what: str
    dtype: str = "float32"


def plan(
    norms: Sequence[str] = DEFAULT,
    shape: Sequence[int] | None = None,
    layouts: Sequence[str] = LAYOUTS,
    most_elements: int = MOST_ELEMENTS,
    dtype: str = "float32",
    *,
    quick: bool = False,
) -> list[Case]:
    """The cases.

    Raises:
        ValueError: an unknown norm, layout or dtype, or a shape that a norm cannot take.

    >>> len({case.what for case in plan(["batch"], (2, 8, 4, 4))})
    3
    """
    for what, given, known in (
        ("norms", norms, NORMS),
        ("layouts", layouts, LAYOUTS),
        ("dtype", [dtype], tuple(DTYPES)),
    ):
        if strange := [each for each in given if each not in known]:
            raise ValueError(f"{what}: unknown {strange[0]!r}; known: {', '.join(known)}")
    found: list[Case] = []
    for norm in norms:
        for each in _shapes(norm, shape, most_elements, quick=quick):
            for layout in layouts:
                if layout == "contiguous" or (norm not in OVER_TOKENS and len(each) in _LAST):
                    found += [Case(norm, each, layout, what, dtype) for what in _whats(norm)]
    return found


def works(
    case: Case, kernel: str = "auto", *, compiled: bool = False, seed: int = 0
) -> dict[str, Work]:
    """What each competitor does in a call of a case; each returns the tensors it computes."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (_tensor(case, generator) for _ in range(2))
    ours, theirs = layers(case)
    ours.kernel = kernel  # pyright: ignore[reportArgumentType]
    competitors: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
        "ours": ours,
        "torch": theirs,
    }
    if compiled:
        torch.compiler.reset()
        competitors["compiled"] = torch.compile(theirs, dynamic=False)
    found: dict[str, Work] = {"copy": x.clone}
    if case.what == STEP:
        asked = x.clone(memory_format=torch.preserve_format).requires_grad_()
        for name, layer in competitors.items():
            own = ours if name == "ours" else theirs
            found[name] = _step(layer, asked, dy, list(own.parameters()))
    else:
        for name, layer in competitors.items():
            found[name] = _forward(layer, x)
    return found


def layers(case: Case) -> tuple[nn.Module, nn.Module]:
    """Our layer and PyTorch's, with equal parameters."""
    shape = case.shape
    channels = shape[-1] if case.norm in OVER_TOKENS else shape[1]
    names = {"group": f"group:{groups(channels)}", "ghost": f"ghost:{min(_BLOCK, shape[0])}"}
    options = {"affine": True} if case.norm == "instance" else {}
    dim = max(1, len(shape) - 2)
    layer = nf.get_norm_layer(names.get(case.norm, case.norm), min(dim, 3), **options)
    ours = layer(channels).to(DTYPES[case.dtype]).train(case.what != INFERENCE)
    theirs = copy.deepcopy(ours)
    name = type(ours).__name__
    if case.norm == "switch" and math.prod(shape[2:]) > 1:
        theirs.__class__ = type(f"Plain{name}", (type(ours),), {"forward": _pooled_switch})
    else:
        theirs.__class__ = getattr(plain if case.norm in ("switch", "ghost") else nn, name)
    return ours, theirs


def _shapes(
    norm: str, shape: Sequence[int] | None, most_elements: int, *, quick: bool
) -> list[tuple[int, ...]]:
    if shape is not None:
        least, most = (1, 8) if norm in OVER_TOKENS else (2, 5)
        if not least <= len(shape) <= most or min(shape) < 1:
            raise ValueError(
                f"shape {','.join(map(str, shape))}: {norm} takes {least} to {most} axes, none "
                "of them empty"
            )
        return [tuple(shape)]
    every = TOKENS if norm in OVER_TOKENS else IMAGES
    fitting = [each for each in every if math.prod(each) <= most_elements]
    if not fitting:
        smallest = math.prod(every[0])
        raise ValueError(f"max-elements {most_elements}: the smallest tensor has {smallest}")
    return [each for each in fitting if each in _QUICK] if quick else fitting


def _whats(norm: str) -> tuple[str, ...]:
    differs = norm in ("batch", "ghost", "switch")
    return (FORWARD, STEP, INFERENCE) if differs else (FORWARD, STEP)


def _tensor(case: Case, generator: torch.Generator) -> Tensor:
    x = torch.randn(case.shape, generator=generator).to(DTYPES[case.dtype])
    if case.layout == "contiguous":
        return x
    return x.contiguous(memory_format=_LAST[len(case.shape)])


def _forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    return lambda: layer(x)


def _step(
    layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, parameters: list[nn.Parameter]
) -> Work:
    wanted = [x, *parameters]
    return lambda: torch.autograd.grad(layer(x), wanted, dy)


def _pooled_switch(self: plain.Switch, x: Tensor) -> Tensor:
    """Switchable norm of PyTorch's operators; the larger cells' moments from the planes'."""
    positions = list(range(2, x.ndim))
    m = x.mean(positions, keepdim=True)
    v = x.var(positions, correction=0, keepdim=True)
    means, variances = [m], [v]
    for axis in (1, 0):
        pooled = m.mean(axis, keepdim=True)
        means.append(pooled)
        variances.append((v + (m - pooled).square()).mean(axis, keepdim=True))
    along = (1, -1, *(1,) * len(positions))
    if self.training:
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            self.get_buffer("running_mean").lerp_(means[2].flatten(), self.momentum or 0.0)
            unbiased = variances[2].flatten() * (n / max(1, n - 1))
            self.get_buffer("running_var").lerp_(unbiased, self.momentum or 0.0)
    else:
        means[2] = self.get_buffer("running_mean").view(along)
        variances[2] = self.get_buffer("running_var").view(along)
    shares, var_shares = self.mean_weight.softmax(0), self.var_weight.softmax(0)
    mean = shares[0] * means[0] + shares[1] * means[1] + shares[2] * means[2]
    var = var_shares[0] * variances[0] + var_shares[1] * variances[1] + var_shares[2] * variances[2]
    weight, bias = (self.get_parameter(name).view(along) for name in ("weight", "bias"))
    return (x - mean) * torch.rsqrt(var + self.eps) * weight + bias
