"""Minimal ONNX models of a few nodes, their normal form and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters.normalise import Normalised, normalise, serialise

Arrays = dict[str, NDArray[Any]]
node = helper.make_node


def noise(*sizes: int, seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Arrays,
    *,
    shape: Sequence[int | str] = (1, 3, 8, 8),
    output: Sequence[int | str] | None = None,
) -> onnx.ModelProto:
    """From `x` to `y`, opset 17."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )


def normal_form(source: onnx.ModelProto, **options: Any) -> Normalised:
    return normalise(source, **{"shapes": {}, "max_opset": 21, "max_ir": 10, **options})


def answer(model: onnx.ModelProto, **feed: NDArray[Any]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        serialise(model), options, providers=["CPUExecutionProvider"]
    )
    result: NDArray[np.float32] = session.run(None, feed)[0]
    return result


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
