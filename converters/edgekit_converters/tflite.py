"""TFLite in numbers: parameters, MACs and live tensors, read from the file's flatbuffer."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from edgekit.structs import Strict
from edgekit_converters.activations import Step, peak_bytes


class TfliteFacts(Strict, frozen=True, kw_only=True):
    """What a TFLite file tells of its cost at the shapes it declares.

    Attributes:
        parameters: values in constant tensors.
        macs: multiply-accumulates of one run.
        peak_activation_bytes: None where a tensor's size is not in the file.
        unknown: operators whose MACs are not counted.
    """

    parameters: int
    weight_bytes: int
    macs: int
    peak_activation_bytes: int | None
    unknown: tuple[str, ...]


def facts(path: Path) -> TfliteFacts:
    """Facts about a TFLite file that LiteRT has opened before."""
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    graphs = [_Graph(model, model.Subgraphs(g)) for g in range(model.SubgraphsLength())]
    macs = 0
    unknown: list[str] = []
    for graph in graphs:
        for number, step in enumerate(graph.steps):
            name = names.get(graph.codes[number], str(graph.codes[number]))
            try:
                macs += _macs(name, step, graph.shapes)
            except (KeyError, IndexError):  # a tensor that is left out, or of another rank
                unknown.append(f"{name}.{number}")
    constants = [(graph, name) for graph in graphs for name in graph.constants]
    return TfliteFacts(
        parameters=sum(prod(graph.shapes[name]) for graph, name in constants),
        weight_bytes=sum(graph.constants[name] for graph, name in constants),
        macs=macs,
        peak_activation_bytes=graphs[0].peak_bytes(),
        unknown=tuple(unknown),
    )


class _Graph:
    """One subgraph, its tensors named by their numbers.

    Attributes:
        shapes: of every tensor; an axis that is the caller's counts as the file has it, mostly 1.
        constants: bytes of the tensors whose values are in the file.
        steps, codes: what each operator reads and makes, and which it is.
    """

    def __init__(self, model: Any, graph: Any) -> None:
        self._inputs = [str(graph.Inputs(i)) for i in range(graph.InputsLength())]
        self._outputs = [str(graph.Outputs(i)) for i in range(graph.OutputsLength())]
        self._sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.constants: dict[str, int] = {}
        for number in range(graph.TensorsLength()):
            tensor = graph.Tensors(number)
            shape = tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))
            self.shapes[str(number)] = shape
            stored_bytes = model.Buffers(tensor.Buffer()).DataLength()
            if stored_bytes:
                self.constants[str(number)] = stored_bytes
            elif tensor.Type() in _ITEM_BITS:
                self._sizes[str(number)] = -(-prod(shape) * _ITEM_BITS[tensor.Type()] // 8)
        self.steps: list[Step] = []
        self.codes: list[int] = []
        for number in range(graph.OperatorsLength()):
            operator = graph.Operators(number)
            reads = [str(operator.Inputs(i)) for i in range(operator.InputsLength())]
            makes = [str(operator.Outputs(i)) for i in range(operator.OutputsLength())]
            self.steps.append(Step(reads, makes))
            code = model.OperatorCodes(operator.OpcodeIndex())
            self.codes.append(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))

    def peak_bytes(self) -> int | None:
        """The largest sum of live tensors; None where one has no size."""
        return peak_bytes(self.steps, self._sizes, inputs=self._inputs, outputs=self._outputs)


# Bits of one value by the number of its TensorType in the schema; texts and resources have none.
_ITEM_BITS = {
    **dict.fromkeys((0, 2, 15), 32),
    **dict.fromkeys((1, 7, 16, 18), 16),
    **dict.fromkeys((3, 6, 9, 21, 22), 8),
    **dict.fromkeys((4, 8, 10, 12), 64),
    **dict.fromkeys((17, 20), 4),
    11: 128,
    19: 2,
}


def _macs(operator: str, step: Step, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """MACs of one operator; 0 of those that multiply nothing worth counting."""
    if operator not in _MULTIPLYING:
        return 0
    output = prod(shapes[step.makes[0]])
    weights = shapes[step.reads[1]]
    if operator == "CONV_2D":
        return output * prod(weights[1:])
    if operator == "DEPTHWISE_CONV_2D":
        return output * weights[1] * weights[2]
    if operator == "TRANSPOSE_CONV":
        return prod(shapes[step.reads[2]]) * prod(weights[:3])
    if operator == "FULLY_CONNECTED":
        return output * weights[-1]
    first = shapes[step.reads[0]]
    # The inner size of a product of matrices, whichever factor is transposed.
    return output * (prod(first[-2:]) // shapes[step.makes[0]][-2])


_MULTIPLYING = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
)
