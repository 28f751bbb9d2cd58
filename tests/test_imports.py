"""The architecture: a file imports only what stands above it, and nothing optional by itself.

The checker reads the source, so it sees imports that no test happens to run. Sources with a planted
violation show that it sees each kind.
"""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

import normalform as nf

PACKAGE = "normalform"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
OPTIONAL = {
    "rich",
    "altair",
    "vl_convert",
    "PIL",
    "pandas",
    "scipy",
    "sklearn",
    "onnx",
    "matplotlib",
}

# The judge stands apart: what it judges may not use it, and it uses nothing of that.
JUDGE = ("notation", "cells", "recipes", "normal_form", "reference")
COMPUTES = ("notation", "cells", "recipes", "refusals", "kernels", "path", "functional", "layers")
TOOLS = (*COMPUTES, "surgery", "drawing", "diagnose", "explain", "warmup")
ROOT_NAMES = (*TOOLS, *JUDGE, "budget", "testing")


def above(order: tuple[str, ...]) -> dict[str, set[str]]:
    """Each part and the parts before it."""
    return {part: set(order[:i]) for i, part in enumerate(order)}


MAY_IMPORT: Mapping[str, set[str]] = {
    **above(JUDGE),
    **above(TOOLS),
    "budget": set(JUDGE),
    "testing": {*TOOLS, *JUDGE, "budget"},
    "__init__": {*ROOT_NAMES, "lab"},
    "lab": {*ROOT_NAMES, "__init__"},
    "cli": {*ROOT_NAMES, "__init__", "lab"},
}
NO_TORCH = set(JUDGE)


class Import(NamedTuple):
    """One imported module, and whether it is imported as soon as its file is."""

    module: str
    line: int
    at_once: bool


def imports(source: str, module: str, modules: set[str]) -> Iterator[Import]:
    """Every module that ``module`` imports; ``from package import name`` may name a submodule."""
    tree = ast.parse(source)
    later: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            later.update(ast.walk(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            later.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                package = parts if is_package(module, modules) else parts[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([base] if base else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in found]
        else:
            continue
        for name in names:
            yield Import(name, node.lineno, node not in later)


def is_package(module: str, modules: set[str]) -> bool:
    return any(other.startswith(module + ".") for other in modules)


def part_of(module: str) -> str:
    """The file or folder of the package that a module belongs to: ``__init__`` for the package."""
    return [*module.split("."), "__init__"][1]


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of these modules, given by dotted name."""
    modules = set(sources)
    wrong: list[str] = []
    for module, source in sources.items():
        part = part_of(module)
        if part not in MAY_IMPORT:
            wrong.append(f"{module}: {part} has no place in the order; give it one in MAY_IMPORT")
            continue
        for name, line, _ in imports(source, module, modules):
            top = name.split(".")[0]
            if top == PACKAGE and part_of(name) not in MAY_IMPORT[part] | {part}:
                wrong.append(f"{module}:{line}: {part} imports {name}, which stands below it")
            if top == "torch" and part in NO_TORCH:
                wrong.append(f"{module}:{line}: imports torch, which it must judge without")
    return wrong + optional_at_once(sources)


def optional_at_once(sources: Mapping[str, str]) -> list[str]:
    """The optional packages that ``import normalform`` would import."""
    modules = set(sources)
    reached: set[str] = set()
    waiting = [PACKAGE]
    wrong: list[str] = []
    while waiting:
        module = waiting.pop()
        if module in reached or module not in modules:
            continue
        reached.add(module)
        if "." in module:
            waiting.append(module.rpartition(".")[0])
        for name, line, at_once in imports(sources[module], module, modules):
            if at_once and name.split(".")[0] in OPTIONAL:
                wrong.append(f"{module}:{line}: {name} is optional; import it where it is used")
            elif at_once:
                waiting.append(name)
    return wrong


def package_sources() -> dict[str, str]:
    sources: dict[str, str] = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = file.read_text(encoding="utf-8")
    return sources


def test_every_file_imports_only_what_stands_above_it():
    sources = package_sources()
    assert {"normalform.recipes", "normalform.kernels.eager", "normalform.layers"} <= set(sources)
    assert violations(sources) == []


SOUND = {
    "normalform": "from normalform import functional as functional",
    "normalform.recipes": "import math",
    "normalform.reference": "import numpy as np\nfrom normalform.recipes import recipe",
    "normalform.kernels": "import torch\nfrom normalform.kernels import eager",
    "normalform.kernels.eager": "import torch\nfrom normalform.recipes import Cells",
    "normalform.functional": "from normalform import kernels\nfrom normalform.recipes import named",
    "normalform.lab": "",
    "normalform.lab.plots": "import altair\nimport normalform as nf",
}
PLANTED = {
    "recipes_imports_kernels": ("recipes", "from normalform import kernels", "stands below"),
    "recipes_imports_reference": ("recipes", "import normalform.reference", "stands below"),
    "kernel_imports_functional": (
        "kernels.eager",
        "def f():\n    from normalform.functional import norm",
        "stands below",
    ),
    "kernel_imports_judge": ("kernels", "from normalform.reference import norm", "stands below"),
    "judge_imports_kernel": ("reference", "from normalform.kernels import eager", "stands below"),
    "library_imports_itself_whole": ("functional", "import normalform as nf", "stands below"),
    "relative": ("recipes", "from .kernels import eager", "stands below"),
    "relative_two_up": ("kernels.eager", "from ..functional import norm", "stands below"),
    "relative_module": ("recipes", "from . import kernels", "stands below"),
    "type_checking_counts": (
        "recipes",
        "if TYPE_CHECKING:\n    from normalform.functional import norm",
        "stands below",
    ),
    "torch_in_the_judge": ("reference", "import torch", "judge without"),
    "part_of_torch_in_the_judge": (
        "reference",
        "def f():\n    from torch import nn",
        "judge without",
    ),
    "torch_in_recipes": ("recipes", "import torch.nn as nn", "judge without"),
    "optional": ("functional", "import rich", "optional"),
    "part_of_optional": ("kernels.eager", "from scipy.special import erf", "optional"),
    "optional_in_try": (
        "kernels.eager",
        "try:\n    import PIL.Image\nexcept ImportError:\n    pass",
        "optional",
    ),
    "optional_by_way_of_lab": ("", "from normalform.lab import plots", "optional"),
    "unknown_part": ("helpers", "", "no place"),
}


def test_the_checker_accepts_a_sound_package():
    assert violations(SOUND) == []
    deferred = SOUND | {"normalform.functional": "def draw():\n    import altair"}
    assert violations(deferred) == []


@pytest.mark.parametrize(("module", "source", "message"), PLANTED.values(), ids=PLANTED)
def test_the_checker_catches_a_planted_violation(module: str, source: str, message: str):
    name = f"{PACKAGE}.{module}".rstrip(".")
    planted = SOUND | {name: f"{SOUND.get(name, '')}\n{source}\n"}
    found = violations(planted)
    assert found, f"not caught: {source}"
    assert all(line.startswith(f"{PACKAGE}.{module}".rstrip(".")) for line in found)
    assert any(message in line for line in found)


def test_importing_the_package_imports_nothing_optional():
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import normalform\n"
        f"print(*sorted({OPTIONAL!r} & {{m.split('.')[0] for m in set(sys.modules) - before}}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_what_is_shown_is_public():
    """Not the modules that stand in the package because something was imported from them."""
    shown = [name for name in dir(nf) if not name.startswith("_")]
    modules = {name for name in shown if inspect.ismodule(getattr(nf, name))}
    assert modules == {"functional", "lab", "reference", "testing"}
    assert {"norm", "diagnose", "BatchNorm2d", "get_norm_layer"} <= set(shown)
    assert all(getattr(nf, name).__doc__ for name in shown)
    assert nf.__version__ == version("normalform")
