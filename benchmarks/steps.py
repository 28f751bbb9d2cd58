"""Time of a layer in units of PyTorch's own: one thread, interleaved, minima."""

import copy
import time

import torch
from torch import nn

import normalform as nf

LAYERS = {
    "batch": nf.BatchNorm2d,
    "instance": lambda c: nf.InstanceNorm2d(c, affine=True),
    "layer": lambda c: nf.GroupNorm(1, c),
    "group": lambda c: nf.GroupNorm(4, c),
}
SHAPES = [(2, 8, 4, 4), (32, 16, 14, 14), (32, 64, 56, 56)]


def step(layer, x, dy):
    return torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def infer(layer, x, dy):
    with torch.no_grad():
        return layer(x)


def seconds(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def ratio(work, ours, theirs, x, dy):
    """Interleaved, so that a slow moment of the machine meets both."""
    repeats = 300 if x.numel() < 1e6 else 20
    times = [(seconds(work, ours, x, dy), seconds(work, theirs, x, dy)) for _ in range(repeats)]
    return min(t for t, _ in times) / min(t for _, t in times)


def main():
    torch.set_num_threads(1)
    print("norm       input              training step  inference")
    for shape in SHAPES:
        x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
        for name, make in LAYERS.items():
            ours = make(shape[1])
            theirs = copy.deepcopy(ours)
            theirs.__class__ = getattr(nn, type(ours).__name__)
            training = ratio(step, ours, theirs, x, dy)
            inference = ratio(infer, ours.eval(), theirs.eval(), x, dy)
            size = "x".join(map(str, shape))
            print(f"{name:10s} {size:20s} {training:11.1f} {inference:10.1f}")


if __name__ == "__main__":
    main()
