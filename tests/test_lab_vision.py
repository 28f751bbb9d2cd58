"""Data sets of torchvision by name, and experiments on other data than their own."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from normalform import cli
from normalform.lab import comparison, plan
from normalform.lab.data import load
from normalform.lab.experiments import EXPERIMENTS, command
from normalform.lab.experiments.plan import Options, folder_of, planned
from normalform.lab.experiments.section import Section
from normalform.lab.experiments.store import read
from normalform.lab.records import read as read_comparison
from normalform.lab.samples import take
from planted_experiments import in_this_process

ASKED = []


class Pictures:
    """Pictures with labels, as torchvision's data sets give them: a PIL image and an int."""

    sizes = ((16, 16, 3),)
    counts = (80, 30)

    def _made(self, train, asked):
        ASKED.append((type(self).__name__, asked))
        rng = np.random.default_rng(train)
        self.labels = np.arange(self.counts[0 if train else 1]) % 2
        self.pixels = [
            (rng.integers(0, 100, self.sizes[i % len(self.sizes)]) + 100 * label).astype(np.uint8)
            for i, label in enumerate(self.labels)
        ]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


class CIFAR10(Pictures):
    classes = ("dark", "bright")

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        self._made(train, {"root": root, "train": train, "download": download})


class CIFAR100(CIFAR10):
    sizes = ((32, 32, 3),)
    counts = (256, 40)


class MNIST(CIFAR10):
    sizes = ((28, 28),)


class SVHN(Pictures):
    def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
        if split not in ("train", "test", "extra"):
            raise ValueError(f"Unknown value {split!r} for argument split.")
        self._made(split == "train", {"root": root, "split": split, "download": download})


class ImageNet(Pictures):
    def __init__(self, root, split="train", **kwargs):
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value {split!r} for argument split.")
        self._made(split == "train", {"root": root, "split": split, **kwargs})


class EuroSAT(Pictures):
    classes = (("not", "names"),)

    def __init__(self, root, transform=None, target_transform=None, download=False):
        self._made(True, {"root": root, "download": download})


class Caltech101(EuroSAT):
    sizes = ((16, 16, 3), (16, 20, 3))


class CelebA(EuroSAT):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], np.zeros(40)


class Absent(EuroSAT):
    def __init__(self, root, download=False):
        raise RuntimeError("Dataset not found\n or corrupted.")


@pytest.fixture
def torchvision(monkeypatch) -> ModuleType:
    """Stands in for the package: the same classes, with the same parameters."""
    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    for made in (CIFAR10, CIFAR100, MNIST, SVHN, ImageNet, EuroSAT, Caltech101, CelebA, Absent):
        setattr(datasets, made.__name__, made)
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    ASKED.clear()
    return package


def test_a_data_set_with_a_part_for_training(torchvision, tmp_path):
    data = load(f"torchvision:CIFAR10:{tmp_path}")
    assert (data.name, data.title) == ("CIFAR10", "CIFAR10 of torchvision")
    assert (data.x_train.shape, data.x_test.shape) == ((80, 3, 16, 16), (30, 3, 16, 16))
    assert data.classes == ("dark", "bright")
    first = CIFAR10("", train=False)
    np.testing.assert_array_equal(data.x_test[7], np.moveaxis(first.pixels[7], 2, 0))
    np.testing.assert_array_equal(data.y_test, first.labels)
    assert [asked for _, asked in ASKED[:2]] == [
        {"root": str(tmp_path), "train": True, "download": True},
        {"root": str(tmp_path), "train": False, "download": True},
    ]
    assert data.scaled
    assert take(f"torchvision:CIFAR10:{tmp_path}", "error").sha256 == data.sha256


def test_grey_pictures(torchvision):
    data = load("torchvision:MNIST")
    assert data.shape == (1, 28, 28)
    np.testing.assert_array_equal(data.x_train[3, 0], MNIST("").pixels[3])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (
            "SVHN",
            [{"split": "train", "download": True}, {"split": "test", "download": True}],
        ),
        ("ImageNet", [{"split": "train"}, {"split": "val"}]),
        ("EuroSAT", [{"download": True}]),
    ],
)
def test_parts_by_the_parameters_of_the_class(torchvision, tmp_path, name, asked):
    data = load(f"torchvision:{name}:{tmp_path}")
    assert [given for _, given in ASKED] == [{"root": str(tmp_path), **each} for each in asked]
    counts = (56, 24) if len(asked) == 1 else (80, 30)
    assert (len(data.x_train), len(data.x_test)) == counts
    assert data.classes == ("0", "1")


def test_where_it_lies_by_itself(torchvision, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load("torchvision:CIFAR10")
    assert {asked["root"] for _, asked in ASKED} == {str(tmp_path / "data")}
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load("torchvision:MNIST")
    assert ASKED[-1][1]["root"] == str(tmp_path / "cache" / "torch" / "data")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CIFAR", r"torchvision.datasets has no 'CIFAR'; near it: CIFAR10"),
        ("", r"torchvision.datasets has no ''$"),
        ("Caltech101", r"pictures of \(16, 16, 3\) and \(16, 20, 3\); give a folder"),
        ("CelebA", "its labels are ndarray, not whole numbers"),
        ("Absent", r"RuntimeError: Dataset not found or corrupted. \(its folder is /x\)"),
    ],
)
def test_what_cannot_be_used(torchvision, name, words):
    with pytest.raises(ValueError, match=rf"^data torchvision:{name}\S*: .*{words}"):
        load(f"torchvision:{name}:/x" if name == "Absent" else f"torchvision:{name}")


def test_without_torchvision(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    command = ["compare", "--data", "torchvision:CIFAR10", "--out", str(tmp_path / "runs")]
    for more in ([], ["--model", "torch.nn:Identity"], ["--experiment", "contrast"]):
        assert cli.main([*command, *more]) == 2
        assert capsys.readouterr().err == (
            "normalform compare: data torchvision:CIFAR10 needs torchvision: pip install "
            "torchvision; --data takes a folder of pictures and a .npz file too\n"
        )
    assert not (tmp_path / "runs").exists()


def test_a_torchvision_that_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    words = r"importing torchvision failed beside torch .*nms does not exist; --data takes a folder"
    with pytest.raises(ImportError, match=words):
        load("torchvision:CIFAR10")


@pytest.mark.parametrize("own", [False, True])
def test_compared_with_the_small_networks_and_with_ones_own(torchvision, tmp_path, own):
    def build():
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool)

    options = plan.Options(
        "torchvision:CIFAR10:/x", build if own else None, norms=["batch"], nbs=[32], seeds=1,
        epochs=1, out=tmp_path, here=True, quiet=True, report=False,
    )  # fmt: skip
    run = read_comparison(comparison.compare(options))
    assert run.folder.name == ("build-CIFAR10" if own else "CIFAR10")
    assert {(row.data, row.status) for row in run.rows} == {("CIFAR10", "ok")}
    assert (run.meta["data"]["train"], run.meta["data"]["test"]) == (80, 30)
    assert run.meta["data"]["title"] == "CIFAR10 of torchvision"


@pytest.fixture
def files(tmp_path) -> SimpleNamespace:
    """Two files of equal pictures, and one of others."""
    made = CIFAR10("")
    x, y = np.stack(made.pixels), made.labels
    paths = [tmp_path / f"{name}.npz" for name in ("one", "same", "other")]
    for path, pictures in zip(paths, (x, x, x // 2), strict=True):
        np.savez(path, x_train=pictures, y_train=y, x_test=pictures, y_test=y)
    return SimpleNamespace(one=paths[0], same=paths[1], other=paths[2])


def plan_of(name="contrast", **more):
    return planned(Options((name,), quick=True, **more), EXPERIMENTS)[name]


def test_an_experiment_on_other_data_is_known_by_what_is_in_them(files):
    own, one, same, other = (
        plan_of(data=data) for data in (None, files.one, files.same, files.other)
    )
    assert list(plan_of(data="fashion").trials) == list(own.trials)
    assert list(one.trials) == list(same.trials)
    names = [set(plan.trials) for plan in (own, one, other)]
    assert len(set.union(*names)) == sum(map(len, names))
    assert one.settings == {**own.settings, "data": str(files.one)}
    assert {trial.settings["data"] for trial in one.trials.values()} == {str(files.one)}


def test_other_data_have_a_folder_of_their_own(files):
    assert folder_of(Options(("contrast",), data=files.one)) == Path("runs/experiments-one")
    source = "torchvision:CIFAR10:/x/y"
    assert folder_of(Options(("all",), data=source)) == Path("runs/experiments-CIFAR10")


def test_experiments_without_such_a_setting_are_refused(tmp_path, capsys):
    out = str(tmp_path / "runs")
    for name in ("depth", "all", "contrast,style"):
        assert cli.main(["compare", "--experiment", name, "--data", "digits", "--out", out]) == 2
        said = capsys.readouterr().err
        assert "has no such setting; small-batches, " in said
        assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name", [name for name, found in EXPERIMENTS.items() if "data" in found.default]
)
def test_every_experiment_that_takes_data_runs_on_others(torchvision, monkeypatch, tmp_path, name):
    """Fewer classes, colours and another size than its own."""
    monkeypatch.setattr(command, "work_all", in_this_process)
    source = "torchvision:CIFAR100:/x y"
    options = Options((name,), quick=True, out=tmp_path, workers=1, report=False, data=source)
    kept = read(command.run(options))
    assert kept.missing(name) == 0
    assert kept.meta["experiments"][name]["settings"]["data"] == source
    page = Section.of(kept, name, EXPERIMENTS[name], "")
    assert page.command == f"normalform compare --experiment {name} --quick --data '{source}'"
    assert f"data {source}" in page.html()


def test_the_page_says_data_that_are_not_the_experiments(monkeypatch):
    told = {
        **{word: getattr(EXPERIMENTS["contrast"], word) for word in ("title", "claim", "rule")},
        "setup": "",
        "runs": [],
        "settings": {**EXPERIMENTS["contrast"].default, "data": "mine.npz"},
    }
    kept = SimpleNamespace(
        meta={"experiments": {"contrast": json.loads(json.dumps(told))}},
        runs=lambda name: [],
        results=lambda name: SimpleNamespace(runs=[], steps=[]),
        missing=lambda name: 0,
    )
    page = Section.of(kept, "contrast", EXPERIMENTS["contrast"], "")
    assert (page.size, page.seeds, page.data) == ("default", None, "mine.npz")
    assert page.command == "normalform compare --experiment contrast --data mine.npz"
    assert "Here with default settings" in page.html()
