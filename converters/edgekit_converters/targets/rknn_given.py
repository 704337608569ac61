"""Given: the ONNX file that Rockchip's toolkit is given, with a record of how it is quantised.

The toolkit simulates no file that it wrote, only what it has just built. So the file that it is
given stands in for what ships: with its record, it is all that building the same again takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import onnx
from onnx import helper

from edgekit.structs import Strict
from edgekit_converters.calibrate import MAX_SAMPLES
from edgekit_converters.passes.edits import is_standard, kept_label

NAME = "rknn"

Algorithm = Literal["normal", "kl_divergence", "mmse"]
Method = Literal["channel", "layer"]

_RECORD = "edgekit.rknn"


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of the toolkit's quantiser.

    Attributes:
        bits: of weights and activations.
        algorithm: how ranges are chosen; `mmse` takes 10 s and more for each sample.
        method: a scale for each output channel of a weight, or one for a whole layer.
        samples: calibration samples at most.
        keep_float: names of nodes that are left in half precision.
    """

    bits: Literal[8, 16] = 8
    algorithm: Algorithm = "normal"
    method: Method = "channel"
    samples: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)] = 32
    keep_float: tuple[str, ...] = ()


def label_of(options: Options) -> str:
    """A name for people and reports, unique for the options."""
    parts = [f"{NAME}/int{options.bits}", options.algorithm]
    if options.method != "channel":
        parts.append(options.method)
    if options.samples != Options().samples:
        parts.append(f"{options.samples}-samples")
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with defaults written out that the toolkit asks for and does not know."""
    for node in model.graph.node:
        written = {attribute.name for attribute in node.attribute}
        if is_standard(node, "LayerNormalization") and "epsilon" not in written:
            node.attribute.append(helper.make_attribute("epsilon", 1e-5))
    return model


def recorded(graph: onnx.ModelProto, options: Options | None) -> onnx.ModelProto:
    """The graph with a record of how it is quantised, so that the one file is all of a product."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    if options is not None:
        copy.metadata_props.add(key=_RECORD, value=msgspec.json.encode(options).decode())
    return copy


def with_record(given: onnx.ModelProto) -> tuple[onnx.ModelProto, Options | None]:
    """The graph and what `recorded` wrote into it; the model that is given loses the record."""
    records = {entry.key: entry.value for entry in given.metadata_props}
    own = records.pop(_RECORD, None)
    del given.metadata_props[:]
    helper.set_model_props(given, records)
    return given, None if own is None else msgspec.json.decode(own, type=Options)


def tensors_of(model: onnx.ModelProto, nodes: Sequence[str]) -> list[str]:
    """What these nodes make."""
    return [name for node in model.graph.node if node.name in nodes for name in node.output]
