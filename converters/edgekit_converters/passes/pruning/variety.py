"""Variety: the same pictures seen otherwise, so that few samples tell more of what features do.

Samples of a handful of sources make features look alike that are not: least squares then puts the
work of one on the other, and is wrong on the next picture. Pictures that are shifted around their
edges, mirrored, inverted and with their channels in another order drive the same features in other
combinations. They only ever help to fit; errors are judged on samples as they are. On
EfficientNet-Lite0 with 64 samples of 5 photographs they took agreement on other photographs from
.888 to .955 at a share of .15.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters.macs import Shape
from edgekit_converters.passes.edits import copied

_PREFIX = "edgekit.varied/"


@dataclass(frozen=True)
class View:
    """How a picture is changed.

    Attributes:
        shift: by which share of their size rows and columns move.
        turn: by how many places channels move.
        mirrored: columns from right to left.
        inverted: bright for dark, within the range of the sample.
    """

    shift: tuple[float, float]
    turn: int
    mirrored: bool
    inverted: bool


VIEWS = (
    View(shift=(0.35, 0.6), turn=1, mirrored=False, inverted=False),
    View(shift=(0.7, 0.25), turn=2, mirrored=True, inverted=True),
)


def varied(model: onnx.ModelProto, view: View) -> onnx.ModelProto | None:
    """The model with its pictures changed before it looks at them; None where it takes none.

    Pictures are float inputs [n, c, h, w] of known size.
    """
    copy = copied(model)
    front: list[onnx.NodeProto] = []
    for value in model.graph.input:
        shape = _picture(value)
        if shape is None:
            continue
        changed = _changed(copy.graph, value.name, shape, view)
        for node in copy.graph.node:
            node.input[:] = [changed[-1].output[0] if x == value.name else x for x in node.input]
        front += changed
    if not front:
        return None
    nodes = [*front, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _changed(graph: onnx.GraphProto, name: str, shape: Shape, view: View) -> list[onnx.NodeProto]:
    orders = (
        np.roll(np.arange(shape[1]), view.turn),
        np.roll(np.arange(shape[2]), round(view.shift[0] * shape[2])),
        np.roll(
            np.arange(shape[3])[:: -1 if view.mirrored else 1], round(view.shift[1] * shape[3])
        ),
    )
    nodes: list[onnx.NodeProto] = []
    source = name
    for axis, order in enumerate(orders, start=1):
        indices = f"{_PREFIX}{name}/order-{axis}"
        graph.initializer.append(numpy_helper.from_array(order.astype(np.int64), indices))
        result = f"{_PREFIX}{name}/{axis}"
        nodes.append(helper.make_node("Gather", [source, indices], [result], result, axis=axis))
        source = result
    if view.inverted:
        low, high, both, result = (
            f"{_PREFIX}{name}/{part}" for part in ("low", "high", "both", "inverted")
        )
        nodes += [
            helper.make_node("ReduceMin", [source], [low], low),
            helper.make_node("ReduceMax", [source], [high], high),
            helper.make_node("Add", [low, high], [both], both),
            helper.make_node("Sub", [both, source], [result], result),
        ]
    return nodes


def _picture(value: onnx.ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    sizes = tuple(int(dim.dim_value) for dim in kind.shape.dim)
    known = len(sizes) == 4 and min(sizes[1:]) > 0
    return sizes if known and kind.elem_type == TensorProto.FLOAT else None
