"""Constants: what a model computes from nothing but constants becomes a constant, within bounds.

Weights that an exporter left in `Constant` nodes, or behind a cast or a transposition, become
initialisers, where passes look for them. A result may take 16 MB, or as much as what it is made of;
its size is inferred before it is computed, so a few bytes that describe a huge tensor stay a
description. Random numbers are drawn at run time, loops run at run time, and quantised constants
stay quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from edgekit_converters.autodiff.graph import attributes_of, reads_of
from edgekit_converters.normal.branches import take_branches
from edgekit_converters.normal.graphs import bodies_of, graphs_in, opset_of
from edgekit_converters.normal.infer import infer

LARGEST_RESULT_BYTES = 16 << 20
_RANDOM = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Multinomial", "Bernoulli", "Dropout"),
    }
)
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_ROUNDS = 8

Tensors = dict[str, onnx.TensorProto]


def fold_constants(model: onnx.ModelProto, notes: list[str]) -> bool:
    """Compute what is constant, in place; whether nothing constant had to be left.

    Where something was left, because it is too large, random or a loop, no other tool should be let
    fold the model: it would not know the bounds.
    """
    context = _Context(model)
    for _ in range(_ROUNDS):
        infer(model, [])
        if not _fold(model.graph, context, _Scope()):
            break
    notes += [f"not folded: {reason}" for reason in sorted(context.left)]
    _drop_unread(model.graph)
    return not context.left


class _Context:
    """What folding needs to know of a model, and what it left, and why."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = list(model.opset_import)
        self.opset = opset_of(model)
        self.left: set[str] = set()


class _Scope:
    """Constants and known shapes by name, as a graph sees them: its own hide those outside."""

    def __init__(self, graph: onnx.GraphProto | None = None, outer: _Scope | None = None) -> None:
        self.constants: Tensors = {}
        self.shapes: dict[str, list[int]] = {}
        if graph is None or outer is None:
            return
        own = _made_in(graph)
        self.constants = {name: t for name, t in outer.constants.items() if name not in own}
        self.constants |= {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {name: sizes for name, sizes in outer.shapes.items() if name not in own}
        for value in (*graph.input, *graph.value_info):
            shape = value.type.tensor_type.shape
            known = value.type.tensor_type.HasField("shape")
            if known and all(dim.HasField("dim_value") for dim in shape.dim):
                self.shapes[value.name] = [dim.dim_value for dim in shape.dim]


def _fold(graph: onnx.GraphProto, context: _Context, outer: _Scope) -> bool:
    """Fold one graph in place; whether anything changed."""
    outputs = {value.name for value in graph.output}
    changed = _lift(graph, keep=outputs)
    scope = _Scope(graph, outer)
    if take_branches(graph, scope.constants):
        changed = True
        scope = _Scope(graph, outer)
    kept = []
    for node in graph.node:
        results = None
        if not outputs & set(node.output):
            results = _results(node, context, scope)
        for body in bodies_of(node):
            changed |= _fold(body, context, scope)
        if results is None:
            kept.append(node)
            continue
        changed = True
        graph.initializer.extend(results.values())
        scope.constants |= results
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _results(node: onnx.NodeProto, context: _Context, scope: _Scope) -> Tensors | None:
    """What a node gives, where that is constant and may be computed here."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _QUANTISED:
        return None
    if node.op_type == "Shape" and node.input[0] in scope.shapes:
        return _shape(node, scope.shapes[node.input[0]])
    reads = reads_of(node)
    makes_own = _made_in(*bodies_of(node))
    if not all(name in scope.constants or name in makes_own for name in reads):
        return None
    where = f"{node.op_type} {node.name or node.output[0]!r}"
    if node.op_type in _RANDOM:
        if node.op_type != "Dropout":
            context.left.add(f"{where} draws random numbers")
        return None
    if bodies_of(node):
        # An If with a constant condition was taken before; what is left here is a loop.
        if node.op_type != "If":
            context.left.add(f"{where} is a loop over constants")
        return None
    inputs = {name: scope.constants[name] for name in reads}
    size_bytes = _result_bytes(node, inputs, context)
    if size_bytes is None:
        return None
    allowed_bytes = max(LARGEST_RESULT_BYTES, sum(t.ByteSize() for t in inputs.values()))
    if size_bytes > allowed_bytes:
        context.left.add(f"{where} would make a constant of {size_bytes} bytes")
        return None
    return _evaluate(node, inputs, context)


def _shape(node: onnx.NodeProto, sizes: list[int]) -> Tensors:
    attributes = attributes_of(node)
    chosen = sizes[attributes.get("start", 0) : attributes.get("end")]
    array = np.asarray(chosen, np.int64)
    return {node.output[0]: numpy_helper.from_array(array, node.output[0])}


def _result_bytes(node: onnx.NodeProto, inputs: Tensors, context: _Context) -> int | None:
    """Size of what a node makes; None where only computing it would tell."""
    types = {
        name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for name, t in inputs.items()
    }
    small = {name: t for name, t in inputs.items() if t.ByteSize() <= LARGEST_RESULT_BYTES}
    try:
        schema = onnx.defs.get_schema(node.op_type, context.opset, node.domain)
        found = shape_inference.infer_node_outputs(
            schema, node, types, small, opset_imports=context.opsets
        )
    except (onnx.defs.SchemaError, shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    total_bytes = 0
    for name in filter(None, node.output):
        kind = found[name].tensor_type if name in found else None
        if kind is None or not kind.HasField("shape") or kind.elem_type == 0:
            return None
        if not all(dim.HasField("dim_value") for dim in kind.shape.dim):
            return None
        itemsize = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
        total_bytes += prod(dim.dim_value for dim in kind.shape.dim) * itemsize
    return total_bytes


def _evaluate(node: onnx.NodeProto, inputs: Tensors, context: _Context) -> Tensors | None:
    """Run one node in onnxruntime; None where it has no kernel or refuses the values."""
    import onnxruntime  # costs a quarter of a second

    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", [], outputs, list(inputs.values()))
    model = helper.make_model(graph, opset_imports=context.opsets, ir_version=_IR)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        arrays: list[NDArray[Any]] = session.run(None, {})
    # Each of onnxruntime's errors is a class of its own; the node then simply stays.
    except Exception:  # noqa: BLE001
        return None
    names = [value.name for value in outputs]
    return {
        name: numpy_helper.from_array(np.asarray(array), name)
        for name, array in zip(names, arrays, strict=True)
    }


_IR = 10
"""Of the little models that hold one node: what every onnxruntime from 1.18 on loads."""


def _lift(graph: onnx.GraphProto, *, keep: set[str]) -> bool:
    kept = []
    for node in graph.node:
        tensor = _value_of(node) if node.op_type == "Constant" and not node.domain else None
        if tensor is None or node.output[0] in keep:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
    changed = len(kept) < len(graph.node)
    if changed:
        del graph.node[:]
        graph.node.extend(kept)
    return changed


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a `Constant` node holds; None for a sparse one."""
    name, value = next(iter(attributes_of(node).items()))
    if name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    dtypes: Mapping[str, Any] = {
        **dict.fromkeys(("value_float", "value_floats"), np.float32),
        **dict.fromkeys(("value_int", "value_ints"), np.int64),
        **dict.fromkeys(("value_string", "value_strings"), object),
    }
    if name not in dtypes:
        return None
    return numpy_helper.from_array(np.asarray(value, dtypes[name]), node.output[0])


def _made_in(*graphs: onnx.GraphProto) -> set[str]:
    """Names that graphs and those below them define themselves."""
    return {
        name
        for top in graphs
        for graph in graphs_in(top)
        for name in (
            *(value.name for value in graph.input),
            *(tensor.name for tensor in graph.initializer),
            *(output for node in graph.node for output in node.output),
        )
    }


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in reads_of(node)}
    read |= {value.name for value in graph.output}
    for body in graphs_in(graph):
        read |= {value.name for value in body.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
