"""SmoothQuant moves outliers into weights, where something absorbs them, and keeps each answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import serialise, spec_of
from edgekit_converters.passes import PASSES
from edgekit_converters.passes.smooth import smoothing
from tests.converters.passes_models import engine, error, graph_of, noise, run

PASS = PASSES.get("smooth")
WIDTH = 16
X = noise(9, 24, 5, WIDTH)


def block(
    *, norm: str = "LayerNormalization", residual: bool = False, seed: int = 0
) -> onnx.ModelProto:
    """A norm with outliers, read by two matrix products: x [N, 5, 16] to y [N, 5, 16].

    Args:
        norm: `LayerNormalization`, or `decomposed` into the operators that older exporters write.
        residual: whether the norm's result is added to what was computed from it.
    """
    nodes = {
        "LayerNormalization": [
            helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], "norm")
        ],
        "decomposed": [
            helper.make_node("ReduceMean", ["x"], ["mean"], "mean", axes=[-1]),
            helper.make_node("Sub", ["x", "mean"], ["centred"], "centre"),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"], "scale.mul"),
            helper.make_node("Add", ["shift", "scaled"], ["n"], "shift.add"),
        ],
    }[norm]
    nodes += [
        helper.make_node("MatMul", ["n", "q"], ["a"], "query"),
        helper.make_node("MatMul", ["n", "k"], ["b"], "key"),
        helper.make_node("Mul", ["a", "b"], ["c" if residual else "y"], "mix"),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["c", "n"], ["y"], "residual"))
    outliers = np.ones(WIDTH, np.float32)
    outliers[3], outliers[7] = 40, 0.02
    return graph_of(
        nodes,
        inputs={"x": ["N", 5, WIDTH]},
        outputs={"y": ["N", 5, WIDTH]},
        constants={
            "scale": noise(seed + 1, WIDTH) * outliers,
            "shift": noise(seed + 2, WIDTH),
            "q": noise(seed + 3, WIDTH, WIDTH),
            "k": noise(seed + 4, WIDTH, WIDTH),
        },
    )


def calibrated(model: onnx.ModelProto, scratch: Path) -> Calibration:
    specs = (spec_of(model.graph.input[0]),)
    return Calibration(inputs=specs, arrays={"x": X}, scratch=scratch)


def smoothed(model: onnx.ModelProto, scratch: Path, **options: Option) -> onnx.ModelProto:
    return PASS.apply(model, PASS.step(options), calibration=calibrated(model, scratch))


def offers(model: onnx.ModelProto, **given: Option) -> list[str]:
    steps = PASS.offers(given, model=model, engine=engine(), style="onnxruntime")
    return [step.label for step in steps]


def peaks(model: onnx.ModelProto, scratch: Path) -> float:
    """How many times the median channel of the norm's result its largest is."""
    largest = np.max(
        [
            np.abs(tensors["n"]).max(axis=(0, 1))
            for tensors in calibrated(model, scratch).activations(model, ["n"])
        ],
        axis=0,
    )
    return float(largest.max() / np.median(largest))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    norm=st.sampled_from(["LayerNormalization", "decomposed"]),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_answers_stay_what_they_were_to_the_bit(
    norm: str, alpha: float, seed: int, scratch: Path
) -> None:
    model = block(norm=norm, seed=seed)

    made = smoothed(model, scratch, alpha=alpha)

    np.testing.assert_array_equal(run(made, x=X)[0], run(model, x=X)[0])


@pytest.mark.parametrize("norm", ["LayerNormalization", "decomposed"])
def test_outliers_are_moved_into_the_weights(norm: str, tmp_path: Path) -> None:
    model = block(norm=norm)

    assert peaks(smoothed(model, tmp_path), tmp_path) < 0.3 * peaks(model, tmp_path)


def test_a_larger_alpha_moves_more(tmp_path: Path) -> None:
    some, most = (peaks(smoothed(block(), tmp_path, alpha=a), tmp_path) for a in (0.3, 0.9))

    assert most < some


def test_static_int8_is_closer_to_the_answers_after_smoothing(tmp_path: Path) -> None:
    static = PASSES.get("static-int8")
    (wanted,) = run(block(), x=X)

    before, after = (
        run(
            static.apply(
                model, static.step({"only": "weighted"}), calibration=calibrated(model, tmp_path)
            ),
            x=X,
        )[0]
        for model in (block(), smoothed(block(), tmp_path))
    )

    assert error(after, wanted) < 0.7 * error(before, wanted)


def test_a_linear_layer_absorbs_behind_a_relu(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up.product"),
        helper.make_node("Add", ["a", "bias"], ["b"], "bias.add"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("MatMul", ["c", "down"], ["y"], "down.product"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 5, WIDTH]},
        outputs={"y": ["N", 5, WIDTH]},
        constants={
            "up": noise(1, WIDTH, 32) * np.float32(3),
            "bias": noise(2, 32),
            "down": noise(3, 32, WIDTH),
        },
    )

    made = smoothed(model, tmp_path)

    assert offers(model) == ["smooth/0.5", "smooth/0.8"]
    assert serialise(made) != serialise(model)
    np.testing.assert_array_equal(run(made, x=X)[0], run(model, x=X)[0])


def test_where_a_residual_reads_the_norm_too_nothing_is_offered(tmp_path: Path) -> None:
    model = block(residual=True)

    assert offers(model) == []
    with pytest.raises(BuildError, match="nothing in this model can absorb"):
        smoothed(model, tmp_path)


def test_a_gelu_absorbs_nothing() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up.product"),
        helper.make_node("Erf", ["a"], ["b"], "erf"),
        helper.make_node("MatMul", ["b", "down"], ["y"], "down.product"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": ["N", 5, WIDTH]},
        outputs={"y": ["N", 5, WIDTH]},
        constants={"up": noise(1, WIDTH, 32), "down": noise(2, 32, WIDTH)},
    )

    assert offers(model) == []


def test_a_recipe_pins_alpha_and_a_wrong_one_is_refused() -> None:
    assert offers(block(), alpha=0.6) == ["smooth/0.6"]
    with pytest.raises(RecipeError, match="alpha"):
        PASS.step({"alpha": 2.0})


def test_a_model_without_samples_is_refused() -> None:
    with pytest.raises(BuildError, match="needs calibration samples"):
        PASS.apply(block(), PASS.step({}), calibration=None)


def test_the_source_stays_what_it_was_and_the_result_is_the_same_each_time(tmp_path: Path) -> None:
    model = block()
    before = serialise(model)

    assert serialise(smoothed(model, tmp_path)) == serialise(smoothed(model, tmp_path))
    assert serialise(model) == before


def test_factors_share_the_burden_by_alpha() -> None:
    activations, weights = np.array([64.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0], np.float32)

    halves = smoothing(activations, weights, alpha=0.5)
    whole = smoothing(activations, weights, alpha=1.0)

    assert halves.tolist() == [1 / 8, 1, 1]
    assert whole.tolist() == [1 / 64, 1, 1]
