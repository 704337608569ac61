"""Which operators have a gradient, and the way back from the loss through them.

`RULES` is the registry: one small function per operator, grouped by kind in the modules beside this
one. `backpropagate` walks the forward nodes in reverse (reverse-mode accumulation, as in Baydin et
al., "Automatic Differentiation in Machine Learning: a Survey", JMLR 18, 2018, section 3.2) and
appends the gradient nodes. It never skips what it does not know: an operator without a rule between
a weight and the loss is an error that names the operator and the node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from edgekit.errors import ModelError
from edgekit_converters.autodiff.convolutions import CONVOLUTIONS
from edgekit_converters.autodiff.elementwise import ELEMENTWISE
from edgekit_converters.autodiff.graph import Graph, reads_of
from edgekit_converters.autodiff.linear import LINEAR
from edgekit_converters.autodiff.reductions import REDUCTIONS
from edgekit_converters.autodiff.rule import Call, Rule
from edgekit_converters.autodiff.shaping import SHAPING

RULES: Mapping[str, Rule] = {**ELEMENTWISE, **LINEAR, **SHAPING, **REDUCTIONS, **CONVOLUTIONS}
"""Gradient rules by operator of the standard domain, as they are defined from opset 17 on."""


def backpropagate(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    *,
    start: str,
    gradient: str,
    weights: Collection[str],
) -> dict[str, str]:
    """Append the nodes that compute the loss's derivative by each weight.

    Args:
        graph: the graph to append to.
        nodes: the forward nodes, in topological order.
        start: the tensor where the way back begins.
        gradient: the loss's derivative by `start`, in its shape.
        weights: the tensors to differentiate by.

    Returns:
        The name of the gradient by the name of its weight; each has the shape of its weight.

    Raises:
        ModelError: an operator on the way has no rule, or no path leads from a weight to `start`.
    """
    moving = _depending_on(graph, nodes, weights)
    found: dict[str, list[str]] = {start: [gradient]}
    for node in reversed(nodes):
        if not any(name in found and name in moving for name in node.output):
            continue
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise _no_gradient(node)
        call = Call(graph=graph, node=node, gradient=_total(graph, found, node.output[0]))
        gradients = rule(call)
        for index, name in enumerate(node.input):
            if name in moving:
                found.setdefault(name, []).append(gradients[index])
    for name in weights:
        if name not in found:
            raise ModelError(
                f"weight {name!r} does not influence the loss",
                hint="leave it out of the trainable weights",
            )
    return {name: _total(graph, found, name) for name in weights}


def upstream_of(graph: Graph, nodes: Sequence[onnx.NodeProto], start: str) -> set[str]:
    """Return every tensor that reaches `start` through float tensors alone."""
    reached = {start}
    for node in reversed(nodes):
        if any(name in reached for name in node.output):
            reached.update(name for name in reads_of(node) if graph.carries_gradient(name))
    return reached


def _depending_on(
    graph: Graph, nodes: Sequence[onnx.NodeProto], weights: Collection[str]
) -> set[str]:
    """Return the weights and every float tensor that changes with one of them."""
    moving = set(weights)
    for node in nodes:
        if any(name in moving for name in reads_of(node)):
            moving.update(name for name in node.output if name and graph.carries_gradient(name))
    return moving


def _total(graph: Graph, found: dict[str, list[str]], name: str) -> str:
    """Add up the gradients of a tensor that was read more than once."""
    parts = found[name]
    if len(parts) > 1:
        found[name] = [graph.add("Sum", parts)]
    return found[name][0]


def _no_gradient(node: onnx.NodeProto) -> ModelError:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    where = f"node {node.name!r}" if node.name else f"the node that makes {node.output[0]!r}"
    return ModelError(
        f"operator {operator} ({where}) lies between a trainable weight and the loss, "
        "and has no gradient",
        hint="name the weights behind it, nearer to the output, as the trainable ones",
    )
