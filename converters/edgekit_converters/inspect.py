"""Inspect: what a model is and what it costs, read from its graph; nothing is run.

Inputs, outputs and operators are the file's own. Costs are counted on the same graph with its
constants computed, so that shapes which an exporter left to be computed are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from edgekit.errors import UsageError
from edgekit.manifest import TensorSpec
from edgekit.structs import Strict
from edgekit_converters.activations import peak_activation_bytes
from edgekit_converters.macs import (
    Shape,
    constants_in,
    counting_notes,
    macs_by_node,
    shapes_of,
    size_of,
)
from edgekit_converters.normal.constants import fold_constants
from edgekit_converters.normal.graphs import graphs_in
from edgekit_converters.normal.infer import infer
from edgekit_converters.normalise import Constants, Shapes, normalise, opset_of, unknown_shapes
from edgekit_converters.source import OnnxSource, Source, TfliteSource, read

__all__ = [
    "ModelFacts",
    "Shape",
    "facts_of",
    "inspect_model",
    "macs_by_node",
    "operators",
    "peak_activation_bytes",
    "rows",
    "shapes_of",
]

_NO_LIMIT = 1 << 16
_LATEST_OPSET = onnx.defs.onnx_opset_version()
_NAMED = 5


class ModelFacts(Strict, frozen=True, kw_only=True):
    """A model in numbers; None where the format or unknown shapes do not tell.

    Attributes:
        operators: how many nodes of each type, those of subgraphs included.
        parameters: values in constants, those of subgraphs included.
        weight_bytes: what they take in the file.
        macs: multiply-accumulates of one sample.
        peak_activation_bytes: of one sample.
        unknown: nodes whose shapes are not known, and whose MACs are not counted.
        unknown_shapes: tensors whose sizes are not known, which leaves the peak unknown.
    """

    format: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int | None = None
    weight_bytes: int | None = None
    macs: int | None = None
    peak_activation_bytes: int | None = None
    unknown: tuple[str, ...] = ()
    unknown_shapes: tuple[str, ...] = ()
    opset: int | None = None
    ir: int | None = None
    notes: tuple[str, ...] = ()


def inspect_model(
    path: Path, *, shapes: Shapes | None = None, constants: Constants | None = None
) -> ModelFacts:
    """Facts about a model file; see `facts_of`.

    Raises:
        ModelError: the file cannot be read, or is no model.
    """
    return facts_of(read(path), shapes=shapes or {}, constants=constants or {})


def facts_of(source: Source, *, shapes: Shapes, constants: Constants) -> ModelFacts:
    """Facts about a model.

    Args:
        shapes: sizes for inputs of an ONNX model by name; -1 leaves an axis to the caller.
        constants: values for inputs of an ONNX model that are to be constants.

    Raises:
        UsageError: a shape or constant does not fit the model.
        ModelError: the model has inputs or outputs that cannot be served.
    """
    if isinstance(source, OnnxSource):
        return _onnx_facts(source, shapes, constants)
    if shapes or constants:
        raise UsageError(f"{source.path} is a TFLite model, whose inputs cannot be fixed")
    return _tflite_facts(source)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each type, most frequent first; those of subgraphs count too."""
    counts = Counter(node.op_type for graph in graphs_in(model.graph) for node in graph.node)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _onnx_facts(source: OnnxSource, shapes: Shapes, fixed: Constants) -> ModelFacts:
    normal = normalise(
        source.model,
        shapes=shapes,
        constants=fixed,
        max_opset=_LATEST_OPSET,
        max_ir=_NO_LIMIT,
        fold=False,
    )
    notes = list(normal.notes)
    model = normal.model
    fold_constants(model, [])
    infer(model, notes)
    macs, unknown = macs_by_node(model)
    peak = peak_activation_bytes(model)
    tensors = list(constants_in(source.model.graph))
    return ModelFacts(
        format="onnx",
        sha256=source.sha256,
        inputs=normal.inputs,
        outputs=normal.outputs,
        operators=operators(source.model),
        parameters=sum(size_of(tensor) for tensor in tensors),
        weight_bytes=sum(_stored_bytes(tensor) for tensor in tensors),
        macs=sum(macs.values()) if macs or not unknown else None,
        peak_activation_bytes=peak,
        unknown=unknown,
        unknown_shapes=unknown_shapes(model) if peak is None else (),
        opset=opset_of(source.model),
        ir=source.model.ir_version,
        notes=(*notes, *counting_notes(model)),
    )


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    """What the values take, without the tensor's name and shape."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return size_of(tensor) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _tflite_facts(source: TfliteSource) -> ModelFacts:
    # Both import LiteRT, which not every workstation has.
    from edgekit_converters.targets.litert import open_source, operator_counts
    from edgekit_converters.tflite import facts

    inputs, outputs = open_source(source)
    found = facts(source.path)
    return ModelFacts(
        format="tflite",
        sha256=source.sha256,
        inputs=inputs,
        outputs=outputs,
        operators=operator_counts(source),
        parameters=found.parameters,
        weight_bytes=found.weight_bytes,
        macs=found.macs,
        peak_activation_bytes=found.peak_activation_bytes,
        unknown=found.unknown,
    )


def rows(facts: ModelFacts) -> Sequence[tuple[str, str]]:
    """What a person wants to read, line by line."""
    lines = [("format", facts.format), ("sha256", facts.sha256)]
    if facts.opset is not None:
        lines.append(("opset, IR", f"{facts.opset}, {facts.ir}"))
    for title, specs in (("input", facts.inputs), ("output", facts.outputs)):
        lines += [(title, f"{s.name} {s.datatype} {list(s.shape)}") for s in specs]
    if facts.parameters is not None and facts.weight_bytes is not None:
        size = f"{facts.weight_bytes / 1e6:.2f} MB"
        lines.append(("parameters", f"{facts.parameters:,} in {size}"))
    if facts.macs is not None:
        missing = f", without {_few(facts.unknown)}" if facts.unknown else ""
        lines.append(("MACs", f"{facts.macs:,}{missing}"))
    elif facts.unknown:
        lines.append(("MACs", f"not known: no shapes of {_few(facts.unknown)}"))
    if facts.peak_activation_bytes is not None:
        lines.append(("peak activations", f"{facts.peak_activation_bytes / 1e6:.1f} MB"))
    elif facts.unknown_shapes:
        unknown = f"not known: no size of {_few(facts.unknown_shapes)}; give --input NAME=SHAPE"
        lines.append(("peak activations", unknown))
    counts = ", ".join(f"{name} {count}" for name, count in facts.operators.items())
    lines.append(("operators", counts))
    lines += [("note", note) for note in facts.notes]
    return lines


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
