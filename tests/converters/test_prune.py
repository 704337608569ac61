"""Pruning makes a model smaller without training, keeps its interface and most of its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.macs import macs_by_node
from edgekit_converters.normalise import normalise, serialise
from edgekit_converters.passes import Step
from edgekit_converters.passes.prune import PASS
from tests.converters.building import convnet, images
from tests.converters.passes_models import engine, error, graph_of, inside_an_if, mlp, noise, run
from tests.converters.pruning_models import NETS, Net, pictures


def calibrated(
    model: onnx.ModelProto,
    scratch: Path,
    samples: NDArray[np.float32],
) -> Calibration:
    normal = normalise(model, shapes={}, max_opset=21, max_ir=10)
    return Calibration(
        inputs=normal.inputs, arrays={normal.inputs[0].name: samples}, scratch=scratch
    )


def offers(model: onnx.ModelProto, **given: Option) -> tuple[Step, ...]:
    return PASS.offers(given, model=model, engine=engine(), style="onnxruntime")


def macs(model: onnx.ModelProto) -> int:
    return sum(macs_by_node(model)[0].values())


@pytest.fixture(scope="module")
def digits() -> onnx.ModelProto:
    return normalise(convnet(), shapes={}, max_opset=21, max_ir=10).model


def test_a_pruned_convnet_reads_digits_as_before(digits: onnx.ModelProto, tmp_path: Path) -> None:
    pictures, _ = images()
    calibration = calibrated(digits, tmp_path, pictures[::2])
    step = PASS.step({"share": 0.2, "multiple": 1})

    smaller = PASS.apply(digits, step, calibration=calibration)

    onnx.checker.check_model(smaller, full_check=True)
    assert macs(smaller) < 0.85 * macs(digits)
    assert list(smaller.graph.output) == list(digits.graph.output)
    before, after = (run(m, image=pictures[1::2])[0].argmax(1) for m in (digits, smaller))
    assert (before == after).mean() > 0.9


def test_the_same_samples_and_options_give_the_same_bytes(
    digits: onnx.ModelProto, tmp_path: Path
) -> None:
    step = PASS.step({"share": 0.1, "multiple": 2})
    made = [
        PASS.apply(digits, step, calibration=calibrated(digits, tmp_path, images()[0][:20]))
        for _ in range(2)
    ]

    assert serialise(made[0]) == serialise(made[1])


def test_a_larger_share_leaves_fewer_operations(digits: onnx.ModelProto, tmp_path: Path) -> None:
    calibration = calibrated(digits, tmp_path, images()[0][:20])
    sizes = [
        macs(
            PASS.apply(digits, PASS.step({"share": share, "multiple": 1}), calibration=calibration)
        )
        for share in (0.1, 0.2, 0.4)
    ]

    assert macs(digits) > sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_net_runs_with_fewer_channels(name: str, tmp_path: Path) -> None:
    model = NETS[name]()
    calibration = calibrated(model, tmp_path, pictures())

    smaller = PASS.apply(model, PASS.step({"share": 0.1, "multiple": 2}), calibration=calibration)

    assert macs(smaller) < macs(model)
    assert run(smaller, x=pictures(3))[0].shape == (3, 4)


@settings(max_examples=8, deadline=None)
@given(dead=st.sets(st.integers(0, 15), min_size=8, max_size=8), level=st.floats(0.0, 2.0))
def test_channels_of_one_value_go_first_and_are_made_up_for_exactly(
    dead: set[int], level: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weight, bias = noise(1, 16, 3, 1, 1), noise(2, 16)
    weight[sorted(dead)], bias[sorted(dead)] = 0, level
    net = Net()
    x = net.add("Conv", "x", net.constant(weight), net.constant(bias))
    model = net.model(net.head(net.conv(net.add("LeakyRelu", x), 16, 4), 4))
    step = PASS.step({"share": 0.2, "multiple": 8})

    smaller = PASS.apply(
        model,
        step,
        calibration=calibrated(model, tmp_path_factory.mktemp("scratch"), pictures()),
    )

    kept = next(t for t in smaller.graph.initializer if list(t.dims[1:]) == [3, 1, 1])
    assert onnx.numpy_helper.to_array(kept).any(axis=(1, 2, 3)).all()
    assert (
        error(run(smaller, x=pictures(3, seed=5))[0], run(model, x=pictures(3, seed=5))[0]) < 1e-4
    )


def test_linear_layers_lose_features_too(tmp_path: Path) -> None:
    model = mlp(width=64, depth=2)
    samples = noise(1, 48, 64)

    smaller = PASS.apply(
        model, PASS.step({"share": 0.2}), calibration=calibrated(model, tmp_path, samples)
    )

    assert macs(smaller) < 0.9 * macs(model)
    assert error(run(smaller, x=samples)[0], run(model, x=samples)[0]) < 0.5


def test_small_shares_are_offered_first() -> None:
    labels = [step.label for step in offers(mlp())]

    assert labels == ["prune/0.10", "prune/0.15", "prune/0.20"]


def test_a_share_that_a_recipe_fixes_is_the_only_offer() -> None:
    (step,) = offers(mlp(), share=0.15, multiple=32)

    assert step.label == "prune/0.15/multiple-32"
    assert step.options == {"share": 0.15, "multiple": 32}
    assert step.precision is None
    assert PASS.step(step.options) == step


def test_where_no_layer_can_lose_channels_nothing_is_offered(tmp_path: Path) -> None:
    plain = graph_of(
        [onnx.helper.make_node("Relu", ["x"], ["y"], "relu")],
        inputs={"x": ["N", 8]},
        outputs={"y": ["N", 8]},
    )

    assert offers(plain) == ()
    assert offers(inside_an_if()) == ()
    with pytest.raises(BuildError, match="finds no convolution or linear layer"):
        PASS.apply(plain, PASS.step({}), calibration=calibrated(plain, tmp_path, noise(1, 4, 8)))


def test_a_share_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    model = NETS["residual"]()

    with pytest.raises(BuildError, match="finds only 0"):
        PASS.apply(
            model,
            PASS.step({"share": 0.5, "multiple": 8}),
            calibration=calibrated(model, tmp_path, pictures()),
        )


def test_without_samples_nothing_is_pruned() -> None:
    with pytest.raises(BuildError, match="needs calibration samples"):
        PASS.apply(mlp(), PASS.step({}), calibration=None)


@pytest.mark.parametrize(
    "options", [{"share": 0.0}, {"share": 0.9}, {"multiple": 0}, {"shares": 1}]
)
def test_an_option_that_makes_no_sense_is_named(options: dict[str, Option]) -> None:
    with pytest.raises(RecipeError, match=r"options of pass prune.*" + next(iter(options))):
        PASS.step(options)


def test_one_sample_is_enough_to_run(tmp_path: Path) -> None:
    model = NETS["squeeze"]()
    calibration = calibrated(model, tmp_path, pictures(1))

    smaller = PASS.apply(model, PASS.step({"share": 0.1, "multiple": 2}), calibration=calibration)

    assert macs(smaller) < macs(model)
