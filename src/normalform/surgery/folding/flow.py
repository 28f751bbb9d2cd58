"""Where the output of each module of a model goes, found by symbolic tracing, never by names."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from normalform.surgery.feeding import given
from normalform.surgery.folding.weights import HOSTS
from normalform.surgery.kinds import named

READS_SHAPE = ("size", "dim", "numel", "ndimension", "stride", "is_contiguous")
ATTRIBUTES = ("shape", "dtype", "device", "ndim", "is_cuda", "layout")


@dataclass(frozen=True)
class Flow:
    """The calls of a model as a graph, and what came out of each for the example.

    Attributes:
        graph: each module that is not looked into is one node.
        shapes: of the nodes whose value is a tensor.
        values: of the nodes whose value is not.
        opaque: by name, modules that could not be looked into, and why.
        names: of a module by each of its names.
        holders: how many modules hold each parameter, by its identity.
    """

    graph: fx.Graph
    shapes: Mapping[fx.Node, torch.Size]
    values: Mapping[fx.Node, Any]
    opaque: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    holders: Mapping[int, int]

    def calls(self, names: tuple[str, ...]) -> list[fx.Node]:
        """The calls of a module that has these names."""
        return [n for n in self.graph.nodes if n.op == "call_module" and n.target in names]

    def looks_at(self, names: tuple[str, ...]) -> bool:
        """Whether a parameter or a buffer of a module is used by anything but its own call."""
        own = tuple(f"{name}." for name in names)
        return any(n.op == "get_attr" and str(n.target).startswith(own) for n in self.graph.nodes)

    def shares(self, module: nn.Module) -> bool:
        """Whether another module holds one of its parameters, too."""
        return any(self.holders[id(p)] > 1 for p in module.parameters(recurse=False))

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Who uses the values that a node gives, not only their shape."""
        return [user for user in node.users if not _reads_shape(user)]

    def hidden(self, names: tuple[str, ...]) -> str:
        """The module that could not be looked into and that one of these is in, or nothing."""
        found = (o for o in self.opaque for name in names if f"{name}.".startswith(f"{o}."))
        return next(found, "")


def flow_of(model: nn.Module, example: Any, whole: Collection[nn.Module]) -> Flow:
    """Trace a model and run it once; whoever lent it keeps it as it was.

    Args:
        model: the model.
        example: an input.
        whole: modules that are not looked into.

    Raises:
        ValueError: its own forward cannot be traced.
    """
    arguments = _arguments(model, example)
    constants = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(opaque, whole)
        try:
            graph = tracer.trace(model, constants or None)
            break
        except Exception as error:  # the model's own code, on proxies
            where = next((name for name in reversed(tracer.inside) if name not in opaque), None)
            if where is None:
                raise ValueError(_refusal(model, error)) from error
            opaque[where] = _first_line(error)
    run = _Run(fx.GraphModule(model, graph))
    run.run(*arguments.values())
    names = {name: all_ for _, all_ in named(model) for name in all_}
    held = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return Flow(graph, run.shapes, run.values, opaque, names, held)


class _Tracer(fx.Tracer):
    """Looks into every module but those that fold, those of PyTorch and those that resist."""

    def __init__(self, opaque: Mapping[str, str], whole: Collection[nn.Module]) -> None:
        super().__init__()
        self.opaque, self.whole = opaque, whole
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.opaque
            or isinstance(m, torch.jit.ScriptModule)
            or m in self.whole
            or isinstance(m, HOSTS)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        found = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # after an exception it tells where that was
        return found


class _Run(fx.Interpreter):
    """Runs the graph and notes what comes out of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        else:
            self.values[n] = value
        return value


def _arguments(model: nn.Module, example: Any) -> dict[str, Any]:
    """The arguments of ``forward`` in order, with its defaults where the example has none."""
    batch = given(model, example)
    bound = inspect.signature(model.forward).bind(*batch.args, **batch.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in READS_SHAPE
    return node.op == "call_function" and node.target is getattr and node.args[1] in ATTRIBUTES


def _refusal(model: nn.Module, error: Exception) -> str:
    return (
        f"fold: the data flow of {type(model).__name__}.forward cannot be followed "
        f"({_first_line(error)}). Fold parts of the model that have no such step, one by one: "
        "model.part = nf.fold(model.part, its_input).model"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
