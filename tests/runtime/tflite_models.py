"""Minimal TFLite models, by the schema that ai-edge-litert ships, and those of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import Datatype


class Value(NamedTuple):
    """One tensor of a model.

    Attributes:
        shape: as the file has it.
        type: a name of the schema's `TensorType`.
        signature: the shape with -1 where the caller chooses.
        quantised: scale and zero point.
        constant: what it holds, where it does not change.
    """

    shape: Sequence[int]
    type: str = "FLOAT32"
    signature: Sequence[int] | None = None
    quantised: tuple[float, int] | None = None
    constant: NDArray[Any] | None = None


class Step(NamedTuple):
    """One operator of a model.

    Attributes:
        operator: a name of the schema's `BuiltinOperator`.
        options: the name of its options in the schema, where it needs any, and what they say.
    """

    operator: str
    reads: Sequence[str]
    makes: Sequence[str]
    version: int = 1
    options: tuple[str, Mapping[str, Any]] | None = None


SCHEMA_TYPES: Mapping[Datatype, str] = {"FP16": "FLOAT16", "FP32": "FLOAT32", "FP64": "FLOAT64"}


class TfliteModels:
    """What the contract asks of engines that take TFLite files."""

    def relu(self, folder: Path) -> Path:
        return _write(folder / "relu.tflite", relu(shape=[1, 4], signature=[-1, 4]))

    def identity(self, folder: Path, datatype: Datatype) -> Path:
        value = Value([2, 3], SCHEMA_TYPES.get(datatype, datatype))
        shape = Value([2], "INT32", constant=np.array([2, 3], np.int32))
        step = Step("RESHAPE", ["x", "shape"], ["y"], options=("ReshapeOptions", {}))
        values = {"x": value, "shape": shape, "y": value}
        made = model(values, [step], inputs=["x"], outputs=["y"])
        return _write(folder / f"{datatype}.tflite", made)

    def scalar(self, folder: Path) -> Path | None:
        values = {"x": Value([]), "y": Value([])}
        step = Step("NEG", ["x"], ["y"], options=("NegOptions", {}))
        made = model(values, [step], inputs=["x"], outputs=["y"])
        return _write(folder / "scalar.tflite", made)

    def several(self, folder: Path) -> Path:
        values = {name: Value([1, 4]) for name in ("a", "b", "sum", "product")}
        steps = [
            Step("MUL", ["a", "b"], ["product"], options=("MulOptions", {})),
            Step("ADD", ["a", "b"], ["sum"], options=("AddOptions", {})),
        ]
        made = model(values, steps, inputs=["a", "b"], outputs=["sum", "product"])
        return _write(folder / "several.tflite", made)

    def heavy(self, folder: Path) -> Path:
        weights = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
        values = {
            "x": Value([1, 1024]),
            "w": Value([1024, 1024], constant=weights),
            "b": Value([1024], constant=np.zeros(1024, np.float32)),
            "y": Value([1, 1024]),
        }
        reads = ["x", "w", "b"]
        step = Step("FULLY_CONNECTED", reads, ["y"], options=("FullyConnectedOptions", {}))
        return _write(folder / "heavy.tflite", model(values, [step], inputs=["x"], outputs=["y"]))


def sums(*, dynamic: bool = False) -> bytes:
    """a = x + x; y = relu(a w) + a, where w doubles; x of shape [1, 4]: two of four steps add."""
    value = Value([1, 4], signature=[-1, 4] if dynamic else None)
    values = {
        **dict.fromkeys(("x", "a", "c", "r", "y"), value),
        "w": Value([4, 4], constant=np.eye(4, dtype=np.float32) * 2),
        "b": Value([4], constant=np.zeros(4, np.float32)),
    }
    steps = [
        Step("ADD", ["x", "x"], ["a"], options=("AddOptions", {})),
        Step("FULLY_CONNECTED", ["a", "w", "b"], ["c"], options=("FullyConnectedOptions", {})),
        Step("RELU", ["c"], ["r"]),
        Step("ADD", ["r", "a"], ["y"], options=("AddOptions", {})),
    ]
    return model(values, steps, inputs=["x"], outputs=["y"])


def chain(length: int) -> bytes:
    """y = x * (length + 1), one addition of x after the other; x of shape [1, 4]."""
    names = ["x", *(f"s{number}" for number in range(length - 1)), "y"]
    steps = [
        Step("ADD", [before, "x"], [after], options=("AddOptions", {}))
        for before, after in pairwise(names)
    ]
    return model(dict.fromkeys(names, Value([1, 4])), steps, inputs=["x"], outputs=["y"])


def relu_by_sums() -> bytes:
    """y = (relu(x) + relu(x)) / 2, x of shape [-1, 4]: what the delegate of the tests takes."""
    value = Value([1, 4], signature=[-1, 4])
    values = {
        **dict.fromkeys(("x", "r", "s", "y"), value),
        "half": Value([1], constant=np.array([0.5], np.float32)),
    }
    steps = [
        Step("RELU", ["x"], ["r"]),
        Step("ADD", ["r", "r"], ["s"], options=("AddOptions", {})),
        Step("MUL", ["s", "half"], ["y"], options=("MulOptions", {})),
    ]
    return model(values, steps, inputs=["x"], outputs=["y"])


def relu(
    *,
    shape: Sequence[int],
    signature: Sequence[int] | None = None,
    quantised: tuple[float, int] | None = None,
) -> bytes:
    """y = relu(x), float32; with `quantised` int8 of that scale and zero point."""
    kind = "FLOAT32" if quantised is None else "INT8"
    value = Value(shape, kind, signature, quantised)
    step = Step("RELU", ["x"], ["y"], version=1 if quantised is None else 2)
    return model({"x": value, "y": value}, [step], inputs=["x"], outputs=["y"])


def model(
    values: Mapping[str, Value],
    steps: Sequence[Step],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """A file of one graph; its tensors are numbered in the order of `values`."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    numbers = {name: number for number, name in enumerate(values)}
    made = schema.ModelT()
    # The first buffer is the empty one.
    made.version, made.buffers, made.operatorCodes = 3, [schema.BufferT()], []
    graph = schema.SubGraphT()
    graph.inputs, graph.outputs = [numbers[n] for n in inputs], [numbers[n] for n in outputs]
    graph.tensors, graph.operators = [], []
    for name, value in values.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(value.shape), 0
        tensor.type = getattr(schema.TensorType, value.type)
        if value.signature is not None:
            tensor.shapeSignature = list(value.signature)
        if value.quantised is not None:
            scale, zero_point = value.quantised
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        if value.constant is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(value.constant.tobytes(), np.uint8)
            tensor.buffer = len(made.buffers)
            made.buffers.append(buffer)
        graph.tensors.append(tensor)
    for step in steps:
        operator = schema.OperatorT()
        operator.inputs = [numbers[name] for name in step.reads]
        operator.outputs = [numbers[name] for name in step.makes]
        operator.opcodeIndex = len(made.operatorCodes)
        if step.options is not None:
            kind, said = step.options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, f"{kind}T")()
            for field, setting in said.items():
                setattr(operator.builtinOptions, field, setting)
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(
            schema.BuiltinOperator, step.operator
        )
        code.version = step.version
        made.operatorCodes.append(code)
        graph.operators.append(operator)
    made.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _write(path: Path, made: bytes) -> Path:
    path.write_bytes(made)
    return path
