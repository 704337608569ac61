"""MACs: multiply-accumulates of a model's convolutions, matrix products and recurrent layers.

Counted at batch 1 where the batch is the caller's, from inferred shapes; a node whose shapes are
not known is named, never guessed. Of an If the costlier branch counts; a Loop counts its body once
for each turn where the number of turns is a constant, else once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

import onnx
from onnx import numpy_helper

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.normal.graphs import bodies_of, graphs_in

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Rule = Callable[[onnx.NodeProto, Shapes], int]


def macs_by_node(model: onnx.ModelProto) -> tuple[dict[str, int], tuple[str, ...]]:
    """MACs by node of the main graph, and the nodes, in subgraphs too, whose shapes are not known.

    Nodes that multiply nothing worth counting (element-wise ones, pooling) are in neither.
    """
    unknown: list[str] = []
    found: dict[str, int] = {}
    shapes = shapes_of(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        macs = _node_macs(node, shapes, constants, unknown)
        if macs is not None:
            found[_name(node)] = macs
    return found, tuple(unknown)


def counting_notes(model: onnx.ModelProto) -> tuple[str, ...]:
    """What about the MACs of control flow was assumed; empty where nothing was."""
    notes = []
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "If":
            notes.append(f"of If {_name(node)!r} the costlier branch is counted")
        elif node.op_type == "Loop" and node.input[0] not in constants:
            notes.append(f"the body of Loop {_name(node)!r} is counted once")
    return tuple(notes)


def constants_in(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor: initialisers and `Constant` nodes, those of subgraphs too."""
    for inner in graphs_in(graph):
        yield from inner.initializer
        for node in inner.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                yield node.attribute[0].t


def size_of(tensor: onnx.TensorProto) -> int:
    """How many values a tensor holds."""
    return prod(tensor.dims)


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Known shapes by tensor of the main graph; the caller's first axis counts as 1."""
    return _graph_shapes(model.graph)


def _graph_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if dims and dims[0] == -1:
            dims[0] = 1
        if -1 not in dims:
            shapes[value.name] = tuple(dims)
    return shapes


def _node_macs(
    node: onnx.NodeProto,
    shapes: Shapes,
    constants: Mapping[str, onnx.TensorProto],
    unknown: list[str],
) -> int | None:
    bodies = bodies_of(node)
    if bodies:
        costs = [_graph_macs(body, shapes, constants, unknown) for body in bodies]
        return max(costs) * _turns(node, shapes, constants) if any(costs) else None
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    try:
        return rule(node, shapes)
    except (KeyError, IndexError, ValueError):  # a shape that is missing, or of another rank
        unknown.append(_name(node))
        return None


def _graph_macs(
    graph: onnx.GraphProto,
    outer: Shapes,
    constants: Mapping[str, onnx.TensorProto],
    unknown: list[str],
) -> int:
    shapes = {**outer, **_graph_shapes(graph)}
    known = {**constants, **{tensor.name: tensor for tensor in graph.initializer}}
    return sum(_node_macs(node, shapes, known, unknown) or 0 for node in graph.node)


def _turns(node: onnx.NodeProto, shapes: Shapes, constants: Mapping[str, onnx.TensorProto]) -> int:
    if node.op_type == "Loop" and node.input[0] in constants:
        return int(numpy_helper.to_array(constants[node.input[0]]).item())
    if node.op_type == "Scan" and node.input[-1] in shapes:
        return (shapes[node.input[-1]] or (1,))[0]
    return 1


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    weights = 3 if node.op_type == "QLinearConv" else 1
    return prod(shapes[node.output[0]]) * prod(shapes[node.input[weights]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    """A product of matrices: every value of the output sums over the first factor's last axis."""
    first = shapes[node.input[0]]
    transposed = attributes_of(node).get("transA", 0)
    return prod(shapes[node.output[0]]) * (first[-2] if transposed else first[-1])


def _blocked_product(node: onnx.NodeProto, shapes: Shapes) -> int:
    return prod(shapes[node.output[0]]) * int(attributes_of(node)["K"])


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Gates of input and of state for every step, batch entry and direction."""
    steps, batch = sorted(shapes[node.input[0]][:2], reverse=True)
    return steps * batch * (prod(shapes[node.input[1]]) + prod(shapes[node.input[2]]))


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """One step for each combination of indices, as two operands have it."""
    equation = str(attributes_of(node)["equation"]).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "." in equation or len(terms) != 2:
        raise ValueError(f"{equation}: not counted")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes |= dict(zip(term, shapes[name], strict=True))
    return prod(sizes.values())


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Scores and their weighted sum, of ONNX's own operator on [batch, heads, length, size]."""
    queries, keys, values = (shapes[name] for name in node.input[:3])
    batch, heads, length, size = queries
    return batch * heads * length * keys[2] * (size + values[3])


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv", "FusedConv"), _conv),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"), _product),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "ConvTranspose": _conv_transpose,
    "MatMulNBits": _blocked_product,
    "Einsum": _einsum,
    "Attention": _attention,
}

COUNTED = frozenset(_RULES)
"""Operators whose MACs are counted; all others but control flow have none worth counting."""
