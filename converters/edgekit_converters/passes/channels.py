"""Channels: a first convolution on three channels gets a fourth, of zeros.

onnxruntime's direct int8 convolution takes input channels in fours (MLAS, `MlasConvSymPackWSize`);
anything else goes through im2col, which for a picture costs more than the arithmetic. A channel of
zeros under weights of zero changes no answer. On EfficientNet-Lite0 it halves the time of the first
convolution, a twelfth of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MULTIPLE = 4


def pad_first_convolutions(model: onnx.ModelProto, nodes: Collection[str]) -> dict[str, str]:
    """Widen, in place, convolutions that read a graph input whose channels are no multiple of 4.

    Only those named, where the weight is a constant of that convolution alone, and the convolution
    has one group.

    Returns:
        By the name of the widened tensor that of the input it was made from. The node that widens
        has the name of its output.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input]
    widened: dict[str, str] = {}
    for node in list(graph.node):
        chosen = node.name in nodes and node.op_type == "Conv" and node.input[0] in inputs
        if not chosen or _groups(node) != 1:
            continue
        weight = weights.get(node.input[1])
        if weight is None or uses.count(weight.name) != 1 or weight.dims[1] % _MULTIPLE == 0:
            continue
        missing = -weight.dims[1] % _MULTIPLE
        source, target = node.input[0], f"{node.name}.widened"
        _widen(graph, inputs[source], target, missing=missing)
        values = numpy_helper.to_array(weight)
        more = [(0, missing if axis == 1 else 0) for axis in range(values.ndim)]
        weight.CopyFrom(numpy_helper.from_array(np.pad(values, more), weight.name))
        node.input[0] = target
        widened[target] = source
    return widened


def widen_as_int8(quantised: onnx.ModelProto, widened: Iterable[str]) -> None:
    """Quantise the input before it is widened, in place: a quarter of the bytes is padded.

    The zero point stands for the zeros. A widened tensor that something else than one
    QuantizeLinear reads is left as it is. Nodes may be out of order afterwards.
    """
    graph = quantised.graph
    for target in widened:
        readers = [node for node in graph.node if target in node.input]
        if [node.op_type for node in readers] != ["QuantizeLinear"]:
            continue
        (quantize,) = readers
        pad = next(node for node in graph.node if node.name == target)
        result, narrow = quantize.output[0], f"{target}.quantised"
        quantize.input[0], quantize.output[0] = pad.input[0], narrow
        pad.input[0], pad.output[0] = narrow, result
        pad.input.append(quantize.input[2])
        known = [value for value in graph.value_info if value.name != target]
        del graph.value_info[:]
        graph.value_info.extend(known)


def _widen(
    graph: onnx.GraphProto, source: onnx.ValueInfoProto, target: str, *, missing: int
) -> None:
    dims = source.type.tensor_type.shape.dim
    pads = np.zeros(2 * len(dims), np.int64)
    pads[len(dims) + 1] = missing
    shape = [dim.dim_value or dim.dim_param or None for dim in dims]
    shape[1] = dims[1].dim_value + missing
    graph.initializer.append(numpy_helper.from_array(pads, f"{target}.pads"))
    graph.node.insert(0, helper.make_node("Pad", [source.name, f"{target}.pads"], [target], target))
    graph.value_info.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, shape))


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)
