"""Graphs: what every step asks of an ONNX model, and nothing that changes its meaning."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import onnx
from google.protobuf.message import EncodeError
from onnx import helper

from edgekit.errors import BuildError, ModelError
from edgekit_converters.autodiff.graph import reads_of

_SMALL_BYTES = 1 << 10


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the default domain."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own, weights included."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def detached(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with large initialisers of its main graph as inputs, and these initialisers.

    onnx's own tools write a model out and read it back; without weights that costs little, and what
    they do depends on types and on small constants only.
    """
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(light, field.name).extend(value)
        else:
            setattr(light, field.name, value)
    weights = []
    for field, value in model.graph.ListFields():
        if not field.is_repeated:
            setattr(light.graph, field.name, value)
        elif field.name != "initializer":
            getattr(light.graph, field.name).extend(value)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL_BYTES:
            light.graph.initializer.add().CopyFrom(tensor)
            continue
        weights.append(tensor)
        kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        light.graph.input.append(onnx.ValueInfoProto(name=tensor.name, type=kind))
    return light, weights


def attach(model: onnx.ModelProto, weights: Sequence[onnx.TensorProto]) -> None:
    """Undo `detached` on the model that a tool made of it."""
    names = {tensor.name for tensor in weights}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(weights)


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of one node (If, Loop, Scan), in the order of its attributes."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every subgraph below it, outermost first."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_in(body)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put each node of the main graph behind those that it reads, else in the order they had."""
    nodes = list(model.graph.node)
    makers = {output: i for i, node in enumerate(nodes) for output in node.output if output}
    waits = [{makers[name] for name in reads_of(node) if name in makers} for node in nodes]
    readers: dict[int, list[int]] = {}
    for i, makers_of in enumerate(waits):
        for maker in makers_of:
            readers.setdefault(maker, []).append(i)
    ready = [i for i, makers_of in enumerate(waits) if not makers_of]
    ordered = []
    while ready:
        i = heapq.heappop(ready)
        ordered.append(nodes[i])
        for reader in readers.get(i, ()):
            waits[reader].discard(i)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) != len(nodes):
        raise ModelError("the model's nodes wait for each other in a circle")
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def serialise(model: onnx.ModelProto) -> bytes:
    """The bytes of a model; the same model gives the same bytes."""
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as e:
        raise BuildError(
            "the model with its weights is larger than 2 GB, the most one ONNX file holds",
            hint="convert its weights to fp16 before the build",
        ) from e


def first_line(error: Exception) -> str:
    """What an error of another library says, cut down to what fits a note."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
