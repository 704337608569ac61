"""Static int8 is standard QDQ, the same each time, and what the engine in question takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from edgekit.errors import BuildError, RecipeError
from edgekit_converters.calibrate import Calibrator, mse_range, percentile_range
from edgekit_converters.normalise import normalise, serialise
from edgekit_converters.passes import PASSES, Style
from edgekit_converters.passes.channels import pad_first_convolutions
from edgekit_converters.targets.tensorrt import graph_lint
from tests.converters.building import convnet, images

U8, S8 = ("int8-qdq-u8s8",), ("int8-qdq-s8s8",)
PASS = PASSES.get("static-int8")


@pytest.fixture
def calibrator(tmp_path: Path) -> Calibrator:
    normal = normalise(convnet(), shapes={}, max_opset=20, max_ir=9)
    pictures, _ = images()
    return Calibrator(
        normal.model, inputs=normal.inputs, arrays={"image": pictures[:20]}, scratch=tmp_path
    )


def model() -> onnx.ModelProto:
    return normalise(convnet(), shapes={}, max_opset=20, max_ir=9).model


@pytest.mark.parametrize("style", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("position", range(4))
def test_a_scheme_gives_the_same_bytes_each_time(
    style: Style, position: int, calibrator: Calibrator
) -> None:
    scheme = PASS.ladder({}, precisions=S8, style=style)[position]

    first, second = (PASS.apply(model(), scheme, calibrator=calibrator) for _ in range(2))

    assert serialise(first) == serialise(second)
    onnx.checker.check_model(first)
    assert {node.domain for node in first.graph.node} == {""}
    assert first.ir_version <= 9


def test_weights_are_quantised_per_channel(calibrator: Calibrator) -> None:
    scheme = PASS.ladder({}, precisions=U8, style="onnxruntime")[0]

    made = PASS.apply(model(), scheme, calibrator=calibrator)

    scales = {t.name: tuple(t.dims) for t in made.graph.initializer if t.name.endswith("_scale")}
    assert scales["first_scale"] == (16,)
    assert scales["b_scale"] == ()


def test_graphs_for_tensorrt_pass_its_rules(calibrator: Calibrator) -> None:
    for scheme in PASS.ladder({}, precisions=S8, style="tensorrt"):
        made = PASS.apply(model(), scheme, calibrator=calibrator)

        assert graph_lint(made) == ()


def test_unsigned_activations_break_the_rules_of_tensorrt(calibrator: Calibrator) -> None:
    scheme = PASS.ladder({}, precisions=U8, style="onnxruntime")[0]

    problems = graph_lint(PASS.apply(model(), scheme, calibrator=calibrator))

    assert any("quantised to uint8" in problem for problem in problems)


def test_nodes_may_stay_in_float(calibrator: Calibrator) -> None:
    ladder = PASS.ladder({}, precisions=U8, style="onnxruntime")
    ends = next(s for s in ladder if s.options["keep_float"] == "ends")

    made = PASS.apply(model(), ends, calibrator=calibrator)

    kept = {tensor.name for tensor in made.graph.initializer}
    assert {"first", "head"} <= kept
    assert "second" not in kept


def test_a_first_convolution_is_widened_to_four_channels_and_answers_the_same() -> None:
    widened = model()

    names = pad_first_convolutions(widened)

    assert list(names.values()) == ["image"]
    first = next(t for t in widened.graph.initializer if t.name == "first")
    assert tuple(first.dims) == (16, 4, 3, 3)
    pictures, _ = images()
    before, after = (
        InferenceSession(serialise(m), providers=["CPUExecutionProvider"]).run(
            None, {"image": pictures}
        )[0]
        for m in (model(), widened)
    )
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_input_is_quantised_before_it_is_widened(calibrator: Calibrator) -> None:
    scheme = PASS.ladder({}, precisions=U8, style="onnxruntime")[0]

    made = PASS.apply(model(), scheme, calibrator=calibrator)

    onnx.checker.check_model(made, full_check=True)
    nodes = {output: node for node in made.graph.node for output in node.output}
    (pad,) = [node for node in made.graph.node if node.op_type == "Pad"]
    assert nodes[pad.input[0]].op_type == "QuantizeLinear"
    assert nodes[pad.input[0]].input[0] == "image"


def test_a_convolution_of_four_channels_or_of_shared_weights_is_left_alone() -> None:
    widened = model()
    pad_first_convolutions(widened)
    again = serialise(widened)
    shared = model()
    shared.graph.node[2].input[1] = "first"

    assert pad_first_convolutions(widened) == {}
    assert serialise(widened) == again
    assert pad_first_convolutions(shared) == {}


def test_a_ladder_holds_no_scheme_twice_when_the_recipe_pins_its_option() -> None:
    ladder = PASS.ladder({"calibrator": "mse"}, precisions=U8, style="onnxruntime")

    assert len({scheme.name for scheme in ladder}) == len(ladder) == 3


def test_an_engine_without_int8_gets_no_scheme() -> None:
    assert PASS.ladder({}, precisions=("fp32",), style="onnxruntime") == ()


@pytest.mark.parametrize("options", [{"calibrator": "entropy"}, {"percentile": 101.0}, {"bits": 4}])
def test_an_option_that_does_not_exist_is_refused(options: dict[str, float | str]) -> None:
    with pytest.raises(RecipeError, match="static-int8"):
        PASS.ladder(options, precisions=U8, style="onnxruntime")


def test_a_model_without_anything_to_quantise_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["y"], "erf")],
        "erf",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    normal = normalise(source, shapes={}, max_opset=20, max_ir=9)
    arrays = {"x": np.ones((3, 4), np.float32)}
    calibrator = Calibrator(normal.model, inputs=normal.inputs, arrays=arrays, scratch=tmp_path)
    scheme = PASS.ladder({}, precisions=U8, style="onnxruntime")[0]

    with pytest.raises(BuildError, match="nothing to quantise"):
        PASS.apply(normal.model, scheme, calibrator=calibrator)


# Calibration.


def test_extremes_are_those_of_the_samples(calibrator: Calibrator) -> None:
    pictures, _ = images()

    low, high = calibrator.ranges("minmax")["image"]

    assert low == pictures[:20].min()
    assert high == pictures[:20].max()


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_clipped_ranges_lie_within_the_extremes(method: str, calibrator: Calibrator) -> None:
    extremes = calibrator.ranges("minmax")
    clipped = calibrator.ranges(method)  # type: ignore[arg-type]

    assert clipped.keys() == extremes.keys()
    for name, (low, high) in clipped.items():
        assert min(extremes[name][0], 0) - 1e-6 <= low <= high <= extremes[name][1] + 1e-6


@given(seed=st.integers(0, 1000), skew=st.floats(0.1, 20), percentile=st.floats(60, 100))
def test_a_percentile_leaves_at_most_its_share_outside(
    seed: int, skew: float, percentile: float
) -> None:
    values = np.random.default_rng(seed).beta(1, skew, 5000) * 4 - 1
    histogram = np.histogram(values, 2048, range=(-1, 3))[0]
    low, high = percentile_range(histogram, (-1.0, 3.0), percentile)

    edges = np.linspace(-1, 3, 2049)
    outside = histogram[(edges[1:] <= low) | (edges[:-1] >= high)].sum()
    assert low <= high
    assert outside <= (100 - percentile) / 100 * histogram.sum() + 1e-6


def test_one_outlier_is_clipped_by_mse_but_not_by_minmax() -> None:
    histogram = np.zeros(2048, np.int64)
    histogram[:200] = 10_000
    histogram[-1] = 1

    _, high = mse_range(histogram, (0.0, 10.0))

    assert high < 10.0


def test_weights_stay_what_they_were(calibrator: Calibrator) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in model().graph.initializer}
    scheme = PASS.ladder({}, precisions=U8, style="onnxruntime")[0]
    source = model()

    PASS.apply(source, scheme, calibrator=calibrator)

    for tensor in source.graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), before[tensor.name])
