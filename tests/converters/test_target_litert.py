"""LiteRT: ONNX as a float and as a full-integer `.tflite`, and what cannot be one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from edgekit import profile
from edgekit.errors import BuildError, RecipeError
from edgekit.profile import EngineSpec
from edgekit_converters import tflite
from edgekit_converters.calibrate import Calibration
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import Step
from edgekit_converters.targets import Job, Product
from edgekit_converters.targets.litert import TARGET, precision_of
from edgekit_converters.targets.tflite.biases import shift_of
from edgekit_converters.targets.tflite.convert import difference, permutations
from edgekit_converters.targets.tflite.kept import matches, owners
from edgekit_runtime.engines.batches import SampleArrays
from tests.converters.chains import needs
from tests.converters.graph_models import answer, normal_form
from tests.converters.passes_models import error, graph_of, mlp, noise
from tests.converters.target_jobs import job_of
from tests.converters.tflite_models import write_dense

chains = needs("onnx2tf", "litert-quantizer")

BOARD = profile.find("generic-x86_64")
ENGINE = next(engine for engine in BOARD.engines if TARGET.makes_for(engine))
PRECISE = {"calibrator": "minmax"}


def convnet(*, batch: int | str = "N") -> onnx.ModelProto:
    """x [batch, 3, 9, 12] to y [batch, 5]: padding on one side, a depthwise and a residual one."""
    return graph_of(
        [
            helper.make_node(
                "Conv", ["x", "k1", "b1"], ["c1"], "stem", strides=[2, 2], pads=[0, 0, 1, 1]
            ),
            helper.make_node("Clip", ["c1", "zero", "six"], ["r1"], "stem.relu6"),
            helper.make_node(
                "Conv", ["r1", "k2", "b2"], ["c2"], "depth", group=8, pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", ["c2"], ["r2"], "depth.relu"),
            helper.make_node("Conv", ["r2", "k3", "b3"], ["c3"], "point"),
            helper.make_node("Add", ["c3", "r1"], ["s"], "sum"),
            helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], "head", transB=1),
        ],
        inputs={"x": [batch, 3, 9, 12]},
        outputs={"y": [batch, 5]},
        constants={
            "k1": noise(1, 8, 3, 3, 3) / 3,
            "b1": noise(2, 8),
            "k2": noise(3, 8, 1, 3, 3) / 3,
            "b2": noise(4, 8),
            "k3": noise(5, 8, 8, 1, 1) / 3,
            "b3": noise(6, 8),
            "w": noise(7, 5, 8),
            "b": noise(8, 5),
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
        },
    )


def job(
    folder: Path, source: onnx.ModelProto, samples: SampleArrays | None = None
) -> tuple[Path, Job]:
    """A normal form on disk, and a job for it."""
    normal = normal_form(source)
    folder.mkdir(exist_ok=True)
    path = folder / "normal.onnx"
    path.write_bytes(serialise(normal.model))
    calibration = None
    if samples is not None:
        calibration = Calibration(inputs=normal.inputs, arrays=samples, scratch=folder)
    interface = {"inputs": normal.inputs, "outputs": normal.outputs}
    return path, job_of(BOARD, ENGINE, folder, calibration=calibration, **interface)


def images(count: int = 24) -> dict[str, NDArray[np.float32]]:
    return {"x": noise(9, count, 3, 9, 12)}


def made(folder: Path, step: Step | None) -> tuple[Product, NDArray[np.float32]]:
    """The convnet's artefact, and its answers to the samples it was calibrated on."""
    path, work = job(folder, convnet(), images())
    product = TARGET.compile(path, step, work)
    answers: NDArray[np.float32] = TARGET.answers(product, images(), work)["y"]
    return product, answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where artefacts of this module are made, so that the convnet is converted once."""
    return tmp_path_factory.mktemp("litert")


@chains
def test_a_float_file_answers_as_the_model_and_keeps_its_interface(folder: Path) -> None:
    product, answers = made(folder, None)

    assert error(answers, answer(convnet(), **images())) < 1e-5
    assert precision_of(product.path) == "fp32"
    assert product.options["inputs"] == [{"name": "x", "tensor": "x", "axes": [0, 2, 3, 1]}]
    assert product.options["outputs"] == [{"name": "y", "tensor": "y"}]


@chains
def test_an_int8_file_computes_in_integers_alone_and_stays_close(folder: Path) -> None:
    product, answers = made(folder, TARGET.step(PRECISE))

    assert error(answers, answer(convnet(), **images())) < 0.05
    assert not any(operator.is_float for operator in tflite.operators(product.path))
    assert tflite.facts(product.path).weight_bytes < 1500


@chains
def test_products_of_matrices_stay_close_too(tmp_path: Path) -> None:
    samples = {"x": noise(9, 24, 64)}
    path, work = job(tmp_path, mlp(), samples)

    answers = TARGET.answers(TARGET.compile(path, TARGET.step(PRECISE), work), samples, work)

    assert error(answers["y"], answer(mlp(), **samples)) < 0.05


@chains
def test_corrected_biases_leave_less_error(folder: Path) -> None:
    wanted = answer(convnet(), **images())
    _, corrected = made(folder, TARGET.step(PRECISE))
    _, plain = made(folder, TARGET.step({**PRECISE, "bias_correction": False}))

    def shift(answers: NDArray[np.float32]) -> float:
        return float(np.abs((answers - wanted).mean(axis=0)).sum())

    assert shift(corrected) < shift(plain)


@chains
def test_the_same_model_and_samples_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, _ = made(folder, TARGET.step(PRECISE))
    second, _ = made(tmp_path, TARGET.step(PRECISE))

    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()


@chains
def test_nodes_that_are_kept_stay_in_float_and_others_do_not(folder: Path) -> None:
    kept = ("depth", "depth.relu", "point")
    product, answers = made(folder, TARGET.step({**PRECISE, "keep_float": kept}))

    floats = [o.name for o in tflite.operators(product.path) if o.is_float]
    assert floats == ["DEPTHWISE_CONV_2D", "CONV_2D"]
    assert error(answers, answer(convnet(), **images())) < 0.05


@chains
def test_a_first_node_that_is_kept_leaves_the_input_in_float(folder: Path) -> None:
    product, answers = made(folder, TARGET.step({**PRECISE, "keep_float": ("stem",)}))

    assert tflite.operators(product.path)[0].is_float
    assert error(answers, answer(convnet(), **images())) < 0.05


@chains
def test_a_node_to_keep_that_is_not_there_is_named(folder: Path) -> None:
    path, work = job(folder, convnet(), images())

    with pytest.raises(RecipeError, match="'nowhere'"):
        TARGET.compile(path, TARGET.step({"keep_float": ("nowhere",)}), work)


@chains
def test_an_operator_without_a_form_in_tflite_is_named(tmp_path: Path) -> None:
    source = graph_of(
        [helper.make_node("Einsum", ["x", "w"], ["y"], "odd", equation="...ij,jk->...ki")],
        inputs={"x": [1, 2, 3]},
        outputs={"y": [1, 4, 2]},
        constants={"w": noise(1, 3, 4)},
    )
    path, work = job(tmp_path, source)

    with pytest.raises(BuildError, match="cannot be converted to TFLite: EINSUM has no form"):
        TARGET.compile(path, None, work)


def test_without_samples_there_is_no_int8(tmp_path: Path) -> None:
    path, work = job(tmp_path, convnet())

    with pytest.raises(BuildError, match="litert/int8/minmax needs calibration samples"):
        TARGET.compile(path, TARGET.step({}), work)


def test_a_tflite_source_ships_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "model.tflite"
    write_dense(source)
    _, work = job(tmp_path, convnet())

    assert TARGET.compile(source, None, work) == Product(path=source)


def test_coverage_takes_a_convnet_and_names_what_it_does_not_take() -> None:
    taken = TARGET.coverage(normal_form(convnet()).model, ENGINE)
    odd = graph_of(
        [helper.make_node("RandomNormalLike", ["x"], ["y"], "dice")],
        inputs={"x": [1, 4]},
        outputs={"y": [1, 4]},
    )
    open_axes = graph_of(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        inputs={"x": ["N", 3, "H", "W"]},
        outputs={"y": ["N", 3, "H", "W"]},
    )

    assert not taken.refused
    assert [(f.node, f.operator) for f in TARGET.coverage(odd, ENGINE).refused] == [
        ("dice", "RandomNormalLike")
    ]
    (finding, *_) = TARGET.coverage(open_axes, ENGINE).refused
    assert finding.reason == "dynamic shape [-1, 3, -1, -1]"
    assert "--input x=" in finding.instead


def test_it_offers_int8_where_the_engine_lists_it() -> None:
    model = normal_form(mlp()).model
    floats = EngineSpec(name="litert", version="2.3", precisions=("fp32",))

    offers = TARGET.offers({}, model=model, engine=ENGINE)

    assert [step.label for step in offers] == [
        "litert/int8/minmax",
        "litert/int8/mse",
        "litert/int8/percentile",
        "litert/int8/entropy",
    ]
    assert all(TARGET.step(step.options) == step for step in offers)
    assert TARGET.offers({"calibrator": "mse"}, model=model, engine=ENGINE) == (offers[1],)
    assert TARGET.offers({}, model=model, engine=floats) == ()


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(RecipeError, match="calibrater"):
        TARGET.step({"calibrater": "mse"})


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**32)
)
def test_the_shift_of_a_weight_is_what_its_error_adds_to_constant_images(
    groups: int, reads: int, makes: int, depthwise: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(groups * reads)
    if depthwise:
        weight = rng.standard_normal((1, 3, 2, groups * reads * makes))
        wanted = [
            mean[channel // makes] * weight[0, :, :, channel].sum()
            for channel in range(groups * reads * makes)
        ]
    else:
        weight = rng.standard_normal((groups * makes, 3, 2, reads))
        wanted = [
            float((weight[channel] * mean[channel // makes * reads :][:reads]).sum())
            for channel in range(groups * makes)
        ]

    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"

    np.testing.assert_allclose(shift_of(weight, mean, kind=kind), wanted, atol=1e-9)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_layout_is_found_by_its_shape(shape: list[int]) -> None:
    last = (0, *range(2, len(shape)), 1) if len(shape) > 2 else None
    turned = shape if last is None else [shape[axis] for axis in last]

    assert None in permutations(shape, shape)
    assert (last or None) in permutations(shape, turned)
    assert not list(permutations(shape, [*turned, 1]))


def test_a_difference_is_relative_and_counts_what_differs_in_whole_numbers() -> None:
    assert difference(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert difference(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0


def test_tensors_are_matched_by_what_they_hold_in_any_layout() -> None:
    one, two = noise(1, 1, 3, 4, 5), noise(2, 1, 3, 4, 5)

    found = matches(
        {"a": one, "b": two, "fused": one + 1},
        {"t0": two.transpose(0, 2, 3, 1), "t1": one.transpose(0, 2, 3, 1) * np.float32(1.00001)},
    )

    assert found == {"a": "t1", "b": "t0"}


def test_a_fused_node_belongs_to_what_reads_it() -> None:
    found = owners(convnet(), {"r1": "t1", "c3": "t3", "y": "t9"})

    assert found["stem"] == found["stem.relu6"] == "t1"
    assert found["depth"] == found["depth.relu"] == found["point"] == "t3"
    assert found["sum"] == found["head"] == "t9"


@chains
@pytest.mark.slow
def test_lite0_in_int8_agrees_with_float_on_nine_photographs_in_ten(tmp_path: Path) -> None:
    write_lite0(tmp_path / "lite0.onnx")
    write_photos(tmp_path / "photos", crops=4)
    with np.load(tmp_path / "photos" / "photos.npz") as held:
        photos = held["input"]
    path, work = job(tmp_path / "work", onnx.load(tmp_path / "lite0.onnx"), {"input": photos[:32]})
    rest = {"input": photos[32:]}

    float_file = TARGET.compile(path, None, work)
    int8 = TARGET.compile(path, TARGET.step({}), work)

    wanted = TARGET.answers(float_file, rest, work)["logits"].argmax(axis=1)
    got = TARGET.answers(int8, rest, work)["logits"].argmax(axis=1)
    assert np.mean(wanted == got) >= 0.9
    assert not any(operator.is_float for operator in tflite.operators(int8.path))
