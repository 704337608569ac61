"""The forward graph of a model, read once and made fit to be differentiated.

After `read_forward` every later step may trust that: nodes are in topological order and free of
local functions, the opset is one that the gradient rules are written for, the batch is dynamic,
and shapes and element types are inferred as far as ONNX can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, inliner, shape_inference, version_converter

from edgekit.errors import ModelError
from edgekit_converters.autodiff.graph import TensorType

OLDEST_OPSET = 17
"""Older models are raised to this opset."""
NEWEST_OPSET = 22
"""The newest opset that the gradient rules were checked against."""
BATCH = "batch"
"""Name of the dynamic batch dimension."""


@dataclass(frozen=True)
class Forward:
    """A model as the differentiation sees it.

    Attributes:
        nodes: the nodes, in topological order.
        inputs: the inputs that are not weights, with their types; the batch is dynamic.
        outputs: names of the outputs.
        initialisers: the stored constants by name, in the model's order.
        types: what is known of each tensor.
        opsets: the operator sets, of which the standard one lies within the limits above.
    """

    nodes: list[onnx.NodeProto]
    inputs: dict[str, TensorType]
    outputs: list[str]
    initialisers: dict[str, onnx.TensorProto]
    types: dict[str, TensorType]
    opsets: list[onnx.OperatorSetIdProto]


def read_forward(model: onnx.ModelProto) -> Forward:
    """Check a model, raise its opset where needed, free its batch and infer its shapes.

    The model passed in is not changed.

    Raises:
        ModelError: the model is not valid ONNX, keeps weights sparse or in other files, uses an
            opset beyond `NEWEST_OPSET`, or has an input that is not a tensor.
    """
    if any(c.data_location == TensorProto.EXTERNAL for c in model.graph.initializer):
        raise ModelError(
            "the weights of the model lie in another file and were not loaded",
            hint="load it with onnx.load(path), which reads external data",
        )
    if model.graph.sparse_initializer:
        raise ModelError(
            "the model holds sparse initialisers, which cannot be trained through",
            hint="store them as dense tensors",
        )
    model = _raise_opset(inliner.inline_local_functions(model) if model.functions else model)
    model = _infer(_free_batch(model))
    # Checked after inference, since many exporters leave out the shapes of outputs.
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise ModelError(
            f"the model is not valid ONNX: {e}",
            hint="check it with onnx.checker.check_model; outputs that no shape can be inferred "
            "for must declare one",
        ) from e
    graph = model.graph
    constants = {c.name: c for c in graph.initializer}
    types = {v.name: _type_of(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {c.name: TensorType(c.data_type, tuple(c.dims)) for c in constants.values()}
    known = {name: kind for name, kind in types.items() if kind is not None}
    inputs = [v.name for v in graph.input if v.name not in constants]
    for name in inputs:
        if name not in known:
            raise ModelError(f"input {name!r} is not a tensor; only tensors can be fed in training")
    return Forward(
        nodes=list(graph.node),
        inputs={name: known[name] for name in inputs},
        outputs=[v.name for v in graph.output],
        initialisers=constants,
        types=known,
        opsets=list(model.opset_import),
    )


def choose_output(forward: Forward, output: str | None) -> str:
    """Return the output that the loss reads: the one named, or the only one."""
    names = forward.outputs
    if output is None and len(names) == 1:
        return names[0]
    if output in names:
        return output
    said = "has several outputs" if output is None else f"has no output {output!r}"
    raise ModelError(f"the model {said}: {', '.join(names)}", hint="name one of them as output=")


def check_batch(forward: Forward, scores: str) -> None:
    """Refuse a model whose batch is dynamic at its inputs and a number at its scores."""
    batched = any(kind.shape and kind.shape[0] == BATCH for kind in forward.inputs.values())
    kind = forward.types.get(scores)
    if batched and kind is not None and kind.shape and isinstance(kind.shape[0], int):
        raise ModelError(
            f"tensor {scores!r} has a batch of {kind.shape[0]} for any batch at the inputs: "
            "a constant shape inside the model fixes it",
            hint="export the model with a dynamic batch dimension",
        )


def _standard_opset(opsets: Sequence[onnx.OperatorSetIdProto]) -> int:
    return max((o.version for o in opsets if o.domain in ("", "ai.onnx")), default=0)


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = _standard_opset(model.opset_import)
    if opset > NEWEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset}, and gradients are known up to {NEWEST_OPSET}",
            hint=f"export the model with opset {OLDEST_OPSET} to {NEWEST_OPSET}",
        )
    if opset >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, OLDEST_OPSET)
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"the model uses opset {opset}, and raising it to {OLDEST_OPSET} failed: {e}",
            hint=f"export the model with opset {OLDEST_OPSET}",
        ) from e


def _free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with a dynamic batch, and forget the inner shapes that were written for one."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    constants = {c.name for c in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in constants or not dims:
            continue
        if not dims[0].HasField("dim_value") or dims[0].dim_value == 1:
            dims[0].dim_param = BATCH
    del graph.value_info[:]
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and (not dims[0].HasField("dim_value") or dims[0].dim_value == 1):
            dims[0].Clear()
    return freed


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as e:
        raise ModelError(
            f"shapes of the model do not fit together: {e}",
            hint="check that the model runs, with the batch dimension dynamic",
        ) from e


def _type_of(value: onnx.ValueInfoProto) -> TensorType | None:
    if not value.type.HasField("tensor_type"):
        return None
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return TensorType(kind.elem_type, None)
    dims = (
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
    )
    return TensorType(kind.elem_type, tuple(dims))


def value_info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, kind.element, kind.shape)
