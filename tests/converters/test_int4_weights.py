"""Int4 weights are packed as the operator's specification says, and only where they pay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.int4_weights import packed, quantised_blocks
from tests.converters.passes_models import (
    engine,
    error,
    graph_of,
    inside_an_if,
    mlp,
    noise,
    operators,
    run,
)

PASS = PASSES.get("int4-weights")
ENGINE = engine("int4-weights")


def applied(model: onnx.ModelProto, **options: Option) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step(options), calibration=None)


def offered(model: onnx.ModelProto, **given: Option) -> list[str]:
    steps = PASS.offers(given, model=model, engine=ENGINE, style="onnxruntime")
    return [step.label for step in steps]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_answers_stay_close(block_size: int, symmetric: bool, accuracy_level: int) -> None:
    model = mlp()
    x = noise(9, 20, 64)

    quantised = applied(
        model, block_size=block_size, symmetric=symmetric, accuracy_level=accuracy_level
    )

    assert operators(quantised).count("MatMulNBits") == 4
    assert error(run(quantised, x=x)[0], run(model, x=x)[0]) < 0.25


def test_weights_take_a_sixth() -> None:
    model = mlp(width=512)

    assert applied(model).ByteSize() < model.ByteSize() / 6


@given(
    inputs=st.integers(64, 200),
    transposed=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 50),
)
def test_the_engine_multiplies_by_the_values_that_were_packed(
    inputs: int, transposed: bool, symmetric: bool, seed: int
) -> None:
    weight = noise(seed, inputs, 5)
    node = helper.make_node(
        "Gemm", ["x", "w", "c"], ["y"], "gemm", alpha=2.0, transB=int(transposed)
    )
    constants = {"w": weight.T.copy() if transposed else weight, "c": noise(1, 5)}
    model = graph_of(
        [node], inputs={"x": ["N", inputs]}, outputs={"y": ["N", 5]}, constants=constants
    )
    quantised = applied(model, symmetric=symmetric, accuracy_level=0)
    filled = np.pad(weight * 2, ((0, -inputs % 32), (0, 0))).T.reshape(5, -1, 32)
    codes, scales, zeros = quantised_blocks(filled, symmetric=symmetric)
    values = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]

    (got,) = run(quantised, x=np.eye(inputs, dtype=np.float32))

    wanted = values.reshape(5, -1)[:, :inputs].T + constants["c"]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@given(seed=st.integers(0, 500), symmetric=st.booleans(), scale=st.floats(1e-6, 1e6))
def test_a_clipped_range_is_never_worse_than_the_extremes(
    seed: int, symmetric: bool, scale: float
) -> None:
    blocks = noise(seed, 6, 32) ** 3 * np.float32(scale)

    codes, scales, zeros = quantised_blocks(blocks, symmetric=symmetric)

    assert codes.max() <= 15
    real = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]
    if symmetric:
        step = np.abs(blocks).max(axis=-1) / 8
    else:
        step = (np.maximum(blocks.max(axis=-1), 0) - np.minimum(blocks.min(axis=-1), 0)) / 15
    # Half a step a value; rounding of the zero point, or the missing step above 8, costs another.
    assert (np.square(real - blocks).mean(axis=-1) <= np.square(step)).all()


def test_a_block_of_zeros_stays_zero() -> None:
    for symmetric in (True, False):
        codes, scales, zeros = quantised_blocks(np.zeros((2, 16), np.float32), symmetric=symmetric)

        assert ((codes - zeros[..., None]) * scales[..., None] == 0).all()


@given(st.lists(st.integers(0, 15), min_size=1, max_size=33))
def test_packing_puts_the_first_value_in_the_lower_half(values: list[int]) -> None:
    codes = np.asarray(values, np.uint8)

    raw = packed(codes)

    unpacked = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)
    assert unpacked[: len(values)].tolist() == values
    assert not unpacked[len(values) :].any()


def test_large_blocks_are_offered_first_where_products_hold_most_weights() -> None:
    assert offered(mlp(width=512)) == ["int4-weights/block-128", "int4-weights/block-32"]
    assert offered(mlp(width=512), block_size=64) == ["int4-weights/block-64"]


def test_small_models_and_those_of_convolutions_get_no_offer() -> None:
    convolutional = graph_of(
        [helper.make_node("Conv", ["x", "k"], ["y"], "conv", pads=[1, 1, 1, 1])],
        inputs={"x": [1, 256, 4, 4]},
        outputs={"y": [1, 256, 4, 4]},
        constants={"k": noise(1, 256, 256, 3, 3)},
    )

    assert offered(mlp(width=64)) == []
    assert offered(convolutional) == []
    assert PASS.offers({}, model=mlp(width=512), engine=engine(), style="onnxruntime") == ()
    assert PASS.offers({}, model=mlp(width=512), engine=ENGINE, style="tensorrt") == ()


def test_a_product_of_few_inputs_stays_float() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "small"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "large"),
    ]
    constants = {"w": noise(1, 16, 128), "v": noise(2, 128, 8)}
    model = graph_of(nodes, inputs={"x": ["N", 16]}, outputs={"y": ["N", 8]}, constants=constants)

    assert operators(applied(model)) == ["MatMul", "MatMulNBits"]


def test_nodes_named_stay_in_float_and_unknown_names_are_refused() -> None:
    assert operators(applied(mlp(), keep_float=("product1",))).count("MatMul") == 1
    with pytest.raises(RecipeError, match="'nowhere'"):
        applied(mlp(), keep_float=("nowhere",))


@pytest.mark.parametrize("options", [{"block_size": 48}, {"accuracy_level": 3}, {"bits": 4}])
def test_an_option_out_of_range_is_refused(options: dict[str, Option]) -> None:
    with pytest.raises(RecipeError, match="int4-weights"):
        PASS.step(options)


def test_work_inside_of_an_if_is_refused_by_its_name() -> None:
    with pytest.raises(BuildError, match="If 'choice'"):
        applied(inside_an_if())


def test_a_weight_that_is_not_finite_is_refused() -> None:
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        inputs={"x": ["N", 64]},
        outputs={"y": ["N", 4]},
        constants={"w": np.full((64, 4), np.inf, np.float32)},
    )

    with pytest.raises(BuildError, match="not finite"):
        applied(model)


def test_the_model_given_is_not_changed_and_the_same_bytes_come_out() -> None:
    model = mlp()
    before = serialise(model)

    first, second = applied(model), applied(model)

    assert serialise(model) == before
    assert serialise(first) == serialise(second)
