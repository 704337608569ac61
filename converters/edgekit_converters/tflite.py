"""TFLite in numbers: parameters, MACs and live tensors, read from the file's flatbuffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.structs import Strict
from edgekit_converters.activations import Step, peak_bytes
from edgekit_runtime.engines.tflite_macs import macs_of


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


class Operator(Strict, frozen=True, kw_only=True):
    """One operator of a file.

    Attributes:
        name: its type, in the schema's words; a custom one by its own name.
        number: its position in its graph.
        makes: its outputs, by their numbers in the graph.
        macs: None where a tensor's shape does not tell.
        is_float: whether it computes in float; what only converts to or from integers does not.
    """

    name: str
    number: int
    makes: tuple[int, ...]
    macs: int | None
    is_float: bool


def facts(path: Path) -> TfliteFacts:
    """Facts about a TFLite file that LiteRT has opened before."""
    graphs = _graphs(path)
    found = [operator for graph in graphs for operator in graph.operators()]
    constants = [(graph, name) for graph in graphs for name in graph.constants]
    return TfliteFacts(
        parameters=sum(prod(graph.shapes[name]) for graph, name in constants),
        weight_bytes=sum(graph.constants[name] for graph, name in constants),
        macs=sum(operator.macs or 0 for operator in found),
        peak_activation_bytes=graphs[0].peak_bytes(),
        unknown=tuple(f"{o.name}.{o.number}" for o in found if o.macs is None),
    )


def operators(path: Path) -> tuple[Operator, ...]:
    """The operators of a TFLite file's main graph, in running order."""
    return tuple(_graphs(path)[0].operators())


def operator_counts(path: Path) -> dict[str, int]:
    """How many operators of each type all graphs of a file hold, most frequent first."""
    counts = Counter(name for graph in _graphs(path) for name in graph.names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def unpacked(raw: bytes) -> Any:
    """A TFLite file as the schema's objects (a `ModelT`), to be changed; values in its buffers."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    # Writers of today may put them behind the flatbuffer.
    for buffer in model.buffers:
        if buffer.size:
            buffer.data = np.frombuffer(raw, np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def packed(model: Any) -> bytes:
    """The file of a `ModelT`; equal models give equal bytes."""
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def inlined(raw: bytes) -> bytes:
    """A TFLite file with all values inside its flatbuffer, where tools from before 2024 look."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(raw, 0)
    is_outside = any(model.Buffers(number).Size() for number in range(model.BuffersLength()))
    return packed(unpacked(raw)) if is_outside else raw


def settled(raw: bytes) -> bytes:
    """A TFLite file whose shapes hold for every run: none is declared open, all values inside.

    Converters leave axes open inside of graphs whose inputs are fixed, and compilers leave what has
    such axes to the CPU. The file is to have no shape that depends on values.
    """
    model = unpacked(raw)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.shapeSignature = None
    return packed(model)


def _graphs(path: Path) -> list[_Graph]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    return [_Graph(model, model.Subgraphs(g)) for g in range(model.SubgraphsLength())]


class _Graph:
    """One subgraph, its tensors named by their numbers.

    Attributes:
        shapes: of every tensor; an axis that is the caller's counts as the file has it, mostly 1.
        floats: tensors of 16 or 32 bits of float.
        constants: bytes of the tensors whose values are in the file.
        steps, names: what each operator reads and makes, and its type.
    """

    def __init__(self, model: Any, graph: Any) -> None:
        self._inputs = [str(graph.Inputs(i)) for i in range(graph.InputsLength())]
        self._outputs = [str(graph.Outputs(i)) for i in range(graph.OutputsLength())]
        self._sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.floats: set[str] = set()
        self.constants: dict[str, int] = {}
        for number in range(graph.TensorsLength()):
            tensor = graph.Tensors(number)
            shape = tuple(int(tensor.Shape(axis)) for axis in range(tensor.ShapeLength()))
            self.shapes[str(number)] = shape
            if tensor.Type() in _FLOATS:
                self.floats.add(str(number))
            buffer = model.Buffers(tensor.Buffer())
            # Writers of large files put values behind the flatbuffer and note their place in it.
            stored_bytes = buffer.DataLength() or buffer.Size()
            if stored_bytes:
                self.constants[str(number)] = stored_bytes
            elif tensor.Type() in _ITEM_BITS:
                self._sizes[str(number)] = -(-prod(shape) * _ITEM_BITS[tensor.Type()] // 8)
        self.steps: list[Step] = []
        self.names: list[str] = []
        for number in range(graph.OperatorsLength()):
            operator = graph.Operators(number)
            reads = [str(operator.Inputs(i)) for i in range(operator.InputsLength())]
            makes = [str(operator.Outputs(i)) for i in range(operator.OutputsLength())]
            self.steps.append(Step(reads, makes))
            code = model.OperatorCodes(operator.OpcodeIndex())
            self.names.append(_name(code))

    def operators(self) -> Iterator[Operator]:
        """What each operator costs."""
        for number, (name, step) in enumerate(zip(self.names, self.steps, strict=True)):
            macs: int | None
            try:
                macs = macs_of(name, self._shapes(step.reads), self._shapes(step.makes))
            except IndexError:  # a tensor that is left out, or of another rank
                macs = None
            is_float = name not in CONVERSIONS and not self.floats.isdisjoint(step.makes)
            yield Operator(
                name=name,
                number=number,
                makes=tuple(map(int, step.makes)),
                macs=macs,
                is_float=is_float,
            )

    def _shapes(self, tensors: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.shapes.get(tensor, ()) for tensor in tensors]

    def peak_bytes(self) -> int | None:
        """The largest sum of live tensors; None where one has no size."""
        return peak_bytes(self.steps, self._sizes, inputs=self._inputs, outputs=self._outputs)


_FLOATS = frozenset({0, 1})
CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
"""Operators between floats and integers, which compute nothing else."""

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


def _name(code: Any) -> str:
    """An operator's type, from its entry in the file's table of types."""
    from ai_edge_litert import schema_py_generated as schema

    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if builtin == schema.BuiltinOperator.CUSTOM and code.CustomCode():
        return str(code.CustomCode().decode())
    types = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return str(types.get(builtin, builtin))
