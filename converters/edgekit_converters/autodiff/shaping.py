"""Gradients of operators that move or rename elements and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit_converters.autodiff.rule import Call, Rule


def _identity(call: Call) -> dict[int, str]:
    return {0: call.gradient}


def _cast(call: Call) -> dict[int, str]:
    element = call.graph.type_of(call.node.input[0]).element
    return {0: call.graph.add("Cast", [call.gradient], to=element)}


def _reshape(call: Call) -> dict[int, str]:
    shape = call.graph.shape_of(call.node.input[0])
    return {0: call.graph.add("Reshape", [call.gradient, shape])}


def _transpose(call: Call) -> dict[int, str]:
    axes = call.attributes.get("perm")
    if axes is None:
        return {0: call.graph.add("Transpose", [call.gradient])}
    back = [axes.index(axis) for axis in range(len(axes))]
    return {0: call.graph.add("Transpose", [call.gradient], perm=back)}


def _concat(call: Call) -> dict[int, str]:
    graph, names = call.graph, list(call.node.input)
    axis = call.attributes["axis"] % len(graph.dimensions(call.output))
    start, end = graph.integers([axis]), graph.integers([axis + 1])
    sizes = [graph.add("Slice", [graph.shape_of(name), start, end]) for name in names]
    split = graph.add("Concat", sizes, axis=0)
    parts = graph.add_many("Split", [call.gradient, split], len(names), axis=axis)
    return dict(enumerate(parts))


SHAPING: Mapping[str, Rule] = {
    "Identity": _identity,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
}
