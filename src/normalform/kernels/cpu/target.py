"""What Numba compiles the kernels for: this processor, with no more of Numba than they need.

A kernel is made of helpers. Numba would optimize each of them, translate it to machine code and
give it Python's garbage collection, as if it were called by itself; here that is done once, to the
kernel that they have become part of. And it would first load whatever NumPy can do. Together that
was a third of the time that a first call took.
"""

# Numba types itself loosely.
# pyright: reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false
# pyright: reportOptionalCall=false
# pyright: reportUntypedClassDecorator=false
# pyright: reportUnusedImport=false

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any

from numba import types
from numba.core import imputils, typing
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.cpu import CPUContext, CPUTargetOptions
from numba.core.descriptors import TargetDescriptor
from numba.core.dispatcher import Dispatcher
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_registry
from numba.core.typing.templates import AbstractTemplate, Registry, signature
from numba.core.utils import MACHINE_BITS

NAME = "normalform"

# Of what is ours alone.
_types, _code = Registry(), imputils.Registry(NAME)


@_types.register_global(operator.add)
class _From(AbstractTemplate):
    """``row + offset``: the row from that value on."""

    def generic(self, args: Any, kws: Any) -> Any:
        row, offset = args
        if isinstance(row, types.CPointer) and isinstance(offset, types.Integer):
            return signature(row, row, types.int64)
        return None


@_code.lower(operator.add, types.CPointer, types.int64)
def _from(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.gep(args[0], [args[1]])


class _Library(JITCodeLibrary):
    """A function with all that it calls. What others call becomes machine code in them alone."""

    _is_part = False

    def add_linking_library(self, library: _Library) -> None:
        library._is_part = True
        super().add_linking_library(library)

    def get_pointer_to_function(self, name: str) -> int:
        """For C; of helpers Numba asks what Python would call, and there is none."""
        return super().get_pointer_to_function(name) if name.startswith("cfunc.") else 0

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        if not self._is_part:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        if self._is_part:
            self._finalized = True
        else:
            super()._finalize_final_module()


class _Code(JITCPUCodegen):
    _library_class = _Library

    def set_env(self, env_name: str, env: Any) -> None:
        """Python objects that machine code uses: ours uses none."""


class _Types(typing.Context):
    def load_additional_registries(self) -> None:
        """What is there besides Python's own numbers and loops."""
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)
        self.install_registry(_types)


class _Context(CPUContext):
    def init(self) -> None:
        self.is32bit = MACHINE_BITS == 32
        self._internal_codegen = _Code(NAME)

    def load_additional_registries(self) -> None:
        """The same as machine code."""
        # What they define is there once they are imported.
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401

        self.install_registry(mathimpl.registry)
        self.install_registry(_code)

    def post_lowering(self, mod: Any, library: Any) -> None:
        """Numba would add its runtime, for objects that Python sees."""


class _Target(TargetDescriptor):
    options = CPUTargetOptions

    @cached_property
    def typing_context(self) -> Any:
        return _Types()

    @cached_property
    def target_context(self) -> Any:
        return _Context(self.typing_context, NAME)


class _Helper(Dispatcher):
    targetdescr = _Target(NAME)


class ForC(CFunc):
    """A function in machine code, to be called from C."""

    _targetdescr = _Helper.targetdescr


def helper(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As ``numba.njit``, of functions that only kernels call."""

    def decorate(function: Callable[..., Any]) -> Any:
        return _Helper(function, locals={}, targetoptions=options)

    return decorate


class _Processor(CPU):
    pass


target_registry[NAME] = _Processor
dispatcher_registry[_Processor] = _Helper
jit_registry[_Processor] = helper
