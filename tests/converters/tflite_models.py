"""A small TFLite model, written with the schema that LiteRT ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray


def write_dense(path: Path, *, features: int = 64, classes: int = 10, seed: int = 3) -> None:
    """One fully connected layer, float32: `image` [1, features] to `scores` [1, classes]."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((classes, features)).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor(b"image", [1, features], 0),
        _tensor(b"weights", [classes, features], 1),
        _tensor(b"bias", [classes], 2),
        _tensor(b"scores", [1, classes], 0),
    ]
    graph.inputs, graph.outputs = [0], [3]
    graph.operators = [_dense()]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model = schema.ModelT()
    model.version = 3
    model.subgraphs = [graph]
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT(), _buffer(weights), _buffer(bias)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _tensor(name: bytes, shape: list[int], buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
    tensor.type = schema.TensorType.FLOAT32
    return tensor


def _buffer(array: NDArray[np.float32]) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(array.tobytes(), np.uint8)
    return buffer


def _dense() -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    return operator
