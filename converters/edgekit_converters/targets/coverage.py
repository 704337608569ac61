"""Coverage: what of a model an accelerator takes, read off the ONNX graph before any tool starts.

Rules are data (`lists`): which operators a tool chain takes, under which conditions. Reading a
graph against them is a pure function that takes seconds at most. It knows operators, shapes,
element types, constants and attributes of the source; what a tool makes of them later (what it
fuses, splits or rewrites) it does not know, so the tool's own report stands above this one. What
depends on shapes and constants alone is not judged: it is computed when the model is converted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.macs import Shape, macs_by_node, shapes_of
from edgekit_converters.normal.graphs import bodies_of
from edgekit_converters.targets import Coverage, Finding
from edgekit_converters.targets.lists import Bounds, Conditions, Rules, Way

__all__ = ["Rules", "coverage_of", "operator_name", "type_name"]


_CPU = "it runs on the CPU beside the accelerator"
_OTHER = "build for another engine of the board, or leave the node out of the model"
_OPEN = "fix its sizes: --input {name}={sizes}"
_STANDARD = ("", "ai.onnx")


def coverage_of(model: onnx.ModelProto, rules: Rules) -> Coverage:
    """What of a model the accelerator takes.

    Args:
        model: in normal form; an open first axis of its inputs counts as 1.

    Returns:
        Findings in the order of inputs and nodes, at most one for each; the share of MACs is None
        where the MACs of a node are not known, or where there are none and something falls back.
    """
    known = _Known(model, has_open_inputs=any(map(_is_open, model.graph.input)))
    refused = list(_open_inputs(model, rules))
    fallback: list[Finding] = []
    # Tensors that the accelerator's one part does not make, by the node behind which they lie.
    behind: dict[str, str] = {}
    for node in model.graph.node:
        judged = _judge(node, known, rules) or _cut_off(node, behind, rules)
        if judged is not None:
            way, finding = judged
            (refused if way == "refused" else fallback).append(finding)
            if rules.one_part:
                first = next((behind[name] for name in node.input if name in behind), finding.node)
                behind |= dict.fromkeys(node.output, first)
    away = {finding.node for finding in (*refused, *fallback)}
    return Coverage(
        refused=tuple(refused),
        fallback=tuple(fallback),
        accelerator_macs=_share(model, away),
    )


def _share(model: onnx.ModelProto, away: set[str]) -> float | None:
    macs, unknown = macs_by_node(model)
    total = sum(macs.values())
    if unknown or (not total and away):
        return None
    return sum(count for name, count in macs.items() if name not in away) / total if total else 1.0


@dataclass(frozen=True)
class _Known:
    """What is known of a model's tensors."""

    model: onnx.ModelProto
    has_open_inputs: bool

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return shapes_of(self.model)

    @cached_property
    def constants(self) -> frozenset[str]:
        graph = self.model.graph
        made = [name for n in graph.node if n.op_type == "Constant" for name in n.output]
        return frozenset([*(tensor.name for tensor in graph.initializer), *made])

    @cached_property
    def settled(self) -> frozenset[str]:
        """Tensors that depend on shapes and constants alone."""
        found = set(self.constants)
        for node in self.model.graph.node:
            reads = [name for name in node.input if name]
            by_shape = node.op_type in ("Shape", "Size") and node.domain in _STANDARD
            if by_shape or (reads and found.issuperset(reads) and not bodies_of(node)):
                found.update(node.output)
        return frozenset(found)

    @cached_property
    def types(self) -> dict[str, str]:
        graph = self.model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        elements = {value.name: value.type.tensor_type.elem_type for value in values}
        elements |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        return {name: type_name(element) for name, element in elements.items() if element}

    @cached_property
    def opset(self) -> int:
        return max((o.version for o in self.model.opset_import if o.domain in _STANDARD), default=1)

    def reads_shapes(self, node: onnx.NodeProto) -> bool:
        """Whether the shape of all that a node reads is known."""
        read = [name for name in node.input if name and name not in self.settled]
        return all(name in self.shapes for name in read)

    def tensors(self, node: onnx.NodeProto) -> list[str]:
        """What a node reads and makes, constants and shapes aside."""
        names = [name for name in (*node.input, *node.output) if name]
        return [name for name in names if name not in self.settled]


def type_name(element: int) -> str:
    """An element type in lower case, as `float32` and `float16`."""
    name = str(TensorProto.DataType.Name(element)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _open_inputs(model: onnx.ModelProto, rules: Rules) -> Iterator[Finding]:
    if rules.dynamic != "refused":
        return
    for value in model.graph.input:
        sizes = _declared(value)
        if _is_open(value):
            shown = "of unknown rank" if sizes is None else list(sizes)
            # An open first axis is the batch.
            first, rest = (sizes or ())[:1], (sizes or ())[1:]
            told = [*("1" if size == -1 else str(size) for size in first), *map(str, rest)]
            example = "x".join(told).replace("-1", "SIZE") or "SHAPE"
            yield Finding(
                node=value.name,
                operator="",
                reason=f"dynamic shape {shown}",
                instead=_OPEN.format(name=value.name, sizes=example),
            )


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether axes beside the batch are the caller's."""
    sizes = _declared(value)
    return sizes is None or -1 in sizes[1:]


def _declared(value: onnx.ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)


def _judge(node: onnx.NodeProto, known: _Known, rules: Rules) -> tuple[Way, Finding] | None:
    """What is wrong with a node, and whether the CPU can take it instead."""
    if known.settled.issuperset(node.output):
        return None
    name = operator_name(node)
    conditions = rules.operators.get(name)
    if name in rules.refused:
        return _found(node, rules.refused[name], "refused", rules)
    if conditions is None:
        reason = rules.never.get(name) or f"not in the list of {rules.title} {rules.version}"
        return _found(node, reason, rules.otherwise, rules)
    unknown = [tensor for tensor in node.output if tensor and tensor not in known.shapes]
    # Said where shapes are lost, not of every node behind it; of open inputs it was said before.
    lost = unknown and not known.has_open_inputs and known.reads_shapes(node)
    if lost and rules.dynamic != "taken":
        reason = f"the shape of {unknown[0]!r} is known only when it runs"
        return _found(node, reason, rules.dynamic, rules)
    reason = next(_broken(node, known, rules, conditions), "")
    return _found(node, reason, rules.otherwise, rules) if reason else None


def _cut_off(
    node: onnx.NodeProto, behind: dict[str, str], rules: Rules
) -> tuple[Way, Finding] | None:
    first = next((behind[name] for name in node.input if name in behind), None)
    if first is None:
        return None
    reason = f"it needs what {first!r} makes, and only one part of the graph is compiled"
    return _found(node, reason, "fallback", rules)


def _found(node: onnx.NodeProto, reason: str, way: Way, rules: Rules) -> tuple[Way, Finding]:
    name = operator_name(node)
    conditions = rules.operators.get(name)
    said = (conditions.instead if conditions else "") or rules.instead.get(name, "")
    return way, Finding(
        node=node.name or node.output[0],
        operator=name,
        reason=reason,
        instead=said or (_CPU if way == "fallback" else _OTHER),
    )


def operator_name(node: onnx.NodeProto) -> str:
    """`Name` of a standard operator, `domain.Name` of another."""
    return node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"


def _broken(
    node: onnx.NodeProto, known: _Known, rules: Rules, conditions: Conditions
) -> Iterator[str]:
    """Conditions that a node does not meet, those of its tensors first."""
    if bodies_of(node):
        yield "it runs a graph of its own"
    for tensor in known.tensors(node):
        yield from _tensor_breaks(tensor, known, rules)
    first = node.input[0] if node.input else ""
    rank = len(known.shapes[first]) if first in known.shapes else None
    if conditions.ranks is not None and rank is not None and rank not in conditions.ranks:
        yield f"input of {rank} axes, it takes {_either(conditions.ranks)}"
    kind = known.types.get(first)
    if conditions.types is not None and kind is not None and kind not in conditions.types:
        yield f"input of {kind}, it takes {_either(conditions.types)}"
    for position in conditions.constant:
        given = node.input[position] if position < len(node.input) else ""
        if given and given not in known.settled:
            yield f"input {position} ({given!r}) is computed, it must be a constant"
    for count, most, what in (
        (len(node.input), conditions.reads, "inputs"),
        (len(node.output), conditions.makes, "outputs"),
    ):
        if most is not None and count > most:
            yield f"{count} {what}, it takes up to {most}"
    if conditions.scales is not None:
        yield from _off_scale(node, known, conditions.scales)
    attributes = _attributes(node, known) if conditions.attributes else {}
    for attribute, bounds in conditions.attributes.items():
        if attribute in attributes:
            yield from _out_of_bounds(attribute, attributes[attribute], bounds)


def _off_scale(node: onnx.NodeProto, known: _Known, scales: tuple[int, ...]) -> Iterator[str]:
    before, after = known.shapes.get(node.input[0]), known.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after):
        return
    for size, made in zip(before, after, strict=True):
        if made not in [size * scale for scale in scales]:
            yield f"from {list(before)} to {list(after)}, its scale must be {_either(scales)}"
            return


def _tensor_breaks(tensor: str, known: _Known, rules: Rules) -> Iterator[str]:
    kind = known.types.get(tensor)
    if rules.types is not None and kind is not None and kind not in rules.types:
        yield f"tensor {tensor!r} of {kind}, it takes {_either(rules.types)}"
    shape = known.shapes.get(tensor)
    if shape is None:
        return
    if rules.max_rank is not None and len(shape) > rules.max_rank:
        yield f"tensor {tensor!r} has {len(shape)} axes, the limit is {rules.max_rank}"
    inner = rules.max_inner_rank
    if inner is not None and any(size > 1 for size in shape[:-inner]):
        yield f"tensor {tensor!r} {list(shape)}: only its last {inner} axes may be longer than 1"
    if rules.max_axis is not None and max(shape, default=1) > rules.max_axis:
        yield f"tensor {tensor!r} {list(shape)} has an axis above {rules.max_axis}"
    size_bytes = -(-prod(shape) * rules.activation_bits // 8)
    if rules.max_tensor_bytes is not None and size_bytes > rules.max_tensor_bytes:
        yield (
            f"tensor {tensor!r} of {_megabytes(size_bytes)} MB, the limit is"
            f" {_megabytes(rules.max_tensor_bytes)}"
        )


def _attributes(node: onnx.NodeProto, known: _Known) -> dict[str, Any]:
    """Attributes with the operator's defaults, and a kernel's shape read off its weights."""
    attributes: dict[str, Any] = {}
    if node.domain in _STANDARD and onnx.defs.has(node.op_type):
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=known.opset)
        for name, attribute in schema.attributes.items():
            if attribute.default_value.name:
                attributes[name] = helper.get_attribute_value(attribute.default_value)
    attributes |= attributes_of(node)
    if "kernel_shape" not in attributes and len(node.input) > 1 and node.input[1] in known.shapes:
        attributes["kernel_shape"] = known.shapes[node.input[1]][2:]
    return attributes


def _out_of_bounds(name: str, found: Any, bounds: Bounds) -> Iterator[str]:
    values = [*found] if isinstance(found, (list, tuple)) else [found]
    values = [value.decode() if isinstance(value, bytes) else value for value in values]
    shown = list(values) if len(values) != 1 else values[0]
    if bounds.values is not None and not set(values) <= set(bounds.values):
        yield f"{name} {shown}, it takes {_either(bounds.values)}"
    if bounds.equal and len(set(values)) > 1:
        yield f"{name} {shown}, its values must be equal"
    numbers = [value for value in values if isinstance(value, (int, float))]
    if not numbers:
        return
    if bounds.min is not None and min(numbers) < bounds.min:
        yield f"{name} {shown}, the least is {bounds.min:g}"
    if bounds.max is not None and max(numbers) > bounds.max:
        yield f"{name} {shown}, the most is {bounds.max:g}"
    if bounds.max_product is not None and prod(numbers) > bounds.max_product:
        yield f"{name} {shown}, its product may be {bounds.max_product:g}"


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(str, values))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}"
