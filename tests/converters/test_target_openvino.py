"""OpenVINO: one ONNX file, run by its CPU plugin here; NNCF where a recipe asks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import profile
from edgekit.errors import BuildError, RecipeError, ToolChainMissing
from edgekit.manifest import TensorSpec
from edgekit.profile import Accelerator, EngineSpec, Provider
from edgekit_converters.calibrate import Calibration
from edgekit_converters.targets import Job
from edgekit_converters.targets.engines import answers
from edgekit_converters.targets.onnxruntime_cpu import cpu_options
from edgekit_converters.targets.openvino import TARGET, device_of
from tests.converters.chains import needs
from tests.converters.target_jobs import job_of
from tests.converters.test_target_qnn import SIZE, convnet, quantised, samples, saved

BOARD = profile.find("intel-core-ultra")


def on(accelerator: Accelerator) -> EngineSpec:
    return next(
        engine
        for engine in BOARD.engines
        if TARGET.makes_for(engine) and engine.accelerator == accelerator
    )


def job(folder: Path, accelerator: Accelerator = "cpu", *, with_samples: bool = True) -> Job:
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3, SIZE, SIZE)),)
    calibration = Calibration(inputs=inputs, arrays={"x": samples(16)}, scratch=folder)
    return job_of(
        BOARD,
        on(accelerator),
        folder,
        inputs=inputs,
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 5)),),
        calibration=calibration if with_samples else None,
    )


def test_the_device_is_the_profile_s_or_the_accelerator_s() -> None:
    assert [device_of(on(name)) for name in ("cpu", "gpu", "npu")] == ["CPU", "GPU", "NPU"]
    named = EngineSpec(
        name="openvino",
        version="2026.4",
        providers=(Provider(name="openvino_intel_gpu_plugin", options={"device": "GPU"}),),
    )
    assert device_of(named) == "GPU"
    assert device_of(EngineSpec(name="openvino", version="2026.4", accelerator="npu")) == "NPU"


def test_what_is_not_run_on_its_device_is_simulated_by_the_cpu() -> None:
    engine = on("npu")

    assert TARGET.evidence(BOARD, engine) == "simulated"
    assert TARGET.options_here(BOARD, engine)["device"] == "CPU"
    assert TARGET.options(engine) == {"device": "NPU", "threads": 1}


def test_float_is_half_precision_but_on_the_cpu(tmp_path: Path) -> None:
    path = saved(convnet(), tmp_path)

    assert TARGET.source_precision(on("cpu"), path) == "fp32"
    assert TARGET.source_precision(on("npu"), path) == "fp16"
    assert TARGET.source_precision(on("npu"), saved(quantised(convnet(), tmp_path), tmp_path)) == (
        "int8"
    )


def test_an_npu_takes_no_open_shapes_and_a_cpu_does() -> None:
    model = convnet()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    refused = TARGET.coverage(model, on("npu")).refused

    assert "dynamic shape [1, 3, -1, 8]" in [finding.reason for finding in refused]
    assert TARGET.coverage(model, on("cpu")).refused == ()


def test_an_operator_that_nobody_knows_is_named() -> None:
    model = convnet()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "acme"

    for accelerator in ("cpu", "npu"):
        refused = TARGET.coverage(model, on(accelerator)).refused

        assert [(f.node, f.operator) for f in refused] == [("middle", "acme.Mystery")]


def test_for_an_npu_the_batch_is_one_and_placement_is_linted(tmp_path: Path) -> None:
    given = saved(quantised(convnet(batch="N"), tmp_path), tmp_path)

    product = TARGET.compile(given, None, job(tmp_path, "npu"))

    shape = onnx.load(product.path).graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [1, 3, SIZE, SIZE]
    assert product.placement is not None
    assert product.placement.evidence == "linted"
    assert product.placement.accelerator_macs == 1.0
    assert TARGET.compile(given, None, job(tmp_path, "cpu")).path == given


def test_nncf_is_used_only_where_a_recipe_says_how() -> None:
    model, engine = convnet(), on("cpu")

    offers = TARGET.offers({"preset": "mixed"}, model=model, engine=engine)

    assert TARGET.offers({}, model=model, engine=engine) == ()
    assert [step.label for step in offers] == [
        "openvino/nncf/mixed/minmax",
        "openvino/nncf/mixed/mean",
    ]
    assert TARGET.step(offers[0].options) == offers[0]
    with pytest.raises(RecipeError, match="openvino"):
        TARGET.step({"preset": "fastest"})


def test_nncf_without_samples_says_so(tmp_path: Path) -> None:
    given = saved(convnet(), tmp_path)

    with pytest.raises(BuildError, match="needs calibration samples"):
        TARGET.compile(given, TARGET.step({}), job(tmp_path, with_samples=False))


def test_a_missing_tool_chain_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "none"))

    with pytest.raises(ToolChainMissing) as e:
        TARGET.compile(saved(convnet(), tmp_path), TARGET.step({}), job(tmp_path))

    assert "edgekit doctor --install openvino" in (e.value.hint or "")


@needs("openvino")
@pytest.mark.parametrize("accelerator", ["cpu", "npu"])
def test_a_quantised_graph_answers_as_in_onnxruntime(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    given = saved(quantised(convnet(batch="N"), tmp_path, style="openvino"), tmp_path)
    here = job(tmp_path, accelerator)

    product = TARGET.compile(given, None, here)
    found = TARGET.answers(product, {"x": samples()}, here)["y"]

    options = cpu_options(threads=1)
    expected = answers(given, {"x": samples()}, engine="onnxruntime", options=options)["y"]
    assert found.shape == (8, 5)
    np.testing.assert_allclose(found, expected, atol=4 * np.ptp(expected) / 255)


@needs("openvino")
def test_nncf_leaves_named_nodes_in_float_and_gives_the_same_file_again(tmp_path: Path) -> None:
    step = TARGET.step({"keep_float": ("second",), "bias_correction": "none"})
    files = []
    for name in ("one", "another"):
        folder = tmp_path / name
        product = TARGET.compile(saved(convnet(batch="N"), folder), step, job(folder))
        files.append(product.path.read_bytes())

    model = onnx.load_from_string(files[0])
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    first, second = (n for n in model.graph.node if n.op_type == "Conv")
    assert files[0] == files[1]
    assert makers[first.input[1]] == "DequantizeLinear"
    assert makers.get(second.input[1]) is None
    assert TARGET.lint(product.path, on("cpu")) == ()


@needs("openvino")
def test_a_node_that_is_to_stay_in_float_must_exist(tmp_path: Path) -> None:
    step = TARGET.step({"keep_float": ("nowhere",)})

    with pytest.raises(RecipeError, match="'nowhere'"):
        TARGET.compile(saved(convnet(), tmp_path), step, job(tmp_path))
