"""Activations: how much memory the tensors of one run take at their largest, weights aside.

The largest sum of tensors that are alive at once when nodes run in order, without in-place reuse:
an upper bound for an engine that frees what it no longer needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper

from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.macs import shapes_of
from edgekit_converters.normal.graphs import bodies_of

_NO_SIZE = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)


@dataclass(frozen=True)
class Step:
    """One node: what it reads and makes, and what its subgraph needs beside, in bytes."""

    reads: Sequence[str]
    makes: Sequence[str]
    inside_bytes: int = 0


def peak_bytes(
    steps: Sequence[Step],
    sizes: Mapping[str, int],
    *,
    inputs: Iterable[str],
    outputs: Iterable[str],
) -> int | None:
    """The largest sum of live tensors; None where the size of one is not known.

    Args:
        steps: in the order in which they run.
        sizes: bytes by tensor; constants are not among what steps make.
        inputs: alive from the beginning, until they are last read.
        outputs: alive until the end.
    """
    last = {name: i for i, step in enumerate(steps) for name in step.reads}
    last |= dict.fromkeys(outputs, len(steps))
    alive = set(inputs)
    peak = 0
    for i, step in enumerate(steps):
        alive |= {name for name in step.makes if name}
        if not alive <= sizes.keys():
            return None
        peak = max(peak, sum(sizes[name] for name in alive) + step.inside_bytes)
        alive = {name for name in alive if last.get(name, -1) > i}
    return peak


def peak_activation_bytes(model: onnx.ModelProto) -> int | None:
    """The largest sum of live tensors for one sample; None where a shape is not known.

    A subgraph (of an If, the hungrier branch) adds its own peak to that of its node.
    """
    shapes = shapes_of(model)
    return _graph_peak(model.graph, shapes)


def _graph_peak(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    constants = {tensor.name for tensor in graph.initializer}
    steps = []
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        insides = [_body_peak(body) for body in bodies_of(node)]
        if None in insides:
            return None
        inside_bytes = max((inside or 0 for inside in insides), default=0)
        steps.append(Step(reads_of(node), list(node.output), inside_bytes))
    return peak_bytes(
        steps,
        _tensor_bytes(graph, shapes),
        inputs={value.name for value in graph.input} - constants,
        outputs=[value.name for value in graph.output],
    )


def _body_peak(body: onnx.GraphProto) -> int | None:
    inside = onnx.ModelProto(graph=body)
    return _graph_peak(inside.graph, shapes_of(inside))


def _tensor_bytes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        element = value.type.tensor_type.elem_type
        if value.name in shapes and element not in _NO_SIZE:
            itemsize = helper.tensor_dtype_to_np_dtype(element).itemsize
            sizes[value.name] = prod(shapes[value.name]) * itemsize
    return sizes
