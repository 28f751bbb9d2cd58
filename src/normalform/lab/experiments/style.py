"""Style transfer in miniature: photographs that exchange the statistics of their channels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normalform.lab.experiments.classify import RULE, above, less_than, more_than, verdict
from normalform.lab.experiments.descent import batches, descend
from normalform.lab.experiments.experiment import Experiment, Measured, Results, Trial, Verdict
from normalform.lab.experiments.filters import adain, bank, put_together, take_apart
from normalform.lab.networks import Probe, initialize
from normalform.lab.train import INIT

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble", "retina", "rocket")
INSTANCE, POOLED = "instance, filter bank", "batch, filter bank"
ARMS: Mapping[str, Mapping[str, Any]] = {
    INSTANCE: {"recipe": "n c [s]", "filtered": True},
    "instance, colours": {"recipe": "n c [s]", "filtered": False},
    POOLED: {"recipe": "[n] c [s]", "filtered": True},
    "untouched": {"recipe": None, "filtered": False},
}
SCALES, DIRECTIONS = 4, 4
WIDTHS = (16, 32, 32)  # of the judge
NAMED, AHEAD, FOUND, LEFT = 60, 20, 90, 50  # percent and points
_PATCHES, _PAIRS = 200, 201  # random streams of a seed
DEFAULT: Mapping[str, Any] = {
    "seeds": 5, "patch": 64, "judged": 8, "taught": 64, "epochs": 80, "lr": 0.05,
}  # fmt: skip


class Patches(NamedTuple):
    """Squares cut from photographs (N, 3, H, W), from 0 to 1, and which photograph each is of."""

    x: Tensor
    y: Tensor


def measure(
    seed: int,
    recipe: str | None,
    filtered: bool,
    patch: int,
    judged: int,
    taught: int,
    epochs: int,
    lr: float,
) -> Measured:
    """Give patches of photographs the style of patches of others, and ask what is left of each.

    Args:
        seed: of the judge, what it is taught, and the pairs.
        recipe: what the content's statistics are taken over; None changes nothing.
        filtered: exchange the statistics of the filters' bands, otherwise of the colours.
        patch: pixels a side of a patch.
        judged: patches of each photograph, eight at most of 64 pixels.
        taught: patches of each photograph that the judge learns from.
        epochs: times it sees them.
        lr: its learning rate to start from.
    """
    expert = teach(seed, patch, taught, epochs, lr)
    content = right_halves(patch, judged)
    style = content.x[partners(seed, content.y)]
    owner = content.y[partners(seed, content.y)]
    made = exchange(content.x, style, recipe, filtered)
    with torch.no_grad():
        named = expert(_scaled(made)).argmax(1)
    before, after = (style_distance(seed, x, style) for x in (content.x, made))
    return Measured(
        {
            "style": float((named == owner).double().mean()),
            "own": float((named == content.y).double().mean()),
            "found": float((nearest(made, content.x) == torch.arange(len(made))).double().mean()),
            "left": after / before,
        }
    )


def exchange(content: Tensor, style: Tensor, recipe: str | None, filtered: bool) -> Tensor:
    """The content with the style's statistics, as pixels from 0 to 1."""
    if recipe is None:
        return content
    if not filtered:
        return adain(content, style, recipe).clamp(0, 1)
    filters = bank(content.shape[2], SCALES, DIRECTIONS)
    bands = adain(take_apart(content, filters), take_apart(style, filters), recipe)
    return put_together(bands, filters).clamp(0, 1)


@lru_cache(maxsize=1)
def photographs() -> Tensor:
    """All photographs (K, 3, 256, 256), from 0 to 1."""
    from PIL import Image

    folder = files("normalform.lab") / "data" / "photographs"
    pictures: list[np.ndarray[Any, Any]] = []
    for name in PHOTOGRAPHS:
        with (folder / f"{name}.jpg").open("rb") as file:
            pictures.append(np.asarray(Image.open(file), np.float64))
    return torch.as_tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def left_halves(seed: int, patch: int, count: int) -> Patches:
    """Patches at random places of the left halves, mirrored or not: to learn from."""
    rng = np.random.default_rng((seed, _PATCHES))
    pictures = photographs()
    size, half = pictures.shape[2], pictures.shape[3] // 2
    found: list[Tensor] = []
    for picture in pictures:
        for _ in range(count):
            top, left = rng.integers(0, size - patch + 1), rng.integers(0, half - patch + 1)
            cut = picture[:, top : top + patch, left : left + patch]
            found.append(cut.flip(2) if rng.random() < 0.5 else cut)
    return Patches(torch.stack(found), torch.arange(len(pictures)).repeat_interleave(count))


def right_halves(patch: int, count: int = 8) -> Patches:
    """Patches side by side in the right halves, as many of each: to be changed, and judged."""
    pictures = photographs()
    right = pictures[..., pictures.shape[3] // 2 :]
    cut = right.unfold(2, patch, patch).unfold(3, patch, patch)  # (K, 3, rows, columns, H, W)
    x = cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[:, :count].flatten(0, 1)
    return Patches(x, torch.arange(len(pictures)).repeat_interleave(len(x) // len(pictures)))


def partners(seed: int, owner: Tensor) -> Tensor:
    """For each patch the index of one from another photograph, whose style it takes."""
    rng = np.random.default_rng((seed, _PAIRS))
    numbers = owner.numpy()
    return torch.as_tensor([rng.choice(np.flatnonzero(numbers != number)) for number in numbers])


@lru_cache(maxsize=1)
def teach(seed: int, patch: int, taught: int, epochs: int, lr: float) -> Probe:
    """A judge that tells which photograph an unchanged patch is of: a network without norms."""
    data = left_halves(seed, patch, taught)
    x = _scaled(data.x)
    expert = _network(seed, len(PHOTOGRAPHS))
    training = descend(
        expert,
        lambda batch: F.cross_entropy(expert(x[batch]), data.y[batch]),
        batches(seed, len(x), epochs, 32),
        lr,
    )
    for _ in training:
        expert.train()
    return expert.eval()


def _network(seed: int, classes: int) -> Probe:
    network = Probe(WIDTHS, partial(nn.Identity), 3, classes, bias=True)
    initialize(network, np.random.default_rng((seed, INIT)))
    return network


def _scaled(x: Tensor) -> Tensor:
    return (4 * (x - 0.5)).float()


def style_distance(seed: int, x: Tensor, style: Tensor) -> float:
    """Mean relative distance of Gram matrices in a network of random weights.

    The Gram matrix of a layer holds the mean products of its channels. It forgets where a thing is
    and is the usual measure of style (Gatys et al. 2016); random weights serve it well (He, Wang
    & Hopcroft 2016). These features have no part in the exchange.
    """
    network = _network(seed + 1000, 2)
    distances = [
        torch.linalg.matrix_norm(a - b) / torch.linalg.matrix_norm(b)
        for a, b in zip(_grams(network, x), _grams(network, style), strict=True)
    ]
    return float(torch.stack(distances).mean())


def _grams(network: Probe, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    x = _scaled(x)
    with torch.no_grad():
        for conv in network.convs:
            x = F.relu(conv(x))
            features = x.flatten(2)
            found.append(features @ features.mT / features.shape[2])
    return found


def nearest(x: Tensor, patches: Tensor) -> Tensor:
    """For each picture the patch whose light and dark correlate most with its own."""
    a, b = (F.normalize(_centred(p.mean(1).flatten(1)), dim=1) for p in (x, patches))
    return (a @ b.mT).argmax(1)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def trials(settings: Mapping[str, Any]) -> list[Trial]:
    """Every arm with every seed."""
    common = {key: value for key, value in settings.items() if key != "seeds"}
    return [
        Trial(arm, seed, measure, {**common, **own})
        for seed in range(settings["seeds"])
        for arm, own in ARMS.items()
    ]


def judge(results: Results) -> Verdict:
    """The style has moved, the content has stayed, and it takes statistics of each picture."""
    style, found, left = (
        list(results.by_seed(INSTANCE, key).values()) for key in ("style", "found", "left")
    )
    return verdict(
        more_than(NAMED, "taken for the style's photograph", style),
        above(results, INSTANCE, POOLED, "style", AHEAD, "taken for the style's photograph"),
        more_than(FOUND, "content found again", found),
        less_than(LEFT, "style distance left", left),
    )


def picture(results: Results) -> Any:
    """Photographs with one another's style; below, what the judge and the search make of them."""
    from normalform.lab.experiments.style_chart import chart

    return chart(results, tuple(ARMS), photographs())


EXPERIMENT = Experiment(
    name="style",
    title="Style transfer in miniature",
    claim=(
        "Mean and deviation of each channel of a single picture carry its style: exchanged, they "
        "give a picture the style of another and leave its content (Huang & Belongie, Arbitrary "
        "Style Transfer in Real-time with Adaptive Instance Normalization, 2017)."
    ),
    setup=(
        "Six photographs. The right half of each is cut into eight patches of 64x64 pixels, and "
        "each patch takes the style of a random patch of another photograph: a bank of fixed "
        "filters (four scales, four directions, for each colour) takes both apart, each band of "
        "the content is given mean and deviation of the style's band, and the bands are put "
        "together. Three judges have no part in the exchange: a small network without norms, "
        "taught with 64 patches of each left half, 80 epochs, which photograph one is of (what it "
        "makes of untouched patches is the best it can do); the distance of "
        "Gram matrices in a network of random weights; and a search for the source among all "
        "patches by the correlation of light and dark. Other arms exchange the statistics of "
        "the three colours alone, or normalize the content by the statistics of all patches "
        "together, as batch norm does. 5 seeds, of judge and pairs."
    ),
    rule=(
        f"After the exchange of instance statistics in the filter bank more than {NAMED} % of the "
        f"patches are taken for the style's photograph, more than {AHEAD} points above those "
        f"normalized with batch statistics; more than {FOUND} % are found to come from their own "
        f"source; and less than {LEFT} % of the style distance is left. {RULE}"
    ),
    default=DEFAULT,
    quick={**DEFAULT, "seeds": 2, "judged": 2, "taught": 8, "epochs": 1},
    full={**DEFAULT, "seeds": 30, "taught": 512, "epochs": 80},
    trials=trials,
    judge=judge,
    picture=picture,
)
