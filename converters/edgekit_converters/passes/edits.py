"""Edits: the few ways in which passes change a copy of a model, and look at what it holds.

A pass never changes the model it is given, so each starts with `copied`; one that replaced weights
ends with `swept`, which leaves nothing behind that no node reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import reads_of

MICROSOFT = "com.microsoft"
Constants = Mapping[str, TensorProto]

_STANDARD = ("", "ai.onnx")

OptionsT = TypeVar("OptionsT", bound=Strict)


def checked(given: Mapping[str, Option], kind: type[OptionsT], *, of: str) -> OptionsT:
    """The options of the pass `of`, completed by defaults.

    Raises:
        RecipeError: an option is unknown or out of range; the message names it.
    """
    try:
        return msgspec.convert(dict(given), kind)
    except msgspec.ValidationError as e:
        raise RecipeError(
            f"options of pass {of} are not valid: {e}",
            hint=f"its options are {', '.join(kind.__struct_fields__)}",
        ) from e


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own, to be changed in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def step_options(options: Strict) -> dict[str, Option]:
    """Options as a step holds them, complete."""
    return {field: getattr(options, field) for field in options.__struct_fields__}


def kept_label(names: Sequence[str]) -> str:
    """A short part of a label that stands for nodes left in float: their number and a digest."""
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    return f"float-{len(names)}-{digest[:4]}"


def require_nodes(model: onnx.ModelProto, names: Sequence[str], *, of: str) -> None:
    """Refuse names that no node of the main graph has, raising `RecipeError` that names one."""
    known = {node.name for node in model.graph.node}
    for name in names:
        if name not in known:
            raise RecipeError(
                f"{of}: keep_float names {name!r}, and the model has no node of that name",
                hint="see the graph of the model; a node without a name is called OPERATOR.NUMBER",
            )


def use_domain(model: onnx.ModelProto, domain: str) -> None:
    """Import version 1 of an operator set, in place, where the model does not import it yet."""
    if domain not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(domain, 1))


def is_standard(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether a node is one of these operators, or any, of the default domain."""
    return node.domain in _STANDARD and (not operators or node.op_type in operators)


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Constants of the main graph by name: initialisers, and tensors of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if is_standard(node, "Constant"):
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def bytes_of(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, where they are whole bytes."""
    itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * itemsize


def swept(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without initialisers, Constant nodes and recorded shapes nobody uses."""
    graph = model.graph
    read = {name for node in graph.node for name in reads_of(node)}
    read |= {value.name for value in graph.output}
    nodes = [n for n in graph.node if not is_standard(n, "Constant") or n.output[0] in read]
    made = {name for node in nodes for name in node.output}
    _keep(graph.node, nodes)
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    _keep(graph.value_info, [value for value in graph.value_info if value.name in made])
    return model


def holds_graph(node: onnx.NodeProto) -> bool:
    """Whether a node has graphs of its own: If, Loop, Scan."""
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def nothing_to_do(model: onnx.ModelProto, *, label: str, wanted: str) -> BuildError:
    """The error of a pass that finds nothing in the main graph that it could change.

    Args:
        wanted: what it looked for, such as `MatMul or Gemm with constant weights`.
    """
    holders = [node for node in model.graph.node if holds_graph(node)]
    if holders:
        node = max(holders, key=lambda holder: holder.ByteSize())
        return BuildError(
            f"{label} finds no {wanted} in the main graph; this model's work lies inside of"
            f" {node.op_type} {node.name!r}, which passes do not enter",
            hint="export the model with the branch resolved, or build it in float",
        )
    return BuildError(
        f"{label} finds no {wanted} in this model", hint="take the pass out of the recipe"
    )


def _keep(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)
