"""Raising the opset keeps what every operator computes, or is not done and said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters.normalise import MIN_OPSET, normalise, opset_of, serialise

Arrays = dict[str, NDArray[Any]]
RNG = np.random.default_rng(11)


def noise(*sizes: int) -> NDArray[np.float32]:
    return RNG.standard_normal(sizes).astype(np.float32)


def whole(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def model(
    opset: int, operator: str, shape: list[int], constants: Arrays, **attributes: Any
) -> onnx.ModelProto:
    """One node that reads `x` and constants by name; unnamed optional inputs are `_`."""
    outputs = ["y", "z"] if operator in ("Split", "TopK") else ["y"]
    reads = ["x", *("" if name.startswith("_") else name for name in constants)]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, reads, outputs, "node", **attributes)],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(a, n) for n, a in constants.items() if n[0] != "_"],
        ),
        ir_version=3 if opset < 9 else 8,
        opset_imports=[helper.make_opsetid("", opset)],
    )


def answer(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        serialise(model), options, providers=["CPUExecutionProvider"]
    )
    result: NDArray[Any] = session.run(["y"], {"x": x})[0]
    return result


PICTURE = [1, 3, 4, 4]
BATCH_NORM = {"scale": noise(3), "bias": noise(3), "mean": noise(3), "var": floats(1, 2, 3)}
ROI = {"roi": floats()}
Case = tuple[str, list[int], Arrays, dict[str, Any]]

# Operators that changed between opset 7 and 17, as the opset in which they are written has them.
CASES: dict[int, list[Case]] = {
    7: [
        ("Upsample", PICTURE, {}, {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}),
        ("Upsample", PICTURE, {}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}),
        ("Pad", PICTURE, {}, {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "mode": "reflect"}),
        ("Clip", [2, 3], {}, {"min": -0.5}),
        ("Dropout", [2, 3], {}, {"ratio": 0.3}),
        ("Slice", [2, 3, 4], {}, {"axes": [1, 2], "starts": [0, 1], "ends": [2, 1 << 62]}),
        ("TopK", [2, 5], {}, {"k": 2, "axis": 1}),
        ("Split", [2, 4], {}, {"axis": 1, "split": [1, 3]}),
        ("Gemm", [2, 4], {"w": noise(5, 4), "b": noise(5)}, {"transB": 1}),
        ("Add", [2, 4], {"w": noise(4)}, {}),
        ("Squeeze", [2, 1, 4, 1], {}, {}),
        ("ReduceSum", [2, 3, 4], {}, {"axes": [1, 2], "keepdims": 0}),
        ("BatchNormalization", PICTURE, BATCH_NORM, {}),
        ("Softmax", [2, 10], {}, {}),
        *(("LogSoftmax", [2, 3, 4, 5], {}, {"axis": axis}) for axis in (0, 1, 2, 3)),
    ],
    9: [
        ("Upsample", PICTURE, {"s": floats(1, 1, 1.5, 1.7)}, {"mode": "nearest"}),
        ("Upsample", PICTURE, {"s": floats(1, 1, 2, 2)}, {"mode": "linear"}),
        ("Pad", PICTURE, {}, {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "value": 0.5}),
        ("Clip", [2, 3], {}, {"min": -0.5, "max": 0.5}),
        ("Slice", [2, 3, 4], {}, {"starts": [0, 1], "ends": [2, -1]}),
        ("BatchNormalization", PICTURE, BATCH_NORM, {}),
    ],
    10: [
        ("Resize", PICTURE, {"s": floats(1, 1, 1.5, 1.7)}, {"mode": "nearest"}),
        ("Resize", PICTURE, {"s": floats(1, 1, 0.5, 0.7)}, {"mode": "nearest"}),
        ("Resize", PICTURE, {"s": floats(1, 1, 1.5, 0.7)}, {"mode": "linear"}),
        ("TopK", [2, 5], {"k": whole(2)}, {"axis": 1}),
    ],
    11: [
        ("Resize", PICTURE, {**ROI, "s": floats(1, 1, 2, 1.5)}, {"mode": "cubic"}),
        ("Clip", [2, 3], {"_": floats(), "high": np.array(0.5, np.float32)}, {}),
        ("Dropout", [2, 3], {}, {"ratio": 0.3}),
        ("Gemm", [2, 4], {"w": noise(4, 5)}, {}),
        ("Unsqueeze", [2, 3], {}, {"axes": [0, 3]}),
        ("ReduceMean", [2, 3, 4], {}, {"axes": [-1]}),
        ("Pad", PICTURE, {"p": whole(0, 0, 1, 1, 0, 0, 2, 2)}, {"mode": "edge"}),
    ],
    12: [
        ("Resize", PICTURE, {**ROI, "s": floats(1, 1, 2, 1.5)}, {"mode": "linear"}),
        ("Split", [2, 4], {}, {"axis": 1}),
        ("Squeeze", [2, 1, 4, 1], {}, {"axes": [1, 3]}),
        ("ReduceSum", [2, 3, 4], {}, {}),
        *(("Softmax", [2, 3, 4, 5], {}, {"axis": axis}) for axis in (0, 1, 2, 3, -1, -2)),
        ("Hardmax", [2, 3, 4], {}, {"axis": 2}),
    ],
}


@pytest.mark.parametrize(
    ("opset", "case"),
    [(opset, case) for opset, cases in CASES.items() for case in cases],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_an_operator_answers_the_same_after_its_opset_was_raised(opset: int, case: Case) -> None:
    operator, shape, constants, attributes = case
    source = model(opset, operator, shape, constants, **attributes)

    normal = normalise(source, shapes={}, max_opset=21, max_ir=10, fold=False)

    assert opset_of(normal.model) == MIN_OPSET
    assert normal.notes == ()
    x = noise(*shape)
    np.testing.assert_allclose(answer(normal.model, x), answer(source, x), atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "case", "reason"),
    [
        (12, ("Hardmax", [2, 3, 4], {}, {"axis": 1}), "Hardmax 'node' of axis 1"),
        (
            10,
            ("Resize", PICTURE, {"s": floats(1, 1, 2, 0.5)}, {"mode": "nearest"}),
            "Resize 'node' both enlarges and shrinks",
        ),
    ],
)
def test_an_operator_whose_meaning_would_change_keeps_its_opset(
    opset: int, case: Case, reason: str
) -> None:
    operator, shape, constants, attributes = case
    source = model(opset, operator, shape, constants, **attributes)

    normal = normalise(source, shapes={}, max_opset=21, max_ir=10, fold=False)

    assert opset_of(normal.model) == opset
    assert f"opset stays {opset}" in normal.notes[0]
    assert reason in normal.notes[0]
    x = noise(*shape)
    np.testing.assert_array_equal(answer(normal.model, x), answer(source, x))


def test_an_operator_that_cannot_be_converted_keeps_its_opset() -> None:
    arrays = {name: noise(3, 4, 4) for name in ("scale", "bias", "mean")}
    arrays["var"] = np.ones((3, 4, 4), np.float32)
    source = model(7, "BatchNormalization", PICTURE, arrays, spatial=0)

    normal = normalise(source, shapes={}, max_opset=21, max_ir=10, fold=False)

    assert opset_of(normal.model) == 7
    assert "spatial" in normal.notes[0]


def test_branches_are_raised_too() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Upsample", ["x", "s"], ["wide"], mode="linear"),
            helper.make_node(operator, ["wide"], ["out"]),
        ]
        return helper.make_graph(nodes, operator, [], [onnx.ValueInfoProto(name="out")])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")
        ),
    ]
    constants = {"s": floats(1, 1, 2, 2), "zero": np.array(0, np.float32)}
    source = helper.make_model(
        helper.make_graph(
            nodes,
            "branches",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, PICTURE)],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 9)],
    )

    normal = normalise(source, shapes={}, max_opset=21, max_ir=10)

    x = np.abs(noise(*PICTURE))
    for sign in (1, -1):
        wanted = answer(source, x * np.float32(sign))
        np.testing.assert_allclose(answer(normal.model, x * np.float32(sign)), wanted, atol=1e-6)
