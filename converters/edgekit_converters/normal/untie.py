"""Untie: weights that several layers share, one copy for each layer, and back again.

A pass that scales, prunes or quantises one layer must not change another. An exporter that stored
equal tensors once, or a network that reuses a layer, would couple them. Copies cost memory, so they
are bounded; a file need not pay for them, as equal tensors are stored once when it is written.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import onnx

from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.normal.graphs import copy_of

LARGEST_COPIES_BYTES = 64 << 20
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SMALLEST_SHARED_BYTES = 1 << 10


def untie(model: onnx.ModelProto, notes: list[str]) -> None:
    """Give each Conv, ConvTranspose, Gemm and MatMul weights and a bias that nobody else reads.

    The copies together take at most `LARGEST_COPIES_BYTES`; tensors for which no room is left stay
    shared, and a note names them.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    taken = set(tensors) | {name for node in graph.node for name in (*node.input, *node.output)}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in sorted(tensors.keys() & set(reads_of(node))):
            readers[name].append(node)
    room_bytes = LARGEST_COPIES_BYTES
    for name, nodes in readers.items():
        weighted = [node for node in nodes if node.op_type in _WEIGHTED and not node.domain]
        # The tensor itself stays with the first layer, unless someone else needs it unchanged.
        others = len(weighted) < len(nodes) or name in outputs
        copied = weighted if others else weighted[1:]
        cost_bytes = len(copied) * tensors[name].ByteSize()
        if cost_bytes > room_bytes:
            notes.append(f"{name!r} stays shared by {len(nodes)} nodes: copies would take too much")
            continue
        room_bytes -= cost_bytes
        for node in copied:
            copy = graph.initializer.add()
            copy.CopyFrom(tensors[name])
            copy.name = _fresh(name, taken)
            for position, read in enumerate(node.input):
                if read == name:
                    node.input[position] = copy.name


def retied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with equal initialisers of 1 kB and more stored once, as its file should have it.

    Only the main graph is looked at; names of weights that are left are those that come first.
    """
    tied = copy_of(model)
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        if tensor.ByteSize() >= _SMALLEST_SHARED_BYTES:
            nameless = onnx.TensorProto()
            nameless.CopyFrom(tensor)
            nameless.ClearField("name")
            key = hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()
            if first.setdefault(key, tensor.name) != tensor.name:
                renamed[tensor.name] = first[key]
                continue
        kept.append(tensor)
    inside = {name for node in tied.graph.node for name in set(reads_of(node)) - set(node.input)}
    inside |= {value.name for value in tied.graph.output}
    kept += [tensor for tensor in model.graph.initializer if tensor.name in renamed.keys() & inside]
    renamed = {name: other for name, other in renamed.items() if name not in inside}
    del tied.graph.initializer[:]
    tied.graph.initializer.extend(kept)
    for node in tied.graph.node:
        for position, read in enumerate(node.input):
            node.input[position] = renamed.get(read, read)
    return tied


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while (fresh := f"{name}.copy{number}") in taken:
        number += 1
    taken.add(fresh)
    return fresh
