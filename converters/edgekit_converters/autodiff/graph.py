"""A graph under construction: nodes are appended to a forward graph, names stay deterministic.

The promise is that the same calls in the same order make the same bytes: names of new tensors come
from a counter, never from a hash or a clock, and equal constants are stored once. Every tensor of
the forward graph has a known element type and, where shape inference found it, a shape; what is
not known before the run is computed in the graph itself (`shape_of`, `sum_to`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError

Dimension = int | str | None
"""A size, the name of a size known at run time, or nothing known at all."""

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
"""The element types that a gradient can have."""


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor before the graph runs.

    Attributes:
        element: element type, a value of `onnx.TensorProto.DataType`.
        shape: one entry per axis, or None where not even the rank is known.
    """

    element: int
    shape: tuple[Dimension, ...] | None


class Graph:
    """Nodes and constants of a graph that grows at its end."""

    def __init__(
        self,
        *,
        nodes: Iterable[onnx.NodeProto],
        constants: Iterable[onnx.TensorProto],
        types: Mapping[str, TensorType],
    ) -> None:
        self.nodes: list[onnx.NodeProto] = list(nodes)
        self.constants: dict[str, onnx.TensorProto] = {c.name: c for c in constants}
        self._types = dict(types)
        self._taken = set(types) | set(self.constants)
        self._taken |= {name for node in self.nodes for name in (node.name, *node.output)}
        self._known: dict[tuple[object, ...], str] = {}
        self._count = 0

    def declare(self, name: str, kind: TensorType) -> str:
        """Add a graph input made by the caller, and return its name."""
        self._types[name] = kind
        self._taken.add(name)
        return name

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node with one output and return the name of that output.

        Args:
            operator: a standard ONNX operator.
            inputs: names of tensors that exist already; "" leaves an optional one out.
            output: name of the output; by default a fresh one.
            attributes: the node's attributes; None leaves one out.
        """
        name = output or self._fresh(operator)
        self._append(operator, inputs, [name], attributes)
        return name

    def add_many(
        self, operator: str, inputs: Sequence[str], count: int, **attributes: Any
    ) -> list[str]:
        """Append a node with several outputs and return their fresh names."""
        names = [self._fresh(operator) for _ in range(count)]
        self._append(operator, inputs, names, attributes)
        return names

    def constant(self, value: NDArray[Any]) -> str:
        """Return the name of a constant that holds this array; equal arrays share one."""
        key = ("constant", value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            name = self._fresh("constant")
            self.constants[name] = numpy_helper.from_array(value, name)
            self._taken.add(name)
            self._known[key] = name
        return self._known[key]

    def integers(self, values: Iterable[int]) -> str:
        """Return the name of a 1-D int64 constant, as axes and shapes are given."""
        return self.constant(np.asarray(list(values), np.int64))

    def whole(self, value: int) -> str:
        """Return the name of a 0-d int64 constant."""
        return self.constant(np.asarray(value, np.int64))

    def scalar(self, value: float, *, like: str) -> str:
        """Return the name of a 0-d constant in the element type of the tensor `like`."""
        dtype = helper.tensor_dtype_to_np_dtype(self.type_of(like).element)
        return self.constant(np.asarray(value, dtype))

    def type_of(self, name: str) -> TensorType:
        """Return what is known of a tensor of the forward graph."""
        try:
            return self._types[name]
        except KeyError:
            raise ModelError(
                f"the element type of tensor {name!r} cannot be inferred",
                hint="check the model with onnx.shape_inference.infer_shapes, strict_mode=True",
            ) from None

    def carries_gradient(self, name: str) -> bool:
        """Tell whether a gradient could flow through a tensor: what is not known, could."""
        kind = self._types.get(name)
        return kind is None or kind.element in FLOATS

    def dimensions(self, name: str) -> tuple[Dimension, ...]:
        """Return the dimensions of a tensor; a `ModelError` says that its rank is not known."""
        shape = self.type_of(name).shape
        if shape is None:
            raise ModelError(
                f"the rank of tensor {name!r} cannot be inferred, and its gradient needs it",
                hint="give the model's inputs a fixed rank and fold its constants first",
            )
        return shape

    def fixed(self, name: str, axes: Iterable[int]) -> list[int]:
        """Return the sizes of some axes; a `ModelError` says that one is not known."""
        dimensions = self.dimensions(name)
        sizes = [dimensions[axis] for axis in axes]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) < len(sizes):
            raise ModelError(
                f"tensor {name!r} has the shape {list(dimensions)}, and its gradient needs numbers",
                hint="fix every dimension of the model's inputs but the batch",
            )
        return known

    def shape_of(self, name: str) -> str:
        """Return a 1-D int64 tensor with the shape: a constant where it is known, else computed."""
        shape = self.type_of(name).shape
        if shape is not None and all(isinstance(size, int) for size in shape):
            return self.integers(size for size in shape if isinstance(size, int))
        key = ("shape", name)
        if key not in self._known:
            self._known[key] = self.add("Shape", [name])
        return self._known[key]

    def sum_to(self, gradient: str, *, of: Sequence[Dimension], to: str) -> str:
        """Undo a broadcast: sum a gradient with the dimensions `of` to the shape of tensor `to`.

        An axis that `to` lacks or has with size 1 was repeated, so its gradients add up. An axis
        whose sizes cannot be compared before the run is decided in the graph.
        """
        sizes = self.dimensions(to)
        lead = len(of) - len(sizes)
        pairs = list(zip(range(lead, len(of)), sizes, of[lead:], strict=True))
        if any(small != 1 and not _surely_equal(small, large) for _, small, large in pairs):
            return self._sum_to_at_run_time(gradient, lead=lead, to=to)
        ones = [axis for axis, small, large in pairs if small == 1 and large != 1]
        if not ones and not lead:
            return gradient
        axes = self.integers([*range(lead), *ones])
        if not ones:
            return self.add("ReduceSum", [gradient, axes], keepdims=0)
        summed = self.add("ReduceSum", [gradient, axes], keepdims=1)
        return self.add("Reshape", [summed, self.shape_of(to)]) if lead else summed

    def _sum_to_at_run_time(self, gradient: str, *, lead: int, to: str) -> str:
        shape = self.shape_of(to)
        padded = self.add("Concat", [self.integers([1] * lead), shape], axis=0) if lead else shape
        repeated = self.add("Equal", [padded, self.whole(1)])
        axes = self.add("Reshape", [self.add("NonZero", [repeated]), self.integers([-1])])
        summed = self.add("ReduceSum", [gradient, axes], keepdims=1, noop_with_empty_axes=1)
        return self.add("Reshape", [summed, shape])

    def _append(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
    ) -> None:
        node = helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes)
        self.nodes.append(node)
        self._taken.update(outputs)

    def _fresh(self, operator: str) -> str:
        while True:
            name = f"training/{operator}_{self._count}"
            self._count += 1
            if name not in self._taken:
                return name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as Python values (strings as `str`)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def reads_of(node: onnx.NodeProto) -> list[str]:
    """Return every tensor that a node or a node of its subgraphs reads."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            names += [name for inner in body.node for name in reads_of(inner)]
    return names


def _surely_equal(small: Dimension, large: Dimension) -> bool:
    return small is not None and small == large
