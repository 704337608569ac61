"""The batch axis of a model: followed from the inputs through every node, and set free on the way.

A model exported for one sample has its batch of 1 written into constants: into the shapes of
Reshape, the sizes of Resize, a class token that is joined to each sample, a recurrent node's first
state. Each of them is rewritten for any batch. The axis is followed through ONNX's own shape
inference by its size, a prime that no other axis has: where a Reshape joins it with an axis of 12,
say, it goes on with 12 times that size, until it is parted again. Names of sizes would not do, as
inference drops them wherever two tensors are broadcast.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.inspect import Shape, shapes_of
from edgekit_converters.normalise import opset_of
from edgekit_converters.passes.edits import constants_of, is_standard

_MARK = 1_000_003
_TO_THE_END = 2**63 - 1
_LARGEST_READ = 64
_FIRST_STATES: Mapping[str, tuple[int, ...]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


class Axis(NamedTuple):
    """Where the batch stands in a tensor, and how many values of one sample stand with it."""

    position: int
    factor: int = 1


@dataclass(frozen=True)
class Freed:
    """A model that takes any batch, as far as its graph tells.

    Attributes:
        axes: where the batch stands, by tensor.
        lost: the nodes behind which it can no longer be followed, in order.
    """

    model: onnx.ModelProto
    axes: dict[str, Axis]
    lost: list[onnx.NodeProto] = field(default_factory=list)


def free(model: onnx.ModelProto, inputs: Sequence[str]) -> Freed:
    """Set the batch of a model free, in place.

    Args:
        model: with inferred shapes, for a batch of 1.
        inputs: those whose axis 0 counts samples.
    """
    shapes = shapes_of(model)
    types = {value.name: value.type for value in model.graph.input}
    types |= {
        name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        for name, tensor in constants_of(model.graph).items()
    }
    for value in model.graph.input:
        if value.name in inputs:
            marked = onnx.TypeProto()
            marked.CopyFrom(value.type)
            marked.tensor_type.shape.dim[0].dim_value = _MARK
            types[value.name] = marked
    freed = Freed(model, {name: Axis(0) for name in inputs})
    follower = _Follower(freed, shapes, types)
    nodes = [new for node in list(model.graph.node) for new in follower.follow(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return freed


class _Follower:
    """Goes through the nodes in order; knows the type of each tensor that is behind it."""

    def __init__(
        self, freed: Freed, shapes: Mapping[str, Shape], types: dict[str, onnx.TypeProto]
    ) -> None:
        self._graph = freed.model.graph
        self._axes = freed.axes
        self._lost = freed.lost
        self._shapes = shapes
        self._types = types
        self._recorded = {v.name: v.type for v in (*self._graph.value_info, *self._graph.output)}
        self._constants = constants_of(self._graph)
        # Inference reads shapes, axes and the like; weights would only be copied for it.
        self._small = {n for n, t in self._constants.items() if prod(t.dims) <= _LARGEST_READ}
        self._opsets = list(freed.model.opset_import)
        self._opset = opset_of(freed.model)

    def follow(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node, changed where it had a batch of 1 in it, behind the nodes it now needs."""
        known = {}
        if any(name in self._axes for name in node.input):
            if is_standard(node, "Reshape"):
                known = self._reshape(node)
            elif is_standard(node, "Slice"):
                self._slice(node)
            elif is_standard(node, "Resize"):
                known = yield from self._resize(node)
            elif is_standard(node, "Concat"):
                yield from self._concat(node)
            elif is_standard(node, *_FIRST_STATES):
                yield from self._recurrent(node)
        yield node
        self._infer(node)
        for name, axis in known.items():
            element = self._types[node.input[0]].tensor_type.elem_type
            self._set_axis(name, element, self._shapes[name], axis)
        reads = any(name in self._axes for name in node.input)
        gives = any(name in self._axes for name in node.output)
        if reads and not gives and not is_standard(node, "Shape", "Size"):
            self._lost.append(node)

    def _infer(self, node: onnx.NodeProto) -> None:
        found: Mapping[str, onnx.TypeProto] = {}
        read = {name for name in node.input if name}
        given = {name: self._types[name] for name in read & self._types.keys()}
        if is_standard(node) and len(given) == len(read):
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            data = {name: self._constants[name] for name in given if name in self._small}
            try:
                found = shape_inference.infer_node_outputs(
                    schema, node, given, data, opset_imports=self._opsets
                )
            except (shape_inference.InferenceError, RuntimeError, ValueError):
                # A node that does not take the batch is found when the model is run.
                found = {}
        for name in filter(None, node.output):
            if name in found and found[name].tensor_type.HasField("shape"):
                self._types[name] = found[name]
                self._read_axis(name)
            elif name in self._recorded:
                self._types[name] = self._recorded[name]

    def _read_axis(self, name: str) -> None:
        for position, dim in enumerate(self._types[name].tensor_type.shape.dim):
            if dim.dim_value and dim.dim_value % _MARK == 0:
                self._axes[name] = Axis(position, dim.dim_value // _MARK)

    def _set_axis(self, name: str, element: int, shape: Shape, axis: Axis) -> None:
        sizes = list(shape)
        sizes[axis.position] = _MARK * axis.factor
        self._types[name] = helper.make_tensor_type_proto(element, sizes)
        self._axes[name] = axis

    def _reshape(self, node: onnx.NodeProto) -> dict[str, Axis]:
        """Let the axis with the batch take what is left."""
        source, result = node.input[0], node.output[0]
        shape = self._shapes.get(result)
        if source not in self._axes or source not in self._shapes or shape is None:
            return {}
        position = reshaped_position(self._shapes[source], self._axes[source].position, shape)
        if position is None:
            return {}
        if node.input[1] in self._constants:
            sizes = [-1 if i == position else size for i, size in enumerate(shape)]
            node.input[1] = self._add(sizes, f"{node.name}.shape")
        return {result: Axis(position, shape[position])}

    def _slice(self, node: onnx.NodeProto) -> None:
        """What takes all of a batch of 1 takes all of any batch."""
        axis = self._axes.get(node.input[0])
        given = [self._constants.get(name) for name in node.input[1:]]
        if axis is None or any(tensor is None for tensor in given):
            return
        values = [numpy_helper.to_array(tensor).tolist() for tensor in given if tensor is not None]
        starts, ends = values[:2]
        axes = values[2] if len(values) > 2 else list(range(len(starts)))
        steps = values[3] if len(values) > 3 else [1] * len(starts)
        rank = len(self._types[node.input[0]].tensor_type.shape.dim)
        for i, along in enumerate(axes):
            whole = starts[i] == 0 and ends[i] >= axis.factor and steps[i] == 1
            if along % rank == axis.position and whole:
                ends[i] = _TO_THE_END
                node.input[2] = self._add(ends, f"{node.name}.ends")

    def _resize(self, node: onnx.NodeProto) -> Generator[onnx.NodeProto, None, dict[str, Axis]]:
        """Sizes that start with the batch are put together when the model runs."""
        sizes = self._constants.get(node.input[3]) if len(node.input) > 3 else None
        axis = self._axes.get(node.input[0])
        known = node.output[0] in self._shapes
        if sizes is None or axis is None or not known or attributes_of(node).get("axes"):
            return {}
        values = numpy_helper.to_array(sizes).tolist()
        yield from self._shape_like(node.name, node.input[0], axis, values, axis.position)
        node.input[3] = f"{node.name}.batched"
        return {node.output[0]: axis}

    def _concat(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """What is joined to each sample is repeated for each."""
        batched = next(name for name in node.input if name in self._axes)
        axis = self._axes[batched]
        rank = len(self._types[batched].tensor_type.shape.dim)
        if axis.factor == 1 and attributes_of(node)["axis"] % rank != axis.position:
            for i, name in enumerate(node.input):
                if name not in self._axes and name in self._shapes:
                    stem = f"{node.name}.{i}"
                    yield from self._repeated(stem, name, like=batched, position=axis.position)
                    node.input[i] = f"{stem}.repeated"

    def _recurrent(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A first state of all samples [directions, 1, hidden] is repeated for each."""
        if node.input[0] in self._axes:
            position = 0 if attributes_of(node).get("layout") else 1
            for i in _FIRST_STATES[node.op_type]:
                name = node.input[i] if i < len(node.input) else ""
                if name and name not in self._axes and name in self._shapes:
                    stem = f"{node.name}.{i}"
                    yield from self._repeated(stem, name, like=node.input[0], position=position)
                    node.input[i] = f"{stem}.repeated"

    def _repeated(
        self, stem: str, name: str, *, like: str, position: int
    ) -> Iterator[onnx.NodeProto]:
        shape = self._shapes[name]
        ones = [1] * len(shape)
        yield from self._shape_like(stem, like, self._axes[like], ones, position)
        yield helper.make_node(
            "Expand", [name, f"{stem}.batched"], [f"{stem}.repeated"], f"{stem}.repeat"
        )
        element = self._types[name].tensor_type.elem_type
        self._set_axis(f"{stem}.repeated", element, shape, Axis(position))

    def _shape_like(
        self,
        stem: str,
        source: str,
        axis: Axis,
        sizes: Sequence[int],
        place: int,
    ) -> Iterator[onnx.NodeProto]:
        """Make `stem.batched`: these sizes, with that of the batch of `source` in its place."""
        start = axis.position
        make = helper.make_node
        yield make("Shape", [source], [f"{stem}.size"], f"{stem}.size", start=start, end=start + 1)
        parts = [
            *([self._add(sizes[:place], f"{stem}.before")] if place else []),
            f"{stem}.size",
            *([self._add(sizes[place + 1 :], f"{stem}.after")] if sizes[place + 1 :] else []),
        ]
        yield make("Concat", parts, [f"{stem}.batched"], f"{stem}.batched", axis=0)

    def _add(self, values: Sequence[int], name: str) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, np.int64), name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        self._small.add(name)
        self._types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        return name


def reshaped_position(before: Shape, position: int, after: Shape) -> int | None:
    """Where an axis stands after a Reshape: behind as many values as before; None if cut apart.

    A reshape keeps values in order, so the batch, outermost in its axis, comes to stand in an axis
    that has the product of the sizes in front of it unchanged: one of size 1 where there is one.
    """
    ahead = prod(before[:position])
    fitting = [i for i in range(len(after)) if prod(after[:i]) == ahead]
    single = [i for i in fitting if after[i] == 1]
    if position in single and before[position] == 1:
        return position
    return next(iter([*single, *fitting]), None)
