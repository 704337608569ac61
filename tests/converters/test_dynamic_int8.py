"""Dynamic int8 quantises matrix products and recurrent nodes, and nothing that it would spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnxruntime import InferenceSession, SessionOptions

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.dynamic_int8 import quantised_weight
from tests.converters.passes_models import (
    Sizes,
    engine,
    error,
    graph_of,
    inside_an_if,
    mlp,
    noise,
    operators,
    run,
    small_convnet,
)

PASS = PASSES.get("dynamic-int8")
ENGINE = engine("int8-dynamic")


def applied(model: onnx.ModelProto, **options: Option) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step(options), calibration=None)


def offered(model: onnx.ModelProto, **given: Option) -> list[str]:
    steps = PASS.offers(given, model=model, engine=ENGINE, style="onnxruntime")
    return [step.label for step in steps]


def lstm(*, directions: int = 1, layout: int = 0) -> onnx.ModelProto:
    """x [5, N, 24] through an LSTM of 32 units; outputs y and the last h."""
    way = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(
        "LSTM",
        ["x", "w", "r", "b"],
        ["y", "h"],
        "lstm",
        hidden_size=32,
        direction=way,
        layout=layout,
    )
    constants = {
        "w": noise(1, directions, 128, 24) * np.float32(0.2),
        "r": noise(2, directions, 128, 32) * np.float32(0.2),
        "b": noise(3, directions, 256) * np.float32(0.1),
    }
    x: Sizes = ["N", 5, 24] if layout else [5, "N", 24]
    y: Sizes = ["N", 5, directions, 32] if layout else [5, directions, "N", 32]
    h: Sizes = ["N", directions, 32] if layout else [directions, "N", 32]
    return graph_of([node], inputs={"x": x}, outputs={"y": y, "h": h}, constants=constants)


def test_answers_stay_close_and_weights_take_a_quarter() -> None:
    model = mlp()
    x = noise(9, 20, 64)

    quantised = applied(model)

    onnx.checker.check_model(quantised)
    assert operators(quantised).count("MatMulInteger") == 4
    assert quantised.ByteSize() < 0.3 * model.ByteSize()
    assert error(run(quantised, x=x)[0], run(model, x=x)[0]) < 0.03


def test_the_engine_fuses_what_was_written_into_its_own_kernel(tmp_path: Path) -> None:
    options = SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")

    InferenceSession(serialise(applied(mlp())), options, providers=["CPUExecutionProvider"])

    kernels = operators(onnx.load(tmp_path / "optimised.onnx"))
    assert kernels.count("DynamicQuantizeMatMul") == 4
    assert "MatMulInteger" not in kernels


@given(
    transposed=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_a_gemm_means_what_it_meant(transposed: bool, alpha: float, bias: bool, seed: int) -> None:
    weight = noise(seed, 48, 32) if transposed else noise(seed, 32, 48)
    node = helper.make_node(
        "Gemm",
        ["x", "w", "c"] if bias else ["x", "w"],
        ["y"],
        "gemm",
        alpha=alpha,
        transB=int(transposed),
    )
    constants = {"w": weight, "c": noise(seed + 1, 48)} if bias else {"w": weight}
    model = graph_of([node], inputs={"x": ["N", 32]}, outputs={"y": ["N", 48]}, constants=constants)
    x = noise(seed + 2, 7, 32)

    quantised = applied(model)

    assert error(run(quantised, x=x)[0], run(model, x=x)[0]) < 0.02


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_an_lstm_stays_right(directions: int, per_channel: bool) -> None:
    model = lstm(directions=directions)
    x = noise(4, 5, 3, 24)

    quantised = applied(model, operators=("LSTM",), per_channel=per_channel)

    assert operators(quantised) == ["DynamicQuantizeLSTM"]
    for got, wanted in zip(run(quantised, x=x), run(model, x=x), strict=True):
        assert error(got, wanted) < 0.03


def test_an_lstm_with_the_batch_first_stays_float() -> None:
    assert offered(lstm(layout=1)) == []


def test_a_table_of_embeddings_is_stored_in_int8_and_gives_the_same_rows() -> None:
    model = graph_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], "embed"),
            helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
        ],
        inputs={"ids": ["N", 8]},
        outputs={"y": ["N", 8, 16]},
        constants={"table": noise(1, 5000, 64), "w": noise(2, 64, 16)},
    )
    ids = np.arange(16).reshape(2, 8)

    assert offered(model) == ["dynamic-int8", "dynamic-int8/matmul-gemm-gather"]
    quantised = applied(model, operators=("MatMul", "Gather"))

    assert quantised.ByteSize() < 0.3 * model.ByteSize()
    assert error(run(quantised, ids=ids)[0], run(model, ids=ids)[0]) < 0.03


def test_convolutions_stay_float() -> None:
    kept = operators(applied(small_convnet()))

    assert kept.count("Conv") == 1
    assert kept.count("MatMulInteger") == 1


def test_a_head_with_few_of_the_macs_gets_no_offer() -> None:
    assert offered(mlp()) == ["dynamic-int8"]
    assert offered(small_convnet()) == []
    assert offered(small_convnet(), operators=("MatMul",)) == ["dynamic-int8/matmul"]


def test_an_engine_that_does_not_list_it_gets_no_offer() -> None:
    assert PASS.offers({}, model=mlp(), engine=engine(), style="onnxruntime") == ()
    assert PASS.offers({}, model=mlp(), engine=ENGINE, style="tensorrt") == ()


def test_nodes_named_stay_in_float() -> None:
    model = mlp()

    quantised = applied(model, keep_float=("product0", "product3"))

    assert operators(quantised).count("MatMul") == 2
    assert {"w0", "w3"} <= {tensor.name for tensor in quantised.graph.initializer}


def test_a_step_says_what_it_keeps_in_its_label() -> None:
    one, other = (PASS.step({"keep_float": (name,)}).label for name in ("a", "b"))

    assert one != other
    assert one.startswith("dynamic-int8/float-1-")


def test_a_name_that_no_node_has_is_refused() -> None:
    with pytest.raises(RecipeError, match="'nowhere'"):
        applied(mlp(), keep_float=("nowhere",))


@pytest.mark.parametrize("options", [{"operators": ("Conv",)}, {"operators": ()}, {"bits": 8}])
def test_an_option_that_does_not_exist_is_refused(options: dict[str, Option]) -> None:
    with pytest.raises(RecipeError, match="dynamic-int8"):
        PASS.step(options)


def test_work_inside_of_an_if_is_refused_by_its_name() -> None:
    model = inside_an_if()

    assert offered(model) == []
    with pytest.raises(BuildError, match="If 'choice'") as refused:
        applied(model)

    assert "branch resolved" in (refused.value.hint or "")


def test_the_model_given_is_not_changed_and_the_same_bytes_come_out() -> None:
    model = mlp()
    before = serialise(model)

    first, second = applied(model), applied(model)

    assert serialise(model) == before
    assert serialise(first) == serialise(second)


def test_a_product_that_two_nodes_share_is_stored_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "two"),
    ]
    model = graph_of(
        nodes, inputs={"x": ["N", 64]}, outputs={"y": ["N", 64]}, constants={"w": noise(1, 64, 64)}
    )

    quantised = applied(model)

    assert len([t for t in quantised.graph.initializer if t.dims == [64, 64]]) == 1


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BuildError, match="'w' holds a value that is not finite"):
        quantised_weight(np.full((4, 4), np.nan, np.float32), axis=0, levels=127, name="w")


@given(seed=st.integers(0, 1000), levels=st.sampled_from([63, 127]), scale=st.floats(1e-6, 1e6))
def test_no_weight_moves_by_more_than_half_a_step(seed: int, levels: int, scale: float) -> None:
    values = noise(seed, 16, 8) * np.float32(scale)

    codes, steps = quantised_weight(values, axis=0, levels=levels, name="w")

    assert np.abs(codes.astype(np.int32)).max() <= levels
    assert (np.abs(codes * steps - values) <= steps * 0.501).all()
