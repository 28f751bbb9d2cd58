"""A small trained network, its data, and what a diagnosis of it found."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normalform.diagnose import Diagnosis, Finding

SAMPLES, BATCH, CLASSES = 192, 32, 4
Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Three blocks, the last on 2x2 maps, and dropout, so that only statistics may be switched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, bias=False), nn.BatchNorm2d(12))
        self.tail = nn.Sequential(nn.Conv2d(12, 16, 3, 2, bias=False), nn.BatchNorm2d(16))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.stem, self.body, self.tail):
            x = block(x).relu()
        return self.head(self.drop(x.mean((2, 3))))


def data(size: int = BATCH, samples: int = SAMPLES) -> Batches:
    """Squares of noise with a brighter corner, which is the class."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(samples) % CLASSES
    x = torch.randn(samples, 1, 12, 12, generator=generator)
    for label in range(CLASSES):
        top, left = 6 * (label // 2), 6 * (label % 2)
        x[y == label, :, top : top + 6, left : left + 6] += 1.0
    return list(zip(x.split(size), y.split(size), strict=True))


def trained_like(model: nn.Module, steps: int = 5, batches: Batches | None = None) -> nn.Module:
    """A little training, with a learning rate that falls, as people train."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for _ in range(steps):
        for x, y in batches or data():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return model


@cache
def sound() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trained_like(Net())


def found(diagnosis: Diagnosis, check: str) -> Finding:
    named = [finding for finding in diagnosis.findings if finding.check == check]
    assert named, f"no {check} in\n{diagnosis}"
    return named[0]


def stale(model: Any) -> dict[str, Any]:
    """The weights went on, the statistics did not: as after averaging weights."""
    model.body[0].weight.data.mul_(0.05)
    return {"where": "body.1"}
