"""Small models and the way the tests of the differentiation build and run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser

from edgekit_converters.autodiff import (
    Optimiser,
    SoftmaxCrossEntropy,
    TrainingGraphs,
    build_training,
)


def build(
    model: onnx.ModelProto,
    *,
    optimiser: Optimiser,
    trainable: list[str] | None = None,
    output: str | None = None,
) -> TrainingGraphs:
    return build_training(
        model,
        loss=SoftmaxCrossEntropy(),
        optimiser=optimiser,
        trainable=trainable,
        output=output,
    )


def mlp(
    *, hidden: int = 16, ending: str = "", batch: str = "N", opset: int = 17
) -> onnx.ModelProto:
    """Make 64 - hidden - 10 with both spellings of a dense layer, `Gemm` and `MatMul` + `Add`."""
    rng = np.random.default_rng(7)
    weights = {
        "w1": rng.normal(0, 0.2, (hidden, 64)),
        "b1": rng.normal(0, 0.1, hidden),
        "w2": rng.normal(0, 0.2, (hidden, 10)),
        "b2": rng.normal(0, 0.1, 10),
    }
    chain = [f"t{i}" for i, _ in enumerate(filter(None, ending.split(", ")))]
    tail = ["product", "logits" if chain else "scores"]
    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["before"], transB=1),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], [tail[0]]),
        helper.make_node("Add", [tail[0], "b2"], [tail[1]]),
    ]
    ends = ["logits", *chain[:-1], "scores"]
    nodes += [
        helper.make_node(operator, [ends[i]], [ends[i + 1]])
        for i, operator in enumerate(filter(None, ending.split(", ")))
    ]
    size = 1 if batch == "1" else batch
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [size, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [size, 10])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(8, ir_of(opset)))


def convnet() -> onnx.ModelProto:
    """Make a small network of the blocks that mobile ones are made of."""
    rng = np.random.default_rng(3)
    shapes = {
        "k1": (8, 1, 3, 3),
        "c1": (8,),
        "k2": (8, 1, 3, 3),
        "k3": (16, 8, 1, 1),
        "w": (16, 10),
    }
    constants = [
        numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        convnet (float[N, 1, 8, 8] image) => (float[N, 10] scores) {
            a = Conv <pads = [1, 1, 1, 1]> (image, k1, c1)
            b = HardSwish(a)
            c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
            d = Conv <group = 8, auto_pad = "SAME_UPPER", strides = [2, 2]> (c, k2)
            e = Relu(d)
            f = Conv(e, k3)
            g = GlobalAveragePool(f)
            h = Flatten(g)
            scores = MatMul(h, w)
        }"""
    )
    model.graph.initializer.extend(constants)
    return model


def parse(
    inputs: str, constants: str, nodes: str, *, output: str = "float[N, 2] y"
) -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net ({inputs}) => ({output})'
        f" <{constants}> {{ {nodes} }}"
    )


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ir_of(opset: int) -> int:
    version: int = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return version


def names(values: Any) -> list[str]:
    return [value.name for value in values]
