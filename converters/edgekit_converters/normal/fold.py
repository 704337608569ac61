"""Fold: constants are computed, nodes without effect go, batch normalisation joins its convolution.

onnxslim does what our own bounded folding of constants (`constants`) leaves to do: fusions,
duplicates, branches that are never taken. What it loses on the way, because its own graph has no
place for it, is put back: unused inputs, documentation, the model's identity.
"""

from __future__ import annotations

import logging

import onnx

from edgekit_converters.normal.constants import LARGEST_RESULT_BYTES, fold_constants
from edgekit_converters.normal.graphs import copy_of, first_line

log = logging.getLogger(__name__)

# Equal constants are left apart: passes change the weights of one layer at a time.
_NEVER = "weight_tying"
_CONSTANTS = "constant_folding"
_IDENTITY = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def folded(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """The simplest model found that computes the same; `notes` say what could not be done.

    Constants are computed in place; the rest is done on a copy.
    """
    import onnxslim  # imports sympy, which takes a while

    complete = fold_constants(model, notes)
    skipped = [_NEVER] if complete else [_NEVER, _CONSTANTS]
    try:
        slim = onnxslim.slim(
            copy_of(model), skip_optimizations=skipped, size_threshold=LARGEST_RESULT_BYTES
        )
    # The library raises whatever its own steps raise; the model as it was is still right.
    except Exception as e:
        notes.append(f"the graph was not simplified: {first_line(e)}")
        log.info("onnxslim failed", exc_info=e)
        return model
    if not isinstance(slim, onnx.ModelProto) or not _restored(slim, model):
        notes.append("the graph was not simplified: onnxslim changed the inputs or outputs")
        return model
    return slim


def _restored(slim: onnx.ModelProto, model: onnx.ModelProto) -> bool:
    """Put back what onnxslim drops; whether the model still has the interface it had."""
    inputs = [value.name for value in model.graph.input]
    if not {value.name for value in slim.graph.input} <= set(inputs):
        return False
    if [v.name for v in slim.graph.output] != [v.name for v in model.graph.output]:
        return False
    del slim.graph.input[:]
    slim.graph.input.extend(model.graph.input)
    for field in _IDENTITY:
        setattr(slim, field, getattr(model, field))
    slim.graph.doc_string = model.graph.doc_string
    del slim.metadata_props[:]
    slim.metadata_props.extend(model.metadata_props)
    return True
