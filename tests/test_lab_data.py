"""The data of a comparison: what is embedded, how a user's own is read, and what is refused."""

import gzip
import hashlib
import importlib.util
import io
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalform.lab.data import load

RNG = np.random.default_rng(1)
GOOD = {
    "x_train": RNG.integers(0, 255, (40, 8, 9)),
    "y_train": np.arange(40) % 3,
    "x_test": RNG.integers(0, 255, (7, 8, 9)),
    "y_test": np.arange(7) % 3,
}


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def pictures(tmp_path):
    def write(mode="L", per_class=30, names=("cat", "dog")):
        for i, name in enumerate(names):
            (tmp_path / "pets" / name).mkdir(parents=True)
            for j in range(per_class):
                size = (40 + j, 30)
                shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
                pixels = RNG.integers(100 * i, 100 * i + 99, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{j:02}.png")
        return tmp_path / "pets"

    return write


def refusal(source) -> str:
    with pytest.raises(ValueError, match=r"^data [^\n]*\Z") as caught:
        load(source)
    return str(caught.value)


def test_embedded_set_is_small_balanced_and_licensed():
    folder = files("normalform.lab") / "data"
    assert len((folder / "fashion.npz").read_bytes()) < 2_000_000
    assert "Zalando" in (folder / "LICENSE-fashion-mnist").read_text()
    data = load("fashion")
    assert data.shape == (1, 28, 28)
    assert data.classes[0] == "T-shirt/top"
    for labels in (data.y_train, data.y_test):
        assert np.bincount(labels).tolist() == [200] * 10
    for pixels in (data.x_train, data.x_test):
        assert (pixels.min(), pixels.max()) == (0, 255)
    seen = {row.tobytes() for row in data.x_train}
    assert sum(row.tobytes() in seen for row in data.x_test) == 0


def test_embedded_set_is_the_one_everybody_has():
    """Its fingerprint: results can be compared only on the very same images."""
    with np.load(str(files("normalform.lab") / "data" / "fashion.npz")) as arrays:
        digest = hashlib.sha256(b"".join(arrays[key].tobytes() for key in GOOD)).hexdigest()
    assert digest == "7e8743e9c370eb65f76e9685e70b311adcff269c045930f4855dc8ef5e0f0c85"


def test_cut_takes_the_first_of_each_class_in_order(tmp_path):
    path = Path(__file__).parents[1] / "scripts" / "cut_fashion_mnist.py"
    spec = importlib.util.spec_from_file_location("cut_fashion_mnist", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 300)).astype(np.uint8)
    images = (np.arange(len(labels)) % 251).astype(np.uint8)[:, None, None] + np.zeros(
        (1, 28, 28), np.uint8
    )
    for part in ("train", "t10k"):
        for kind, head, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            content = gzip.compress(bytes(head) + array.tobytes())
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    arrays = script.cut(tmp_path)
    assert np.bincount(arrays["y_train"]).tolist() == [200] * 10
    chosen = [i for i in range(len(labels)) if np.sum(labels[:i] == labels[i]) < 200]
    assert np.array_equal(arrays["x_test"], images[chosen])
    assert np.array_equal(arrays["y_test"], labels[chosen])


def test_standardized_by_the_training_part_alone():
    data = load("fashion")
    train, test = data.standardized()
    pixels = data.x_train.astype(np.float64)
    expected = (data.x_test[5] - pixels.mean()) / pixels.std()
    assert abs(train.mean(dtype=np.float64)) < 1e-6
    assert abs(train.std(dtype=np.float64) - 1) < 1e-6
    assert np.allclose(test[5], expected, rtol=1e-6, atol=1e-6)


def test_digits_are_split_by_class_the_same_way_every_time():
    first, again = load("digits"), load("digits")
    assert first.sha256 == again.sha256
    assert first.shape == (1, 8, 8)
    share = np.bincount(first.y_train) / (np.bincount(first.y_train) + np.bincount(first.y_test))
    assert np.all(abs(share - 0.7) < 0.01)
    assert len(first.x_train) + len(first.x_test) == 1797


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        load("digits")


def test_npz_with_its_own_split_keeps_every_picture_and_label(npz):
    data = load(npz(y_train=np.arange(40) % 3 + 5, y_test=np.arange(7) % 3 + 5))
    assert np.array_equal(data.x_train[:, 0], GOOD["x_train"])
    assert np.array_equal(data.x_test[:, 0], GOOD["x_test"])
    assert data.classes == ("5", "6", "7")
    assert np.array_equal(data.y_test, GOOD["y_test"])


@pytest.mark.parametrize(
    ("shape", "expected"), [((8, 9, 3), (3, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((1, 8, 9), (1, 8, 9))]
)
def test_channels_first_and_last(npz, shape, expected):
    x = RNG.random((40, *shape))
    data = load(npz(x_train=x, x_test=x[:7]))
    assert data.shape == expected
    moved = x if shape == expected else np.moveaxis(x, 3, 1)
    assert np.array_equal(data.x_train, moved.astype(np.float32))


def test_npz_without_a_split(npz):
    x = np.arange(100)[:, None, None] + np.zeros((1, 8, 8))
    nothing = dict.fromkeys(GOOD)
    data = load(npz(**nothing, x=x, y=np.where(np.arange(100) < 20, "few", "many")))
    assert data.classes == ("few", "many")
    assert np.bincount(data.y_train).tolist() == [14, 56]
    ids = np.concatenate([data.x_train, data.x_test])[:, 0, 0, 0]
    assert sorted(ids) == list(range(100))
    labels = np.concatenate([data.y_train, data.y_test])
    assert np.array_equal(labels, (ids >= 20).astype(int))


def test_names_of_classes(npz):
    names = np.array(["zero", "one", "two", "three"])
    assert load(npz(classes=names)).classes == ("zero", "one", "two")
    assert load(npz(classes=names[:2])).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": None}, ["holds", "x_train", "not", "x_test"]),
        ({"y_train": np.arange(39)}, ["x_train", "(40, 8, 9)", "(39,)", "one label a picture"]),
        ({"y_train": np.zeros((40, 3))}, ["(40, 3)", "one label a picture"]),
        ({"x_train": np.full((40, 8, 9), "a")}, ["x_train", "<U1", "not numbers"]),
        ({"x_train": np.zeros((40, 72))}, ["(40, 72)", "(N, H, W)"]),
        ({"x_train": np.full((40, 8, 9), np.nan)}, ["2,880 values", "NaN"]),
        ({"x_test": np.full((7, 8, 9), 1e39)}, ["x_test", "504 values", "3e38"]),
        ({"x_train": np.ones((40, 7, 9))}, ["7x9", "8x8"]),
        ({"x_train": np.ones((40, 8, 9))}, ["all training pixels are 1"]),
        ({"x_test": np.ones((7, 9, 9))}, ["8x9", "9x9"]),
        ({"x_test": np.ones((0, 8, 9)), "y_test": np.ones(0)}, ["x_test", "0 pictures"]),
        ({"x_train": GOOD["x_train"][:31], "y_train": GOOD["y_train"][:31]}, ["31", "32"]),
        ({"y_train": np.zeros(40)}, ["all training labels are 0", "two classes"]),
        ({"y_train": np.arange(40) / 2}, ["y_train", "whole numbers"]),
        ({"y_test": np.full(7, 9)}, ["label 9", "test part only"]),
    ],
)
def test_what_cannot_be_trained_on_is_refused(npz, changes, words):
    message = refusal(npz(**changes))
    assert message.startswith("data mine")
    for word in words:
        assert word in message


def test_lengths_without_a_split(npz):
    message = refusal(npz(**dict.fromkeys(GOOD), x=np.zeros((50, 8, 8)), y=np.zeros(49)))
    assert "(50, 8, 8)" in message
    assert "(49,)" in message


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **GOOD)
    return buffer.getvalue()


def damaged() -> bytes:
    content = bytearray(npz_bytes())
    content[200] ^= 255
    return bytes(content)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **(GOOD | {"x_train": np.array([None] * 40)}))
    return buffer.getvalue()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, GOOD["x_train"])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"text", npz_bytes()[:-200], damaged(), pickled(), single_array()]
)
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    assert refusal(path).startswith("data mine.npz: cannot be used as .npz")


def test_nothing_there():
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; give fashion, digits"):
        load("nowhere.npz")


@pytest.mark.parametrize(("mode", "shape"), [("L", (1, 32, 32)), ("RGB", (3, 32, 32))])
def test_folder_of_pictures(pictures, mode, shape):
    folder = pictures(mode)
    (folder / "cat" / "notes.txt").write_text("not a picture")
    (folder / ".thumbnails").mkdir()
    data = load(folder)
    assert data.shape == shape
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.y_train).tolist() == [21, 21]
    brightness = data.x_train.mean((1, 2, 3))
    assert np.array_equal(brightness > 100, data.y_train == 1)
    assert load(folder).sha256 == data.sha256


def test_one_colour_picture_makes_all_rgb(pictures):
    folder = pictures("L")
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "cat" / "red.png")
    assert load(folder).shape == (3, 32, 32)


def test_folders_that_are_refused(pictures):
    folder = pictures("L", names=("cat",))
    assert "1 subfolders; one a class" in refusal(folder)
    (folder / "dog").mkdir()
    assert "class folder dog holds no pictures" in refusal(folder)
    (folder / "dog" / "torn.png").write_bytes((folder / "cat" / "00.png").read_bytes()[:60])
    assert "dog/torn.png cannot be read as a picture" in refusal(folder)
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "dog" / "torn.png")
    assert "dog/torn.png has more than 8 bits" in refusal(folder)
