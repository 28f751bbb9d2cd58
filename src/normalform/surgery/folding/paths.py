"""From a norm along the data to the layer that can take it up, or to what is in the way."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from normalform.surgery.folding.flow import Flow
from normalform.surgery.folding.rules import Mixed, Rule, rule_of
from normalform.surgery.folding.weights import HOSTS, Affine, has_hooks, is_host
from normalform.surgery.kinds import label


class Blocked(Exception):
    """Why a norm cannot be taken up."""


class Walker:
    """Looks for the layer before or behind a norm.

    Args:
        flow: of the model.
        model: its modules.
        gone: calls of norms that have been taken up already.
    """

    def __init__(self, flow: Flow, model: nn.Module, gone: set[fx.Node]) -> None:
        self.flow, self.model, self.gone = flow, model, gone

    def back(self, norm: fx.Node, affine: Affine) -> tuple[fx.Node, Affine]:
        """The layer whose output reaches the norm, and what is to be done to that output.

        Raises:
            Blocked: there is none.
        """
        between: list[tuple[fx.Node, Rule]] = []
        node = self._source(norm)
        while not self.is_host(node):
            self._require_one_reader(node)
            between.insert(0, (node, self._rule(node, "comes after")))
            node = self._source(node)
        self._require_one_reader(node)
        size = self.flow.shapes[node][self._axis(node)]
        channels = self._through(between, self._numbered(node, self._axis(node)), affine)
        into = self._along(channels, 1)
        scale, shift = affine.scale.new_ones(size), affine.shift.new_zeros(size)
        scale[into], shift[into] = affine.scale, affine.shift
        if not (torch.equal(scale[into], affine.scale) and torch.equal(shift[into], affine.shift)):
            raise Blocked(f"treats parts of a channel of {self.described(node)} differently")
        return node, Affine(scale, shift)

    def ahead(self, norm: fx.Node, affine: Affine) -> tuple[fx.Node, Affine]:
        """The layer that the norm's output reaches, and what is to be done to its input.

        Raises:
            Blocked: there is none.
        """
        between: list[tuple[fx.Node, Rule]] = []
        node = self._only_reader(norm)
        while not self.is_host(node):
            between.append((node, self._rule(node, "comes before")))
            node = self._only_reader(node)
        channels = self._through(between, self._numbered(norm, 1), affine)
        into = self._along(channels, self._axis(node))
        if affine.shift.any() and _has_borders(self.module(node)):
            raise Blocked(f"comes before {self.described(node)}, whose borders it does not shift")
        return node, Affine(affine.scale[into], affine.shift[into])

    def is_host(self, node: fx.Node) -> bool:
        """Whether a call is of a layer that can take up a norm; raises where it almost is."""
        if node.op != "call_module" or not isinstance(self.module(node), HOSTS):
            return False
        host, names = self.module(node), self.flow.names[str(node.target)]
        if is_parametrized(host):
            raise Blocked(f"{self.described(node)} is parametrized: remove that first")
        if not is_host(host):
            raise Blocked(f"{self.described(node)} is no plain layer of PyTorch")
        if has_hooks(host):
            raise Blocked(f"{self.described(node)} has hooks")
        if len(self.flow.calls(names)) > 1:
            raise Blocked(f"{self.described(node)} is called several times")
        if self.flow.looks_at(names) or self.flow.shares(host):
            raise Blocked(f"the weights of {self.described(node)} have another use")
        return True

    def module(self, node: fx.Node) -> Any:
        """The module of a call."""
        return self.model.get_submodule(str(node.target))

    def described(self, node: fx.Node) -> str:
        """A call in words."""
        if node.op == "call_module":
            return f"{label(self.module(node))} {node.target}"
        ends = {"output": "the model's output", "placeholder": "the model's input"}
        name = str(getattr(node.target, "__name__", node.target))
        return ends.get(node.op, name)

    def _rule(self, node: fx.Node, where: str) -> Rule:
        if node in self.gone:
            return Rule(lambda numbers: numbers)
        module = self.module(node) if node.op == "call_module" else None
        known = node.op.startswith("call_") and node in self.flow.shapes
        rule = rule_of(node, self._source(node), module, self.flow) if known else None
        if rule is None:
            raise Blocked(f"{where} {self.described(node)}")
        return rule

    def _through(
        self, between: list[tuple[fx.Node, Rule]], channels: Tensor, affine: Affine
    ) -> Tensor:
        for node, rule in between:
            negative = int((affine.scale < 0).sum())
            if rule.nonnegative and negative:
                raise Blocked(
                    f"{self.described(node)} between, and {negative} of its scales are negative"
                )
            if rule.unshifted and affine.shift.any():
                raise Blocked(f"{self.described(node)} between would not be shifted in its zeros")
            try:
                channels = rule.channels(channels)
            except Mixed:
                raise Blocked(f"{self.described(node)} takes several channels together") from None
        return channels

    def _source(self, node: fx.Node) -> fx.Node:
        """The one tensor that a call works on."""
        tensors = [n for n in node.all_input_nodes if n in self.flow.shapes]
        if node.op in ("placeholder", "get_attr") or not tensors:
            raise Blocked(f"comes after {self.described(node)}")
        if len(tensors) > 1:
            raise Blocked(f"comes after {self.described(node)} of several tensors")
        return tensors[0]

    def _require_one_reader(self, node: fx.Node) -> None:
        readers = self.flow.readers(node)
        if len(readers) > 1:
            raise Blocked(f"the output of {self.described(node)} has {len(readers)} uses")

    def _only_reader(self, node: fx.Node) -> fx.Node:
        self._require_one_reader(node)
        readers = self.flow.readers(node)
        if not readers or readers[0].op == "output":
            raise Blocked(
                "comes before the model's output" if readers else "its output is not used"
            )
        if sum(n in self.flow.shapes for n in readers[0].all_input_nodes) > 1:
            raise Blocked(f"comes before {self.described(readers[0])} of several tensors")
        return readers[0]

    def _numbered(self, node: fx.Node, axis: int) -> Tensor:
        """A tensor of the shape of a call's output that holds the numbers of its channels."""
        shape = self.flow.shapes[node]
        axis %= len(shape)
        numbers = torch.arange(shape[axis]).view(-1, *[1] * (len(shape) - axis - 1))
        return numbers.expand(shape)

    def _along(self, channels: Tensor, axis: int) -> Tensor:
        """The numbers along an axis, on which alone they may depend."""
        rows = channels.movedim(axis, 0).flatten(1)
        if not (rows == rows[:, :1]).all():
            raise Blocked("its channels lie along another axis of the next layer")
        return rows[:, 0]

    def _axis(self, node: fx.Node) -> int:
        """Of the channels, in what a layer takes and what it gives."""
        host = self.module(node)
        return -len(host.kernel_size) - 1 if isinstance(host, _ConvNd) else -1


def _has_borders(host: Any) -> bool:
    """Whether some positions of the output meet fewer positions of the input than others."""
    if isinstance(host, nn.Linear):
        return False
    if isinstance(host, _ConvTransposeNd):
        return any(k != 1 for k in (*host.kernel_size, *host.stride)) or any(host.output_padding)
    return host.padding_mode == "zeros" and any(host._reversed_padding_repeated_twice)
