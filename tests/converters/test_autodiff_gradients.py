"""Every gradient rule against central differences of the loss, run by onnxruntime in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters.autodiff import SGD, MeanSquaredError, build_training
from edgekit_converters.autodiff.forward import NEWEST_OPSET
from edgekit_converters.autodiff.gradients import RULES
from tests.converters.autodiff_models import session

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One operator applied to weights `w0`, `w1` and so on."""

    operator: str
    shapes: Sequence[tuple[int, ...]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[NDArray[Any]] = ()
    low: float = -2.0
    high: float = 2.0
    opset: int = 17
    element: int = TensorProto.DOUBLE

    def __str__(self) -> str:
        return f"{self.operator}{list(self.shapes)}{dict(self.attributes)}opset{self.opset}"


def test_the_gradient_of_an_operator_is_the_slope_of_the_loss(case: Case) -> None:
    weights = spaced_weights(case)

    assert_gradients_are_slopes(model_of(case, weights), weights)


CONVOLUTIONS: list[tuple[list[tuple[int, ...]], dict[str, Any]]] = [
    ([(2, 3, 6, 5), (4, 3, 3, 3), (4,)], {"pads": [1, 1, 1, 1]}),
    ([(2, 3, 7, 6), (4, 3, 3, 2)], {"strides": [2, 3], "pads": [0, 1, 1, 0]}),
    ([(2, 4, 7, 7), (6, 2, 3, 3), (6,)], {"group": 2, "dilations": [2, 1]}),
    ([(3, 4, 6, 6), (4, 1, 3, 3)], {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ([(2, 2, 6, 6), (3, 2, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    ([(2, 2, 6, 6), (3, 2, 3, 3)], {"auto_pad": "VALID", "strides": [2, 2]}),
    ([(2, 2, 5, 5), (3, 2, 1, 1)], {"strides": [3, 3]}),
    ([(2, 3, 9), (2, 3, 4)], {"strides": [2]}),
]
CASES = [
    Case("Add", [(2, 3), (3,)]),
    Case("Sub", [(2, 3), (2, 1)]),
    Case("Mul", [(1, 3), (2, 1)]),
    Case("Div", [(3,), (2, 3)], low=1.0),
    Case("Neg", [(5,)]),
    Case("Relu", [(4, 3)]),
    Case("LeakyRelu", [(4, 3)], {"alpha": 0.2}, element=TensorProto.FLOAT),
    Case("Sigmoid", [(4, 3)]),
    Case("Tanh", [(4, 3)]),
    Case("HardSwish", [(4, 5)], low=-5.0, high=5.0, element=TensorProto.FLOAT),
    Case("Erf", [(4, 3)], element=TensorProto.FLOAT),
    Case("Gelu", [(4, 3)], opset=20, element=TensorProto.FLOAT),
    Case("Gelu", [(4, 3)], {"approximate": "tanh"}, opset=20),
    Case("Exp", [(4, 3)]),
    Case("Log", [(4, 3)], low=0.5),
    Case("Sqrt", [(4, 3)], low=0.5),
    Case("Clip", [(4, 5)], constants=[np.array(-0.75), np.array(0.8)]),
    Case("Identity", [(2, 3)]),
    Case("Cast", [(2, 3)], {"to": TensorProto.DOUBLE}),
    Case("Flatten", [(2, 3, 4)], {"axis": 2}),
    Case("Reshape", [(2, 3, 4)], constants=[np.array([4, -1])]),
    Case("Squeeze", [(2, 1, 4)], constants=[np.array([1])]),
    Case("Unsqueeze", [(2, 4)], constants=[np.array([0, 3])]),
    Case("Transpose", [(2, 3, 4)], {"perm": [1, 2, 0]}),
    Case("Transpose", [(2, 3)]),
    Case("Concat", [(2, 3), (2, 1), (2, 4)], {"axis": -1}),
    Case("Softmax", [(3, 4)]),
    Case("Softmax", [(3, 4, 2)], {"axis": 1}),
    Case("LogSoftmax", [(3, 4)], {"axis": 0}),
    Case("ReduceSum", [(2, 3, 4)], constants=[np.array([0, -1])]),
    Case("ReduceSum", [(2, 3, 4)], {"keepdims": 0}, constants=[np.array([1])]),
    Case("ReduceSum", [(2, 3)], {"noop_with_empty_axes": 1}),
    Case("ReduceMean", [(2, 3, 4)], {"axes": [1], "keepdims": 0}),
    Case("ReduceMean", [(2, 3, 4)], {"keepdims": 0}),
    Case("ReduceMean", [(2, 3, 4)], constants=[np.array([0, 2])], opset=18),
    Case("MatMul", [(2, 3), (3, 4)]),
    Case("MatMul", [(5, 2, 3), (3, 4)]),
    Case("MatMul", [(2, 5, 2, 3), (5, 3, 4)]),
    Case("MatMul", [(3,), (3, 4)]),
    Case("MatMul", [(2, 3), (3,)]),
    Case("MatMul", [(3,), (5, 3, 4)]),
    Case("MatMul", [(5, 2, 3), (3,)]),
    Case("MatMul", [(3,), (3,)]),
    Case("GlobalAveragePool", [(2, 3, 4, 5)], element=TensorProto.FLOAT),
    Case("MaxPool", [(2, 2, 6, 5)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", [(1, 2, 5, 5)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
]
CASES += [
    Case("Gemm", [a, b, (4,)], {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0})
    for ta, a in enumerate([(2, 3), (3, 2)])
    for tb, b in enumerate([(3, 4), (4, 3)])
]
CASES += [
    Case("Conv", shapes, attributes, element=TensorProto.FLOAT)
    for shapes, attributes in CONVOLUTIONS
]


# The same rules serve every opset; only axes as an attribute ended with opset 18.
CASES += [replace(case, opset=NEWEST_OPSET) for case in CASES if "axes" not in case.attributes]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)


def test_every_rule_is_checked() -> None:
    assert {case.operator for case in CASES} == set(RULES)


@settings(deadline=None, max_examples=60)
@given(
    operator=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=3, max_side=3),
    seed=st.integers(0, 999),
)
def test_broadcast_inputs_get_gradients_in_their_own_shape(
    operator: str, shapes: hnp.BroadcastableShapes, seed: int
) -> None:
    case = Case(operator, shapes.input_shapes, low=1.0)
    weights = spaced_weights(case, seed=seed)

    assert_gradients_are_slopes(model_of(case, weights), weights)


@settings(deadline=None, max_examples=40)
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=2, max_dims=4, max_side=3),
    seed=st.integers(0, 999),
)
def test_a_broadcast_over_sizes_known_only_at_run_time_is_undone_in_the_graph(
    shapes: hnp.BroadcastableShapes, seed: int
) -> None:
    weight_shape, other_shape = shapes.input_shapes
    rng = np.random.default_rng(seed)
    weight = rng.uniform(1, 2, weight_shape)
    other = rng.uniform(1, 2, other_shape)
    # The weight passes through a shape that is data, so inference knows its rank and no size.
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["moved"]),
        helper.make_node("Mul", ["moved", "x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "unknown",
        [
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None] * other.ndim),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [weight.ndim]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": other, "shape": np.array(weight.shape, np.int64)}

    assert_gradients_are_slopes(model, {"w": weight}, feeds=feeds)


@settings(deadline=None, max_examples=40)
@given(
    batches=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3),
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_matrix_products_with_broadcast_batches_have_exact_gradients(
    batches: hnp.BroadcastableShapes, sizes: tuple[int, int, int]
) -> None:
    rows, inner, columns = sizes
    left, right = batches.input_shapes
    case = Case("MatMul", [(*left, rows, inner), (*right, inner, columns)])
    weights = spaced_weights(case)

    assert_gradients_are_slopes(model_of(case, weights), weights)


def test_a_weight_that_is_used_twice_gets_the_sum_of_its_gradients() -> None:
    weights = {"w": np.array([[0.3, -1.2], [0.7, 0.4]])}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["w", "w"], ["product"]),
            helper.make_node("Mul", ["product", "w"], ["y"]),
        ],
        "tied",
        [],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [2, 2])],
        [numpy_helper.from_array(weights["w"], "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    assert_gradients_are_slopes(model, weights)


def spaced_weights(case: Case, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw weights whose values keep a distance, so that no kink or tie lies in a difference."""
    rng = np.random.default_rng(seed)
    dtype = helper.tensor_dtype_to_np_dtype(case.element)
    count = sum(int(np.prod(shape)) for shape in case.shapes)
    gap = (case.high - case.low) / count
    values = rng.permutation(case.low + gap * (np.arange(count) + 2 / 3))
    ends = np.cumsum([int(np.prod(shape)) for shape in case.shapes])[:-1]
    parts = zip(np.split(values, ends), case.shapes, strict=True)
    return {f"w{i}": part.reshape(shape).astype(dtype) for i, (part, shape) in enumerate(parts)}


def model_of(case: Case, weights: Arrays) -> onnx.ModelProto:
    constants = {f"c{i}": value for i, value in enumerate(case.constants)}
    element = case.attributes.get("to", case.element)
    graph = helper.make_graph(
        [helper.make_node(case.operator, [*weights, *constants], ["y"], **case.attributes)],
        "one operator",
        [],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(v, k) for k, v in {**weights, **constants}.items()],
    )
    opsets = [helper.make_opsetid("", case.opset)]
    version = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def assert_gradients_are_slopes(
    model: onnx.ModelProto, weights: Arrays, *, feeds: Arrays | None = None
) -> None:
    """Compare one plain step at rate 1 with central differences of the evaluation's loss."""
    made = build_training(model, loss=MeanSquaredError(), optimiser=SGD(), trainable=list(weights))
    fixed = dict(feeds or {})
    forward = session(model).run(None, fixed)[0]
    fixed["labels"] = np.cos(np.arange(forward.size)).reshape(forward.shape).astype(forward.dtype)
    train, evaluate = session(made.train), session(made.evaluate)
    rate = {"learning_rate": np.array(1, np.float32)}
    names = [output.name for output in train.get_outputs()]
    step = dict(zip(names, train.run(None, {**fixed, **rate, **weights}), strict=True))
    # onnxruntime has no float64 kernel of some operators. In float32 the difference must be wide to
    # be exact; for a convolution, whose loss is a parabola in each weight, any width is.
    exact = forward.dtype == np.float64
    width, tolerance = (1e-5, 1e-7) if exact else (1e-2, 2e-3)
    for name, weight in weights.items():
        slope = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            losses = []
            for sign in (1, -1):
                moved = weight.copy()
                moved[place] += sign * width
                losses.append(evaluate.run(None, {**fixed, **weights, name: moved})[0])
            slope[place] = (losses[0] - losses[1]) / (2 * width)
        gradient = weight - step[f"updated/{name}"]
        assert gradient.shape == weight.shape
        np.testing.assert_allclose(gradient, slope, atol=tolerance, rtol=tolerance)
