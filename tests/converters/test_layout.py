"""Layout takes Transposes away and changes no bit of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgekit.errors import BuildError, RecipeError
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.axis_order import composed, inverse
from tests.converters.passes_models import engine, graph_of, mlp, noise, operators, run

PASS = PASSES.get("layout")
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def applied(model: onnx.ModelProto) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step({}), calibration=None)


def is_offered(model: onnx.ModelProto) -> bool:
    return PASS.offers({}, model=model, engine=engine(), style="onnxruntime") != ()


def transpose(source: str, result: str, order: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], f"to_{result}", perm=order)


def channels_last(between: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """x [2, 6, 5, 4] to channels first, `between` (of a to b), and back to y of any size."""
    nodes = [transpose("x", "a", FIRST), *between, transpose("b", "y", LAST)]
    constants = {
        "k": noise(1, 4, 4, 3, 3),
        "by_channel": noise(2, 4, 1, 1),
        "whole": noise(3, 1, 4, 6, 5),
        "scalar": np.asarray(0.5, np.float32),
        "low": np.asarray(-0.5, np.float32),
        "pads": np.asarray([0, 0, 1, 2, 0, 0, 1, 0]),
        "axes": np.asarray([2, -1]),
        "start": np.asarray([1, 0]),
        "end": np.asarray([5, 3]),
    }
    read = {name for node in nodes for name in node.input}
    return graph_of(
        nodes,
        inputs={"x": [2, 6, 5, 4]},
        outputs={"y": ["a", "b", "c", "d"]},
        constants={name: value for name, value in constants.items() if name in read},
    )


def node(operator: str, inputs: str, result: str = "b", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs.split(), [result], f"{operator}_{result}", **attributes
    )


INDIFFERENT = {
    "unary": [node("Relu", "a")],
    "chain": [node("Sigmoid", "a", "s"), node("Mul", "a s")],
    "by channel": [node("Mul", "a by_channel")],
    "whole constant": [node("Sub", "whole a")],
    "scalar": [node("Add", "a scalar")],
    "clip": [node("Clip", "a low scalar")],
    "concat": [node("Relu", "a", "r"), node("Concat", "a r", axis=1)],
    "concat with a constant": [node("Concat", "a whole", axis=0)],
    "pad": [node("Pad", "a pads")],
    "reduce": [node("ReduceMean", "a", axes=[2, 3])],
    "reduce with an input": [node("ReduceSum", "a axes")],
    "reduce all": [node("ReduceMax", "a")],
    "softmax": [node("Softmax", "a", axis=1)],
    "slice": [node("Slice", "a start end axes")],
    "slice of the first axes": [node("Slice", "a start end")],
}


@pytest.mark.parametrize("name", INDIFFERENT)
def test_operators_that_do_not_mind_the_order_need_no_transpose(name: str) -> None:
    model = channels_last(INDIFFERENT[name])
    x = noise(7, 2, 6, 5, 4)

    turned = applied(model)

    onnx.checker.check_model(turned, full_check=True)
    assert "Transpose" not in operators(turned)
    assert is_offered(model)
    np.testing.assert_array_equal(run(turned, x=x)[0], run(model, x=x)[0])


def test_transposes_between_convolutions_go_and_those_at_the_ends_stay() -> None:
    nodes = [
        transpose("x", "a", FIRST),
        node("Conv", "a k", "c", pads=[1, 1, 1, 1]),
        transpose("c", "d", LAST),
        node("Relu", "d", "e"),
        transpose("e", "f", FIRST),
        node("Conv", "f k", "g", pads=[1, 1, 1, 1]),
        transpose("g", "h", LAST),
        node("Add", "h d", "y"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": [2, 6, 5, 4]},
        outputs={"y": [2, 6, 5, 4]},
        constants={"k": noise(1, 4, 4, 3, 3)},
    )
    x = noise(7, 2, 6, 5, 4)

    turned = applied(model)

    assert operators(turned).count("Transpose") == 2
    np.testing.assert_array_equal(run(turned, x=x)[0], run(model, x=x)[0])


def test_an_output_in_the_middle_keeps_its_name_and_order() -> None:
    nodes = [
        transpose("x", "a", FIRST),
        node("Relu", "a", "r"),
        node("Neg", "r", "n"),
        transpose("n", "y", LAST),
        transpose("r", "z", LAST),
    ]
    model = graph_of(
        nodes,
        inputs={"x": [2, 6, 5, 4]},
        outputs={"y": [2, 6, 5, 4], "r": [2, 4, 6, 5], "z": [2, 6, 5, 4]},
    )
    x = noise(7, 2, 6, 5, 4)

    turned = applied(model)

    assert operators(turned).count("Transpose") == 1
    assert [value.name for value in turned.graph.output] == ["y", "r", "z"]
    for got, wanted in zip(run(turned, x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_transpose_and_its_opposite_leave_the_input_as_it_is() -> None:
    nodes = [transpose("x", "a", FIRST), transpose("a", "y", LAST)]
    model = graph_of(nodes, inputs={"x": [2, 6, 5, 4]}, outputs={"y": [2, 6, 5, 4]})
    x = noise(1, 2, 6, 5, 4)

    turned = applied(model)

    assert operators(turned) == ["Identity"]
    np.testing.assert_array_equal(run(turned, x=x)[0], x)


def test_a_transpose_without_an_order_reverses_all_axes() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], "turn"),
        node("Exp", "a", "e"),
        helper.make_node("Transpose", ["e"], ["y"], "back"),
    ]
    model = graph_of(nodes, inputs={"x": [3, 4]}, outputs={"y": [3, 4]})

    assert operators(applied(model)) == ["Exp"]


def test_split_and_argmax_name_their_axis_anew() -> None:
    nodes = [
        transpose("x", "a", FIRST),
        helper.make_node("Split", ["a"], ["p", "q"], "split", axis=1),
        node("Mul", "p q", "m"),
        node("ArgMax", "m", "i", axis=1),
        node("Cast", "i", "f", to=1),
        transpose("f", "y", LAST),
    ]
    model = graph_of(nodes, inputs={"x": [2, 6, 5, 4]}, outputs={"y": [2, 6, 5, 1]})
    x = noise(7, 2, 6, 5, 4)

    turned = applied(model)

    assert "Transpose" not in operators(turned)
    np.testing.assert_array_equal(run(turned, x=x)[0], run(model, x=x)[0])


def test_a_model_with_nothing_to_gain_gets_no_offer_and_is_refused() -> None:
    attention = graph_of(
        [transpose("x", "a", [0, 2, 1]), node("MatMul", "x a", "y")],
        inputs={"x": [2, 3, 4]},
        outputs={"y": [2, 3, 3]},
    )

    for model in (attention, mlp()):
        assert not is_offered(model)
        with pytest.raises(BuildError, match="no Transpose that could go away"):
            applied(model)


def test_it_has_no_options() -> None:
    with pytest.raises(RecipeError, match="layout"):
        PASS.step({"to": "NHWC"})


def test_the_model_given_is_not_changed_and_the_same_bytes_come_out() -> None:
    model = channels_last(INDIFFERENT["chain"])
    before = serialise(model)

    first, second = applied(model), applied(model)

    assert serialise(model) == before
    assert serialise(first) == serialise(second)


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_orders_compose_as_transposes_do(one: list[int], other: list[int]) -> None:
    array = np.zeros((2, 3, 4, 5, 6))
    first, then = tuple(one), tuple(other)

    assert array.transpose(first).transpose(inverse(first)).shape == array.shape
    twice = array.transpose(first).transpose(then)
    assert array.transpose(composed(first, then)).shape == twice.shape


@st.composite
def random_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Two to ten nodes over x [2, 3, 4, 5]: Transposes, and what does not mind them."""
    sizes: dict[str, tuple[int, ...]] = {"x": (2, 3, 4, 5)}
    nodes = []
    for i in range(draw(st.integers(2, 10))):
        result = f"t{i}"
        source = draw(st.sampled_from(sorted(sizes)))
        kind = draw(st.sampled_from(["turn", "turn", "unary", "binary", "reduce", "concat"]))
        fitting = sorted(name for name in sizes if sizes[name] == sizes[source])
        other = draw(st.sampled_from(fitting))
        axis = draw(st.integers(-4, 3))
        if kind == "turn":
            order = draw(st.sampled_from([LAST, FIRST]))
            nodes.append(transpose(source, result, order))
            sizes[result] = tuple(sizes[source][j] for j in order)
        elif kind == "reduce":
            nodes.append(node("ReduceMax", source, result, axes=[axis]))
            sizes[result] = tuple(1 if j == axis % 4 else s for j, s in enumerate(sizes[source]))
        elif kind == "concat":
            nodes.append(node("Concat", f"{source} {other}", result, axis=axis))
            sizes[result] = tuple(
                2 * s if j == axis % 4 else s for j, s in enumerate(sizes[source])
            )
        else:
            names = source if kind == "unary" else f"{source} {other}"
            nodes.append(node("Neg" if kind == "unary" else "Max", names, result))
            sizes[result] = sizes[source]
    outputs = draw(st.sets(st.sampled_from([n.output[0] for n in nodes]), min_size=1, max_size=3))
    return graph_of(
        nodes, inputs={"x": [2, 3, 4, 5]}, outputs={name: sizes[name] for name in sorted(outputs)}
    )


@given(random_graphs())
def test_any_graph_answers_the_same_with_fewer_transposes(model: onnx.ModelProto) -> None:
    if not is_offered(model):
        return
    x = noise(1, 2, 3, 4, 5)

    turned = applied(model)

    assert operators(turned).count("Transpose") < operators(model).count("Transpose")
    for got, wanted in zip(run(turned, x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(got, wanted)
