"""Minimal ONNX models, and those of the contract of engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.manifest import Datatype

TYPES: dict[Datatype, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Sequence[TensorProto] = (),
) -> Path:
    """Write an ONNX model; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        initializer=list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


class OnnxModels:
    """What the contract asks of engines that take ONNX."""

    def relu(self, folder: Path) -> Path:
        return save(
            folder / "relu.onnx",
            [helper.make_node("Relu", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, ["n", 4])],
            [("y", TensorProto.FLOAT, ["n", 4])],
        )

    def identity(self, folder: Path, datatype: Datatype) -> Path:
        kind = TYPES[datatype]
        return save(
            folder / f"{datatype}.onnx",
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", kind, [2, 3])],
            [("y", kind, [2, 3])],
        )

    def scalar(self, folder: Path) -> Path | None:
        return save(
            folder / "scalar.onnx",
            [helper.make_node("Neg", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [])],
            [("y", TensorProto.FLOAT, [])],
        )

    def several(self, folder: Path) -> Path:
        shape = [1, 4]
        return save(
            folder / "several.onnx",
            [
                helper.make_node("Mul", ["a", "b"], ["product"]),
                helper.make_node("Add", ["a", "b"], ["sum"]),
            ],
            [("a", TensorProto.FLOAT, shape), ("b", TensorProto.FLOAT, shape)],
            [("sum", TensorProto.FLOAT, shape), ("product", TensorProto.FLOAT, shape)],
        )

    def heavy(self, folder: Path) -> Path:
        weights = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
        return save(
            folder / "heavy.onnx",
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [("x", TensorProto.FLOAT, [1, 1024])],
            [("y", TensorProto.FLOAT, [1, 1024])],
            [numpy_helper.from_array(weights, "w")],
        )
