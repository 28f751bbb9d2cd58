"""How a known bug is planted, in a function or in a file of compiled kernels."""

import __future__

import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
from numba.core.bytecode import FunctionIdentity
from numba.core.dispatcher import Dispatcher

from normalform.kernels import known
from normalform.kernels.cpu import (
    blend,
    columns,
    compiled,
    gradients,
    layout,
    memory,
    planes,
    row_gradients,
    rows,
    steps,
    values,
    vectors,
)


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the source of ``where``; the test ``killed_by`` must fail then."""

    bug: str
    where: Callable | ModuleType
    old: str
    new: str
    killed_by: Callable[[], object]

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put what is changed wherever the original is known; kernels are chosen anew."""
        source = textwrap.dedent(inspect.getsource(self.where))
        assert source.count(self.old) == 1, f"{self.bug}: {self.old!r} is not (once) in the source"
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.old, self.new), f"<{self.bug}>", "exec", flags)
        monkeypatch.setattr(known, "_remembered", {})
        if isinstance(self.where, ModuleType):
            _plant_file(self.where, code, self.old, monkeypatch)
        else:
            _plant_function(self.where, code, monkeypatch)


def _plant_function(function, code, monkeypatch):
    made: dict[str, Callable] = {}
    exec(code, function.__globals__, made)
    (changed,) = made.values()
    owners = [m for name, m in sys.modules.items() if name.startswith("normalform")]
    owners += [value for m in owners for value in vars(m).values() if inspect.isclass(value)]
    for owner in owners:
        if vars(owner).get(function.__name__) is function:
            monkeypatch.setattr(owner, function.__name__, changed)


# Of functions that are compiled with a bug. They are a part of the names of machine code, and that
# which was read from disk has those of another process.
_NUMBERS = itertools.count(10**6)


def _plant_file(module, code, old, monkeypatch):
    """Machine code goes by name and by the files as they are: none is read or kept on disk."""
    monkeypatch.setattr(compiled, "folders", list)
    monkeypatch.setattr(FunctionIdentity, "_unique_ids", _NUMBERS)
    changed = _made(module, code)
    vars(changed).update(_kernels_without(module, old))
    if module not in (memory, values, vectors):
        _put(changed, monkeypatch)
        return
    monkeypatch.setitem(sys.modules, module.__name__, changed)
    if module is not vectors:
        monkeypatch.setattr(module.__name__, changed)
        again = _made(vectors, compile(inspect.getsource(vectors), vectors.__file__, "exec"))
        monkeypatch.setitem(sys.modules, vectors.__name__, again)
    for kernels in (planes, columns, rows, row_gradients, blend, gradients):
        code = compile(inspect.getsource(kernels), kernels.__file__, "exec")
        again = _made(kernels, code)
        monkeypatch.setitem(sys.modules, kernels.__name__, again)
        _put(again, monkeypatch)


def _kernels_without(module, old):
    """Those kernels that reach no function with ``old`` in it: they are compiled already."""
    functions = {
        name: getattr(value, "function", getattr(value, "py_func", value))
        for name, value in vars(module).items()
        if isinstance(value, compiled.Kernel | Dispatcher)
    }

    def reaches(name):
        here = functions[name]
        called = [other for other in here.__code__.co_names if other in functions]
        return old in inspect.getsource(here) or any(map(reaches, called))

    kernels = {k: v for k, v in vars(module).items() if isinstance(v, compiled.Kernel)}
    without = {name: kernel for name, kernel in kernels.items() if not reaches(name)}
    return {} if without == kernels else without  # what happens to a vector has no name there


def _made(module, code):
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(code, vars(changed))
    return changed


def _put(changed, monkeypatch):
    name = changed.__name__.rpartition(".")[2]
    for user in (layout, steps):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, changed)
