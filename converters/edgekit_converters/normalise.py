"""Normalise: the one form of an ONNX model that passes and targets start from.

Shapes and constant inputs are fixed where the caller asks for it, functions are inlined, the opset
lies within what passes need and the engine runs, constants are folded, no two layers share weights,
every node has a name, and tensors carry inferred shapes. What could not be done is said in the
notes; the meaning of the model never changes. Where names of weights must live on (a trainable
model), nothing is folded and nothing untied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
from onnx import helper

from edgekit.errors import BuildError
from edgekit.manifest import TensorSpec
from edgekit_converters.normal.constants import fold_constants
from edgekit_converters.normal.fold import folded
from edgekit_converters.normal.graphs import copy_of, opset_of, serialise, sort_nodes
from edgekit_converters.normal.infer import infer, observed_shapes, unknown_shapes, with_shapes
from edgekit_converters.normal.interface import (
    Constants,
    Shapes,
    check_reshapes,
    drop_initialised_inputs,
    fix_constants,
    fix_shapes,
    parse_constant,
    require_no_texts,
    require_tensors,
    shapes_from,
    spec_of,
)
from edgekit_converters.normal.opset import inlined, with_opset
from edgekit_converters.normal.untie import retied, untie

__all__ = [
    "MIN_OPSET",
    "Constants",
    "Normalised",
    "Shapes",
    "fixed",
    "normalise",
    "observed_shapes",
    "opset_of",
    "parse_constant",
    "require_no_texts",
    "retied",
    "serialise",
    "shapes_from",
    "sort_nodes",
    "spec_of",
    "unknown_shapes",
    "with_constants",
    "with_shapes",
]

# Below 13 QuantizeLinear has no axis, and what quantises per channel writes files that do not load;
# 17 is what onnxruntime's own tools are tested with.
MIN_OPSET = 17


@dataclass(frozen=True)
class Normalised:
    """A model in normal form, and what could not be done on the way."""

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = field(default=())


def normalise(
    source: onnx.ModelProto,
    *,
    shapes: Shapes,
    max_opset: int,
    max_ir: int,
    constants: Constants | None = None,
    fold: bool = True,
) -> Normalised:
    """Bring a model into normal form; `source` is not changed.

    Args:
        shapes: sizes for inputs by name; -1 leaves an axis to the caller.
        max_opset: highest opset of the default domain that the engine runs.
        max_ir: highest ONNX IR version that the engine loads.
        constants: values for inputs that are to be constants, by name.
        fold: fold constants, fuse and untie; this may rename or drop initialisers.

    Raises:
        UsageError: `shapes` or `constants` name an input that the model does not have, or do not
            fit it.
        BuildError: the model cannot be brought to an opset or IR that the engine takes.
        ModelError: an input or output has a type that no bundle can describe, or a part of the
            model was made for one shape only.
    """
    notes: list[str] = []
    model = inlined(fixed(source, shapes, constants))
    model = with_opset(model, lowest=MIN_OPSET, highest=max_opset, notes=notes)
    if fold:
        model = folded(model, notes)
        untie(model, notes)
    _name_nodes(model)
    infer(model, notes)
    if shapes:
        check_reshapes(model, shapes)
    _cap_ir(model, max_ir)
    return Normalised(
        model=model,
        inputs=tuple(spec_of(value) for value in model.graph.input),
        outputs=tuple(spec_of(value) for value in model.graph.output),
        notes=tuple(notes),
    )


def fixed(
    source: onnx.ModelProto, shapes: Shapes, constants: Constants | None = None
) -> onnx.ModelProto:
    """The source as it is, with only its inputs fixed: what answers are compared with."""
    model = copy_of(source)
    require_tensors(model)
    drop_initialised_inputs(model)
    fix_shapes(model, shapes)
    if constants:
        fix_constants(model, constants)
        # onnxruntime 1.31 crashes on some branches that it resolves itself.
        fold_constants(model, [])
    return model


def with_constants(source: onnx.ModelProto, values: Constants) -> onnx.ModelProto:
    """The source with inputs replaced by constants: branches that depend on them can be folded.

    Raises `UsageError` where a name is no input or a value does not fit.
    """
    return fixed(source, {}, values)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: passes leave nodes in float by name."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{number}"
        seen.add(node.name)


def _cap_ir(model: onnx.ModelProto, highest: int) -> None:
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    if needed > highest:
        raise BuildError(
            f"opset {opset_of(model)} needs ONNX IR {needed}, the engine loads up to {highest}",
            hint="lower max_opset in the profile, or export the model with an older opset",
        )
    model.ir_version = min(max(model.ir_version, needed), highest)
