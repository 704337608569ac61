"""Normalise: the one form of an ONNX model that passes and targets start from.

Shapes are fixed where the caller asks for it, the opset lies within what passes need and the engine
runs, constants are folded, every node has a name, and tensors carry inferred shapes. What could not
be done is said in the notes; the meaning of the model never changes. Where names of weights must
live on (a trainable model), nothing is folded.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import helper, shape_inference, version_converter

from edgekit.errors import BuildError, ModelError, UsageError
from edgekit.manifest import Datatype, TensorSpec
from edgekit_converters.autodiff.graph import reads_of

log = logging.getLogger(__name__)

# Below 13 QuantizeLinear has no axis, and what quantises per channel writes files that do not load;
# 17 is what onnxruntime's own tools are tested with.
MIN_OPSET = 17
_LARGEST_FOLDED_BYTES = 16 << 20

_DATATYPES: Mapping[int, Datatype] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}


@dataclass(frozen=True)
class Normalised:
    """A model in normal form, and what could not be done on the way."""

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def normalise(
    source: onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]],
    max_opset: int,
    max_ir: int,
    fold: bool = True,
) -> Normalised:
    """Bring a model into normal form; `source` is not changed.

    Args:
        shapes: sizes for inputs by name; -1 leaves an axis to the caller.
        max_opset: highest opset of the default domain that the engine runs.
        max_ir: highest ONNX IR version that the engine loads.
        fold: fold constants and fuse; this may rename or drop initialisers.

    Raises:
        UsageError: `shapes` names an input that the model does not have, or of another rank.
        BuildError: the model cannot be brought to an opset or IR that the engine takes.
        ModelError: an input or output has a type that no bundle can describe.
    """
    notes: list[str] = []
    model = fixed(source, shapes)
    model = _with_opset(model, max_opset, notes)
    if fold:
        model = _folded(model, notes)
    _name_nodes(model)
    model = _inferred(model, notes)
    _cap_ir(model, max_ir)
    return Normalised(
        model=model,
        inputs=tuple(spec_of(value) for value in model.graph.input),
        outputs=tuple(spec_of(value) for value in model.graph.output),
        notes=tuple(notes),
    )


def fixed(source: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The source as it is, with only its input shapes fixed: what answers are compared with."""
    model = _copy(source)
    _drop_initialised_inputs(model)
    _fix_shapes(model, shapes)
    return model


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, datatype and shape of a graph's input or output; sizes that are not fixed are -1."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in _DATATYPES:
        raise ModelError(
            f"{value.name!r} is not a tensor of a type that can be served",
            hint="sequences, maps and optional values must be taken out of the model's interface",
        )
    if not kind.HasField("shape"):
        raise ModelError(
            f"the shape of {value.name!r} is not known, not even its rank",
            hint=f"give it with --input {value.name}=1x3x224x224",
        )
    shape = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in kind.shape.dim)
    return TensorSpec(name=value.name, datatype=_DATATYPES[kind.elem_type], shape=shape)


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the default domain."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


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


def _drop_initialised_inputs(model: onnx.ModelProto) -> None:
    initialised = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in initialised]
    if not kept:
        raise ModelError("the model has no inputs: everything in it is constant")
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    inputs = {value.name: value for value in model.graph.input}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise UsageError(
                f"--input: the model has no input {name!r}",
                hint=f"its inputs are {', '.join(inputs)}",
            )
        shape = inputs[name].type.tensor_type.shape
        if inputs[name].type.tensor_type.HasField("shape") and len(shape.dim) != len(sizes):
            raise UsageError(
                f"--input: {name!r} has {len(shape.dim)} axes, {len(sizes)} sizes were given"
            )
        del shape.dim[:]
        for axis, size in enumerate(sizes):
            dim = shape.dim.add()
            if size > 0:
                dim.dim_value = size
            else:
                dim.dim_param = f"{name}_{axis}"
    if shapes:
        # Shapes recorded behind the inputs belong to the old sizes.
        del model.graph.value_info[:]
        for value in model.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def _with_opset(model: onnx.ModelProto, highest: int, notes: list[str]) -> onnx.ModelProto:
    current = opset_of(model)
    wanted = min(max(current, MIN_OPSET), highest)
    if wanted == current:
        return model
    try:
        return version_converter.convert_version(model, wanted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as e:
        if current > highest:
            raise BuildError(
                f"the model has opset {current}, the engine runs up to {highest},"
                f" and it cannot be brought down: {_first_line(e)}",
                hint=f"export the model with opset {highest}",
            ) from e
        notes.append(f"opset stays {current}: it cannot be raised to {wanted}: {_first_line(e)}")
        return model


def _folded(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    import onnxslim  # imports sympy, which takes a while

    try:
        slim = onnxslim.slim(_copy(model), size_threshold=_LARGEST_FOLDED_BYTES)
    # The library raises whatever its own steps raise; the model as it was is still right.
    except Exception as e:
        notes.append(f"constants were not folded: {_first_line(e)}")
        log.info("onnxslim failed", exc_info=e)
        return model
    if not isinstance(slim, onnx.ModelProto) or not _same_interface(slim, model):
        notes.append("constants were not folded: onnxslim changed the inputs or outputs")
        return model
    slim.producer_name = model.producer_name
    slim.producer_version = model.producer_version
    return slim


def _same_interface(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    return all(
        [value.name for value in a] == [value.name for value in b]
        for a, b in (
            (one.graph.input, other.graph.input),
            (one.graph.output, other.graph.output),
        )
    )


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: passes leave nodes in float by name."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{number}"
        seen.add(node.name)


def _inferred(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as e:
        notes.append(f"shapes inside the model are not known: {_first_line(e)}")
        return model


def _cap_ir(model: onnx.ModelProto, highest: int) -> None:
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    if needed > highest:
        raise BuildError(
            f"opset {opset_of(model)} needs ONNX IR {needed}, the engine loads up to {highest}",
            hint="lower max_opset in the profile, or export the model with an older opset",
        )
    model.ir_version = min(max(model.ir_version, needed), highest)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
