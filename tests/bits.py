"""A training step of many norms as a digest each: equal digests are equal bits."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import normalform as nf

# Each is large enough for threads (PARALLEL values and more), together they run every kernel.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype]] = {
    "batch": (lambda: nf.BatchNorm2d(16), (8, 16, 24, 24), torch.float32),
    "batch, evaluation": (lambda: nf.BatchNorm2d(16).eval(), (8, 16, 24, 24), torch.float32),
    "batch, small planes": (lambda: nf.BatchNorm2d(64), (24, 64, 7, 7), torch.float32),
    "instance": (lambda: nf.InstanceNorm2d(16, affine=True), (8, 16, 24, 24), torch.float32),
    "group": (lambda: nf.GroupNorm(4, 16), (8, 16, 24, 24), torch.float32),
    "layer": (lambda: nf.LayerNorm(96), (8, 100, 96), torch.float32),
    "layer, float64": (lambda: nf.LayerNorm(96), (8, 100, 96), torch.float64),
    "layer, bfloat16": (lambda: nf.LayerNorm(96), (8, 100, 96), torch.bfloat16),
    "rms": (lambda: nf.RMSNorm(96), (8, 100, 96), torch.float32),
    "switch": (lambda: nf.SwitchNorm2d(16), (8, 16, 24, 24), torch.float32),
    "switch, last": (lambda: nf.SwitchNorm2d(16), (8, 24, 24, 16), torch.float32),
    "ghost, last": (lambda: nf.GhostBatchNorm2d(16, 4), (8, 24, 24, 16), torch.float32),
    "group, float64": (lambda: nf.GroupNorm(4, 16), (8, 16, 24, 24), torch.float64),
    "instance, bfloat16": (lambda: nf.InstanceNorm2d(16), (8, 16, 24, 24), torch.bfloat16),
}


def bits(name: str, threads: int = 1) -> str:
    """Of the output, all gradients and all buffers.

    Only the norm runs on ``threads``: in a child after fork torch's own operators would hang.
    """
    make, shape, dtype = CASES[name]
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    layer = make().to(dtype)
    x, dy = ((torch.randn(shape, generator=generator) * 3 + 2).to(dtype) for _ in range(2))
    if name.endswith(", last"):
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    wanted = [x.requires_grad_(), *layer.parameters()]
    torch.set_num_threads(threads)
    y = layer(x)
    gradients = torch.autograd.grad(y, wanted, dy)
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    for t in (y, *gradients, *layer.buffers()):
        digest.update(t.detach().double().contiguous().numpy().tobytes())
    return digest.hexdigest()


def all_bits(threads: int = 1) -> dict[str, str]:
    """Those of every case."""
    return {name: bits(name, threads) for name in CASES}


def ways() -> dict[str, int]:
    """How often programs ran, from now on: on one thread, by OpenMP, by plain threads."""
    from normalform.kernels.cpu import team

    counted = {"alone": 0, "openmp": 0, "plain": 0}
    run, in_threads = team.run, team._in_threads

    def count_run(args: Any, threads: int) -> None:
        plain = counted["plain"]
        run(args, threads)
        if counted["plain"] == plain:
            counted["alone" if threads == 1 else "openmp"] += 1

    def count_plain(args: Any, threads: int) -> None:
        counted["plain"] += 1
        in_threads(args, threads)

    team.run, team._in_threads = count_run, count_plain
    return counted


def compilations() -> dict[str, int]:
    """How many functions are compiled, or only loaded, from now on."""
    from numba.core.ccallback import CFunc

    counted = {"compiled": 0, "loaded": 0}
    uncached, compile_ = CFunc._compile_uncached, CFunc.compile

    def count_uncached(self: CFunc) -> Any:
        counted["compiled"] += 1
        return uncached(self)

    def count_compile(self: CFunc) -> None:
        before = counted["compiled"]
        compile_(self)
        counted["loaded"] += counted["compiled"] == before

    CFunc._compile_uncached, CFunc.compile = count_uncached, count_compile
    return counted
