"""The user's own data for ``normalform check``: every format, one line for what cannot be used."""

import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import normalform as nf
from normalform import cli
from normalform.lab import check, own


def array(name: str, value: np.ndarray):
    return lambda folder: np.save(folder / name, value, allow_pickle=True)


def raw(name: str, content: bytes = b""):
    return lambda folder: (folder / name).write_bytes(content)


def saved(name: str, value: object):
    return lambda folder: torch.save(value, folder / name)


BAD = {
    "missing.npy": (lambda folder: None, "no such file"),
    "folder": (lambda folder: (folder / "folder").mkdir(), "not a file; give .npy, .npz"),
    "notes.txt": (raw("notes.txt"), ".txt is not known; give .npy, .npz, .pt, .pth or a picture"),
    "noending": (raw("noending"), "no ending is not known; give .npy"),
    "garbage.npy": (raw("garbage.npy", b"hello"), "not a file of plain numbers"),
    "garbage.npz": (raw("garbage.npz", b"hello"), "not a file of plain numbers"),
    "garbage.pt": (raw("garbage.pt", b"hello"), "not a file of plain tensors"),
    "garbage.png": (raw("garbage.png", b"hello"), "cannot be read as .png"),
    "nothing.npy": (raw("nothing.npy"), "cannot be read as .npy"),
    "nothing.npz": (raw("nothing.npz"), "cannot be read as .npz"),
    "nothing.pt": (raw("nothing.pt"), "not a file of plain tensors"),
    "nothing.jpg": (raw("nothing.jpg"), "cannot be read as .jpg"),
    "text.npy": (array("text.npy", np.array([["a", "b"]])), "holds <U1, not real numbers"),
    "objects.npy": (array("objects.npy", np.array([{}, None])), "not a file of plain numbers"),
    "complex.npy": (array("complex.npy", np.ones((2, 3), complex)), "holds complex128, not real"),
    "empty.npy": (array("empty.npy", np.ones((0, 3))), "is empty, of shape (0, 3)"),
    "vector.npy": (
        array("vector.npy", np.ones(5)),
        "has shape (5,); a norm takes (N, C), (N, C, L)",
    ),
    "deep.npy": (
        array("deep.npy", np.ones((1,) * 6)),
        "has shape (1, 1, 1, 1, 1, 1); a norm takes",
    ),
    "nan.npy": (
        array("nan.npy", np.array([[1, np.nan], [np.inf, 2]])),
        "holds 2 values that are NaN or infinite",
    ),
    "state.pt": (saved("state.pt", {"a": torch.ones(3), "b": "text"}), "a: has shape (3,); a norm"),
    "module.pt": (saved("module.pt", torch.nn.Linear(2, 2)), "not a file of plain tensors"),
    "list.pt": (saved("list.pt", []), "it holds no arrays"),
    "sparse.pt": (saved("sparse.pt", torch.eye(3).to_sparse()), "not plain numbers"),
    "complex.pt": (saved("complex.pt", torch.ones(2, 3) * 1j), "holds complex64, not real numbers"),
    "labels.npz": (
        lambda folder: np.savez(folder / "labels.npz", y=np.arange(3), names=np.array(["a"])),
        "names: holds <U1, not real numbers",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make, message = BAD[name]
    make(tmp_path)
    assert cli.main(["check", "--quick", "--input", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith(f"normalform check: input {tmp_path / name}: ")
    assert message in line


def test_errors_are_built_in():
    with pytest.raises(FileNotFoundError, match="no such file"):
        own.read(Path("nowhere.npy"))


X = np.random.default_rng(0).normal(5, 2, size=(2, 3, 4, 5))


def read_one(path: Path, key: str | None = None) -> own.Own:
    (found,) = own.read(path, key).arrays
    return found


@pytest.mark.parametrize(
    ("shape", "meaning"),
    [
        ((6, 4), "(N, C)"),
        ((2, 3, 7), "(N, C, L)"),
        ((2, 3, 4, 5), "(N, C, H, W)"),
        ((2, 3, 2, 2, 2), "(N, C, D, H, W)"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], meaning: str, dtype: str):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    found = read_one(tmp_path / "x.npy")
    assert found.name == "x.npy"
    assert found.notes == (f"shape {shape} read as {meaning}",)
    assert found.x.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    np.testing.assert_array_equal(found.x.numpy(), x)


def test_npz_takes_all_that_fit_or_the_key(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, a=X, b=X[0, 0], labels=np.arange(2), names=np.array([{}, None]))
    content = own.read(path)
    assert [each.name for each in content.arrays] == ["x.npz: a", "x.npz: b"]
    np.testing.assert_array_equal(content.arrays[1].x.numpy(), X[0, 0])
    assert [reason.split(" ")[0] for reason in content.left_out] == ["labels:", "names:"]
    found = read_one(path, "b")
    assert found.x.shape == (4, 5)
    with pytest.raises(ValueError, match="no array 'z'; it holds 'a', 'b', 'labels', 'names'"):
        own.read(path, "z")
    with pytest.raises(ValueError, match=r"labels: has shape \(2,\)"):
        own.read(path, "labels")


def test_pt_takes_tensors_wherever_they_are(tmp_path: Path):
    x = torch.from_numpy(X)
    torch.save(x.requires_grad_(), tmp_path / "one.pt")
    assert torch.equal(read_one(tmp_path / "one.pt").x, x)
    nested = {"conv": {"weight": x.detach().bfloat16()}, "steps": [torch.tensor(3), x[0].detach()]}
    torch.save(nested, tmp_path / "many.pth")
    content = own.read(tmp_path / "many.pth")
    assert [each.name for each in content.arrays] == ["many.pth: conv.weight", "many.pth: steps.1"]
    assert torch.equal(content.arrays[0].x, x.bfloat16().float())
    assert "steps.0: has shape ()" in content.left_out[0]


def test_pictures(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    found = read_one(tmp_path / "colour.png")
    assert found.x.shape == (1, 3, 4, 5)
    np.testing.assert_array_equal(found.x[0].numpy(), pixels.transpose(2, 0, 1))
    assert found.notes == (
        "shape (4, 5, 3) read as a picture (H, W, C): one sample",
        "uint8 converted to float32",
    )
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.PNG")
    assert read_one(tmp_path / "grey.PNG").x.shape == (1, 1, 4, 5)
    deep = pixels[..., 0].astype(np.uint16) * 100
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_one(tmp_path / "deep.png").x[0, 0].numpy(), deep)
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "alpha.png")
    assert read_one(tmp_path / "alpha.png").x.shape == (1, 3, 4, 5)


def test_arrays_of_pixels_are_pictures(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "many.npy", pixels)
    found = read_one(tmp_path / "many.npy")
    np.testing.assert_array_equal(found.x.numpy(), pixels.transpose(0, 3, 1, 2))
    assert found.notes[0].endswith("read as pictures (N, H, W, C)")
    np.save(tmp_path / "one.npy", pixels[0])
    assert read_one(tmp_path / "one.npy").x.shape == (1, 3, 4, 5)
    np.save(tmp_path / "floats.npy", pixels.astype(np.float32))
    assert read_one(tmp_path / "floats.npy").x.shape == (6, 4, 5, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_integers_are_converted_with_a_note(tmp_path: Path, dtype: type):
    np.save(tmp_path / "x.npy", np.arange(12).reshape(3, 4).astype(dtype))
    found = read_one(tmp_path / "x.npy")
    assert found.x.dtype == torch.float32
    assert found.notes[1] == f"{np.dtype(dtype)} converted to float32"


@pytest.mark.parametrize(
    "shape", [(2, 3, 600, 500), (100_000, 4), (2, 1_000_000), (1, 2000, 90), (1, 3, 2, 200_000)]
)
def test_a_part_of_what_is_large_is_checked(tmp_path: Path, shape: tuple[int, ...]):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.save(tmp_path / "x.npy", x)
    found = read_one(tmp_path / "x.npy")
    assert own.LIMIT / 4 < found.x.numel() <= own.LIMIT
    assert found.notes[-1] == f"a part of it is checked, of shape {tuple(found.x.shape)}"
    assert found.x.flatten()[0] == 0
    assert len(found.x.unique()) == found.x.numel()


def test_more_arrays_than_are_checked(tmp_path: Path):
    np.savez(tmp_path / "x.npz", **{f"a{i}": np.ones((2, 2)) for i in range(12)})
    content = own.read(tmp_path / "x.npz")
    assert len(content.arrays) == own.MOST
    assert content.left_out == ("4 more arrays: choose one with --key",)


def test_pillow_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "x.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli.main(["check", "--quick", "--input", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == (
        'normalform check: a picture needs Pillow: pip install "normalform[lab]"\n'
    )


def test_norms_and_types_that_cannot_run_are_listed_with_why(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([[1e5, 2.0, 3.0]]))
    console = Console(file=StringIO(), width=120)
    options = check.Options(
        norms=["batch", "rms"], dtypes=["float32", "float16"], quick=True, input=tmp_path / "x.npy"
    )
    assert check.run(options, console) == 0
    text = console.file.getvalue()
    assert "shape (1, 3) read as (N, C). Values 2 to 1e+05, mean 3.334e+04" in text
    assert 'Not run: batch: every mean of "[n] c [s]" would be of one value' in text
    assert "Not run: float16: the data has numbers beyond 65504, its largest." in text
    own_table = text[text.index("Every norm on x.npy") :]
    assert "rms" in own_table
    assert "float32" in own_table


def test_a_wrong_layer_on_own_data_makes_the_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Wrong only where the data is: a comparison on random input alone would not see it.
    np.save(tmp_path / "x.npy", np.full((3, 4, 5), 7.0))
    forward = nf.RMSNorm.forward
    monkeypatch.setattr(
        nf.RMSNorm, "forward", lambda self, x: forward(self, x) + (0.01 if (x == 7).all() else 0)
    )
    console = Console(file=StringIO(), width=120)
    options = check.Options(["rms"], ["float32"], quick=True, input=tmp_path / "x.npy")
    assert check.run(options, console) == 1
    assert "rms, float32, x.npy, (3, 4, 5): y" in console.file.getvalue()
