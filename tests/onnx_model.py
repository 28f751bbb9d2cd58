"""An ONNX graph as a PyTorch model: convolutions and batch norms as layers, the rest as functions.

Only what the graphs of these tests hold is known.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

Attributes = dict[str, Any]


class OnnxModel(nn.Module):
    """Runs the nodes of a graph in their order.

    Args:
        path: a file whose graph has one input and one output.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        (self.input,), (self.output,) = ([v.name for v in vs] for vs in (graph.input, graph.output))
        self.constants: dict[str, Any] = {}
        self.steps: list[tuple[str, list[str], str, Attributes]] = []
        self.layers = nn.ModuleDict()
        values = {
            n.output[0]: numpy_helper.to_array(n.attribute[0].t).copy()
            for n in graph.node
            if n.op_type == "Constant"
        }
        for node in graph.node:
            if node.op_type == "Constant":
                continue
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs, (output,) = list(node.input), node.output
            name = re.sub(r"\W", "_", output)
            if node.op_type in LAYERS:
                held = [torch.from_numpy(values[i]) for i in inputs[1:]]
                self.layers[name] = LAYERS[node.op_type](attributes, *held)
                self.steps.append((name, inputs[:1], output, {}))
            else:
                self.steps.append((node.op_type, inputs, output, attributes))
        used = {i for _, inputs, _, _ in self.steps for i in inputs}
        for name in used & values.keys():
            value = torch.from_numpy(values[name])
            if value.is_floating_point() and value.ndim:
                self.register_buffer(re.sub(r"\W", "_", name), value)
            else:
                self.constants[name] = value.tolist()
        self.held = {n: re.sub(r"\W", "_", n) for n in used & values.keys() - self.constants.keys()}

    def forward(self, x: Tensor) -> Tensor:
        found: dict[str, Any] = {self.input: x, **self.constants}
        found |= {name: getattr(self, held) for name, held in self.held.items()}
        for kind, inputs, output, attributes in self.steps:
            given = [found[name] for name in inputs]
            if kind in self.layers:
                found[output] = self.layers[kind](*given)
            else:
                found[output] = FUNCTIONS[kind](*given, **attributes)
        return found[self.output]


def conv(attributes: Attributes, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    (top, left, bottom, right), groups = attributes["pads"], attributes["group"]
    assert (top, left) == (bottom, right)
    layer = nn.Conv2d(
        weight.size(1) * groups, weight.size(0), weight.shape[2:], tuple(attributes["strides"]),
        (top, left), tuple(attributes["dilations"]), groups, bias is not None,
    )  # fmt: skip
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def batch_norm(attributes: Attributes, *held: Tensor) -> nn.Module:
    layer = nn.BatchNorm2d(held[0].numel(), eps=attributes["epsilon"])
    for tensor, value in zip(layer.state_dict().values(), held, strict=False):
        tensor.copy_(value)
    return layer


def max_pool(x: Tensor, kernel_shape: Any, strides: Any, pads: Any, **_: Any) -> Tensor:
    assert pads[:2] == pads[2:]
    return F.max_pool2d(x, kernel_shape, strides, pads[:2])


def shape_slice(shape: list[Any], starts: Any, ends: Any, axes: Any, steps: Any) -> list[Any]:
    assert (axes, steps) == ([0], [1])
    return shape[starts[0] : ends[0]]


LAYERS: dict[str, Callable[..., nn.Module]] = {"Conv": conv, "BatchNormalization": batch_norm}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda x, y: x + y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Clip": lambda x, low, high: x.clamp(low, high),
    "Relu": torch.relu,
    "HardSigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "MaxPool": max_pool,
    "Shape": lambda x: [x.size(0), x.size(1), x.size(2), x.size(3)],
    "Slice": shape_slice,
    "Cast": lambda values, to: values,
    "Concat": lambda *parts, axis: [value for part in parts for value in part],
    "Reshape": lambda x, shape: x.reshape(shape),
    "MatMul": lambda x, y: x @ y,
    "Softmax": lambda x, axis: x.softmax(axis),
    "Identity": lambda x: x,
}
