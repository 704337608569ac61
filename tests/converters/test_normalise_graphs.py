"""What normal form does to graphs: constants, branches, functions, shared weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit_converters.normal import untie
from edgekit_converters.normalise import (
    retied,
    serialise,
    with_constants,
)
from tests.converters.building import convnet
from tests.converters.graph_models import Arrays, answer, model, node, noise, normal_form, operators

# Constants.


def test_weights_behind_constant_nodes_casts_and_transpositions_become_initialisers() -> None:
    weights = numpy_helper.from_array(noise(4, 192).astype(np.float16))
    nodes = [
        node("Constant", [], ["half"], value=weights),
        node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        node("Transpose", ["full"], ["turned"], perm=[1, 0]),
        node("Identity", ["turned"], ["same"]),
        node("Flatten", ["x"], ["flat"]),
        node("MatMul", ["flat", "same"], ["y"]),
    ]
    source = model(nodes, {})

    normal = normal_form(source).model

    (matmul,) = (n for n in normal.graph.node if n.op_type in ("MatMul", "Gemm"))
    assert matmul.input[1] in {tensor.name for tensor in normal.graph.initializer}
    assert {"Constant", "Cast", "Identity"}.isdisjoint(operators(normal))
    x = noise(1, 3, 8, 8)
    np.testing.assert_allclose(answer(normal, x=x), answer(source, x=x), atol=1e-5)


def test_batch_normalisation_joins_its_convolution() -> None:
    arrays = {"w": noise(4, 3, 3, 3), "s": noise(4), "b": noise(4), "m": noise(4)}
    arrays["v"] = np.array([1, 2, 3, 4], np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv"),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
        node("Dropout", ["c"], ["y"]),
    ]
    source = model(nodes, arrays)

    normal = normal_form(source).model

    assert operators(normal)[0] == "Conv"
    assert {"BatchNormalization", "Dropout"}.isdisjoint(operators(normal))
    x = noise(1, 3, 8, 8)
    np.testing.assert_allclose(answer(normal, x=x), answer(source, x=x), atol=1e-5)


@pytest.mark.parametrize(
    ("maker", "constants"),
    [
        (node("ConstantOfShape", ["s"], ["big"]), {"s": np.array([1 << 20, 1 << 20])}),
        (node("Expand", ["one", "s"], ["big"]), {"s": np.array([1 << 40])}),
        (node("Tile", ["one", "s"], ["big"]), {"s": np.array([1 << 40])}),
        (node("Range", ["zero", "s", "step"], ["big"]), {"s": np.array(1e12, np.float32)}),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_a_few_bytes_that_describe_a_huge_constant_stay_a_description(
    maker: onnx.NodeProto, constants: Arrays
) -> None:
    constants |= {
        "one": np.ones(1, np.float32),
        "zero": np.array(0, np.float32),
        "step": np.array(1, np.float32),
    }
    nodes = [maker, node("ReduceSum", ["big"], ["sum"]), node("Add", ["x", "sum"], ["y"])]

    normal = normal_form(model(nodes, constants))

    assert maker.op_type in operators(normal.model)
    assert len(serialise(normal.model)) < 10_000
    assert any("would make a constant of" in note for note in normal.notes)


def test_random_numbers_are_drawn_at_run_time() -> None:
    source = model([node("RandomNormal", [], ["r"], shape=[8]), node("Add", ["x", "r"], ["y"])], {})

    normal = normal_form(source)

    assert operators(normal.model) == ["RandomNormal", "Add"]
    assert "draws random numbers" in normal.notes[0]


def test_a_loop_over_constants_is_not_run_by_the_build() -> None:
    body = helper.make_graph(
        [node("Add", ["a", "a"], ["b"]), node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
        ],
    )
    constants = {"n": np.array(1 << 62), "one": np.ones(1, np.float32)}
    nodes = [node("Loop", ["n", "", "one"], ["l"], body=body), node("Add", ["x", "l"], ["y"])]

    normal = normal_form(model(nodes, constants, output=(1, 3, 8, 8)))

    assert "Loop" in operators(normal.model)
    assert "loop over constants" in normal.notes[0]


def test_shapes_that_are_fixed_are_folded_away() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array([0]), "rest": np.array([-1])}

    normal = normal_form(model(nodes, constants, shape=("n", 3, 8, 8)), shapes={"x": (2, 3, 8, 8)})

    assert operators(normal.model) == ["Reshape"]
    assert normal.outputs[0].shape == (2, 192)


def test_what_the_model_says_of_itself_is_kept() -> None:
    source = convnet(opset=12)
    source.producer_name, source.producer_version = "exporter", "1.2"
    source.doc_string, source.domain, source.model_version = "what it is", "org.example", 3
    unused = helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1])
    source.graph.input.append(unused)

    normal = normal_form(source)

    found = normal.model
    assert (found.producer_name, found.producer_version) == ("exporter", "1.2")
    assert (found.doc_string, found.domain, found.model_version) == ("what it is", "org.example", 3)
    assert [spec.name for spec in normal.inputs] == ["image", "unused"]
    assert normal.notes == ()


def test_functions_of_the_model_are_inlined() -> None:
    body = [node("Mul", ["a", "a"], ["b"])]
    square = helper.make_function(
        "org.example", "Square", ["a"], ["b"], body, [helper.make_opsetid("", 17)]
    )
    source = model([node("Square", ["x"], ["y"], domain="org.example")], {})
    source.functions.append(square)
    source.opset_import.append(helper.make_opsetid("org.example", 1))

    normal = normal_form(source, fold=False).model

    assert operators(normal) == ["Mul"]
    assert [o.domain for o in normal.opset_import] == [""]


# Branches.


def two_rates() -> onnx.ModelProto:
    """One branch for each sampling rate, as voice detectors are exported."""

    def branch(name: str, weights: NDArray[np.float32]) -> onnx.GraphProto:
        return helper.make_graph(
            [node("Conv", ["x", "w"], ["a"], "conv"), node("Relu", ["a"], ["out"])],
            name,
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weights, "w")],
        )

    nodes = [
        node("Equal", ["rate", "high"], ["is_high"]),
        node(
            "If",
            ["is_high"],
            ["y"],
            then_branch=branch("high", noise(4, 3, 3, 3)),
            else_branch=branch("low", noise(4, 3, 5, 5)),
        ),
    ]
    source = model(nodes, {"high": np.array(16000)})
    source.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    return source


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_constant_input_decides_which_branch_is_left(rate: int) -> None:
    source = two_rates()

    normal = normal_form(source, constants={"rate": rate})

    assert [spec.name for spec in normal.inputs] == ["x"]
    assert operators(normal.model) == ["Conv", "Relu"]
    assert normal.outputs[0].shape == ((1, 4, 6, 6) if rate == 16000 else (1, 4, 4, 4))
    x = noise(1, 3, 8, 8)
    wanted = answer(source, x=x, rate=np.array(rate))
    np.testing.assert_allclose(answer(normal.model, x=x), wanted, atol=1e-5)
    np.testing.assert_allclose(answer(with_constants(source, {"rate": rate}), x=x), wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1}, "--fix: the model has no input 'speed'"),
        ({"rate": 1.5}, "'rate' is INT64, 1.5 is not"),
        ({"rate": [1, 2]}, r"'rate' has the shape \[\], the value has \[2\]"),
        ({"rate": 1, "x": np.zeros((1, 3, 8, 8))}, "no input would be left"),
    ],
)
def test_a_constant_that_does_not_fit_is_a_usage_error(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_constants(two_rates(), values)


# Shared weights.


def tied() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w", "b"], ["c"], "second", pads=[1, 1, 1, 1]),
        node("Add", ["c", "w0"], ["y"]),
    ]
    arrays = {"w": noise(3, 3, 3, 3), "b": noise(3), "w0": noise(8)}
    return model(nodes, arrays)


def weights_of(model: onnx.ModelProto) -> list[str]:
    return [n.input[1] for n in model.graph.node if n.op_type == "Conv"]


def test_each_layer_gets_weights_of_its_own() -> None:
    source = tied()

    normal = normal_form(source).model

    first, second = weights_of(normal)
    assert first != second
    x = noise(1, 3, 8, 8)
    np.testing.assert_allclose(answer(normal, x=x), answer(source, x=x), atol=1e-5)


def test_a_model_to_be_trained_keeps_its_ties_and_names() -> None:
    normal = normal_form(tied(), fold=False).model

    assert weights_of(normal) == ["w", "w"]


def test_copies_that_would_take_too_much_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untie, "LARGEST_COPIES_BYTES", 100)

    normal = normal_form(tied())

    assert weights_of(normal.model) == ["w", "w"]
    assert "'w' stays shared by 2 nodes" in normal.notes[0]


def test_a_file_stores_equal_weights_once() -> None:
    channels = 64
    arrays = {"w": noise(channels, channels, 1, 1)}
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "w"], ["y"])]
    source = model(nodes, arrays, shape=(1, channels, 2, 2))
    normal = normal_form(source).model

    again = retied(normal)

    assert len(serialise(again)) < 0.6 * len(serialise(normal))
    x = noise(1, channels, 2, 2)
    np.testing.assert_array_equal(answer(again, x=x), answer(normal, x=x))
