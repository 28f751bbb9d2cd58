"""Machine code: what happens without a compiler, and how it is kept on disk and found again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path

import pytest

from programs import SOURCE, TESTS, TYPES, of, run, serial

FEW = ("rms",)  # little to compile


def digests(*names: str, threads: int = 1) -> str:
    """A program: the bits of some cases, and what had to be compiled for them."""
    return f"""
import json
import bits
counted = bits.compilations()
found = {{name: bits.bits(name, {threads}) for name in {names!r}}}
print(json.dumps(found | counted))
"""


def machinery() -> str:
    """A program: what had to be compiled of what runs programs, on however many threads."""
    return """
import json
import bits
from normalform.kernels.cpu import team
counted = bits.compilations()
team._alone(), team._phase()
print(json.dumps(counted))
"""


def without_counts(found: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in found.items() if k not in ("compiled", "loaded")}


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return serial()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of machine code for ``FEW``."""
    folder = tmp_path_factory.mktemp("cache")
    made = run(digests(*FEW), NUMBA_CACHE_DIR=str(folder))
    assert made["compiled"]
    assert not made["loaded"]
    return folder


# Other processors


OTHER = """
import json, zlib
from normalform.kernels.cpu import memory
memory.WIDE, memory.LANES = not memory.WIDE, 12 - memory.LANES
import torch
from bits import CASES
from normalform.testing import assert_layer_accurate
for name in {names!r}:
    make, shape, dtype = CASES[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    x, dy = ((torch.randn(shape, generator=generator) * 3 + 2).to(dtype) for _ in range(2))
    assert_layer_accurate(make().to(dtype), x, dy)
from normalform.kernels.cpu import vectors
print(json.dumps({{"lanes": str(vectors.LANES)}}))
"""


def test_vectors_as_long_as_other_processors_have_them(tmp_path):
    """8 numbers where this one has 4, and the other way round."""
    names = "batch", "batch, small planes", "group", "layer", "instance, bfloat16"
    from normalform.kernels.cpu.vectors import LANES

    said = run(OTHER.format(names=names), NUMBA_CACHE_DIR=str(tmp_path))
    assert said == {"lanes": str(12 - LANES)}


# Without Numba


EAGER = """
import json, sys
{before}
import torch
import normalform as nf
from normalform.testing import assert_layer_accurate
from bits import CASES
said = {{}}
for name, (make, shape, dtype) in CASES.items():
    layer = make().to(dtype)
    if name.endswith(", last"):
        shape = shape[:1] + shape[-1:] + shape[1:-1]
    x, dy = (torch.randn(shape, dtype=dtype) for _ in range(2))
    said[name] = str(nf.explain(layer, x).choice)
    if dtype != torch.float64:
        assert_layer_accurate(layer, x, dy)
assert ("normalform.kernels.cpu.steps" in sys.modules) == {imported}
print(json.dumps(said))
"""

OTHER_INSIDE = """
import numba.core.dispatcher, warnings
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", message="Numba cannot be used: TypeError: no targetoptions. ")
def changed(*args, **options):
    raise TypeError("no targetoptions")
numba.core.dispatcher.Dispatcher.__init__ = changed
"""
NOT_COMPILING = """
import numba.core.ccallback, warnings
warnings.filterwarnings("ignore", message="Numba cannot be used")
del numba.core.ccallback.CFunc.compile
"""


def missing(package: str, error: str) -> str:
    """Importing it fails; with an OSError where a library in it is not found."""
    return f"""
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "{package}":
            raise {error}("no {package}")
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize(
    ("before", "environment", "reason"),
    [
        (missing("numba", "ImportError"), {}, "no numba"),
        (missing("llvmlite", "OSError"), {}, "no llvmlite"),
        ("", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
        (OTHER_INSIDE, {}, "TypeError: no targetoptions"),
        (NOT_COMPILING, {}, "AttributeError: 'ForC' object has no attribute 'compile'"),
    ],
    ids=["no Numba", "no LLVM", "disabled", "other inside", "not compiling"],
)
def test_without_numba_the_recipes_run(before, environment, reason):
    program = EAGER.format(before=before, imported=before == NOT_COMPILING)
    said = run(program, **environment)
    assert set(said.values()) == {f"kernel eager: not cpu, Numba cannot be used: {reason}"}


def test_importing_the_package_imports_neither_numba_nor_much_else():
    program = """
import json, sys
import torch
before = set(sys.modules)
import normalform
new = {m.split(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(json.dumps({"new": sorted(new), "modules": len(set(sys.modules) - before)}))
"""
    found = run(program)
    assert found["new"] == ["normalform", "numpy"]
    assert int(found["modules"]) < 80


# Machine code on disk


def copied(folder: Path) -> Path:
    """The package in a folder of its own, without anything compiled."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_no_folder_to_write_to(expected, tmp_path):
    """Names under a file, which not even root can make."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    source = copied(tmp_path / "source")
    (source / "normalform/kernels/cpu/__pycache__").write_text("")
    nowhere = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked / "cache")}
    for environment in (nowhere, {"NUMBA_CACHE_DIR": str(blocked)}):
        found = run(digests(*FEW), source=source, PYTHONDONTWRITEBYTECODE="1", **environment)
        assert without_counts(found) == of(expected, *FEW)
        assert found["compiled"]
        assert not found["loaded"]
    assert not [*tmp_path.rglob("*.nbc*")]


def test_beside_the_source_or_where_the_users_caches_are(tmp_path):
    source, home = copied(tmp_path / "source"), tmp_path / "home"
    beside = source / "normalform/kernels/cpu/__pycache__"
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    run(machinery(), source=source, **environment)
    assert len([*beside.glob("*.nbc")]) == 2
    assert not home.exists()
    shutil.rmtree(beside)
    beside.write_text("")
    for counts in ({"compiled": 2, "loaded": 0}, {"compiled": 0, "loaded": 2}):
        found = run(machinery(), source=source, PYTHONDONTWRITEBYTECODE="1", **environment)
        assert found == counts
    assert len([*(home / "cache/normalform").glob("*.nbc")]) == 2


# What takes the time of a first call


LOOKED_UP = """
import sys
known = {name: f"numba.{name}" in sys.modules for name in ("cpython.rangeobj", "np.linalg")}
print(json.dumps(counted | known))
"""


def test_code_on_disk_needs_no_compiler(expected):
    """Nor what only the compiler looks up, which takes longer than to load all of it."""
    program = digests(*expected).replace("print(json.dumps(found | counted))", LOOKED_UP)
    found = run(program)
    assert found["compiled"] == 0
    assert not found["cpython.rangeobj"]
    assert not found["np.linalg"]


def test_what_is_compiled_needs_neither_all_of_numba_nor_code_of_its_parts(tmp_path):
    """Helpers become machine code within kernels only; what NumPy can do is not looked up."""
    before = """
from normalform.kernels import cpu_engine
cpu_engine()
from numba.core.codegen import JITCodeLibrary
made, finalize = [], JITCodeLibrary._finalize_specific
JITCodeLibrary._finalize_specific = lambda self: (made.append(self.name), finalize(self))[1]
"""
    program = digests(*FEW).replace("print(json.dumps(found | counted))", LOOKED_UP)
    program = program.replace("json.dumps(counted", "json.dumps({'made': len(made)} | counted")
    found = run(before + program, NUMBA_CACHE_DIR=str(tmp_path))
    assert found["made"] == found["compiled"] > 0
    assert found["cpython.rangeobj"]
    assert not found["np.linalg"]


def test_looking_for_garbage_goes_on_after_the_import(tmp_path):
    program = """
import gc, json
from normalform.kernels import cpu_engine
before = [gc.isenabled()]
cpu_engine()
before.append(gc.isenabled())
gc.disable()
cpu_engine.cache_clear()
cpu_engine()
print(json.dumps(before + [gc.isenabled()]))
"""
    assert run(program) == [True, True, False]


@pytest.mark.parametrize("error", ["EROFS", "ENOSPC"])
def test_a_folder_that_is_read_only_or_full(expected, filled, tmp_path, error):
    before = """
import errno, os, pathlib
def write_bytes(self, data):
    open(self, "wb").close()
    raise OSError(errno.{error}, os.strerror(errno.{error}), str(self))
pathlib.Path.write_bytes = write_bytes
"""
    for folder, compiled in ((filled, False), (tmp_path, True)):
        kept = sorted(folder.iterdir())
        found = run(before.format(error=error) + digests(*FEW), NUMBA_CACHE_DIR=str(folder))
        assert without_counts(found) == of(expected, *FEW)
        assert bool(found["compiled"]) is compiled
        assert sorted(folder.iterdir()) == kept


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda _: b"",
    lambda code: code[: len(code) // 2],
    lambda code: code[:-9] + bytes([code[-9] ^ 1]) + code[-8:],
    lambda code: b"\0" * len(code),
)


def test_damaged_files_count_as_none(expected, filled, tmp_path):
    """Empty, cut, with one bit flipped, and of something else."""
    cache = tmp_path / "cache"
    shutil.copytree(filled, cache)
    files = sorted(cache.iterdir())
    assert len(files) >= len(DAMAGES)
    for file, damage in zip(files, cycle(DAMAGES), strict=False):
        file.write_bytes(damage(file.read_bytes()))
    for compiled in (len(files), 0):
        found = run(digests(*FEW), NUMBA_CACHE_DIR=str(cache))
        assert without_counts(found) == of(expected, *FEW)
        assert found["compiled"] == compiled
    assert sorted(cache.iterdir()) == files


def test_two_processes_compile_at_once(expected, tmp_path):
    """For different types, so that they would take each other's code."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", digests(name)], stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{TESTS}",
                "NUMBA_CACHE_DIR": str(tmp_path),
            },
        )
        for name in TYPES
    ]  # fmt: skip
    for process, name in zip(started, TYPES, strict=True):
        out, _ = process.communicate(timeout=300)
        assert without_counts(json.loads(out)) == of(expected, name)
    found = run(digests(*TYPES), NUMBA_CACHE_DIR=str(tmp_path))
    assert without_counts(found) == of(expected, *TYPES)
    assert not found["compiled"]
    assert found["loaded"]


def test_another_source_is_another_code(tmp_path):
    """Machine code depends on every file of its folder: kernels call functions of the others."""
    source = copied(tmp_path / "source")
    folder = source / "normalform/kernels/cpu"
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(machinery(), source=source, **environment) == {"compiled": 2, "loaded": 0}
    assert run(machinery(), source=source, **environment) == {"compiled": 0, "loaded": 2}
    (folder / "table.py").write_text((folder / "table.py").read_text() + "\n# changed\n")
    assert run(machinery(), source=source, **environment) == {"compiled": 2, "loaded": 0}

    stamps = run(
        """
import json, pathlib
from normalform.kernels.cpu import compiled
stamp, found = compiled.source_stamp.__wrapped__, {}
found["now"] = stamp().hex()
for file in pathlib.Path(compiled.__file__).parent.glob("*.py"):
    text = file.read_text()
    file.write_text(text + "#")
    found[file.name] = stamp().hex()
    file.write_text(text)
assert stamp().hex() == found["now"]
print(json.dumps(found))
""",
        source=source,
    )
    assert set(stamps) == {"now", *(file.name for file in folder.glob("*.py"))}
    assert len(set(stamps.values())) == len(stamps) > 5
