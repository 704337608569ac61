"""QDQ: a float model as its own graph with QuantizeLinear and DequantizeLinear around chosen nodes.

Where pairs go is decided by onnxruntime's QDQ quantizer, whose graphs its kernels recognise. Around
it three things are done differently: weights are put into int8 here, in one piece; what has no
known range stays in float; and what is read in float is not rounded to 8 bits first, unless an int8
kernel needs it. On a text transformer with its matrix products alone in int8 that leaves a sixth of
the error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from msgspec import structs
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, shape_inference

from edgekit.errors import BuildError
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.grids import Activations, Grids, kept_ranges, kept_scale
from edgekit_converters.normalise import sort_nodes
from edgekit_converters.passes import Style
from edgekit_converters.passes.biases import bias_of, correct, is_matrix, plain_products
from edgekit_converters.passes.channels import pad_first_convolutions, widen_as_int8
from edgekit_converters.passes.edits import Constants, constants_of, copied, is_standard, swept
from edgekit_converters.passes.weights import (
    CONVOLUTIONS,
    PRODUCTS,
    WEIGHTED,
    Weight,
    lift_constants,
    scale_of,
    stem_of,
    store_as_int8,
    weight_of,
)
from edgekit_converters.ranges import Range, with_zero

# A bias is stored in int32 steps of its weight's scale times its input's; 16 times what would just
# not overflow costs a weight nothing that its channel's output could show.
_LARGEST_BIAS = 2.0**27


class Plan(Strict, frozen=True, kw_only=True):
    """What to quantise, and how.

    Attributes:
        nodes: names of the nodes that may be quantised.
        ranges: lowest and highest value to represent, by tensor.
        activations: unsigned of 8 or 16 bits, or symmetric and signed of 8.
        means: mean of each channel, by tensor that convolutions and Gemm nodes read: their biases
            are corrected where it is known.
        per_channel: a scale for each channel of a weight.
        grids: of an earlier bundle, kept where they fit.
    """

    nodes: frozenset[str]
    ranges: dict[str, Range]
    means: dict[str, NDArray[np.float64]]
    activations: Activations
    per_channel: bool
    style: Style
    grids: Grids | None = None


def quantised(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto | None:
    """The quantised form of a model in normal form; None where no node of known range has a weight.

    Raises:
        BuildError: a weight is not finite, or onnxruntime's quantizer refuses the graph.
    """
    copy = copied(model)
    lift_constants(copy)
    nodes = _of_known_range(copy, plan)
    ranges, means = plan.ranges, plan.means
    widened: dict[str, str] = {}
    # The kernels that want it are those for unsigned activations; others were not measured.
    if plan.activations == "u8" and plan.style == "onnxruntime":
        widened = pad_first_convolutions(copy, nodes)
        ranges = {**ranges, **{new: ranges[old] for new, old in widened.items()}}
        means = {**means, **{new: means[old] for new, old in widened.items() if old in means}}
    plain_products(copy, nodes)
    if plan.grids is not None:
        ranges = kept_ranges(copy, ranges, plan.grids, plan.activations)
    plan = structs.replace(plan, nodes=nodes, ranges=ranges, means=means)
    if not _store_weights(copy, plan):
        return None
    made = _with_pairs(copy, plan)
    widen_as_int8(made, widened)
    if plan.style != "qnn":
        _free_outputs(made, plan.nodes)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.ir_version = model.ir_version
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    # The quantizer appends its nodes; ONNX wants each behind what it reads.
    sort_nodes(made)
    return shape_inference.infer_shapes(swept(made))


def _of_known_range(model: onnx.ModelProto, plan: Plan) -> frozenset[str]:
    """The planned nodes whose float tensors all have a range, and which may be changed at all."""
    graph = model.graph
    constants = constants_of(graph)
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    inside = {name for node in graph.node for name in reads_of(node) if name not in node.input}
    found = set()
    for node in graph.node:
        tensors = [name for name in (*node.input, *node.output) if name and name not in constants]
        known = all(
            name in plan.ranges or kinds.get(name, TensorProto.FLOAT) != TensorProto.FLOAT
            for name in tensors
        )
        # The quantizer takes these away, and does not see who reads their input inside of an If.
        removed = node.op_type in ("Clip", "Relu") and node.input[0] in inside
        bias = bias_of(node, constants) if is_standard(node, *WEIGHTED) else None
        no_kernel = bias is not None and is_matrix(bias)
        if node.name in plan.nodes and known and not removed and not no_kernel:
            found.add(node.name)
    return frozenset(found)


def _store_weights(model: onnx.ModelProto, plan: Plan) -> int:
    """Put the weights of the planned nodes into int8, in place; returns how many nodes."""
    constants = constants_of(model.graph)
    readers: dict[tuple[str, int | None], list[tuple[Weight, onnx.NodeProto]]] = {}
    for node in model.graph.node:
        weight = weight_of(node, constants) if node.name in plan.nodes else None
        if weight is not None:
            axis = weight.channels if _scaled_by_channel(node, weight, plan) else None
            readers.setdefault((weight.tensor, axis), []).append((weight, node))
    for (tensor, axis), of_tensor in readers.items():
        values = numpy_helper.to_array(constants[tensor])
        floors = [
            _least_scale(node, constants, plan, by_channel=axis is not None)
            for _, node in of_tensor
        ]
        floor = np.max(floors, axis=0)
        try:
            scale = scale_of(values, axis=axis, floor=floor)
        except BuildError as e:
            raise BuildError(f"{tensor!r}: {e}", hint=e.hint) from e
        if plan.grids is not None:
            earlier = plan.grids.weights.get(stem_of(tensor, axis))
            scale = kept_scale(values, scale, earlier, axis=axis, floor=floor)
        rounded = store_as_int8(model, tensor, axis, values, scale)
        for weight, node in of_tensor:
            correct(model, node, weight, rounded.error, plan.means)
            node.input[weight.position] = rounded.name
    return sum(len(of_tensor) for of_tensor in readers.values())


def _scaled_by_channel(node: onnx.NodeProto, weight: Weight, plan: Plan) -> bool:
    """Qualcomm's HTP takes a scale for each channel from convolutions and Gemm alone."""
    taken = plan.style != "qnn" or node.op_type != "MatMul"
    return plan.per_channel and weight.scaled_by_channel and taken


def _least_scale(
    node: onnx.NodeProto, constants: Constants, plan: Plan, *, by_channel: bool
) -> NDArray[np.float64]:
    """The least scale of a weight, by channel or not, at which its node's bias fits in int32."""
    bias = bias_of(node, constants)
    if bias is None:
        return np.zeros(())
    low, high = with_zero(plan.ranges[node.input[0]])
    if plan.activations == "s8":
        step = 2 * max(-low, high) / 254
    else:
        step = (high - low) / (65535 if plan.activations == "u16" else 255)
    terms = np.abs(numpy_helper.to_array(bias)).astype(np.float64)
    largest = terms if by_channel else terms.max()
    return np.asarray(largest / (step * _LARGEST_BIAS) if step else np.zeros_like(largest))


def _with_pairs(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Run onnxruntime's quantizer over the model; it changes the one it is given."""
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    # The quantizer would else save and reload the model to infer what is inferred already.
    mark = model.metadata_props.add()
    mark.key, mark.value = "onnx.infer", "onnxruntime.quant"
    kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8, "u16": QuantType.QUInt16}
    try:
        with _quiet():
            quantizer: Any = QDQQuantizer(
                model,
                per_channel=plan.per_channel,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=kinds[plan.activations],
                tensors_range={
                    name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                    for name, (low, high) in plan.ranges.items()
                },
                nodes_to_quantize=plan.nodes,
                nodes_to_exclude=(),
                op_types_to_quantize={node.op_type for node in model.graph.node},
                extra_options=_extra_options(plan),
            )
            made: onnx.ModelProto = quantizer.quantize_model()
    # The library raises whatever its own steps raise; for a build they all mean the same.
    except Exception as e:
        raise BuildError(
            f"onnxruntime cannot quantise this model: {e}",
            hint="the float model is still built; try only: weighted in the recipe",
        ) from e
    return made


def _extra_options(plan: Plan) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "ActivationSymmetric": plan.activations == "s8",
        "WeightSymmetric": True,
    }
    if plan.style == "tensorrt":
        extra |= {
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        }
    return extra


def _free_outputs(model: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Take away, in place, pairs that round what is then read in float, where no kernel needs them.

    That is an output of the model, unless of a convolution; and the result of a matrix product
    that no quantised node reads. Nodes may be out of order afterwards.

    Args:
        nodes: names of those that are quantised.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    gone: set[str] = set()
    for last in graph.node:
        pair = _pair_before(last, makers)
        if pair is None:
            continue
        first, source = pair
        real, result = first.input[0], last.output[0]
        inside = result not in outputs
        if source.op_type in CONVOLUTIONS or (inside and source.op_type not in PRODUCTS):
            continue
        in_int8 = any(node.name in nodes for node in readers.get(result, ()))
        if in_int8 or len(readers[real]) > 1 or len(readers[first.output[0]]) > 1:
            continue
        source.output[list(source.output).index(real)] = result
        gone |= {first.name, last.name}
    kept = [node for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(kept)


def _pair_before(
    last: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The QuantizeLinear in front of a DequantizeLinear, and the node in front of both."""
    first = makers.get(last.input[0]) if last.op_type == "DequantizeLinear" else None
    if first is None or first.op_type != "QuantizeLinear":
        return None
    source = makers.get(first.input[0])
    return None if source is None else (first, source)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises on the root logger about steps that a build has done differently."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
