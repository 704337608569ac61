"""Static int8 is standard QDQ, the same each time, and what the engine in question takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import serialise, spec_of
from edgekit_converters.passes import PASSES, Step, Style
from edgekit_converters.passes.channels import pad_first_convolutions
from edgekit_converters.passes.weights import scale_of
from edgekit_converters.targets.tensorrt import graph_lint
from edgekit_runtime.engines.tensors import has_batch_axis
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

PASS = PASSES.get("static-int8")
U8, S8 = engine("int8-qdq-u8s8"), engine("int8-qdq-s8s8")

Apply = Callable[..., onnx.ModelProto]


@pytest.fixture
def apply(tmp_path: Path) -> Apply:
    """Quantise a model whose inputs take normal noise."""

    def applied(model: onnx.ModelProto, **options: Option) -> onnx.ModelProto:
        calibration = calibrated(model, tmp_path)
        return PASS.apply(model, PASS.step(options), calibration=calibration)

    return applied


def calibrated(model: onnx.ModelProto, scratch: Path) -> Calibration:
    specs = tuple(spec_of(value) for value in model.graph.input)
    arrays: dict[str, NDArray[Any]] = {
        spec.name: noise(9, 24, *spec.shape[has_batch_axis(spec) :]) for spec in specs
    }
    return Calibration(inputs=specs, arrays=arrays, scratch=scratch)


def offers(model: onnx.ModelProto, style: Style = "onnxruntime", **given: Option) -> list[Step]:
    spec = U8 if style == "onnxruntime" else S8
    return list(PASS.offers(given, model=model, engine=spec, style=style))


def image_net(*, channels: int = 3) -> onnx.ModelProto:
    """Convolution, ReLU, depthwise convolution, clip at 6, pool, Gemm: x [N, c, 12, 12] to y."""
    nodes = [
        helper.make_node("Conv", ["x", "first", "b1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second", "b2"], ["c"], "conv2", group=16),
        helper.make_node("Clip", ["c", "zero", "six"], ["d"], "relu6"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head", "b3"], ["y"], "gemm", transB=1),
    ]
    constants = {
        "first": noise(1, 16, channels, 3, 3),
        "b1": noise(2, 16),
        "second": noise(3, 16, 1, 3, 3),
        "b2": noise(4, 16),
        "head": noise(5, 10, 16),
        "b3": noise(6, 10),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    return graph_of(
        nodes,
        inputs={"x": ["N", channels, 12, 12]},
        outputs={"y": ["N", 10]},
        constants={name: np.asarray(value) for name, value in constants.items()},
    )


def recurrent() -> onnx.ModelProto:
    """A convolution over time in front of an LSTM: x [1, 8, 20] to h [1, 1, 16]."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Transpose", ["r"], ["t"], "turn", perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "w", "u"], ["", "h"], "lstm", hidden_size=16),
    ]
    return graph_of(
        nodes,
        inputs={"x": [1, 8, 20]},
        outputs={"h": [1, 1, 16]},
        constants={
            "k": noise(1, 12, 8, 3),
            "w": noise(2, 1, 64, 12) * np.float32(0.2),
            "u": noise(3, 1, 64, 16) * np.float32(0.2),
        },
    )


def scales(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the scales of weights."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[0]: tuple(constants[node.input[1]].dims)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


def _biases(shapes: Iterable[str]) -> set[str]:
    return {name for name in shapes if name.endswith(".corrected_quantized")}


# What it makes.


@pytest.mark.parametrize("style", ["onnxruntime", "tensorrt"])
def test_every_offer_gives_a_valid_model_and_the_same_bytes_each_time(
    style: Style, apply: Apply
) -> None:
    # The calibrator alone tells the others apart.
    for step in offers(image_net(), style, calibrator="minmax"):
        first, second = (apply(image_net(), **step.options) for _ in range(2))

        assert serialise(first) == serialise(second)
        onnx.checker.check_model(first, full_check=True)
        assert {node.domain for node in first.graph.node} == {""}


@pytest.mark.parametrize("calibrator", ["minmax", "mse", "percentile", "entropy"])
@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_answers_stay_close_whatever_the_calibrator(
    calibrator: str, activations: str, apply: Apply
) -> None:
    pictures = noise(9, 24, 3, 12, 12)

    made = apply(image_net(), calibrator=calibrator, activations=activations)

    assert error(run(made, x=pictures)[0], run(image_net(), x=pictures)[0]) < 0.1


def test_weights_are_quantised_per_channel_unless_it_is_switched_off(apply: Apply) -> None:
    by_channel, whole = (scales(apply(image_net(), per_channel=way)) for way in (True, False))

    assert by_channel["first_quantized"] == (16,)
    assert by_channel["second_quantized"] == (16,)
    assert by_channel["head_quantized"] == (10,)
    assert {shape for name, shape in whole.items() if name not in _biases(whole)} == {()}


def test_a_product_without_transposition_is_quantised_along_its_columns(apply: Apply) -> None:
    made = apply(mlp(depth=1))

    assert scales(made)["w1.1_quantized"] == (10,)
    x = noise(9, 8, 64)
    assert error(run(made, x=x)[0], run(mlp(depth=1), x=x)[0]) < 0.05


@pytest.mark.parametrize(("groups", "scale"), [(1, (6,)), (2, ())])
def test_a_transposed_convolution_has_a_scale_for_each_channel_where_it_has_one_group(
    groups: int, scale: tuple[int, ...], apply: Apply
) -> None:
    model = graph_of(
        [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", group=groups)],
        inputs={"x": [1, 4, 5, 5]},
        outputs={"y": [1, 6, 7, 7]},
        constants={"w": noise(1, 4, 6 // groups, 3, 3), "b": noise(2, 6)},
    )
    x = noise(9, 1, 4, 5, 5)

    made = apply(model)

    assert next(iter(scales(made).values())) == scale
    assert error(run(made, x=x)[0], run(model, x=x)[0]) < 0.05


@pytest.mark.parametrize("bias", [(10,), (1, 10), (1,), ()])
def test_a_gemm_keeps_its_factors_and_every_shape_of_bias(
    bias: tuple[int, ...], apply: Apply
) -> None:
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", alpha=0.5, beta=3.0)],
        inputs={"x": [4, 32]},
        outputs={"y": [4, 10]},
        constants={"w": noise(1, 32, 10), "b": np.asarray(noise(2, *bias))},
    )
    x = noise(9, 4, 32)

    assert error(run(apply(model), x=x)[0], run(model, x=x)[0]) < 0.05


def test_a_gemm_whose_bias_differs_from_row_to_row_stays_in_float(apply: Apply) -> None:
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm")],
        inputs={"x": [4, 32]},
        outputs={"y": [4, 10]},
        constants={"w": noise(1, 32, 10), "b": noise(2, 4, 10)},
    )

    with pytest.raises(BuildError, match="no convolution or matrix product"):
        apply(model)


def test_a_channel_of_tiny_weights_keeps_its_large_bias(apply: Apply) -> None:
    weights = noise(1, 4, 3, 1, 1)
    weights[2] = 1e-12
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 4, 4, 4]},
        constants={"w": weights, "b": np.full(4, 5, np.float32)},
    )

    (made,) = run(apply(model), x=noise(9, 1, 3, 4, 4))

    np.testing.assert_allclose(made[:, 2], 5.0, rtol=0.01)


def test_a_weight_read_along_two_axes_is_stored_for_each(apply: Apply) -> None:
    model = graph_of(
        [
            helper.make_node("Gemm", ["x", "w"], ["h"], "down", transB=1),
            helper.make_node("MatMul", ["h", "w"], ["y"], "up"),
        ],
        inputs={"x": ["N", 16]},
        outputs={"y": ["N", 16]},
        constants={"w": noise(1, 8, 16)},
    )
    x = noise(9, 6, 16)

    made = apply(model)

    weights = {k: v for k, v in scales(made).items() if k not in _biases(scales(made))}
    assert weights == {"w_quantized": (8,), "w.1_quantized": (16,)}
    assert error(run(made, x=x)[0], run(model, x=x)[0]) < 0.05


def test_a_correction_of_biases_takes_the_shift_of_the_mean_back(apply: Apply) -> None:
    pictures = noise(9, 24, 3, 12, 12)
    (wanted,) = run(image_net(), x=pictures)

    corrected, plain = (
        run(apply(image_net(), per_channel=False, bias_correction=way), x=pictures)[0]
        for way in (True, False)
    )

    shift = np.abs((corrected - wanted).mean(axis=0)).mean()
    assert shift < 0.7 * np.abs((plain - wanted).mean(axis=0)).mean()


def test_graphs_for_tensorrt_pass_its_rules(apply: Apply) -> None:
    for step in offers(image_net(), "tensorrt", calibrator="minmax"):
        assert graph_lint(apply(image_net(), **step.options)) == ()


def test_unsigned_activations_break_the_rules_of_tensorrt(apply: Apply) -> None:
    assert any("quantised to uint8" in problem for problem in graph_lint(apply(image_net())))


def test_a_weight_in_a_constant_node_is_quantised_too(apply: Apply) -> None:
    model = mlp(depth=1)
    tensor = next(t for t in model.graph.initializer if t.name == "w0")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], "w0.node", value=tensor))
    model.graph.initializer.remove(tensor)

    assert "w0.1_quantized" in scales(apply(model))


def test_scores_are_not_rounded_to_eight_bits(apply: Apply) -> None:
    (scores,) = run(apply(small_convnet(batch="N")), x=noise(9, 64, 8, 16, 16))

    assert len(np.unique(scores)) > 300


def test_weights_of_the_source_stay_what_they_were(apply: Apply) -> None:
    source = image_net()
    before = serialise(source)

    apply(source)

    assert serialise(source) == before


# What stays in float.


@pytest.mark.parametrize(("only", "kept"), [("weighted", "pool"), ("conv", "gemm")])
def test_only_some_kinds_of_nodes_may_be_quantised(only: str, kept: str, apply: Apply) -> None:
    made = apply(image_net(), only=only)

    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    (node,) = [node for node in made.graph.node if node.name == kept]
    pictures = noise(9, 4, 3, 12, 12)
    assert makers.get(node.output[0]) != "QuantizeLinear"
    assert makers[node.input[0]] != "DequantizeLinear" or only == "weighted"
    assert ("head_quantized" in scales(made)) == (only == "weighted")
    assert error(run(made, x=pictures)[0], run(image_net(), x=pictures)[0]) < 0.1


def test_a_product_of_two_activations_is_quantised_only_among_all(apply: Apply) -> None:
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], "weighted"),
            helper.make_node("Transpose", ["a"], ["t"], "turn", perm=[1, 0]),
            helper.make_node("MatMul", ["a", "t"], ["y"], "scores"),
        ],
        inputs={"x": [6, 16]},
        outputs={"y": [6, 6]},
        constants={"w": noise(1, 16, 8)},
    )

    everything, weighted = (apply(model, only=only) for only in ("all", "weighted"))

    assert operators(everything).count("QuantizeLinear") == 3
    assert operators(weighted).count("QuantizeLinear") == 1


def test_nodes_may_stay_in_float_by_name(apply: Apply) -> None:
    made = apply(image_net(), keep_float=("conv1", "gemm"))

    kept = {tensor.name for tensor in made.graph.initializer}
    assert {"first", "head"} <= kept
    assert "second" not in kept


def test_a_name_that_no_node_has_is_refused(apply: Apply) -> None:
    with pytest.raises(RecipeError, match="'conv9'"):
        apply(image_net(), keep_float=("conv9",))


def test_a_recurrent_node_stays_in_float_and_right(apply: Apply) -> None:
    made = apply(recurrent())
    x = noise(9, 1, 8, 20)

    assert {"w", "u"} <= {tensor.name for tensor in made.graph.initializer}
    assert "k_quantized" in scales(made)
    assert error(run(made, x=x)[0], run(recurrent(), x=x)[0]) < 0.05


def test_what_takes_infinite_values_stays_in_float(apply: Apply) -> None:
    mask = np.where(np.tri(8, dtype=bool), np.float32(0), np.float32(-np.inf))
    model = graph_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
            helper.make_node("Add", ["a", "mask"], ["b"], "masked"),
            helper.make_node("Softmax", ["b"], ["y"], "softmax"),
        ],
        inputs={"x": [8, 16]},
        outputs={"y": [8, 8]},
        constants={"w": noise(1, 16, 8), "mask": mask},
    )
    x = noise(9, 8, 16)

    made = apply(model)

    assert "w.1_quantized" in scales(made)
    np.testing.assert_allclose(run(made, x=x)[0], run(model, x=x)[0], atol=0.05)


def test_what_an_if_reads_from_outside_keeps_its_value(apply: Apply) -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["c"], ["z"], "inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "k2"], ["y"], "conv2"),
        helper.make_node("If", ["yes"], ["o"], "choice", then_branch=branch, else_branch=branch),
    ]
    model = graph_of(
        nodes,
        inputs={"x": [1, 4, 6, 6]},
        outputs={"y": [1, 3, 4, 4], "o": [1, 5, 6, 6]},
        constants={"k": noise(1, 5, 4, 1, 1), "k2": noise(2, 3, 5, 3, 3), "yes": np.array(True)},
    )
    x = noise(9, 1, 4, 6, 6)

    made = apply(model)

    for got, wanted in zip(run(made, x=x), run(model, x=x), strict=True):
        assert error(got, wanted) < 0.05


# The fourth channel.


def test_a_first_convolution_is_widened_to_four_channels_and_answers_the_same() -> None:
    widened = image_net()

    names = pad_first_convolutions(widened, {"conv1"})

    onnx.checker.check_model(widened, full_check=True)
    assert list(names.values()) == ["x"]
    first = next(t for t in widened.graph.initializer if t.name == "first")
    assert tuple(first.dims) == (16, 4, 3, 3)
    pictures = noise(9, 4, 3, 12, 12)
    np.testing.assert_allclose(
        run(image_net(), x=pictures)[0], run(widened, x=pictures)[0], atol=1e-4
    )


def test_the_input_is_quantised_before_it_is_widened(apply: Apply) -> None:
    made = apply(image_net())

    nodes = {output: node for node in made.graph.node for output in node.output}
    (pad,) = [node for node in made.graph.node if node.op_type == "Pad"]
    assert nodes[pad.input[0]].op_type == "QuantizeLinear"
    assert nodes[pad.input[0]].input[0] == "x"


def test_a_convolution_that_stays_in_float_is_not_widened(apply: Apply) -> None:
    assert "Pad" not in operators(apply(image_net(), keep_float=("conv1",)))


def test_a_convolution_of_four_channels_or_of_shared_weights_is_left_alone() -> None:
    four, shared = image_net(channels=4), image_net()
    shared.graph.node.append(helper.make_node("Conv", ["x", "first"], ["z"], "again"))

    assert pad_first_convolutions(four, {"conv1"}) == {}
    assert pad_first_convolutions(shared, {"conv1", "again"}) == {}


# What it offers.


def test_offers_begin_with_minmax_on_everything_and_hold_none_twice() -> None:
    labels = [step.label for step in offers(image_net())]

    assert labels[:4] == [
        "static-int8/u8s8/minmax",
        "static-int8/u8s8/mse",
        "static-int8/u8s8/percentile",
        "static-int8/u8s8/entropy",
    ]
    assert {"static-int8/u8s8/minmax/weighted", "static-int8/u8s8/minmax/conv"} < set(labels)
    assert "static-int8/u8s8/minmax/per-tensor" in labels
    assert len(set(labels)) == len(labels)


def test_kinds_of_nodes_are_offered_only_where_they_differ() -> None:
    plain = graph_of(
        [helper.make_node("Conv", ["x", "k"], ["y"], "conv")],
        inputs={"x": [1, 4, 6, 6]},
        outputs={"y": [1, 5, 6, 6]},
        constants={"k": noise(1, 5, 4, 1, 1)},
    )

    assert not [s for s in offers(plain) if s.options["only"] != "all"]
    assert {s.options["only"] for s in offers(recurrent())} == {"all", "weighted"}


def test_a_recipe_pins_an_option_in_every_offer() -> None:
    pinned = offers(image_net(), calibrator="mse")

    assert {step.options["calibrator"] for step in pinned} == {"mse"}
    assert len({step.label for step in pinned}) == len(pinned)


def test_a_step_is_repeated_by_its_options() -> None:
    for step in offers(image_net(), keep_float=("conv1",)):
        assert PASS.step(step.options) == step
        assert step.precision == "int8-qdq-u8s8"


def test_labels_say_what_deviates_and_tell_nodes_in_float_apart() -> None:
    one, other = (
        PASS.step({"only": "conv", "keep_float": nodes}).label for nodes in (("a", "b"), ("a", "c"))
    )

    assert one.startswith("static-int8/u8s8/minmax/conv/float-2-")
    assert one != other
    assert (
        PASS.step({"keep_float": ("b", "a")}).label == PASS.step({"keep_float": ("a", "b")}).label
    )


def test_an_engine_gets_the_activations_it_lists_first() -> None:
    both = engine("int8-qdq-s8s8", "int8-qdq-u8s8")

    (first, *_) = PASS.offers({}, model=image_net(), engine=both, style="onnxruntime")

    assert first.options["activations"] == "s8"


def test_an_engine_without_int8_gets_no_offer() -> None:
    assert PASS.offers({}, model=image_net(), engine=engine("fp16"), style="onnxruntime") == ()


@pytest.mark.parametrize(
    "options", [{"calibrator": "guess"}, {"percentile": 101.0}, {"bits": 4}, {"only": "none"}]
)
def test_an_option_that_does_not_exist_is_refused(options: dict[str, Option]) -> None:
    with pytest.raises(RecipeError, match="static-int8"):
        PASS.offers(options, model=image_net(), engine=U8, style="onnxruntime")


# What it refuses.


def test_a_model_without_samples_is_refused() -> None:
    with pytest.raises(BuildError, match="needs calibration samples"):
        PASS.apply(image_net(), PASS.step({}), calibration=None)


def test_an_opset_below_17_is_refused_and_not_offered(apply: Apply) -> None:
    model = image_net()
    model.opset_import[0].version = 12

    assert offers(model) == []
    with pytest.raises(BuildError, match="the model has 12") as refused:
        apply(model)
    assert "opset 17" in str(refused.value.hint)


def test_a_model_whose_work_lies_inside_an_if_is_refused_by_name(apply: Apply) -> None:
    assert offers(inside_an_if()) == []
    with pytest.raises(BuildError, match="MatMul 'inner', lies inside of If 'choice'"):
        apply(inside_an_if())


def test_a_model_of_recurrent_nodes_alone_is_refused_by_name(apply: Apply) -> None:
    model = graph_of(
        [helper.make_node("GRU", ["x", "w", "u"], ["", "h"], "gru", hidden_size=4)],
        inputs={"x": [3, 1, 5]},
        outputs={"h": [1, 1, 4]},
        constants={"w": noise(1, 1, 12, 5), "u": noise(2, 1, 12, 4)},
    )

    assert offers(model) == []
    with pytest.raises(BuildError, match="GRU 'gru'"):
        apply(model)


def test_a_model_that_is_quantised_already_is_refused_by_name(apply: Apply) -> None:
    quantised = apply(image_net())

    assert offers(quantised) == []
    with pytest.raises(BuildError, match=r"quantised already, as .*Linear '.+' shows"):
        apply(quantised)


def test_a_model_without_anything_to_quantise_is_refused(apply: Apply) -> None:
    model = graph_of(
        [helper.make_node("Erf", ["x"], ["y"], "erf")],
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
    )

    assert offers(model) == []
    with pytest.raises(BuildError, match="no convolution or matrix product with constant weights"):
        apply(model)


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(BuildError, match="not finite"):
        scale_of(np.array([[1.0, np.nan]], np.float32), axis=0)
