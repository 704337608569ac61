"""Inspect: what a model is and what it costs, read from its graph.

MACs are multiplications of convolutions and matrix products at batch 1, where shapes are known.
Peak activation memory is the largest sum of tensors that are alive at once when nodes run in order,
without in-place reuse: an upper bound for an engine that frees what it no longer needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import onnx
from onnx import helper

from edgekit.manifest import TensorSpec
from edgekit.structs import Strict
from edgekit_converters.normalise import normalise, opset_of
from edgekit_converters.source import TfliteSource, read

_NO_LIMIT = 1 << 16
_LATEST_OPSET = onnx.defs.onnx_opset_version()

Shape = tuple[int, ...]


class ModelFacts(Strict, frozen=True, kw_only=True):
    """A model in numbers; None where the format or unknown shapes do not tell.

    Attributes:
        operators: how many nodes of each type.
        parameters: values in initialisers.
        macs: multiply-accumulates of one sample.
        peak_activation_bytes: of one sample.
        unknown: nodes whose shapes are not known, and whose MACs are not counted.
    """

    format: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int | None = None
    macs: int | None = None
    peak_activation_bytes: int | None = None
    unknown: tuple[str, ...] = ()
    opset: int | None = None
    ir: int | None = None
    notes: tuple[str, ...] = ()


def inspect_model(path: Path) -> ModelFacts:
    """Facts about a model file, raising `ModelError` where it cannot be read."""
    source = read(path)
    if isinstance(source, TfliteSource):
        return _inspect_tflite(source)
    normal = normalise(
        source.model, shapes={}, max_opset=_LATEST_OPSET, max_ir=_NO_LIMIT, fold=False
    )
    macs, unknown = macs_by_node(normal.model)
    return ModelFacts(
        format="onnx",
        sha256=source.sha256,
        inputs=normal.inputs,
        outputs=normal.outputs,
        operators=operators(normal.model),
        parameters=sum(prod(tensor.dims) for tensor in source.model.graph.initializer),
        macs=sum(macs.values()),
        peak_activation_bytes=peak_activation_bytes(normal.model),
        unknown=unknown,
        opset=opset_of(source.model),
        ir=source.model.ir_version,
        notes=normal.notes,
    )


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each type, most frequent first."""
    counts = Counter(node.op_type for node in model.graph.node)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def macs_by_node(model: onnx.ModelProto) -> tuple[dict[str, int], tuple[str, ...]]:
    """MACs of each node with weights or matrix products, and the nodes of unknown shape."""
    shapes = shapes_of(model)
    found: dict[str, int] = {}
    unknown = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        macs = _macs(node, shapes)
        if macs is None:
            unknown.append(node.name or node.output[0])
        else:
            found[node.name or node.output[0]] = macs
    return found, tuple(unknown)


def peak_activation_bytes(model: onnx.ModelProto) -> int | None:
    """The largest sum of live tensors for one sample; None where a shape is not known."""
    sizes = _tensor_bytes(model)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    alive = {value.name for value in graph.input} - constants
    peak = 0
    for i, node in enumerate(graph.node):
        alive |= {name for name in node.output if name}
        if not alive <= sizes.keys():
            return None
        peak = max(peak, sum(sizes[name] for name in alive))
        alive = {name for name in alive if last_use.get(name, -1) > i}
    return peak


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Known shapes by tensor; the caller's axes count as 1 where they come first."""
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    graph = model.graph
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


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    first, second = shapes.get(node.input[0]), shapes.get(node.input[1])
    output = shapes.get(node.output[0])
    if first is None or second is None or output is None:
        return None
    if node.op_type == "Conv":
        return prod(output) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(output) * (first[0] if transposed else first[1])
    return prod(output) * first[-1]


def _tensor_bytes(model: onnx.ModelProto) -> dict[str, int]:
    shapes = shapes_of(model)
    graph = model.graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        element = value.type.tensor_type.elem_type
        if value.name in shapes and element not in (0, onnx.TensorProto.STRING):
            itemsize = helper.tensor_dtype_to_np_dtype(element).itemsize
            sizes[value.name] = prod(shapes[value.name]) * itemsize
    return sizes


def _inspect_tflite(source: TfliteSource) -> ModelFacts:
    from edgekit_converters.targets.litert import open_source, operator_counts

    inputs, outputs = open_source(source)
    return ModelFacts(
        format="tflite",
        sha256=source.sha256,
        inputs=inputs,
        outputs=outputs,
        operators=operator_counts(source),
    )


def rows(facts: ModelFacts) -> Sequence[tuple[str, str]]:
    """What a person wants to read, line by line."""
    lines = [("format", facts.format), ("sha256", facts.sha256)]
    if facts.opset is not None:
        lines.append(("opset, IR", f"{facts.opset}, {facts.ir}"))
    for title, specs in (("input", facts.inputs), ("output", facts.outputs)):
        lines += [(title, f"{s.name} {s.datatype} {list(s.shape)}") for s in specs]
    if facts.parameters is not None:
        lines.append(("parameters", f"{facts.parameters:,}"))
    if facts.macs is not None:
        lines.append(("MACs", f"{facts.macs:,}"))
    if facts.peak_activation_bytes is not None:
        lines.append(("peak activations", f"{facts.peak_activation_bytes / 1e6:.1f} MB"))
    counts = ", ".join(f"{name} {count}" for name, count in facts.operators.items())
    lines.append(("operators", counts))
    lines += [("note", note) for note in facts.notes]
    return lines
