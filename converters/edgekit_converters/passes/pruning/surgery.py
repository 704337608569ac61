"""Surgery: a model without the channels that were chosen; nothing else of it changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit_converters.passes.edits import copied
from edgekit_converters.passes.pruning.channels import Channels


def without(model: onnx.ModelProto, channels: Channels, removed: Sequence[int]) -> onnx.ModelProto:
    """A copy of the model without some units, and without recorded sizes of tensors.

    Args:
        channels: of this model.
        removed: units (root ids) that are not frozen.
    """
    kept = channels.kept(removed)
    copy = copied(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for place in channels.places:
        stay = kept[place.ids]
        if not stay.all():
            values = numpy_helper.to_array(tensors[place.tensor])
            _write(tensors[place.tensor], np.compress(stay, values, axis=place.axis))
    for size in channels.sizes:
        values = numpy_helper.to_array(tensors[size.tensor]).copy()
        values[size.position] = int(kept[size.ids].sum())
        _write(tensors[size.tensor], values)
    groups = {name: int(kept[ids].sum()) for name, ids in channels.depthwise}
    for node in copy.graph.node:
        if node.name in groups:
            next(a for a in node.attribute if a.name == "group").i = groups[node.name]
    # Sizes inside the model are others now.
    del copy.graph.value_info[:]
    return copy


def _write(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
