"""Equalisation gives neighbouring weights one range, and changes no answer by a bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError, RecipeError
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.junctions import junctions_of, powers_of_two
from tests.converters.passes_models import engine, graph_of, noise, run

PASS = PASSES.get("equalise")

# What may lie between two weights, and what may not.
JOINTS = {
    "nothing": [],
    "relu": [helper.make_node("Relu", ["a"], ["b"], "joint")],
    "leaky": [helper.make_node("LeakyRelu", ["a"], ["b"], "joint", alpha=0.1)],
    "clip at zero": [helper.make_node("Clip", ["a", "zero"], ["b"], "joint")],
    "pool": [helper.make_node("MaxPool", ["a"], ["b"], "joint", kernel_shape=[2, 2])],
}
WALLS = {
    "relu6": [helper.make_node("Clip", ["a", "zero", "six"], ["b"], "joint")],
    "clip below": [helper.make_node("Clip", ["a", "", "six"], ["b"], "joint")],
    "sigmoid": [helper.make_node("Sigmoid", ["a"], ["b"], "joint")],
}


def pair(
    joint: list[onnx.NodeProto], *, groups: int = 1, spread: float = 3.0, seed: int = 0
) -> onnx.ModelProto:
    """Convolution, joint, convolution in groups: x [N, 3, 8, 8] to y [N, 12, h, w]."""
    last = "b" if joint else "a"
    nodes = [
        helper.make_node("Conv", ["x", "first", "b1"], ["a"], "conv1"),
        *joint,
        helper.make_node("Conv", [last, "second", "b2"], ["y"], "conv2", group=groups),
    ]
    return graph_of(
        nodes,
        inputs={"x": ["N", 3, 8, 8]},
        outputs={"y": ["N", 12, None, None]},  # type: ignore[list-item]
        constants={
            "first": uneven(seed, spread, 6, 3, 3, 3),
            "b1": noise(seed + 1, 6),
            "second": noise(seed + 2, 12, 6 // groups, 1, 1),
            "b2": noise(seed + 3, 12),
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
        },
    )


def uneven(seed: int, spread: float, *sizes: int) -> NDArray[np.float32]:
    """Noise whose channels (axis 0) differ in range by powers of e."""
    factors = np.exp(spread * np.random.default_rng(seed).standard_normal(sizes[0]))
    return noise(seed, *sizes) * factors.reshape(-1, *[1] * (len(sizes) - 1)).astype(np.float32)


def equalised(model: onnx.ModelProto) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step({}), calibration=None)


def offers(model: onnx.ModelProto) -> int:
    return len(PASS.offers({}, model=model, engine=engine(), style="onnxruntime"))


def ranges(model: onnx.ModelProto, name: str, axis: int) -> NDArray[np.float32]:
    array = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    others = tuple(i for i in range(array.ndim) if i != axis)
    return np.asarray(np.abs(array).max(axis=others))


@settings(deadline=None, max_examples=40)
@given(
    joint=st.sampled_from(sorted(JOINTS)),
    groups=st.sampled_from([1, 2, 6]),
    spread=st.floats(0.8, 5),
    seed=st.integers(0, 10_000),
)
def test_answers_stay_what_they_were_to_the_bit(
    joint: str, groups: int, spread: float, seed: int
) -> None:
    model = pair(JOINTS[joint], groups=groups, spread=spread, seed=seed)
    x = noise(seed, 2, 3, 8, 8)
    assume(offers(model))

    np.testing.assert_array_equal(run(equalised(model), x=x)[0], run(model, x=x)[0])


@pytest.mark.parametrize("joint", JOINTS)
def test_both_sides_of_a_pair_then_have_the_same_range(joint: str) -> None:
    model = equalised(pair(JOINTS[joint]))

    ratio = ranges(model, "first", 0) / ranges(model, "second", 1)
    assert ((ratio >= 0.5) & (ratio <= 2)).all()


def test_a_depthwise_convolution_is_equalised_on_both_of_its_sides() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "expand"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "depth"], ["c"], "conv2", group=6),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "project"], ["y"], "conv3"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 3, 6, 6]},
        outputs={"y": ["N", 4, 4, 4]},
        constants={
            "expand": uneven(1, 2.0, 6, 3, 1, 1),
            "depth": uneven(2, 2.0, 6, 1, 3, 3),
            "project": noise(3, 4, 6, 1, 1),
        },
    )
    x = noise(9, 2, 3, 6, 6)

    made = equalised(model)

    np.testing.assert_array_equal(run(made, x=x)[0], run(model, x=x)[0])
    for one, other, axis in (("expand", "depth", 0), ("depth", "project", 1)):
        ratio = ranges(made, one, 0) / ranges(made, other, axis)
        assert ((ratio >= 0.24) & (ratio <= 4.1)).all()


@pytest.mark.parametrize("transposed", [0, 1])
def test_linear_layers_are_equalised_with_their_biases(transposed: int) -> None:
    second = noise(3, 16, 5)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "product"),
        helper.make_node("Add", ["a", "bias"], ["b"], "bias.add"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Gemm", ["c", "second"], ["y"], "gemm", transB=transposed),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 8]},
        outputs={"y": ["N", 5]},
        constants={
            "first": np.ascontiguousarray(uneven(1, 2.0, 16, 8).T),
            "bias": noise(2, 1, 16),
            "second": np.ascontiguousarray(second.T) if transposed else second,
        },
    )
    x = noise(9, 4, 8)

    made = equalised(model)

    np.testing.assert_array_equal(run(made, x=x)[0], run(model, x=x)[0])
    ratio = ranges(made, "first", 1) / ranges(made, "second", transposed)
    assert ((ratio >= 0.5) & (ratio <= 2)).all()


def test_a_head_behind_a_flatten_takes_a_factor_for_every_place_of_a_channel() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Flatten", ["b"], ["c"], "flatten"),
        helper.make_node("MatMul", ["c", "head"], ["y"], "head.product"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 3, 4, 4]},
        outputs={"y": ["N", 10]},
        constants={"first": uneven(1, 2.0, 6, 3, 1, 1), "head": noise(2, 96, 10)},
    )
    x = noise(9, 4, 3, 4, 4)

    made = equalised(model)

    np.testing.assert_array_equal(run(made, x=x)[0], run(model, x=x)[0])


def test_a_transposed_convolution_may_stand_on_either_side() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "up", "b1"], ["a"], "up1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ConvTranspose", ["b", "up2"], ["y"], "up2.node", group=2),
    ]
    model = graph_of(
        nodes,
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 8, 6, 6]},
        constants={
            "up": np.ascontiguousarray(uneven(1, 2.0, 6, 3, 2, 2).transpose(1, 0, 2, 3)),
            "b1": noise(2, 6),
            "up2": noise(3, 6, 4, 2, 2),
        },
    )
    x = noise(9, 1, 3, 4, 4)

    np.testing.assert_array_equal(run(equalised(model), x=x)[0], run(model, x=x)[0])


@pytest.mark.parametrize("wall", WALLS)
def test_what_does_not_commute_with_a_factor_is_not_crossed(wall: str) -> None:
    model = pair(WALLS[wall])

    assert offers(model) == 0
    with pytest.raises(BuildError, match="no pair"):
        equalised(model)


def test_a_tensor_that_something_else_reads_is_left_alone() -> None:
    read_twice, output, shared, captured = (pair(JOINTS["relu"]) for _ in range(4))
    read_twice.graph.node.append(helper.make_node("Abs", ["a"], ["z"], "abs"))
    output.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    shared.graph.node.append(helper.make_node("Conv", ["x", "first"], ["z"], "again"))
    branch = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["z"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    choice = helper.make_node("If", ["y"], ["o"], "if", then_branch=branch, else_branch=branch)
    captured.graph.node.append(choice)

    assert [offers(model) for model in (read_twice, output, shared, captured)] == [0, 0, 0, 0]


def test_weights_of_equal_ranges_are_not_offered() -> None:
    model = pair(JOINTS["relu"])

    assert offers(model) == 1
    assert offers(equalised(model)) == 0


def test_a_dead_channel_is_left_alone() -> None:
    model = pair(JOINTS["relu"])
    first = next(t for t in model.graph.initializer if t.name == "first")
    values = numpy_helper.to_array(first).copy()
    values[2] = 0
    first.CopyFrom(numpy_helper.from_array(values, "first"))
    x = noise(9, 2, 3, 8, 8)

    made = equalised(model)

    assert ranges(made, "first", 0)[2] == 0
    np.testing.assert_array_equal(run(made, x=x)[0], run(model, x=x)[0])


def test_the_source_stays_what_it_was_and_the_result_is_the_same_each_time() -> None:
    model = pair(JOINTS["relu"])
    before = serialise(model)

    assert serialise(equalised(model)) == serialise(equalised(model))
    assert serialise(model) == before


def test_a_junction_names_what_makes_and_what_reads_a_tensor() -> None:
    (junction,) = junctions_of(pair(JOINTS["relu"], groups=2))

    assert junction.tensor == "b"
    assert [source.tensor for source in junction.sources] == ["first", "b1"]
    assert [weight.node for weight in junction.readers] == ["conv2"]
    assert junction.channels == 6


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1))
def test_factors_are_powers_of_two_within_bounds(factors: list[float]) -> None:
    powers = powers_of_two(np.array(factors))

    mantissas, _ = np.frexp(powers)
    assert (mantissas == 0.5).all()
    assert ((powers >= 2.0**-10) & (powers <= 2.0**10)).all()


def test_there_is_no_option() -> None:
    with pytest.raises(RecipeError, match="equalise"):
        PASS.step({"rounds": 3})
