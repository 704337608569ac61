"""Reach: what of a model no pass gets at, said in the notes of a report.

A build that changes nothing looks like one that found nothing better. Where the reason is how the
model was exported, whoever exported it can do something about it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.passes.weights import quantised_node, weighted_inside


def out_of_reach(model: onnx.ModelProto) -> tuple[str, ...]:
    """Notes on a model in normal form: what is int8 already, and work inside of subgraphs."""
    return (*_quantised(model), *_enclosed(model.graph))


def _quantised(model: onnx.ModelProto) -> Iterator[str]:
    node = quantised_node(model)
    if node is not None:
        yield (
            f"the source is quantised already, as {node.op_type} {node.name!r} shows: 'float' is"
            " that model as it came; give the model it was made from to have it quantised here"
        )


def _enclosed(graph: onnx.GraphProto) -> Iterator[str]:
    scalars = {value.name for value in graph.input if _is_scalar(value)}
    for node in graph.node:
        inner = weighted_inside(node)
        if inner is None:
            continue
        deciding = sorted(_inputs_behind(node.input[0], graph)) if node.op_type == "If" else []
        advice = ""
        if deciding and scalars.issuperset(deciding):
            advice = f": {' '.join(f'--fix {name}=VALUE' for name in deciding)} would resolve it"
        yield (
            f"work inside of {node.op_type} {node.name!r}, such as {inner.op_type}"
            f" {inner.name!r}, stays as it is{advice}"
        )


def _is_scalar(value: onnx.ValueInfoProto) -> bool:
    """Whether an input is a single number, as a sampling rate or a switch is."""
    return all(dim.dim_value == 1 for dim in value.type.tensor_type.shape.dim)


def _inputs_behind(name: str, graph: onnx.GraphProto) -> set[str]:
    """The inputs of the graph that a tensor is computed from."""
    makers = {output: node for node in graph.node for output in node.output if output}
    seen: set[str] = set()
    pending = [name]
    while pending:
        tensor = pending.pop()
        if tensor not in seen:
            seen.add(tensor)
            pending += reads_of(makers[tensor]) if tensor in makers else ()
    return seen & {value.name for value in graph.input}
