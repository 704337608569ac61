"""A real engine that hangs: a bundle whose network runs for ever, and is well but for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit.signing import SigningKey
from tests import bundles

ROUNDS = 2**62


def network() -> bytes:
    """Input and output as the default model's; between them a loop of 2^62 rounds."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    weights = [
        numpy_helper.from_array(np.array(ROUNDS, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "always"),
        numpy_helper.from_array(
            np.zeros((bundles.FEATURES, bundles.CLASSES), np.float32), "weights"
        ),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["rounds", "always", "x"], ["turned"], body=body),
            helper.make_node("MatMul", ["turned", "weights"], ["y"]),
        ],
        "hangs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", bundles.FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", bundles.CLASSES])],
        weights,
    )
    opset = helper.make_opsetid("", bundles.OPSET)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=bundles.IR)
    return bytes(made.SerializeToString(deterministic=True))


def write(folder: Path, *, name: str, version: str, key: SigningKey) -> Path:
    """A signed bundle of it, with the golden outputs of the default model."""
    hangs = {"artifacts/float.onnx": network()}
    return bundles.write(folder, name=name, version=version, key=key, extra=hangs)
