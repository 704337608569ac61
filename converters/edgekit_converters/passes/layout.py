"""Layout: fewer Transpose nodes, with the same answers to the bit.

Graphs that come from a framework with channels last carry a Transpose on either side of each
convolution. Regions of nodes that do not mind the order of their axes are turned as a whole, where
that takes more Transposes away at their borders than it adds; two in a row become one, or none.
onnxruntime moves single Transposes on its own when it opens a model; other tool chains, and a pass
that quantises what stands between two Transposes, see the graph as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper, shape_inference

from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import attributes_of, reads_of
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import sort_nodes
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.axis_order import (
    Order,
    composed,
    data_inputs,
    inverse,
    is_indifferent,
    reorder,
)
from edgekit_converters.passes.edits import (
    checked,
    constants_of,
    copied,
    holds_graph,
    is_standard,
    nothing_to_do,
    swept,
)

NAME = "layout"


class Options(Strict, frozen=True, kw_only=True):
    """This pass has no options."""


class Layout:
    """The pass."""

    kind: Kind = "rewrite"
    needs_samples = False

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,  # noqa: ARG002
        style: Style,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        """One, where at least one Transpose would go away."""
        step = self.step(given)
        return (step,) if _fewest(model).transposes < _count(model.graph.node) else ()

    def step(self, options: Mapping[str, Option]) -> Step:
        checked(options, Options, of=NAME)
        return Step(name=NAME, label=NAME, options={})

    def apply(
        self,
        model: onnx.ModelProto,
        step: Step,
        *,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> onnx.ModelProto:
        fewest = _fewest(model)
        if fewest.transposes >= _count(model.graph.node):
            raise nothing_to_do(model, label=step.label, wanted="Transpose that could go away")
        turned = copied(model)
        del turned.graph.node[:]
        turned.graph.node.extend(fewest.nodes)
        turned.graph.initializer.extend(fewest.constants.values())
        sort_nodes(turned)
        return shape_inference.infer_shapes(swept(turned), data_prop=True)


@dataclass(frozen=True)
class _Graph:
    """The main graph without its weights.

    Attributes:
        nodes: each behind those that it reads.
        constants: needed beside those of the model.
        ranks: of all tensors whose rank is known.
        pinned: tensors that must keep their names: inputs, outputs, what subgraphs read.
        turns: how many regions were turned so far; it keeps new names apart.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, TensorProto]
    ranks: dict[str, int]
    pinned: frozenset[str]
    turns: int = 0

    @property
    def transposes(self) -> int:
        return _count(self.nodes)


def _fewest(model: onnx.ModelProto) -> _Graph:
    """The graph with as few Transposes as turning one region after the other leads to."""
    graph = _merged(_start(model))
    given = graph.constants.keys()
    while (better := _better(graph)) is not None:
        graph = better
    return replace(graph, constants={k: v for k, v in graph.constants.items() if k not in given})


def _better(graph: _Graph) -> _Graph | None:
    """The graph with one region turned, and fewer Transposes for it; None where there is none."""
    orders = {_order(node) for node in graph.nodes if _is_transpose(node)}
    for order in sorted(orders):
        for region in _regions(graph, order):
            candidate = _merged(_turned(graph, region, order))
            if candidate.transposes < graph.transposes:
                return candidate
    return None


def _start(model: onnx.ModelProto) -> _Graph:
    graph = model.graph
    known = (*graph.input, *graph.value_info, *graph.output)
    pinned = {value.name for value in (*graph.input, *graph.output)}
    pinned |= {name for node in graph.node if holds_graph(node) for name in reads_of(node)}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in known
        if value.type.tensor_type.HasField("shape")
    }
    return _Graph(
        nodes=[_with_order(node, ranks) for node in graph.node],
        constants=constants_of(graph),
        ranks=ranks,
        pinned=frozenset(pinned),
    )


def _regions(graph: _Graph, order: Order) -> list[set[int]]:
    """Connected nodes, by position, that are indifferent and read a Transpose of this order."""
    nodes = graph.nodes
    free = {
        i
        for i, node in enumerate(nodes)
        if is_indifferent(node, len(order), ranks=graph.ranks, constants=graph.constants)
    }
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(i)
    regions = []
    seen: set[int] = set()
    for maker in nodes:
        if not _is_transpose(maker) or _order(maker) != order:
            continue
        waiting = [i for i in readers.get(maker.output[0], ()) if i in free and i not in seen]
        region: set[int] = set()
        while waiting:
            i = waiting.pop()
            if i not in region:
                region.add(i)
                near = [makers[name] for name in data_inputs(nodes[i]) if name in makers]
                near += [j for name in nodes[i].output for j in readers.get(name, ())]
                waiting += [j for j in near if j in free]
        if region:
            seen |= region
            regions.append(region)
    return regions


def _turned(graph: _Graph, region: set[int], order: Order) -> _Graph:
    """The graph with a region that reads what stood in front of Transposes of this order.

    Transposes stand at each of its borders; `_merged` takes those away that undo another.
    """
    suffix = f".turned{graph.turns}"
    made = {name for i in region for name in graph.nodes[i].output}
    constants, ranks = dict(graph.constants), dict(graph.ranks)
    entering: set[str] = set()
    nodes = []
    for i, node in enumerate(graph.nodes):
        if i not in region:
            nodes.append(node)
            continue
        turned = onnx.NodeProto()
        turned.CopyFrom(node)
        data = [name for name in data_inputs(node) if name not in graph.constants]
        new = reorder(turned, order, constants=graph.constants, suffix=suffix)
        constants |= {tensor.name: tensor for tensor in new}
        for name in data:
            ranks[name + suffix] = len(order)
            if name not in made | entering:
                entering.add(name)
                nodes.append(_transpose(name, name + suffix, inverse(order)))
        _rename(turned.input, {name: name + suffix for name in data})
        _rename(turned.output, {name: name + suffix for name in node.output if name})
        nodes.append(turned)
        for name in filter(None, node.output):
            ranks[name + suffix] = len(order)
            nodes.append(_transpose(name + suffix, name, order))
    return replace(graph, nodes=nodes, constants=constants, ranks=ranks, turns=graph.turns + 1)


def _merged(graph: _Graph) -> _Graph:
    """The graph with Transposes in a row made one, equal ones shared, and idle ones taken out."""
    orders: dict[str, tuple[str, Order]] = {}
    shared: dict[tuple[str, Order], str] = {}
    names: dict[str, str] = {}
    nodes = []
    for node in _sorted(graph.nodes):
        _rename(node.input, names)
        if _is_transpose(node):
            source, order = node.input[0], _order(node)
            if source in orders:
                source, first = orders[source]
                order = composed(first, order)
            result = node.output[0]
            orders[result] = source, order
            idle = order == tuple(range(len(order)))
            if result not in graph.pinned:
                names[result] = source if idle else shared.setdefault((source, order), result)
            node = (
                helper.make_node("Identity", [source], [result], node.name)
                if idle
                else _transpose(source, result, order, name=node.name)
            )
        nodes.append(node)
    return replace(graph, nodes=_without_idle(_without_unread(nodes, graph.pinned), graph.pinned))


def _without_idle(nodes: list[onnx.NodeProto], pinned: frozenset[str]) -> list[onnx.NodeProto]:
    """Nodes without each Identity whose result its maker can have under that name at once."""
    makers = {name: node for node in nodes for name in node.output}
    names = {}
    kept = []
    for node in nodes:
        source = node.input[0] if is_standard(node, "Identity") else ""
        if source in makers and source not in pinned and source not in names:
            names[source] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        _rename(node.input, names)
        _rename(node.output, names)
    return kept


def _without_unread(nodes: list[onnx.NodeProto], pinned: frozenset[str]) -> list[onnx.NodeProto]:
    read = set(pinned)
    kept = []
    for node in reversed(nodes):
        moves = is_standard(node, "Identity", "Transpose")
        if not moves or node.output[0] in read:
            kept.append(node)
            read.update(reads_of(node))
    return kept[::-1]


def _sorted(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Copies of the nodes, each behind those that it reads."""
    model = onnx.ModelProto()
    model.graph.node.extend(nodes)
    sort_nodes(model)
    return list(model.graph.node)


def _with_order(node: onnx.NodeProto, ranks: Mapping[str, int]) -> onnx.NodeProto:
    """A Transpose with its order spelt out, where it left it at reversing all axes."""
    if is_standard(node, "Transpose") and not node.attribute and node.input[0] in ranks:
        order = tuple(reversed(range(ranks[node.input[0]])))
        return _transpose(node.input[0], node.output[0], order, name=node.name)
    return node


def _is_transpose(node: onnx.NodeProto) -> bool:
    return is_standard(node, "Transpose") and len(node.attribute) > 0


def _order(node: onnx.NodeProto) -> Order:
    return tuple(attributes_of(node)["perm"])


def _transpose(source: str, result: str, order: Order, *, name: str = "") -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], name or f"{result}.turn", perm=order)


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    return sum(is_standard(node, "Transpose") for node in nodes)


def _rename(field: MutableSequence[str], names: Mapping[str, str]) -> None:
    for position, name in enumerate(field):
        field[position] = names.get(name, name)


PASS = Layout()
