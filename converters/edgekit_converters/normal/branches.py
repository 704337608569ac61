"""Branches: an If whose condition is a constant is replaced by the branch that would be taken.

Passes look at the main graph only; a network that an exporter wrapped in an If (one branch for each
sampling rate, say) is out of their reach until the branch is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper

from edgekit_converters.normal.graphs import bodies_of


def take_branches(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Inline every If of this graph with a constant condition, in place; whether there was one.

    Names inside the branch get the If's first output as prefix: two branches may use the same.

    Args:
        constants: tensors that are known, by name.
    """
    kept: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        condition = constants.get(node.input[0]) if _is_if(node) else None
        if condition is None:
            kept.append(node)
            continue
        changed = True
        taken = "then_branch" if numpy_helper.to_array(condition).all() else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == taken)
        kept.extend(_inlined(node, branch, graph))
    if changed:
        del graph.node[:]
        graph.node.extend(kept)
    return changed


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _inlined(
    node: onnx.NodeProto, branch: onnx.GraphProto, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """The nodes that stand for an If; the branch's own constants and types go to `graph`."""
    prefix = f"{node.output[0]}/"
    makes = {name for inner in branch.node for name in inner.output if name}
    names = {name: prefix + name for name in makes}
    names |= {tensor.name: prefix + tensor.name for tensor in branch.initializer}
    straight = {}
    for given, wanted in zip(branch.output, node.output, strict=True):
        if given.name in makes and given.name not in straight:
            straight[given.name] = wanted
    names |= straight
    for tensor in branch.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
    for value in branch.value_info:
        copied = graph.value_info.add()
        copied.CopyFrom(value)
        copied.name = names.get(value.name, value.name)
    nodes = []
    for inner in branch.node:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(inner)
        renamed.name = prefix + inner.name if inner.name else ""
        _rename(renamed, names)
        nodes.append(renamed)
    # An output may be a tensor from outside, a constant, or one that is given out twice.
    for given, wanted in zip(branch.output, node.output, strict=True):
        if wanted and straight.get(given.name) != wanted:
            read = names.get(given.name, given.name)
            nodes.append(helper.make_node("Identity", [read], [wanted], f"{prefix}identity"))
    return nodes


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        node.input[position] = names.get(name, name)
    for position, name in enumerate(node.output):
        node.output[position] = names.get(name, name)
    for body in bodies_of(node):
        _rename_inside(body, names)


def _rename_inside(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename what a subgraph takes from outside; what it defines itself hides the outer name."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    outer = {name: new for name, new in names.items() if name not in own}
    for node in graph.node:
        _rename(node, outer)
    for value in graph.output:
        value.name = outer.get(value.name, value.name)
