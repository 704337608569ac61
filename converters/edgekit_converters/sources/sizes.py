"""Sizes: how large each tensor of a model is, worked out from shapes and never by making it.

Shape inference is asked about every node, given the few small constants that its size depends on;
those are computed where they are plain arithmetic and below a megabyte. What a file claims about
its own shapes is not believed, but for the inputs, which an engine holds to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from edgekit_converters.autodiff.graph import reads_of


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# How long a way of arithmetic a size may come.
_MAX_DEPTH = 100
_MAX_VALUE_BYTES = 1 << 20
_DEFAULT_DOMAINS = ("", "ai.onnx")
_ELEMENTS = frozenset(TensorProto.DataType.values())
# Operators that make an output of a size which an input's values give.
_GROWING = _names(
    "AffineGrid BlackmanWindow CenterCropPad Col2Im ConstantOfShape DFT Expand HammingWindow"
    " HannWindow MaxUnpool MelWeightMatrix OneHot Pad Range Resize Tile Upsample"
)
# What sizes are computed with; an output of more than _MAX_VALUE_BYTES is not.
_ARITHMETIC = _names(
    "Abs Add And Cast Ceil Clip Concat ConstantOfShape Div Equal Expand Flatten Floor Gather"
    " GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg NonZero Not Or"
    " Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round ScatterND Sign Slice Split Sqrt"
    " Squeeze Sub Tile Transpose Unsqueeze Where"
)
# What the numpy code of an operator raises on inputs that do not fit it.
_NUMPY_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Made(NamedTuple):
    """A tensor that a node makes; `constant` where folding would make it."""

    name: str
    size_bytes: int | None
    constant: bool


def tensors_made(model: onnx.ModelProto) -> Iterator[Made]:
    """What the nodes of a checked model make, bodies and functions included.

    Left out are tensors of unknown rank, unless they are constants whose size an operator takes
    from values that are not known.
    """
    return _Sizes(model).made()


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    single = [a.g for a in node.attribute if a.HasField("g")]
    return [*single, *(body for a in node.attribute for body in a.graphs)]


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values in memory."""
    return int(prod(tensor.dims)) * _itemsize(tensor.data_type)


class _Sizes:
    """Types of all tensors of a model, and values of those that sizes are computed from."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = _inferable(model)
        self._opset = max(
            (o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS), default=1
        )
        self._types: dict[str, onnx.TypeProto] = {}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._values: dict[str, NDArray[Any] | None] = {}
        self._constants: set[str] = set()
        self._for_one_sample: dict[str, int] = {}

    def made(self) -> Iterator[Made]:
        """What the nodes make, where its size is known or would be had to be."""
        for node in self._walk(self._model.graph):
            for name in node.output:
                constant = name in self._constants and node.op_type != "Constant"
                size_bytes = self._bytes_of(name)
                if size_bytes is not None or (constant and node.op_type in _GROWING):
                    yield Made(name, size_bytes, constant)

    def _walk(self, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        """Each node behind those it reads, its types and constancy known; bodies in place."""
        self._forget(name for node in graph.node for name in node.output)
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._types[value.name] = value.type
        for tensor in graph.initializer:
            self._constants.add(tensor.name)
            self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            text = tensor.data_type == TensorProto.STRING
            if tensor_bytes(tensor) <= _MAX_VALUE_BYTES and not text:
                self._values[tensor.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            self._makers |= dict.fromkeys(node.output, node)
            for body in bodies_of(node):
                yield from self._walk(body)
            if self._is_constant(node):
                self._constants.update(node.output)
            if any(self._shape_of(name) is None for name in node.output):
                self._infer(node)
            yield node

    def _forget(self, names: Iterable[str]) -> None:
        """Names that a body makes: another body may have made others of the same name."""
        for name in names:
            self._constants.discard(name)
            for known in (self._types, self._makers, self._values, self._for_one_sample):
                known.pop(name, None)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Shape", "Size"):
            return self._shape_of(node.input[0]) is not None
        return all(name in self._constants for name in reads_of(node))

    def _infer(self, node: onnx.NodeProto) -> None:
        """Types of a node's outputs from the values of its inputs, where they can be had."""
        read = [name for name in node.input if name]
        if node.domain not in _DEFAULT_DOMAINS or any(name not in self._types for name in read):
            return
        values = {name: self._value(name) for name in read}
        data = {n: numpy_helper.from_array(v, n) for n, v in values.items() if v is not None}
        types = {name: self._types[name] for name in read}
        found = self._inferred(node, types, data)
        self._types |= {name: kind for name, kind in found.items() if kind.ByteSize()}
        if node.op_type in _GROWING:
            # Sizes that the caller gives make the others unknown, too: once more with ones.
            ones = {name: _with_ones(kind) for name, kind in types.items()}
            for name, kind in self._inferred(node, ones, data).items():
                self._for_one_sample[name] = _bytes_of(kind) or 0

    def _inferred(
        self,
        node: onnx.NodeProto,
        types: Mapping[str, onnx.TypeProto],
        data: Mapping[str, TensorProto],
    ) -> Mapping[str, onnx.TypeProto]:
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            return shape_inference.infer_node_outputs(schema, node, dict(types), dict(data))
        except (onnx.defs.SchemaError, shape_inference.InferenceError, RuntimeError, ValueError):
            return {}  # the size stays unknown, which a growing constant is refused for

    def _value(self, name: str, depth: int = 0) -> NDArray[Any] | None:
        """The value of a small constant; None where it is none, large, or not simple arithmetic."""
        if name not in self._values:
            self._values[name] = None  # while it is computed, and where it cannot be
            maker = self._makers.get(name)
            if maker is not None and name in self._constants and depth < _MAX_DEPTH:
                self._values |= self._computed(maker, depth + 1)
        return self._values[name]

    def _computed(self, node: onnx.NodeProto, depth: int) -> Mapping[str, NDArray[Any]]:
        if node.op_type in ("Shape", "Size"):
            dims = np.array(self._shape_of(node.input[0]), np.int64)
            limits = {a.name: a.i for a in node.attribute}
            part = dims[limits.get("start", 0) : limits.get("end", len(dims))]
            return {node.output[0]: part if node.op_type == "Shape" else np.array(dims.prod())}
        if node.op_type not in (*_ARITHMETIC, "Constant") or node.domain not in _DEFAULT_DOMAINS:
            return {}
        feeds = {name: self._value(name, depth) for name in node.input if name}
        sizes = [self._bytes_of(name) for name in node.output if name]
        unsure = [] if node.op_type == "NonZero" else [size is None for size in sizes]
        if any(unsure) or any((size or 0) > _MAX_VALUE_BYTES for size in sizes):
            return {}
        if any(value is None for value in feeds.values()):
            return {}
        return self._run(node, {n: v for n, v in feeds.items() if v is not None})

    def _run(
        self, node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, NDArray[Any]]:
        from onnx.reference import ReferenceEvaluator  # imports every operator

        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_value_info(name, self._types[name]) for name in feeds],
            [helper.make_value_info(name, onnx.TypeProto()) for name in node.output],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, dict(feeds))
        except _NUMPY_ERRORS:
            return {}  # the value stays unknown
        return {n: np.asarray(v) for n, v in zip(node.output, results, strict=True)}

    def _shape_of(self, name: str) -> tuple[int, ...] | None:
        kind = self._types.get(name, onnx.TypeProto()).tensor_type
        if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
            return None
        return tuple(dim.dim_value for dim in kind.shape.dim)

    def _bytes_of(self, name: str) -> int | None:
        """Of a tensor; None where its rank is unknown, or a constant's size."""
        if name in self._constants and self._shape_of(name) is None:
            return None
        known = _bytes_of(self._types.get(name, onnx.TypeProto()))
        return known if known is None else max(known, self._for_one_sample.get(name, 0))


def _inferable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large weights and without the shapes it claims, inferred anew."""
    skeleton = onnx.ModelProto()
    skeleton.ir_version = max(model.ir_version, 4)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    named = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in named)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor_bytes(tensor) <= _MAX_VALUE_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(
                TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            )
    if skeleton.functions:
        skeleton = inliner.inline_local_functions(skeleton)
    _forget_claims(skeleton.graph)
    try:
        # Without data_prop: it would compute a Range of any length.
        return shape_inference.infer_shapes(skeleton)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return skeleton  # each node is inferred by itself


def _forget_claims(graph: onnx.GraphProto) -> None:
    """Drop the shapes that a file says its tensors have; nothing holds it to them."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for body in bodies_of(node):
            for value in body.input:
                value.type.tensor_type.ClearField("shape")
            _forget_claims(body)


def _with_ones(kind: onnx.TypeProto) -> onnx.TypeProto:
    """A type whose unknown sizes are 1."""
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    for dim in copy.tensor_type.shape.dim if copy.HasField("tensor_type") else ():
        if not dim.HasField("dim_value"):
            dim.dim_value = 1
    return copy


def _bytes_of(kind: onnx.TypeProto) -> int | None:
    """Of a tensor whose unknown sizes are 1; None where the rank is unknown."""
    if not kind.tensor_type.HasField("shape"):
        return None
    sizes = [dim.dim_value for dim in _with_ones(kind).tensor_type.shape.dim]
    return int(prod(sizes)) * _itemsize(kind.tensor_type.elem_type)


def _itemsize(element: int) -> int:
    if element in (TensorProto.UNDEFINED, TensorProto.STRING) or element not in _ELEMENTS:
        return 1
    itemsize: int = helper.tensor_dtype_to_np_dtype(element).itemsize
    return itemsize
