"""Gradients of operators that work on each element by itself, with or without broadcasting.

Where an input was broadcast, its gradient is summed back to its shape. At a kink the derivative is
that of one of the two sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgekit_converters.autodiff.rule import Call, Rule


def _add(call: Call) -> dict[int, str]:
    return {0: call.sum_to(call.gradient, 0), 1: call.sum_to(call.gradient, 1)}


def _sub(call: Call) -> dict[int, str]:
    negative = call.graph.add("Neg", [call.gradient])
    return {0: call.sum_to(call.gradient, 0), 1: call.sum_to(negative, 1)}


def _mul(call: Call) -> dict[int, str]:
    left, right = call.node.input
    by_left = call.graph.add("Mul", [call.gradient, right])
    by_right = call.graph.add("Mul", [call.gradient, left])
    return {0: call.sum_to(by_left, 0), 1: call.sum_to(by_right, 1)}


def _div(call: Call) -> dict[int, str]:
    graph, divisor = call.graph, call.node.input[1]
    by_left = graph.add("Div", [call.gradient, divisor])
    by_right = graph.add("Neg", [graph.add("Mul", [by_left, call.output])])
    return {0: call.sum_to(by_left, 0), 1: call.sum_to(by_right, 1)}


def _neg(call: Call) -> dict[int, str]:
    return {0: call.graph.add("Neg", [call.gradient])}


def _relu(call: Call) -> dict[int, str]:
    graph = call.graph
    zero = graph.scalar(0, like=call.output)
    passed = graph.add("Greater", [call.output, zero])
    return {0: graph.add("Where", [passed, call.gradient, zero])}


def _leaky_relu(call: Call) -> dict[int, str]:
    graph, x = call.graph, call.node.input[0]
    slope = graph.scalar(call.attributes.get("alpha", 0.01), like=x)
    scaled = graph.add("Mul", [call.gradient, slope])
    passed = graph.add("Greater", [x, graph.scalar(0, like=x)])
    return {0: graph.add("Where", [passed, call.gradient, scaled])}


def _sigmoid(call: Call) -> dict[int, str]:
    graph, y = call.graph, call.output
    rest = graph.add("Sub", [graph.scalar(1, like=y), y])
    return {0: graph.add("Mul", [call.gradient, graph.add("Mul", [y, rest])])}


def _tanh(call: Call) -> dict[int, str]:
    graph, y = call.graph, call.output
    slope = graph.add("Sub", [graph.scalar(1, like=y), graph.add("Mul", [y, y])])
    return {0: graph.add("Mul", [call.gradient, slope])}


def _hard_swish(call: Call) -> dict[int, str]:
    # x * clip(x / 6 + 1/2, 0, 1): the slope is x / 3 + 1/2 inside (-3, 3), else 0 or 1.
    graph, x = call.graph, call.node.input[0]
    third = graph.add("Mul", [x, graph.scalar(1 / 3, like=x)])
    inside = graph.add("Add", [third, graph.scalar(0.5, like=x)])
    zero, one = graph.scalar(0, like=x), graph.scalar(1, like=x)
    below = graph.add("LessOrEqual", [x, graph.scalar(-3, like=x)])
    above = graph.add("GreaterOrEqual", [x, graph.scalar(3, like=x)])
    slope = graph.add("Where", [below, zero, graph.add("Where", [above, one, inside])])
    return {0: graph.add("Mul", [call.gradient, slope])}


def _erf(call: Call) -> dict[int, str]:
    graph, x = call.graph, call.node.input[0]
    bell = graph.add("Exp", [graph.add("Neg", [graph.add("Mul", [x, x])])])
    slope = graph.add("Mul", [bell, graph.scalar(2 / math.sqrt(math.pi), like=x)])
    return {0: graph.add("Mul", [call.gradient, slope])}


def _gelu(call: Call) -> dict[int, str]:
    if call.attributes.get("approximate", "none") == "tanh":
        return _gelu_tanh(call)
    graph, x = call.graph, call.node.input[0]
    half, one = graph.scalar(0.5, like=x), graph.scalar(1, like=x)
    error = graph.add("Erf", [graph.add("Mul", [x, graph.scalar(math.sqrt(0.5), like=x)])])
    below = graph.add("Mul", [half, graph.add("Add", [error, one])])
    exponent = graph.add("Neg", [graph.add("Mul", [half, graph.add("Mul", [x, x])])])
    density = graph.scalar(1 / math.sqrt(2 * math.pi), like=x)
    bell = graph.add("Mul", [density, graph.add("Exp", [exponent])])
    slope = graph.add("Add", [below, graph.add("Mul", [x, bell])])
    return {0: graph.add("Mul", [call.gradient, slope])}


def _gelu_tanh(call: Call) -> dict[int, str]:
    # y = x (1 + t) / 2 with t = tanh(c (x + a x^3)), so y' = (1 + t + x (1 - t^2) u') / 2.
    graph, x = call.graph, call.node.input[0]
    half, one = graph.scalar(0.5, like=x), graph.scalar(1, like=x)
    c, a = math.sqrt(2 / math.pi), 0.044715
    square = graph.add("Mul", [x, x])
    cubic = graph.add("Mul", [square, graph.scalar(c * a, like=x)])
    inner = graph.add("Mul", [x, graph.add("Add", [cubic, graph.scalar(c, like=x)])])
    t = graph.add("Tanh", [inner])
    squared = graph.add("Mul", [square, graph.scalar(3 * c * a, like=x)])
    inner_slope = graph.add("Add", [squared, graph.scalar(c, like=x)])
    rest = graph.add("Sub", [one, graph.add("Mul", [t, t])])
    bend = graph.add("Mul", [x, graph.add("Mul", [rest, inner_slope])])
    total = graph.add("Add", [graph.add("Add", [one, t]), bend])
    return {0: graph.add("Mul", [call.gradient, graph.add("Mul", [half, total])])}


def _exp(call: Call) -> dict[int, str]:
    return {0: call.graph.add("Mul", [call.gradient, call.output])}


def _log(call: Call) -> dict[int, str]:
    return {0: call.graph.add("Div", [call.gradient, call.node.input[0]])}


def _sqrt(call: Call) -> dict[int, str]:
    graph, y = call.graph, call.output
    twice = graph.add("Add", [y, y])
    return {0: graph.add("Div", [call.gradient, twice])}


def _clip(call: Call) -> dict[int, str]:
    graph, x = call.graph, call.node.input[0]
    zero = graph.scalar(0, like=x)
    inner = call.gradient
    gradients = {}
    for index, beyond in ((2, "Greater"), (1, "Less")):
        bound = call.input(index)
        if bound is not None:
            cut = graph.add(beyond, [x, bound])
            lost = graph.add("Where", [cut, inner, zero])
            gradients[index] = call.sum_to(lost, index)
            inner = graph.add("Where", [cut, zero, inner])
    return {**gradients, 0: inner}


ELEMENTWISE: Mapping[str, Rule] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "HardSwish": _hard_swish,
    "Erf": _erf,
    "Gelu": _gelu,
    "Exp": _exp,
    "Log": _log,
    "Sqrt": _sqrt,
    "Clip": _clip,
}
