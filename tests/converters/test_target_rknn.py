"""Rockchip: what its toolkit makes and simulates of small models, and what it is not given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit import profile
from edgekit.errors import BuildError, RecipeError
from edgekit.manifest import TensorSpec
from edgekit.profile import EngineSpec, Provider
from edgekit_converters.calibrate import Calibration
from edgekit_converters.targets import Job, Product
from edgekit_converters.targets.rknn import TARGET, platform_of, rules_for
from edgekit_converters.targets.rknn_given import Options, prepared, recorded, with_record
from edgekit_converters.targets.rknn_layers import Layer, cycles_of, macs_of, placement_of
from edgekit_runtime.engines.rknn import MAGIC
from tests.converters.chains import needs
from tests.converters.graph_models import answer, model, node, noise, normal_form
from tests.converters.target_jobs import job_of

_COUNT = 12
_X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 16, 16))
_Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 5))


def convnet() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], "first", strides=[2, 2]),
        node("Relu", ["c0"], ["r0"], "relu"),
        node("Conv", ["r0", "w1"], ["c1"], "second"),
        node("GlobalAveragePool", ["c1"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flat"),
        node("Gemm", ["f", "w2", "b2"], ["y"], "head"),
    ]
    constants: dict[str, NDArray[Any]] = {
        "w0": noise(8, 3, 3, 3, seed=1),
        "b0": noise(8, seed=2),
        "w1": noise(16, 8, 3, 3, seed=3) / 4,
        "w2": noise(16, 5, seed=4),
        "b2": noise(5, seed=5),
    }
    return normal_form(model(nodes, constants, shape=("n", 3, 16, 16), output=("n", 5))).model


def samples() -> NDArray[np.float32]:
    return noise(_COUNT, 3, 16, 16, seed=9)


def engine(board: str) -> EngineSpec:
    return next(e for e in profile.find(board).engines if TARGET.makes_for(e))


def job(folder: Path, board: str = "rk3588", *, with_samples: bool = True) -> Job:
    folder.mkdir(exist_ok=True)
    calibration = Calibration(inputs=(_X,), arrays={"x": samples()}, scratch=folder)
    return job_of(
        profile.find(board),
        engine(board),
        folder,
        inputs=(_X,),
        outputs=(_Y,),
        calibration=calibration if with_samples else None,
    )


def saved(folder: Path, source: onnx.ModelProto, name: str = "model.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(source, folder / name)
    return folder / name


def off(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Error relative to the wanted answers' size."""
    return float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A build's folder, with logs of its own beside it."""
    home = tmp_path_factory.mktemp("rknn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield home / "build"


@pytest.fixture(scope="module")
def int8(folder: Path) -> Product:
    return TARGET.compile(saved(folder, convnet()), TARGET.step({}), job(folder))


@needs("rknn")
def test_an_int8_convnet_is_made_for_the_npu_and_says_what_runs_where(int8: Product) -> None:
    assert int8.path.read_bytes()[:4] == MAGIC
    assert TARGET.lint(int8.path, engine("rk3588")) == ()
    assert int8.placement is not None
    assert int8.placement.accelerator_macs == 1.0
    assert int8.placement.evidence == "estimated"
    assert set(int8.placement.fallback_ops or ()) <= {"Reshape"}
    assert int8.options["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 3, 16, 16]}]
    assert "other bytes" in int8.notes[0]
    assert "NPU cycles" in int8.notes[1]


@needs("rknn")
def test_the_simulator_answers_like_the_model_and_the_same_again(
    int8: Product, folder: Path
) -> None:
    wanted = answer(convnet(), x=samples())

    first = TARGET.answers(int8, {"x": samples()}, job(folder))
    again = TARGET.answers(int8, {"x": samples()[:3]}, job(folder))

    assert first["y"].shape == (_COUNT, 5)
    assert first["y"].dtype == np.float32
    assert 0 < off(first["y"], wanted) < 0.1
    np.testing.assert_array_equal(again["y"], first["y"][:3])


@needs("rknn")
def test_nodes_kept_in_float_share_the_ranges_and_come_closer(int8: Product, folder: Path) -> None:
    step = TARGET.step({"keep_float": ("first", "relu", "second")})
    wanted = answer(convnet(), x=samples())

    product = TARGET.compile(saved(folder, convnet(), "hybrid.onnx"), step, job(folder))

    assert len(list(folder.glob("rknn-quantised-*"))) == 1
    assert "in half precision" in product.notes[2]
    hybrid = TARGET.answers(product, {"x": samples()}, job(folder))["y"]
    whole = TARGET.answers(int8, {"x": samples()}, job(folder))["y"]
    assert off(hybrid, wanted) < off(whole, wanted)


@needs("rknn")
def test_a_float_model_is_computed_in_half_precision(tmp_path: Path) -> None:
    own = job(tmp_path, with_samples=False)

    product = TARGET.compile(saved(tmp_path, convnet()), None, own)
    answers = TARGET.answers(product, {"x": samples()[:2]}, own)

    assert off(answers["y"], answer(convnet(), x=samples()[:2])) < 0.01
    assert TARGET.source_precision(own.engine, product.path) == "fp16"


@needs("rknn")
def test_what_the_toolkit_refuses_comes_back_as_its_one_line(tmp_path: Path) -> None:
    source = convnet()
    source.opset_import[0].version = 20

    with pytest.raises(BuildError, match=r"rknn refused: load_onnx: .*opset 20.*; log: ") as e:
        TARGET.compile(saved(tmp_path, source), None, job(tmp_path))
    assert "\n" not in e.value.message


@needs("rknn")
@pytest.mark.slow
def test_efficientnet_lite0_keeps_nine_of_ten_answers_in_the_simulator(tmp_path: Path) -> None:
    from edgekit.recipe import Split
    from edgekit_converters.data import Samples, split
    from edgekit_converters.demo.lite0 import write_lite0
    from edgekit_converters.demo.photos import write_photos

    write_lite0(tmp_path / "lite0.onnx")
    with np.load(write_photos(tmp_path / "photos", crops=6)) as found:
        everything = Samples({"input": found["input"]}, found["labels"], found["groups"])
    parts = split(everything, Split())
    assert parts.calibration is not None
    assert parts.evaluation is not None
    source = normal_form(onnx.load(tmp_path / "lite0.onnx")).model
    inputs = (TensorSpec(name="input", datatype="FP32", shape=(-1, 3, 224, 224)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 1000)),)
    own = job_of(
        profile.find("rk3588"),
        engine("rk3588"),
        tmp_path / "job",
        inputs=inputs,
        outputs=outputs,
        calibration=Calibration(inputs=inputs, arrays=parts.calibration.arrays, scratch=tmp_path),
    )
    evaluation = parts.evaluation.in_memory()
    wanted = answer(source, **evaluation).argmax(1)

    product = TARGET.compile(saved(tmp_path / "job", source), TARGET.step({}), own)
    found_classes = TARGET.answers(product, evaluation, own)["logits"].argmax(1)

    assert (found_classes == wanted).mean() >= 0.9
    assert product.placement is not None
    assert product.placement.accelerator_macs == 1.0


def test_a_chip_without_half_precision_is_given_no_float_model(tmp_path: Path) -> None:
    given_model = saved(tmp_path, convnet())
    own = job(tmp_path, "rv1106")

    with pytest.raises(BuildError, match="rv1106 computes in integers only"):
        TARGET.compile(given_model, None, own)
    with pytest.raises(BuildError, match="rv1106 computes in integers only"):
        TARGET.compile(given_model, TARGET.step({"keep_float": ("first",)}), own)


def test_without_samples_nothing_is_quantised(tmp_path: Path) -> None:
    own = job(tmp_path, with_samples=False)

    with pytest.raises(BuildError, match="needs calibration samples") as e:
        TARGET.compile(saved(tmp_path, convnet()), TARGET.step({}), own)
    assert e.value.hint == "give samples with --data"


def test_a_node_to_keep_in_float_must_be_in_the_model(tmp_path: Path) -> None:
    step = TARGET.step({"keep_float": ("nowhere",)})

    with pytest.raises(RecipeError, match="'nowhere'"):
        TARGET.compile(saved(tmp_path, convnet()), step, job(tmp_path))


def test_what_is_no_rknn_file_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "model.rknn"
    wrong.write_bytes(b"nothing of the kind")

    assert TARGET.lint(wrong, engine("rk3588")) == ("model.rknn is not an .rknn file",)


def test_ways_of_quantising_follow_the_precisions_of_the_profile() -> None:
    labels = [s.label for s in TARGET.offers({}, model=convnet(), engine=engine("rk3588"))]
    only_float = EngineSpec(name="rknn", version="2.5", precisions=("fp16",))

    assert labels == ["rknn/int8/normal", "rknn/int8/kl_divergence"]
    assert TARGET.offers({}, model=convnet(), engine=only_float) == ()
    given_way = TARGET.offers({"algorithm": "mmse"}, model=convnet(), engine=engine("rk3588"))
    assert [step.options["algorithm"] for step in given_way] == ["mmse"]


def test_a_chip_without_half_precision_is_offered_nothing_that_leaves_nodes_in_float() -> None:
    offered = {
        chip: [
            "keep_float" in s.options
            for s in TARGET.offers({}, model=convnet(), engine=engine(chip))
        ]
        for chip in ("rk3588", "rv1106")
    }

    assert offered == {"rk3588": [True, True], "rv1106": [False, False]}


def test_a_recurrent_model_is_not_offered_in_int8() -> None:
    weights = {"w": noise(1, 24, 4), "r": noise(1, 24, 6)}
    nodes = [node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=6)]
    lstm = normal_form(model(nodes, weights, shape=(3, 1, 4))).model

    assert TARGET.offers({}, model=lstm, engine=engine("rk3588")) == ()
    (finding,) = TARGET.coverage(lstm, engine("rv1106")).refused
    assert (finding.node, finding.operator) == ("lstm", "LSTM")
    assert TARGET.coverage(lstm, engine("rk3588")).refused == ()


def test_a_misspelt_option_is_named() -> None:
    with pytest.raises(RecipeError, match="algoritm"):
        TARGET.step({"algoritm": "normal"})


def test_the_lint_names_what_kills_the_toolkit_and_what_runs_on_the_cpu() -> None:
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        node("Sinh", ["x"], ["h"], "sinh"),
        node("Resize", ["h", "", "s"], ["y"], "resize", mode="cubic"),
    ]
    source = normal_form(model(nodes, scales)).model

    found = TARGET.coverage(source, engine("rk3588"))

    assert [(f.node, f.instead) for f in found.refused] == [
        ("resize", "resize by linear interpolation")
    ]
    assert "sinh" in [f.node for f in found.fallback]


def test_a_chip_without_half_precision_normalises_on_the_cpu() -> None:
    assert "LayerNormalization" in rules_for("rk3588").operators
    assert "LayerNormalization" not in rules_for("rv1106").operators


def test_a_profile_that_names_no_chip_is_refused_with_the_option() -> None:
    nameless = EngineSpec(name="rknn", version="2.5", providers=(Provider(name="librknnrt.so"),))

    with pytest.raises(BuildError, match="which chip") as e:
        platform_of(nameless)
    assert "target_platform" in (e.value.hint or "")


def test_the_board_gets_the_core_mask_of_its_profile() -> None:
    options: dict[str, str | int | float | bool] = {"target_platform": "rk3588", "core_mask": "0_1"}
    own = EngineSpec(
        name="rknn", version="2.5", providers=(Provider(name="librknnrt.so", options=options),)
    )

    assert TARGET.options(own) == {"core_mask": "0_1"}


def test_the_default_that_the_toolkit_does_not_know_is_written_out() -> None:
    constants = {"s": noise(8)}
    source = model([node("LayerNormalization", ["x", "s"], ["y"], "norm")], constants)

    (epsilon,) = prepared(source).graph.node[0].attribute

    assert (epsilon.name, epsilon.f) == ("epsilon", float(np.float32(1e-5)))


def test_the_record_of_a_quantisation_comes_back_and_leaves_other_records_alone() -> None:
    source = convnet()
    source.metadata_props.add(key="author", value="someone")
    options = Options(algorithm="mmse", keep_float=("first",))

    graph, found = with_record(recorded(source, options))

    assert found == options
    assert graph == source
    assert with_record(recorded(source, None))[1] is None


def layer(kind: str, target: str, inputs: str, output: str) -> Layer:
    return Layer(
        type=kind, datatype="INT8", target=target, inputs=inputs, output=output, cycles=7, name=kind
    )


def test_macs_are_read_off_the_table_of_layers() -> None:
    dense = layer("ConvClip", "NPU", "(1,3,224,224),(32,3,3,3),(32)", "(1,32,112,112)")
    depthwise = layer("Conv", "CPU", "(1,32,112,112),(1,32,3,3),(32)", "(1,32,112,112)")
    product = layer("exMatMul", "NPU", "(1,8,4),(1,4,6)", "(1,8,6)")

    assert macs_of(dense) == 32 * 112 * 112 * 3 * 9
    assert macs_of(depthwise) == 32 * 112 * 112 * 9
    assert macs_of(product) == 8 * 6 * 4
    assert macs_of(layer("exLSTM", "NPU", "(1,1,4)", "(1,1,6)")) is None
    found = placement_of([dense, depthwise])
    assert found.accelerator_macs == pytest.approx(0.75)
    assert found.fallback_ops == ("Conv",)
    assert cycles_of([dense, depthwise]) == 14


@given(
    st.lists(
        st.builds(
            layer,
            st.sampled_from(["Conv", "Reshape", "exMatMul", "OutputOperator"]),
            st.sampled_from(["CPU", "NPU"]),
            st.just("(1,8,4,4),(8,8,3,3)"),
            st.just("(1,8,4,4)"),
        )
    )
)
def test_a_share_of_macs_is_a_share(layers: list[Layer]) -> None:
    found = placement_of(layers)

    assert found.accelerator_macs is None or 0 <= found.accelerator_macs <= 1
    if found.fallback_ops == ():
        assert found.accelerator_macs == 1.0
