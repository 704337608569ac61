"""What a gradient rule is: one use of an operator in, the gradients of its inputs out.

A rule appends the vector-Jacobian product of one node in standard operators whose form is the same
from opset 17 on. It may append gradients that nobody asked for: what leads to no output of the
finished graph is removed at the end, so rules need not know who trains what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx

from edgekit_converters.autodiff.graph import Graph, attributes_of


@dataclass(frozen=True)
class Call:
    """One node of the forward graph, met on the way back from the loss.

    Attributes:
        graph: where gradient nodes are appended.
        node: the node of the forward graph.
        gradient: the loss's derivative by the node's first output, in that output's shape.
    """

    graph: Graph
    node: onnx.NodeProto
    gradient: str

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes as Python values."""
        return attributes_of(self.node)

    @property
    def output(self) -> str:
        """Name of the node's first output."""
        return str(self.node.output[0])

    def input(self, index: int) -> str | None:
        """Return the name of an input, or None where an optional one is left out."""
        names = self.node.input
        return names[index] if index < len(names) and names[index] else None

    def sum_to(self, gradient: str, index: int) -> str:
        """Undo the broadcast of an input, for a gradient in the shape of the output."""
        wide = self.graph.dimensions(self.output)
        return self.graph.sum_to(gradient, of=wide, to=self.node.input[index])


Rule = Callable[[Call], dict[int, str]]
"""Appends gradient nodes; returns the gradient's name by the index of the input."""
