"""Usage: the operators of an artefact, how much of its work each type does, and in how many bits.

Read from the file that ships, before the engine fuses nodes. A node works in 8 bits where its type
says so, or where the values it multiplies all come from DequantizeLinear: engines run those as one
integer kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from edgekit_converters.macs import macs_by_node
from edgekit_converters.normal.infer import infer
from edgekit_converters.report import OperatorUse

_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
_MULTIPLIED = 2


def operator_uses(path: Path, counts: Mapping[str, int]) -> tuple[OperatorUse, ...]:
    """The operators of an artefact, those that do most work first.

    Args:
        path: the artefact; the work of a TFLite file is not counted.
        counts: nodes by type.
    """
    if path.suffix != ".onnx":
        plain = (OperatorUse(operator=name, nodes=nodes) for name, nodes in counts.items())
        return tuple(sorted(plain, key=lambda use: (-use.nodes, use.operator)))
    model = onnx.load_model(path)
    infer(model, [])
    macs, unknown = macs_by_node(model)
    work: dict[str, list[int]] = {name: [0, 0, 0] for name in counts}
    for node, in_int8 in _nodes(model):
        row = work.setdefault(node.op_type, [0, 0, 0])
        name = node.name or node.output[0]
        row[0] += macs.get(name, 0)
        row[1] += macs.get(name, 0) if in_int8 else 0
        row[2] += name in unknown
    uses = (
        OperatorUse(operator=name, nodes=counts.get(name, 0), macs=a, int8_macs=b, unknown=c)
        for name, (a, b, c) in work.items()
    )
    return tuple(sorted(uses, key=lambda use: (-(use.macs or 0), -use.nodes, use.operator)))


def int8_share(uses: tuple[OperatorUse, ...]) -> float | None:
    """The share of all counted MACs that is done in 8 bits; None where none was counted."""
    total = sum(use.macs or 0 for use in uses)
    return sum(use.int8_macs or 0 for use in uses) / total if total else None


def _nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Nodes of the main graph, and whether they work in 8 bits."""
    dequantised = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    for node in model.graph.node:
        factors = node.input[:_MULTIPLIED]
        from_int8 = len(factors) == _MULTIPLIED and dequantised.issuperset(factors)
        yield node, node.op_type in _INTEGER or from_int8
