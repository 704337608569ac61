"""Axis order: which operators do not mind it, and what they look like when their axes are permuted.

`order` is the perm of a Transpose: axis `i` of what a node reads now is axis `order[i]` of what it
is to read. An operator that is indifferent computes the same values in either order, once the axes,
pads and constants that it names are permuted with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.passes.edits import Constants, is_standard

Order = tuple[int, ...]
Ranks = Mapping[str, int]

# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
})
_REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
})
# fmt: on
_ALONG_AN_AXIS = frozenset({"ArgMax", "ArgMin", "Concat", "LogSoftmax", "Softmax", "Split"})
_DEFAULT_AXIS = {"ArgMax": 0, "ArgMin": 0, "LogSoftmax": -1, "Softmax": -1, "Split": 0}


def inverse(order: Order) -> Order:
    """The order that undoes this one."""
    return tuple(int(i) for i in np.argsort(order))


def composed(first: Order, then: Order) -> Order:
    """The order of two Transposes in a row."""
    return tuple(first[i] for i in then)


def data_inputs(node: onnx.NodeProto) -> list[str]:
    """The inputs whose axes are permuted with the node; the others say axes, sizes and limits."""
    if node.op_type in _REDUCTIONS or node.op_type in ("Pad", "Slice", "Split", "Clip"):
        return [node.input[0]]
    return [name for name in node.input if name]


def is_indifferent(node: onnx.NodeProto, rank: int, *, ranks: Ranks, constants: Constants) -> bool:
    """Whether a node can work in another order of its `rank` axes.

    Args:
        ranks: of all tensors whose rank is known.
    """
    if not is_standard(node):
        return False
    changing = [name for name in data_inputs(node) if name not in constants]
    if not changing or any(ranks.get(name) != rank for name in (*changing, *node.output)):
        return False
    attributes = attributes_of(node)
    if node.op_type in _ELEMENTWISE:
        return all(len(constants[n].dims) <= rank for n in node.input if n in constants)
    if node.op_type in _ALONG_AN_AXIS:
        return bool(attributes.get("keepdims", 1))
    if node.op_type in _REDUCTIONS:
        return bool(attributes.get("keepdims", 1)) and _is_constant(node, (1,), constants)
    if node.op_type == "Pad":
        # Axes as a fourth input would have to be looked up for each pad.
        return len(node.input) < 4 and _is_constant(node, (1,), constants)
    return node.op_type == "Slice" and _is_constant(node, (1, 3), constants)


def reorder(
    node: onnx.NodeProto, order: Order, *, constants: Constants, suffix: str
) -> list[onnx.TensorProto]:
    """Permute what an indifferent node says of axes, in place.

    Inputs that are no constants are the caller's to rename.

    Args:
        suffix: ends the names of new constants.

    Returns:
        The new constants.
    """
    rank = len(order)
    attributes = attributes_of(node)
    made: dict[int, NDArray[Any]] = {}
    if node.op_type in _ELEMENTWISE:
        data = data_inputs(node)
        for i, name in enumerate(node.input):
            if name in constants and name in data and len(constants[name].dims) > 0:
                values = numpy_helper.to_array(constants[name])
                full = values.reshape((1,) * (rank - values.ndim) + values.shape)
                made[i] = full.transpose(inverse(order))
    elif node.op_type in _ALONG_AN_AXIS:
        axis = attributes.get("axis", _DEFAULT_AXIS.get(node.op_type, 0))
        _set(node, "axis", order[axis % rank])
        for i, name in enumerate(node.input):
            if node.op_type == "Concat" and name in constants:
                made[i] = numpy_helper.to_array(constants[name]).transpose(inverse(order))
    elif node.op_type in _REDUCTIONS:
        if "axes" in attributes:
            _set(node, "axes", [order[axis % rank] for axis in attributes["axes"]])
        elif len(node.input) > 1 and node.input[1]:
            axes = numpy_helper.to_array(constants[node.input[1]])
            made[1] = np.asarray([order[int(axis) % rank] for axis in axes], np.int64)
    elif node.op_type == "Pad":
        pads = numpy_helper.to_array(constants[node.input[1]]).reshape(2, rank)
        made[1] = pads[:, list(inverse(order))].reshape(-1)
    elif node.op_type == "Slice":
        if len(node.input) > 3 and node.input[3]:
            axes = numpy_helper.to_array(constants[node.input[3]])
        else:
            axes = np.arange(constants[node.input[1]].dims[0])
        made[3] = np.asarray([order[int(axis) % rank] for axis in axes], np.int64)
        node.input.extend([""] * (4 - len(node.input)))
    tensors = []
    for i, array in made.items():
        node.input[i] = f"{node.name}.{i}{suffix}"
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), node.input[i]))
    return tensors


def _is_constant(node: onnx.NodeProto, positions: Sequence[int], constants: Constants) -> bool:
    """Whether these inputs are constants, where they are given."""
    given = [node.input[i] for i in positions if i < len(node.input) and node.input[i]]
    return all(name in constants for name in given)


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
