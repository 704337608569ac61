"""Opset: raise a model to the operators that passes need, where its meaning survives.

onnx's version converter does the work. What it gets wrong was found by converting a minimal model
of every operator that changed between opsets 7 and 17 and comparing answers in onnxruntime:

- Upsample and the Resize of opset 10 map coordinates by scale alone; converted, they take the
  default of later opsets, the half-pixel mapping. Repaired here by their attributes.
- Hardmax worked on a matrix folded at its axis; converted, it works along the axis. Where the two
  differ the opset stays as it is.

A conversion that fails leaves the model as it was, with a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, version_converter

from edgekit.errors import BuildError
from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.normal.graphs import (
    attach,
    bodies_of,
    detached,
    first_line,
    graphs_in,
    opset_of,
)

_RESIZE_WITH_MODES = 11
_HARDMAX_ALONG_AXIS = 13
_STANDARD = ("", "ai.onnx")


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with calls of its own functions replaced by their bodies.

    Raises:
        BuildError: a function cannot be inlined.
    """
    if not model.functions:
        return model
    try:
        flat = inliner.inline_local_functions(model, convert_version=True)
    except (RuntimeError, ValueError) as e:
        raise BuildError(
            f"the model's own functions cannot be inlined: {first_line(e)}",
            hint="export the model without local functions",
        ) from e
    gone = {function.domain for function in model.functions}
    used = {node.domain for graph in graphs_in(flat.graph) for node in graph.node}
    kept = [o for o in flat.opset_import if o.domain not in gone - used or o.domain in _STANDARD]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    return flat


def with_opset(
    model: onnx.ModelProto, *, lowest: int, highest: int, notes: list[str]
) -> onnx.ModelProto:
    """The model between two opsets where that is possible; else as it is, and a note says why.

    Raises:
        BuildError: the model is above `highest` and cannot be brought down.
    """
    current = opset_of(model)
    wanted = min(max(current, lowest), highest)
    if wanted == current:
        return model
    reason = _changed_meaning(model) if current < wanted else None
    if reason is None:
        try:
            light, weights = detached(model)
            converted = version_converter.convert_version(light, wanted)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as e:
            # The converter's assertions start with a path of its own sources.
            reason = first_line(e).rpartition("failed: ")[2]
            if current > highest:
                raise BuildError(
                    f"the model has opset {current}, the engine runs up to {highest},"
                    f" and it cannot be brought down: {reason}",
                    hint=f"export the model with opset {highest}",
                ) from e
        else:
            attach(converted, weights)
            if current < _RESIZE_WITH_MODES:
                _repair_resizes(converted)
            return converted
    notes.append(f"opset stays {current}: it cannot be raised to {wanted}: {reason}")
    return model


def _changed_meaning(model: onnx.ModelProto) -> str | None:
    """Why converting the model upwards would change what it computes; None where it would not."""
    if model.graph.sparse_initializer:
        return f"sparse tensor {model.graph.sparse_initializer[0].values.name!r} would be lost"
    opset = opset_of(model)
    for graph, constants in _scopes(model.graph, {}):
        ranks = _ranks(graph)
        for node in graph.node:
            if node.domain not in _STANDARD:
                continue
            where = f"{node.op_type} {node.name or node.output[0]!r}"
            if node.op_type == "Hardmax" and opset < _HARDMAX_ALONG_AXIS:
                axis, rank = attributes_of(node).get("axis", 1), ranks.get(node.input[0])
                if rank is None or axis % rank != rank - 1:
                    return f"{where} of axis {axis} would choose along that axis alone"
            old_resize = node.op_type == "Resize" and opset < _RESIZE_WITH_MODES
            if old_resize and _nearest_mode(node, constants.get(node.input[1])) is None:
                return f"{where} both enlarges and shrinks, or by a factor that is computed"
    return None


def _repair_resizes(model: onnx.ModelProto) -> None:
    """Give every Resize the mapping of coordinates that it had before opset 11."""
    names = ("coordinate_transformation_mode", "nearest_mode")
    for graph, constants in _scopes(model.graph, {}):
        for node in graph.node:
            if node.op_type != "Resize" or node.domain not in _STANDARD:
                continue
            # Factors that are computed were an Upsample's, which only enlarges.
            nearest_mode = _nearest_mode(node, constants.get(node.input[2])) or "floor"
            kept = [attribute for attribute in node.attribute if attribute.name not in names]
            del node.attribute[:]
            node.attribute.extend(kept)
            values = zip(names, ("asymmetric", nearest_mode), strict=True)
            node.attribute.extend(helper.make_attribute(*pair) for pair in values)


def _nearest_mode(node: onnx.NodeProto, scales: onnx.TensorProto | None) -> str | None:
    """How coordinates were rounded: down where it enlarges, up where it shrinks; None for both."""
    if attributes_of(node).get("mode", "nearest") != "nearest":
        return "floor"
    if scales is None:
        return None
    factors = numpy_helper.to_array(scales)
    if np.all(factors >= 1):
        return "floor"
    return "ceil" if np.all(factors <= 1) else None


def _scopes(
    graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]
) -> Iterator[tuple[onnx.GraphProto, Mapping[str, onnx.TensorProto]]]:
    """Each graph with the constants that its nodes see, outermost first."""
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    yield graph, constants
    for node in graph.node:
        for body in bodies_of(node):
            yield from _scopes(body, constants)


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
