"""Fp16 halves a model, keeps its interface, and leaves in float what half precision cannot hold."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.normalise import normalise, serialise, spec_of
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.fp16 import LARGEST, unfit
from tests.converters.passes_models import (
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

PASS = PASSES.get("fp16")


def applied(model: onnx.ModelProto, **options: Option) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step(options), calibration=None)


def types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


def scaled(factor: float) -> onnx.ModelProto:
    """x times a constant, then a large matrix product."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["m"], "scale"),
        helper.make_node("Tanh", ["m"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "product"),
    ]
    constants = {"factor": np.asarray(factor, np.float32), "w": noise(1, 64, 512)}
    return graph_of(nodes, inputs={"x": ["N", 64]}, outputs={"y": ["N", 512]}, constants=constants)


@pytest.mark.parametrize("activations", ["fp16", "fp32"])
@pytest.mark.parametrize("model", [mlp(), small_convnet()], ids=["mlp", "convnet"])
def test_answers_stay_close_in_half_the_bytes(model: onnx.ModelProto, activations: str) -> None:
    (value,) = model.graph.input
    sizes = [3 if size == -1 else size for size in spec_of(value).shape]
    x = noise(9, *sizes)

    halved = applied(model, activations=activations)

    onnx.checker.check_model(halved, full_check=True)
    assert halved.ByteSize() < 0.6 * model.ByteSize()
    (got,) = run(halved, x=x)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert error(got, run(model, x=x)[0]) < 0.005


def test_a_real_network_gives_the_same_answers(tmp_path: Path) -> None:
    write_lite0(tmp_path / "lite0.onnx")
    source = onnx.load(tmp_path / "lite0.onnx")
    model = normalise(source, shapes={"input": (1, 3, 64, 64)}, max_opset=17, max_ir=9).model
    x = noise(1, 1, 3, 64, 64)
    (wanted,) = run(model, input=x)

    for activations in ("fp16", "fp32"):
        halved = applied(model, activations=activations)

        assert halved.ByteSize() < 0.51 * model.ByteSize()
        assert error(run(halved, input=x)[0], wanted) < 0.01


def test_inputs_and_outputs_stay_float32() -> None:
    halved = applied(mlp())

    ends = (*halved.graph.input, *halved.graph.output)
    assert [spec_of(value).datatype for value in ends] == ["FP32", "FP32"]
    assert operators(halved).count("Cast") == 2


def test_weights_alone_are_cast_back_before_use() -> None:
    halved = applied(mlp(), activations="fp32")

    casts = [node for node in halved.graph.node if node.op_type == "Cast"]
    assert {node.attribute[0].i for node in casts} == {TensorProto.FLOAT}
    assert not any(name.endswith(".fp16") for node in casts for name in node.output)


def test_a_constant_beyond_the_range_stays_float_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = scaled(1e6)
    x = noise(3, 4, 64) * np.float32(1e-6)

    with caplog.at_level(logging.INFO):
        halved = applied(model)

    assert types(halved) == {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert "fp16 leaves scale in float: factor holds 1e+06" in caplog.text
    (got,) = run(halved, x=x)
    assert error(got, run(model, x=x)[0]) < 0.005


def test_an_epsilon_that_would_become_zero_stays_float() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["z"], "nothing"),
        helper.make_node("Add", ["z", "epsilon"], ["e"], "add"),
        helper.make_node("Div", ["z", "e"], ["d"], "divide"),
        helper.make_node("MatMul", ["d", "w"], ["y"], "product"),
    ]
    constants = {
        "zero": np.zeros((), np.float32),
        "epsilon": np.asarray(1e-12, np.float32),
        "w": noise(1, 64, 512),
    }
    model = graph_of(nodes, inputs={"x": ["N", 64]}, outputs={"y": ["N", 512]}, constants=constants)

    halved = applied(model, keep_float=("divide",))

    assert "epsilon" in {tensor.name for tensor in halved.graph.initializer}
    assert np.isfinite(run(halved, x=noise(1, 2, 64))[0]).all()


def test_activations_that_samples_drove_too_far_stay_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("Mul", ["a", "a"], ["s"], "square"),
        helper.make_node("Sqrt", ["s"], ["y"], "root"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 64]},
        outputs={"y": ["N", 512]},
        constants={"w": noise(1, 64, 512) * np.float32(50)},
    )
    x = noise(2, 8, 64)
    inputs = (spec_of(model.graph.input[0]),)
    calibration = Calibration(inputs=inputs, arrays={"x": x}, scratch=tmp_path)

    halved = PASS.apply(model, PASS.step({}), calibration=calibration)

    reads = {node.name: list(node.input) for node in halved.graph.node}
    assert reads["product"] == ["x.fp16", "w.fp16"]
    assert (reads["square"], reads["root"]) == (["a", "a"], ["s"])
    assert error(run(halved, x=x)[0], run(model, x=x)[0]) < 0.005


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_a_constant_is_unfit_when_a_value_overflows_or_all_vanish(values: list[float]) -> None:
    array = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    finite = np.isfinite(array)
    # What rounds down to the largest value is refused all the same.
    overflows = bool((np.abs(array[finite]) > LARGEST).any())
    vanishes = bool((array[finite] != 0).any() and not half[finite].any())

    assert (unfit(numpy_helper.from_array(array, "c")) is not None) == (overflows or vanishes)


def test_operators_without_half_kernels_read_and_give_float() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("Resize", ["a4", "", "scales"], ["r"], "resize"),
        helper.make_node("Unsqueeze", ["a", "axes"], ["a4"], "unsqueeze"),
        helper.make_node("QuantizeLinear", ["r", "step", "zero"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"], "dequantise"),
    ]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    constants = {
        "w": noise(1, 64, 512),
        "axes": np.asarray([0, 1]),
        "scales": np.asarray([1, 1, 2, 1], np.float32),
        "step": np.asarray(0.5, np.float32),
        "zero": np.zeros((), np.int8),
    }
    model = graph_of(
        nodes, inputs={"x": [3, 64]}, outputs={"y": [1, 1, 6, 512]}, constants=constants
    )
    x = noise(2, 3, 64)

    halved = applied(model)

    onnx.checker.check_model(halved, full_check=True)
    assert {"scales", "step"} <= {tensor.name for tensor in halved.graph.initializer}
    assert np.abs(run(halved, x=x)[0] - run(model, x=x)[0]).max() <= 0.5


def test_what_a_subgraph_reads_stays_float() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["p"], ["z"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("ReduceMax", ["p"], ["top"], "top", keepdims=0),
        helper.make_node("Cast", ["top"], ["positive"], "positive", to=TensorProto.BOOL),
        helper.make_node("If", ["positive"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 64]},
        outputs={"y": ["N", 512]},
        constants={"w": noise(1, 64, 512)},
    )
    x = noise(2, 3, 64)

    assert error(run(applied(model), x=x)[0], run(model, x=x)[0]) < 0.005


def test_a_cast_to_float_becomes_one_to_half() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    model = graph_of(
        nodes,
        inputs={"ids": ["N", 64]},
        outputs={"y": ["N", 512]},
        constants={"w": noise(1, 64, 512)},
    )

    halved = applied(model)

    assert operators(halved) == ["Cast", "MatMul", "Cast"]
    assert halved.graph.node[0].attribute[0].i == TensorProto.FLOAT16


def test_a_cpu_is_offered_weights_alone_first_and_an_accelerator_everything() -> None:
    def offered(precision: str, accelerator: str) -> list[str]:
        board = engine(precision, accelerator=accelerator)
        steps = PASS.offers({}, model=mlp(), engine=board, style="onnxruntime")
        return [step.label for step in steps]

    assert offered("fp16", "cpu") == ["fp16/weights", "fp16"]
    assert offered("fp16", "gpu") == ["fp16"]
    assert offered("int8-qdq-u8s8", "cpu") == []


def test_a_model_that_is_in_half_already_gets_no_offer_and_is_refused() -> None:
    halved = applied(mlp())

    assert PASS.offers({}, model=halved, engine=engine("fp16"), style="onnxruntime") == ()
    with pytest.raises(BuildError, match=r"0 of its .* bytes are float32 weights"):
        applied(halved)


def test_a_model_that_would_not_shrink_is_refused_with_the_reason() -> None:
    with pytest.raises(BuildError, match="inside of If 'choice'"):
        applied(inside_an_if())
    huge = mlp()
    weight = next(t for t in huge.graph.initializer if t.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(noise(1, 256, 256) * np.float32(1e6), "w1"))
    kept = ("product2",)
    with pytest.raises(BuildError, match=r"'w1' holds .*, which fp16 cannot"):
        applied(huge, keep_float=kept)


def test_nodes_and_operators_named_stay_in_float() -> None:
    by_name = applied(mlp(), keep_float=("product0",))
    by_type = applied(mlp(), operators_kept=("Relu",))

    assert "w0" in {tensor.name for tensor in by_name.graph.initializer}
    relu = next(node for node in by_type.graph.node if node.op_type == "Relu")
    assert not relu.output[0].endswith(".fp16")
    with pytest.raises(RecipeError, match="'nowhere'"):
        applied(mlp(), keep_float=("nowhere",))
    with pytest.raises(RecipeError, match="fp16"):
        PASS.step({"activations": "bf16"})


def test_the_model_given_is_not_changed_and_the_same_bytes_come_out() -> None:
    model = mlp()
    before = serialise(model)

    first, second = applied(model), applied(model)

    assert serialise(model) == before
    assert serialise(first) == serialise(second)
