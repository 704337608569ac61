"""Gradients of sums and means over axes and of the two softmax operators.

Axes may be an attribute or an input: ONNX moved them for `ReduceMean` in opset 18.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit_converters.autodiff.rule import Call, Rule


def _reduce_sum(call: Call) -> dict[int, str]:
    return {0: _spread(call, call.gradient)}


def _reduce_mean(call: Call) -> dict[int, str]:
    return {0: _spread(call, _share(call))}


def _global_average_pool(call: Call) -> dict[int, str]:
    shape = call.graph.shape_of(call.node.input[0])
    return {0: call.graph.add("Expand", [_share(call), shape])}


def _softmax(call: Call) -> dict[int, str]:
    graph, y = call.graph, call.output
    weighted = graph.add("Mul", [call.gradient, y])
    total = graph.add("ReduceSum", [weighted, _softmax_axis(call)], keepdims=1)
    return {0: graph.add("Sub", [weighted, graph.add("Mul", [y, total])])}


def _log_softmax(call: Call) -> dict[int, str]:
    graph, y = call.graph, call.output
    total = graph.add("ReduceSum", [call.gradient, _softmax_axis(call)], keepdims=1)
    pulled = graph.add("Mul", [graph.add("Exp", [y]), total])
    return {0: graph.add("Sub", [call.gradient, pulled])}


def _softmax_axis(call: Call) -> str:
    return call.graph.integers([call.attributes.get("axis", -1)])


def _share(call: Call) -> str:
    """Divide a gradient by the number of elements that each mean was taken of."""
    graph, x = call.graph, call.node.input[0]
    element = graph.type_of(x).element
    means = graph.add("Cast", [graph.add("Size", [call.output])], to=element)
    elements = graph.add("Cast", [graph.add("Size", [x])], to=element)
    return graph.add("Mul", [call.gradient, graph.add("Div", [means, elements])])


def _spread(call: Call, gradient: str) -> str:
    """Repeat a reduced gradient over the axes that the node summed away."""
    graph, x = call.graph, call.node.input[0]
    axes = call.attributes.get("axes")
    name = graph.integers(axes) if axes is not None else call.input(1)
    if name is None and call.attributes.get("noop_with_empty_axes", 0):
        return gradient
    if not call.attributes.get("keepdims", 1):
        name = name or graph.integers(range(len(graph.dimensions(x))))
        gradient = graph.add("Unsqueeze", [gradient, name])
    return graph.add("Expand", [gradient, graph.shape_of(x)])


REDUCTIONS: Mapping[str, Rule] = {
    "ReduceSum": _reduce_sum,
    "ReduceMean": _reduce_mean,
    "GlobalAveragePool": _global_average_pool,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
}
