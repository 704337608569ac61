"""Infer: types and shapes of the tensors inside a model, as far as they can be known.

A model whose shapes cannot be inferred is still a model: what fails is said in a note, and the next
weaker way is tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, shape_inference

from edgekit_converters.normal.graphs import copy_of, detached, first_line, graphs_in, serialise
from edgekit_runtime.engines import ENGINES

_SHAPE = ".edgekit.shape"
_ERRORS = (shape_inference.InferenceError, RuntimeError, ValueError)


def infer(model: onnx.ModelProto, notes: list[str]) -> None:
    """Write inferred types and shapes into the model; what cannot be inferred is left out.

    Values of small integer tensors are followed (`data_prop`), so that computed shapes are known;
    where that fails, shapes are inferred without, and a note says so. What the exporter recorded
    counts only for tensors that cannot be inferred: it may be stale.
    """
    light, _ = detached(model)
    recorded = {value.name: value for value in model.graph.value_info}
    for graph in graphs_in(light.graph):
        del graph.value_info[:]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = _inferred(light, notes)
    if found is None:
        return
    missing = [recorded[name] for name in unknown_shapes(found) if name in recorded]
    if missing:
        names = {value.name for value in missing}
        known = [value for value in found.graph.value_info if value.name not in names]
        del found.graph.value_info[:]
        found.graph.value_info.extend([*known, *missing])
        found = _inferred(found, []) or found
    for value, declared in zip(found.graph.output, model.graph.output, strict=True):
        _complete(value.type.tensor_type, declared.type.tensor_type)
    # Nodes too: the tensors of a subgraph are described inside its node.
    for field in ("node", "value_info", "output"):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(getattr(found.graph, field))


def _inferred(light: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto | None:
    try:
        return shape_inference.infer_shapes(light, data_prop=True)
    except _ERRORS as e:
        followed = first_line(e)
    try:
        found = shape_inference.infer_shapes(light)
    except _ERRORS as e:
        notes.append(f"shapes inside the model are not known: {first_line(e)}")
        return None
    notes.append(f"computed shapes inside the model are not known: {followed}")
    return found


def _complete(inferred: onnx.TypeProto.Tensor, declared: onnx.TypeProto.Tensor) -> None:
    """Take from an output's declared shape what inference does not tell, where both can be true."""
    if not declared.HasField("shape"):
        return
    if not inferred.HasField("shape"):
        inferred.shape.CopyFrom(declared.shape)
    if len(inferred.shape.dim) != len(declared.shape.dim):
        return
    for dim, said in zip(inferred.shape.dim, declared.shape.dim, strict=True):
        if not dim.HasField("dim_value"):
            dim.CopyFrom(said)


def unknown_shapes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Tensors made in the main graph whose rank or sizes are not known, axis 0 aside."""
    known = {
        value.name
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim[1:])
    }
    made = [name for node in model.graph.node for name in node.output if name]
    return tuple(name for name in made if name not in known)


def observed_shapes(
    model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], *, scratch: Path
) -> dict[str, tuple[int, ...]]:
    """Shapes that the tensors of the main graph take when the model runs on one feed.

    Only shapes leave the graph, so this needs no more memory than a run. They are the truth for
    this feed and for no other: use them where sizes are fixed and inference fails.

    Args:
        feed: one value for each input.
        scratch: a folder for a temporary model.

    Raises:
        EngineError: the model cannot be run on this feed.
    """
    asked = copy_of(model)
    names = [name for node in model.graph.node for name in node.output if name]
    for name in names:
        asked.graph.node.append(helper.make_node("Shape", [name], [name + _SHAPE]))
        asked.graph.output.append(
            helper.make_tensor_value_info(name + _SHAPE, onnx.TensorProto.INT64, None)
        )
    path = scratch / "observe.onnx"
    path.write_bytes(serialise(asked))
    session = ENGINES.get("onnxruntime").open(path, options={})
    try:
        results = session.run(feed)
    finally:
        session.close()
        path.unlink()
    return {name: tuple(results[name + _SHAPE].tolist()) for name in names}


def with_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model with these shapes for tensors whose element type is known and shape is not."""
    shaped = copy_of(model)
    missing = set(unknown_shapes(model))
    for value in shaped.graph.value_info:
        if value.name in missing & shapes.keys() and value.type.tensor_type.elem_type:
            element = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, element, shapes[value.name]))
    return shaped
