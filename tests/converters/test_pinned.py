"""What ships is run as the board does: in its version of the engine, or by its instructions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import profile as profiles
from edgekit.profile import EngineSpec
from edgekit_converters import pinned, tflite
from edgekit_converters.pinned import files, onnx_file
from edgekit_converters.targets import Product
from edgekit_converters.targets.tflite import Port
from edgekit_converters.toolchains.driving import Limits, drive
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all
from tests.converters.chains import needs
from tests.converters.tflite_models import write_dense

BOARD = EngineSpec(name="onnxruntime", version="1.23")
CHAIN = "onnxruntime-1.23"
LITERT = EngineSpec(name="litert", version="2.3")
LEGACY = EngineSpec(name="tflite-runtime", version="2.14")
SAMPLES = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
IMAGES = {"image": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
X86 = profiles.find("generic-x86_64")
ARM = profiles.find("generic-aarch64")

on_another_machine = pytest.mark.skipif(
    platform.machine() == "aarch64", reason="this machine is an Arm one"
)

# Quantises weights only, by channel; activations while it runs.
DYNAMIC = """
from litert_quantizer import qtyping, quantizer

def run(request):
    tool = quantizer.Quantizer(request["model"])
    operators = qtyping.TFLOperationName.ALL_SUPPORTED
    tool.add_dynamic_config(".*", operators, 8, qtyping.QuantGranularity.CHANNELWISE)
    made = tool.quantize(enable_progress_bar=False, enable_progress_report=False)
    with open(request["artifact"], "wb") as file:
        file.write(made.quantized_model)
    return {}
"""


def model_of(*nodes: onnx.NodeProto, to: Path, ir: int = 10) -> Path:
    weights = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir)
    onnx.save(model, to)
    return to


def plain_model(to: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["y"], name="last"),
    ]
    return model_of(*nodes, to=to)


def noisy_model(to: Path) -> Path:
    # Noise without a seed differs from run to run, so no two of them agree on it.
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("RandomNormalLike", ["h"], ["noise"], name="drawn"),
        helper.make_node("Add", ["h", "noise"], ["y"], name="last"),
    ]
    return model_of(*nodes, to=to)


def dense(folder: Path) -> Path:
    """One fully connected layer in float, `image` to `scores`."""
    write_dense(folder / "dense.tflite", classes=64)
    return folder / "dense.tflite"


def dynamic_range(folder: Path) -> Path:
    """The same layer with weights of 8 bits, as today's tool writes them."""
    driver, made = folder / "dynamic.py", folder / "dynamic.tflite"
    driver.write_text(DYNAMIC)
    request = {"model": str(dense(folder)), "artifact": str(made)}
    drive("litert-quantizer", request, driver=driver, folder=folder, produces=[made])
    return made


def answers_of(
    model: Path, samples: Mapping[str, NDArray[Any]], *, options: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    engine = "onnxruntime" if model.suffix == ".onnx" else "litert"
    session = ENGINES.get(engine).open(model, options=options)
    try:
        return run_all(session, samples)
    finally:
        session.close()


def rerun(
    model: Path,
    engine: EngineSpec = BOARD,
    *,
    chain: str = CHAIN,
    samples: Mapping[str, NDArray[Any]] = SAMPLES,
    options: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
) -> pinned.Rerun:
    return pinned.rerun(
        Product(path=model, options=dict(options or {})),
        engine,
        chain=chain,
        inputs=samples,
        expected=answers_of(model, samples, options=options or {}),
        tolerance=tolerance,
        folder=model.parent,
    )


def here(engine: str) -> str:
    return ".".join(ENGINES.get(engine).version().split(".")[:2])


def test_the_version_here_needs_no_environment() -> None:
    engine = EngineSpec(name="onnxruntime", version=here("onnxruntime"))

    assert pinned.environment_for(engine, profile=X86) is None


def test_one_version_is_no_prefix_of_another_by_accident() -> None:
    engine = EngineSpec(name="onnxruntime", version="1.3")

    assert pinned.environment_for(engine, profile=X86) is not None


def test_another_version_has_an_environment_of_its_own() -> None:
    assert pinned.environment_for(BOARD, profile=X86) == CHAIN


@on_another_machine
@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_a_board_of_other_instructions_is_emulated(engine: str) -> None:
    spec = next(spec for spec in ARM.engines if spec.name == engine)

    assert pinned.environment_for(spec, profile=ARM) == "arm64"


def test_an_accelerator_is_not_emulated() -> None:
    gpu = EngineSpec(name="onnxruntime", version=here("onnxruntime"), accelerator="gpu")

    assert pinned.environment_for(gpu, profile=ARM) is None


def test_the_version_goes_before_the_instructions() -> None:
    assert pinned.environment_for(BOARD, profile=ARM) == CHAIN


@on_another_machine
def test_an_arm_version_that_no_environment_holds_is_still_emulated() -> None:
    engine = EngineSpec(name="onnxruntime", version="1.15")

    assert pinned.environment_for(engine, profile=ARM) == "arm64"


@pytest.mark.parametrize(
    ("version", "chain"),
    [("2.14", "tflite-runtime"), ("2.14.0", "tflite-runtime"), ("2.16", "tflite-runtime-2.16")],
)
def test_the_last_tflite_runtime_has_an_environment_and_vendors_builds_have_none(
    version: str, chain: str
) -> None:
    engine = EngineSpec(name="tflite-runtime", version=version, accelerator="tpu")

    assert pinned.environment_for(engine, profile=ARM) == chain


def test_a_version_that_no_environment_holds_is_said() -> None:
    engine = EngineSpec(name="onnxruntime", version="1.15")

    found = pinned.not_run(engine, pinned.environment_for(engine, profile=X86))

    assert "onnxruntime 1.15" in found.note
    assert "no environment holds it" in found.note


def test_an_emulation_that_is_not_installed_comes_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path))

    found = pinned.not_run(LITERT, "arm64")

    assert "litert was not run on arm64" in found.note
    assert found.note.endswith("edgekit doctor --install arm64")


@given(
    array=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8).map(
        lambda values: np.array(values, np.float32)
    )
)
def test_an_array_is_like_itself_and_unlike_one_that_is_far_away(array: NDArray[Any]) -> None:
    assert pinned.alike(array, array)
    assert not pinned.alike(array, array + 1.0)
    assert not pinned.alike(array, np.full_like(array, np.nan))


def test_a_run_without_time_is_of_one_sample(tmp_path: Path) -> None:
    model = plain_model(tmp_path / "m.onnx")
    file = onnx_file.opened(model, SAMPLES, ["y"])

    ran = files.run(None, file.driver, model, file.feeds, ["y"], folder=tmp_path, most_s=1e-9)

    assert ran.count == 1
    assert len(ran.tensors["y"]) == 1


@needs(CHAIN)
def test_what_both_versions_answer_alike_is_right(tmp_path: Path) -> None:
    found = rerun(plain_model(tmp_path / "m.onnx"))

    assert found.problem is None
    assert found.version is not None
    assert found.version.startswith("1.23.")


@needs(CHAIN)
def test_the_first_operator_that_differs_is_named(tmp_path: Path) -> None:
    found = rerun(noisy_model(tmp_path / "m.onnx"))

    assert found.problem is not None
    assert "the first operator that differs is RandomNormalLike 'drawn'" in found.problem


@needs(CHAIN)
def test_a_file_that_the_older_version_cannot_load_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Tanh", ["x"], ["y"], name="only")

    found = rerun(model_of(node, to=tmp_path / "m.onnx", ir=13))

    assert found.problem is not None
    assert "does not load it" in found.problem
    assert "IR version" in found.problem


@needs("tflite-runtime")
def test_a_float_file_runs_in_the_old_runtime_through_the_interface_of_its_source(
    tmp_path: Path,
) -> None:
    ports = {
        "inputs": [Port(name="x", tensor="image", axes=(1, 0)).option()],
        "outputs": [Port(name="y", tensor="scores").option()],
    }
    samples = {"x": np.ascontiguousarray(IMAGES["image"][:, :, np.newaxis])}

    found = rerun(dense(tmp_path), LEGACY, chain="tflite-runtime", samples=samples, options=ports)

    assert found == pinned.Rerun(version="2.14.0")


@needs("tflite-runtime", "litert-quantizer")
def test_the_old_runtimes_silently_wrong_answers_are_caught(tmp_path: Path) -> None:
    model = dynamic_range(tmp_path)

    found = rerun(model, LEGACY, chain="tflite-runtime", samples=IMAGES, tolerance=0.5)

    # It neither warns nor fails: only its answers tell.
    assert found.version == "2.14.0"
    assert found.problem is not None
    assert "the first operator that differs is FULLY_CONNECTED 'scores'" in found.problem


@needs("tflite-runtime")
def test_a_file_that_the_old_runtime_cannot_load_is_refused(tmp_path: Path) -> None:
    model = tflite.unpacked(dense(tmp_path).read_bytes())
    # Every version of an operator that a runtime has not learnt yet.
    model.operatorCodes[0].version = 12
    path = tmp_path / "newer.tflite"
    path.write_bytes(tflite.packed(model))

    found = rerun(path, LEGACY, chain="tflite-runtime", samples=IMAGES)

    assert found.problem is not None
    assert "tflite-runtime 2.14.0 does not load it" in found.problem


@needs("arm64")
def test_arm_kernels_answer_an_onnx_file_as_those_here(tmp_path: Path) -> None:
    found = rerun(
        plain_model(tmp_path / "m.onnx"),
        EngineSpec(name="onnxruntime", version=here("onnxruntime")),
        chain="arm64",
    )

    assert found.problem is None
    assert found.version == f"{ENGINES.get('onnxruntime').version()}, arm64 emulated"
    assert "ran 3 golden samples under emulation: that shows its answers" in found.note


@needs("arm64")
def test_the_first_operator_that_differs_on_arm_is_named(tmp_path: Path) -> None:
    engine = EngineSpec(name="onnxruntime", version="1.30")

    found = rerun(noisy_model(tmp_path / "m.onnx"), engine, chain="arm64")

    assert found.problem is not None
    assert "the first operator that differs is RandomNormalLike 'drawn'" in found.problem
    assert "the board has 1.30" in found.note


@needs("arm64")
def test_an_emulation_that_is_too_slow_says_nothing_against_the_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "_EMULATED_LIMITS", Limits(time_s=0.3))

    found = rerun(plain_model(tmp_path / "m.onnx"), chain="arm64")

    assert (found.version, found.problem) == (None, None)
    assert "was not run on arm64" in found.note
    assert "took longer than 0.3 s" in found.note


@needs("arm64", "litert-quantizer")
def test_arm_kernels_answer_a_dynamic_range_file_as_those_here(tmp_path: Path) -> None:
    found = rerun(dynamic_range(tmp_path), LITERT, chain="arm64", samples=IMAGES, tolerance=0.05)

    assert found.problem is None
    assert found.version == f"{ENGINES.get('litert').version()}, arm64 emulated"
