"""Weights: the constant kernels and matrices of a model, where their channels lie, and int8 forms.

A weight belongs to a node when it is a float constant of the main graph. Its channels are those of
the node's output: a scale for each of them leaves the arithmetic of the node as it is. Convolutions
take channels in groups; a matrix of more than two axes has no one axis of channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import attributes_of, reads_of
from edgekit_converters.passes.edits import Constants, is_standard

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("Gemm", "MatMul")
WEIGHTED = (*CONVOLUTIONS, *PRODUCTS)
RECURRENT = ("LSTM", "GRU", "RNN")

_LEVELS = 127
_QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
)


class Weight(Strict, frozen=True, kw_only=True):
    """The weight of one node.

    Attributes:
        node: its name.
        tensor: name of the constant.
        position: among the inputs of the node.
        channels: axis that counts the channels of the output (in one group, for a transposed
            convolution), or None where no axis does.
        inputs: axis that counts the channels of the input, likewise.
        groups: of the convolution; 1 for matrices.
    """

    node: str
    tensor: str
    position: int
    channels: int | None
    inputs: int | None
    groups: int = 1

    @property
    def scaled_by_channel(self) -> bool:
        """Whether the axis of channels has one place for each channel of the output."""
        return self.channels == 0 or (self.channels is not None and self.groups == 1)


class Rounded(Strict, frozen=True, kw_only=True):
    """A weight in int8, as nodes read it.

    Attributes:
        name: of the tensor that holds its values in float again.
        error: these values minus what they were.
    """

    name: str
    error: NDArray[np.float32]


def weight_of(node: onnx.NodeProto, constants: Constants) -> Weight | None:
    """The weight of a convolution or matrix product; None where it has none of float32."""
    if not is_standard(node, *WEIGHTED):
        return None
    positions = (1, 0) if node.op_type == "MatMul" else (1,)
    for position in positions:
        tensor = constants.get(node.input[position])
        if tensor is not None and tensor.data_type == TensorProto.FLOAT:
            channels, inputs = _axes(node, position, len(tensor.dims))
            return Weight(
                node=node.name,
                tensor=node.input[position],
                position=position,
                channels=channels,
                inputs=inputs,
                groups=int(attributes_of(node).get("group", 1)),
            )
    return None


def quantised_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that works on, or makes, values in 8 or 4 bits; None in a float model."""
    nodes: Iterable[onnx.NodeProto] = model.graph.node
    return next((n for n in nodes if n.op_type in _QUANTISED or n.op_type[:7] == "QLinear"), None)


def weighted_inside(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The first convolution, matrix product or recurrent node inside of an If, Loop or Scan."""
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in body.node:
                found = (
                    inner if inner.op_type in (*WEIGHTED, *RECURRENT) else weighted_inside(inner)
                )
                if found is not None:
                    return found
    return None


def uses_of(model: onnx.ModelProto) -> Counter[str]:
    """How often each tensor is read: by nodes, inside of subgraphs too, and as an output."""
    uses = Counter(name for node in model.graph.node for name in reads_of(node))
    uses.update(value.name for value in model.graph.output)
    return uses


def lift_constants(model: onnx.ModelProto) -> None:
    """Turn the tensors of Constant nodes into initialisers, in place."""
    graph = model.graph
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if is_standard(node, "Constant") and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def replace(graph: onnx.GraphProto, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Give initialisers new values, in place."""
    for tensor in graph.initializer:
        if tensor.name in values:
            array = np.ascontiguousarray(values[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def scale_of(
    values: NDArray[np.float32], *, axis: int | None, floor: NDArray[np.float64] | float = 0.0
) -> NDArray[np.float32]:
    """The step of symmetric int8 values: [channels], or [] without an axis.

    Args:
        floor: least step, in the same shape.

    Raises:
        BuildError: a value is not finite.
    """
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    extremes = np.abs(values).max(axis=others, initial=0).astype(np.float64)
    if not np.isfinite(extremes).all():
        raise BuildError("a weight holds a value that is not finite, and cannot be quantised")
    scale = np.maximum(extremes / _LEVELS, floor)
    return np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)


def as_int8(
    values: NDArray[np.float32], scale: NDArray[np.float32], *, axis: int | None
) -> NDArray[np.int8]:
    """Values in steps of the scale, -127 to 127."""
    steps = values / along(scale, axis, values.ndim)
    narrow: NDArray[np.int8] = np.rint(steps).clip(-_LEVELS, _LEVELS).astype(np.int8)
    return narrow


def stem_of(tensor: str, axis: int | None) -> str:
    """What the names of an int8 form of a weight begin with."""
    # A weight that two nodes read along different axes is stored twice.
    return tensor + {0: "", None: ".whole"}.get(axis, f".{axis}")


def store_as_int8(
    model: onnx.ModelProto,
    tensor: str,
    axis: int | None,
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> Rounded:
    """Add int8 values and their DequantizeLinear, in place; nobody reads it yet.

    The float initialiser stays, for whoever else reads it. Nodes are out of order afterwards.
    """
    stem = stem_of(tensor, axis)
    names = [f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point"]
    narrow = as_int8(values, scale, axis=axis)
    arrays: tuple[NDArray[Any], ...] = (narrow, scale, np.zeros(scale.shape, np.int8))
    for name, array in zip(names, arrays, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    result = f"{stem}_DequantizeLinear_Output"
    node = helper.make_node("DequantizeLinear", names, [result], f"{stem}_DequantizeLinear")
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    model.graph.node.append(node)
    model.graph.value_info.append(
        helper.make_tensor_value_info(result, TensorProto.FLOAT, values.shape)
    )
    return Rounded(name=result, error=narrow * along(scale, axis, values.ndim) - values)


def along(scale: NDArray[np.float32], axis: int | None, rank: int) -> NDArray[np.float32]:
    """A scale in a shape that goes with a weight of this rank."""
    return scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _axes(node: onnx.NodeProto, position: int, rank: int) -> tuple[int | None, int | None]:
    """Axes of the channels of the output and of the input."""
    if node.op_type == "Conv":
        return 0, 1
    if node.op_type == "ConvTranspose":
        return 1, 0
    if node.op_type == "Gemm":
        return (0, 1) if attributes_of(node).get("transB") else (1, 0)
    # Of a left factor the rows are no channels: they count positions.
    return (1, 0) if rank == 2 and position == 1 else (None, None)
