"""The source articles' numbers come out again, and would not if a layer were wrong."""

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normalform as nf
from normalform.lab import articles
from normalform.lab.articles import TENSOR_LIMIT

CHECKED = articles.check()


def named(each: articles.Checked) -> str:
    return f"{each.example.article}: {each.example.code} {each.example.called}"


@pytest.mark.parametrize("checked", CHECKED.examples, ids=named)
def test_printed_tensor(checked: articles.Checked):
    assert checked.ours <= TENSOR_LIMIT
    assert checked.reference <= TENSOR_LIMIT
    assert checked.ok


def test_printed_tensors_are_not_met_by_doing_nothing():
    for example in articles.examples():
        shown = example.x[: len(example.y)].numpy()
        assert abs(shown - example.y).max() > 0.5, example.code


def test_every_printed_output_is_checked():
    printed = articles.tensors()
    outputs = [array for name, array in printed.items() if name.endswith(".y")]
    examples = articles.examples()
    assert len(outputs) == len(examples) == 12
    for array, example in zip(outputs, examples, strict=True):
        assert array.ravel().tolist() == example.y.ravel().tolist()


def test_transcription_has_the_articles_digits():
    # Taken from the articles' own text. A digit typed wrong in the last place passes 1.5e-4.
    digest = hashlib.sha256()
    for name, array in sorted(articles.tensors().items()):
        digits = (array * 1e4).round().astype("<i8").tolist()
        digest.update(f"{name} {array.shape} {digits}".encode())
    assert digest.hexdigest() == "e84e14af25758cc6c5fa2ca13b626871a3667841c0af023f86535d8a6495a059"


def test_running_statistics_of_the_notes():
    example = next(each for each in articles.examples() if each.running is not None)
    layer = example.layer()
    layer(example.x)
    mean, var = example.running
    assert layer.running_mean.tolist() == pytest.approx(mean.tolist(), abs=1e-7)
    assert layer.running_var.tolist() == pytest.approx(var.tolist(), abs=1e-7)
    assert mean.tolist() == [0.3, 0.6, 0.9]
    assert var.tolist() == [0.7] * 3


def test_block_called_layer_norm_is_instance_norm():
    found = CHECKED.mislabelled
    assert found.repeats
    assert found.from_instance <= TENSOR_LIMIT
    assert found.from_layer == pytest.approx(0.906, abs=5e-4)
    assert found.ok


@pytest.mark.parametrize("each", CHECKED.sums, ids=lambda each: each.norm)
def test_sum_of_the_notebook(each: articles.Sum):
    assert each.measured == pytest.approx(each.printed, rel=0.01)
    assert each.expected == pytest.approx(each.printed, rel=0.01)
    # Not only near what is printed: experiment and closed form agree far better.
    assert each.measured == pytest.approx(each.expected, rel=1e-4)


def test_sums_are_those_printed():
    printed = {each.norm: (each.values, each.printed) for each in CHECKED.sums}
    assert printed == {
        "batch": (65536, 13.8286),
        "layer": (131072, 6.9151),
        "instance": (4096, 221.6718),
        "group": (16384, 55.4126),
    }


def test_signed_sum_hides_what_the_largest_difference_shows():
    # 125 values a group, divided by n - 1: |y| up to about 1.73 times 1 - sqrt(124 / 125).
    assert abs(CHECKED.signed.total) < 1e-10
    assert CHECKED.signed.largest == pytest.approx(8e-3, rel=0.1)


Forward = Callable[[torch.nn.Module, Tensor], Tensor]


def unbiased(forward: Forward) -> Forward:
    """As if the variance were divided by n - 1."""

    def planted(self: nf.GroupNorm, x: Tensor) -> Tensor:
        n = x[0].numel() // self.num_groups
        return forward(self, x) * ((n - 1) / n) ** 0.5

    return planted


def eps_outside(_: Forward) -> Forward:
    def planted(self: nf.LayerNorm, x: Tensor) -> Tensor:
        dims = [-1 - d for d in range(len(self.normalized_shape))]
        mean = x.mean(dims, keepdim=True)
        return (x - mean) / (x.std(dims, correction=0, keepdim=True) + self.eps)

    return planted


def momentum_of_the_old(forward: Forward) -> Forward:
    """As if momentum were the share that is kept, as in Keras."""

    def planted(self: nf.InstanceNorm2d, x: Tensor) -> Tensor:
        self.momentum = 1 - self.momentum
        return forward(self, x)

    return planted


def nothing(_: Forward) -> Forward:
    return lambda _self, x: x * torch.nan


@pytest.mark.parametrize(
    ("name", "plant", "off"),
    [
        ("GroupNorm", unbiased, {"GroupNorm(2, 4)", "GroupNorm(4, 4)", "group sum"}),
        ("LayerNorm", eps_outside, {"LayerNorm(2)", "layer sum"}),
        ("InstanceNorm2d", momentum_of_the_old, {"InstanceNorm2d(3, momentum=0.3)"}),
        (
            "BatchNorm2d",
            nothing,
            {"BatchNorm2d(2)", "BatchNorm2d(2, affine=False)", "batch sum"},
        ),
    ],
)
def test_planted_bug_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, plant: Callable[[Forward], Forward], off: set[str]
):
    layer = getattr(nf, name)
    monkeypatch.setattr(layer, "forward", plant(layer.forward))
    report = articles.check()
    seen = {each.example.code for each in report.examples if not each.ok}
    seen |= {f"{each.norm} sum" for each in report.sums if not each.ok}
    assert off <= seen
    assert not report.ok


def test_layer_norm_that_is_instance_norm_is_seen(monkeypatch: pytest.MonkeyPatch):
    forward = nf.GroupNorm.forward

    def planted(self: nf.GroupNorm, x: Tensor) -> Tensor:
        self.num_groups = self.num_channels
        return forward(self, x)

    monkeypatch.setattr(nf.GroupNorm, "forward", planted)
    assert not articles.mislabelled().ok


def test_kernel_is_the_one_asked_for():
    with pytest.raises(ValueError, match="no_such_kernel"):
        articles.check(kernel="no_such_kernel")
