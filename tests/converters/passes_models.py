"""Small models that tests of passes start from, and the engine that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime import InferenceSession, SessionOptions

from edgekit.profile import EngineSpec

Sizes = Sequence[int | str]


def engine(*precisions: str, accelerator: str = "cpu") -> EngineSpec:
    """onnxruntime, listing these precisions."""
    return EngineSpec(
        name="onnxruntime",
        version="1.31",
        precisions=(*precisions, "fp32"),
        accelerator="gpu" if accelerator == "gpu" else "cpu",
    )


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Sizes],
    outputs: Mapping[str, Sizes],
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """A checked float model of opset 17 with inferred shapes; an int64 input is called `ids`."""

    def value(name: str, sizes: Sizes) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name == "ids" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, list(sizes))

    graph = helper.make_graph(
        list(nodes),
        "test",
        [value(name, sizes) for name, sizes in inputs.items()],
        [value(name, sizes) for name, sizes in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return shape_inference.infer_shapes(model, data_prop=True)


def noise(seed: int, *sizes: int) -> NDArray[np.float32]:
    """Normal float32 values, always the same."""
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def run(model: onnx.ModelProto, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """The model's outputs, computed by onnxruntime on one thread."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[NDArray[Any]] = session.run(None, inputs)
    return outputs


def error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Relative error in the Euclidean norm."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def mlp(*, width: int = 256, depth: int = 3, batch: int | str = "N") -> onnx.ModelProto:
    """Matrix products with biases and ReLUs between: x [batch, 64] to y [batch, 10]."""
    sizes = [64, *[width] * depth, 10]
    nodes, constants, last = [], {}, "x"
    for i, (before, after) in enumerate(pairwise(sizes)):
        constants[f"w{i}"] = noise(i, before, after) / np.float32(np.sqrt(before))
        constants[f"b{i}"] = noise(100 + i, after)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"p{i}"], f"product{i}"))
        result = "y" if i == depth else f"s{i}"
        nodes.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [result], f"bias{i}"))
        last = result
        if i < depth:
            nodes.append(helper.make_node("Relu", [result], [f"h{i}"], f"relu{i}"))
            last = f"h{i}"
    return graph_of(
        nodes, inputs={"x": [batch, 64]}, outputs={"y": [batch, 10]}, constants=constants
    )


def small_convnet(*, batch: int | str = 1) -> onnx.ModelProto:
    """A convolution, a pool, and a head: x [batch, 8, 16, 16] to y [batch, 10]."""
    return graph_of(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flatten"),
            helper.make_node("MatMul", ["f", "w"], ["y"], "head"),
        ],
        inputs={"x": [batch, 8, 16, 16]},
        outputs={"y": [batch, 10]},
        constants={"k": noise(1, 32, 8, 3, 3), "w": noise(2, 32, 10)},
    )


def inside_an_if() -> onnx.ModelProto:
    """A model whose one matrix product, with its weight, sits in either branch of an If."""
    weight = numpy_helper.from_array(noise(1, 64, 512), "w")
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [weight],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "positive"),
        helper.make_node(
            "If", ["positive"], ["y"], "choice", then_branch=branch, else_branch=branch
        ),
    ]
    return graph_of(
        nodes,
        inputs={"x": ["N", 64]},
        outputs={"y": ["N", 512]},
        constants={"zero": np.zeros((), np.float32)},
    )
