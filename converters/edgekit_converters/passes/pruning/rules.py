"""Rules: how channels travel through each operator. What has no rule here freezes what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgekit_converters.autodiff.graph import attributes_of, reads_of
from edgekit_converters.passes.pruning.channels import Channels, Consumer, Ids, Place, Size

Rule = Callable[[Channels, onnx.NodeProto], bool]
"""Records what a node does with channels; False where it is not understood."""


def trace(model: onnx.ModelProto) -> Channels:
    """The channels of a model in normal form: nodes named and in order."""
    channels = Channels(model)
    for node in model.graph.node:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or not rule(channels, node):
            channels.freeze(reads_of(node))
    channels.freeze(value.name for value in model.graph.output)
    channels.settle()
    return channels


def _conv(channels: Channels, node: onnx.NodeProto) -> bool:
    weight = channels.owned(node.input[1])
    if weight is None or weight.data_type != TensorProto.FLOAT:
        return False
    made, per_group = weight.dims[0], weight.dims[1]
    groups = int(attributes_of(node).get("group", 1))
    known = channels.labels(node.input[0])
    if groups == 1:
        _produce(channels, node, weight.name, axis=0, bias=2, to_axis=1)
        return known is None or _consume(channels, node, weight.name, axis=1)
    if known is None or per_group != 1 or groups != len(known.ids) or known.axis != 1:
        return False
    ids = known.ids.repeat(made // groups)
    if not _follow(channels, node, (1, 2), ids):
        return False
    channels.depthwise.append((node.name, known.ids))
    channels.label(node.output[0], 1, ids)
    return True


def _gemm(channels: Channels, node: onnx.NodeProto) -> bool:
    weight = channels.owned(node.input[1])
    options = attributes_of(node)
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if weight is None or weight.data_type != TensorProto.FLOAT:
        return False
    if not plain or options.get("transA", 0):
        return False
    entering = 1 if options.get("transB", 0) else 0
    _produce(channels, node, weight.name, axis=1 - entering, bias=2, to_axis=1)
    known = channels.labels(node.input[0])
    return known is None or _consume(channels, node, weight.name, axis=entering)


def _matmul(channels: Channels, node: onnx.NodeProto) -> bool:
    weight = channels.owned(node.input[1])
    shape = channels.shapes.get(node.input[0])
    if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2:
        return False
    if shape is None or len(shape) < 2:
        return False
    _produce(channels, node, weight.name, axis=1, bias=2, to_axis=len(shape) - 1)
    known = channels.labels(node.input[0])
    if known is None:
        return True
    return known.axis == len(shape) - 1 and _consume(channels, node, weight.name, axis=0)


def _produce(
    channels: Channels, node: onnx.NodeProto, weight: str, *, axis: int, bias: int, to_axis: int
) -> None:
    ids = channels.fresh(channels.constants[weight].dims[axis])
    channels.label(node.output[0], to_axis, ids)
    channels.places.append(Place(weight, axis, ids, node.name))
    if len(node.input) > bias and node.input[bias]:
        own = channels.owned(node.input[bias])
        if own is None or not own.dims or own.dims[-1] != len(ids):
            channels.freeze((node.input[bias], *node.output))
        else:
            channels.places.append(Place(own.name, len(own.dims) - 1, ids, node.name))


def _consume(channels: Channels, node: onnx.NodeProto, weight: str, *, axis: int) -> bool:
    known = channels.labels(node.input[0])
    assert known is not None
    if attributes_of(node).get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if len(known.ids) != channels.constants[weight].dims[axis] or (
        node.op_type != "MatMul" and known.axis != 1
    ):
        return False
    channels.places.append(Place(weight, axis, known.ids, node.name, entering=True))
    channels.consumers.append(Consumer(node.name, node.input[0], node.output[0], weight, known.ids))
    return True


def _follow(channels: Channels, node: onnx.NodeProto, inputs: tuple[int, ...], ids: Ids) -> bool:
    """Constants of one value per channel on axis 0 shrink with the channels."""
    places = []
    for position in inputs:
        if position < len(node.input) and node.input[position]:
            constant = channels.owned(node.input[position])
            if constant is None or not constant.dims or constant.dims[0] != len(ids):
                return False
            places.append(Place(constant.name, 0, ids, node.name))
    channels.places.extend(places)
    return True


def _normalisation(channels: Channels, node: onnx.NodeProto) -> bool:
    known = channels.labels(node.input[0])
    if known is None:
        return True
    if known.axis != 1 or attributes_of(node).get("training_mode", 0):
        return False
    if not _follow(channels, node, tuple(range(1, len(node.input))), known.ids):
        return False
    channels.label(node.output[0], 1, known.ids)
    return True


def _elementwise(channels: Channels, node: onnx.NodeProto) -> bool:
    names = [name for name in node.input if name]
    labelled = {name: found for name in names if (found := channels.labels(name)) is not None}
    if not labelled:
        return True
    shapes = {name: channels.shapes.get(name) for name in (*names, node.output[0])}
    if any(shape is None for shape in shapes.values()):
        return False
    ranks = {name: len(shape) for name, shape in shapes.items() if shape is not None}
    places = {labels.axis - ranks[name] for name, labels in labelled.items()}
    first, *others = (labels.ids for labels in labelled.values())
    if len(places) != 1 or any(len(ids) != len(first) for ids in others):
        return False
    (place,) = places
    follow = []
    for name in names:
        shape = shapes[name]
        if name in labelled or shape is None or len(shape) < -place or shape[place] == 1:
            continue
        constant = channels.owned(name)
        if constant is None or shape[place] != len(first):
            return False
        follow.append(Place(name, len(shape) + place, first, node.name))
    for ids in others:
        channels.join(first, ids)
    if others and node.op_type in _SUMS:
        channels.streams.append(first)
    channels.places.extend(follow)
    channels.label(node.output[0], ranks[node.output[0]] + place, first)
    return True


def _same(channels: Channels, node: onnx.NodeProto) -> bool:
    """The first input's channels are the first output's; other inputs hold no channels."""
    known = channels.labels(node.input[0])
    if any(channels.labels(name) is not None for name in node.input[1:]):
        return False
    if known is not None:
        channels.label(node.output[0], known.axis, known.ids)
    return True


def _unary(channels: Channels, node: onnx.NodeProto) -> bool:
    # Bounds of a Clip and the like are scalars by their definition.
    scalar = all(channels.shapes.get(name, (1,)) in ((), (1,)) for name in node.input[1:] if name)
    return scalar and _same(channels, node)


def _pool(channels: Channels, node: onnx.NodeProto) -> bool:
    known = channels.labels(node.input[0])
    return known is None or (known.axis == 1 and _same(channels, node))


def _pad(channels: Channels, node: onnx.NodeProto) -> bool:
    known = channels.labels(node.input[0])
    pads = channels.constants.get(node.input[1]) if len(node.input) > 1 else None
    if known is None:
        return True
    if pads is None or (len(node.input) > 3 and node.input[3]):
        return False
    amounts = numpy_helper.to_array(pads)
    if amounts[known.axis] or amounts[known.axis + len(amounts) // 2]:
        return False
    return _same(channels, node)


def _concat(channels: Channels, node: onnx.NodeProto) -> bool:
    parts = [channels.labels(name) for name in node.input]
    known = [part for part in parts if part is not None]
    shape = channels.shapes.get(node.output[0])
    if not known:
        return True
    if shape is None or len(known) != len(parts):
        return False
    axis = int(attributes_of(node)["axis"]) % len(shape)
    if any(part.axis != axis for part in known):
        return False
    channels.label(node.output[0], axis, np.concatenate([part.ids for part in known]))
    return True


def _reduce(channels: Channels, node: onnx.NodeProto) -> bool:
    known = channels.labels(node.input[0])
    shape = channels.shapes.get(node.input[0])
    options = attributes_of(node)
    if known is None:
        return True
    axes = options.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in channels.constants:
        axes = numpy_helper.to_array(channels.constants[node.input[1]]).tolist()
    if not axes or shape is None:
        return False
    reduced = {int(axis) % len(shape) for axis in axes}
    if known.axis in reduced:
        return False
    lost = 0 if options.get("keepdims", 1) else sum(axis < known.axis for axis in reduced)
    channels.label(node.output[0], known.axis - lost, known.ids)
    return True


def _reshape(channels: Channels, node: onnx.NodeProto) -> bool:
    """Maps flattened behind axis 1, or axes of one position added or taken away behind it."""
    known = channels.labels(node.input[0])
    before, after = channels.shapes.get(node.input[0]), channels.shapes.get(node.output[0])
    if known is None:
        return True
    if known.axis != 1 or before is None or after is None or len(after) < 2:
        return False
    behind = prod(before[2:])
    flattened = len(after) == 2 and after[1] == before[1] * behind
    if before[0] != after[0] or prod(before) != prod(after):
        return False
    if not flattened and after[1] != before[1]:
        return False
    ids = known.ids.repeat(behind) if flattened else known.ids
    if node.op_type == "Reshape" and not _resize(channels, node, ids):
        return False
    channels.label(node.output[0], 1, ids)
    return True


def _resize(channels: Channels, node: onnx.NodeProto, ids: Ids) -> bool:
    target = channels.constants.get(node.input[1])
    if target is None:
        return False
    wanted = int(numpy_helper.to_array(target)[1])
    if wanted > 0:
        if channels.owned(target.name) is None:
            return False
        channels.sizes.append(Size(target.name, 1, ids))
    return True


def _flatten(channels: Channels, node: onnx.NodeProto) -> bool:
    return int(attributes_of(node).get("axis", 1)) == 1 and _reshape(channels, node)


_UNARY = (
    *("Abs", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid"),
    *("Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
)
_SUMS = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
_NARY = (*_SUMS, "Div", "Mul", "PRelu", "Pow")

RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _normalisation,
    "InstanceNormalization": _normalisation,
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_NARY, _elementwise),
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "MaxPool": _pool,
    "Pad": _pad,
    "Concat": _concat,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}
