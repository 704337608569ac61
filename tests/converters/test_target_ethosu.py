"""Ethos-U: what vela makes of integer models, what it says of them, and what it is not given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import profile
from edgekit.errors import BuildError, RecipeError, ToolChainMissing
from edgekit.profile import DeviceProfile, EngineSpec, Provider
from edgekit_converters import tflite
from edgekit_converters.calibrate import Calibration
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from edgekit_converters.normalise import serialise
from edgekit_converters.targets import Job
from edgekit_converters.targets.ethosu import TARGET, Chip, chip_of, rules_for
from edgekit_converters.toolchains.driving import drive
from tests.converters.chains import needs
from tests.converters.graph_models import answer, node, normal_form
from tests.converters.graph_models import model as graph_model
from tests.converters.integer_tflite_models import write_convnet
from tests.converters.target_jobs import job_of
from tests.converters.tflite_models import write_dense

_POINTWISE_MACS = 2 * 2 * 2 * 8
_DEPTHWISE_MACS = 2 * 2 * 8 * 9
_FIRST_MACS = 8 * 8 * 8 * 9 * 4


def engine(**options: str) -> EngineSpec:
    provider = Provider(name="libethosu_delegate.so", options=dict(options))
    return EngineSpec(name="litert", version="2.3", accelerator="npu", providers=(provider,))


def ethos_engine(board: DeviceProfile) -> EngineSpec:
    return next(engine for engine in board.engines if TARGET.makes_for(engine))


def job(tmp_path: Path, board: str = "imx93") -> Job:
    found = profile.find(board)
    return job_of(found, ethos_engine(found), tmp_path)


@needs("vela")
@pytest.mark.parametrize("board", ["imx93", "ethos-u55-128", "ethos-u85-256"])
def test_a_convnet_runs_on_the_npu_whole(board: str, tmp_path: Path) -> None:
    given = write_convnet(tmp_path / "model.tflite")

    product = TARGET.compile(given, None, job(tmp_path, board))

    assert product.placement is not None
    assert product.placement.accelerator_macs == 1.0
    assert product.placement.fallback_ops == ()
    assert product.placement.evidence == "estimated"
    assert product.estimated_ms is not None
    assert product.estimated_ms > 0
    assert [operator.name for operator in tflite.operators(product.path)] == ["ethos-u"]
    assert product.stand_in == given
    assert "vela estimates" in product.notes[0]
    assert TARGET.lint(product.path, ethos_engine(profile.find(board))) == ()


@needs("vela")
def test_what_the_npu_does_not_take_is_named_and_counted(tmp_path: Path) -> None:
    given = write_convnet(tmp_path / "model.tflite", stride=4)

    product = TARGET.compile(given, None, job(tmp_path))

    assert product.placement is not None
    assert product.placement.fallback_ops == ("DEPTHWISE_CONV_2D",)
    total = _FIRST_MACS + _DEPTHWISE_MACS + _POINTWISE_MACS
    assert product.placement.accelerator_macs == pytest.approx(1 - _DEPTHWISE_MACS / total)
    assert product.estimated_ms is None
    assert "not in vela's estimate" in product.notes[1]


@needs("vela")
def test_an_operator_without_macs_that_falls_back_is_named_too(tmp_path: Path) -> None:
    given = write_convnet(tmp_path / "model.tflite", middle="L2_NORMALIZATION")

    product = TARGET.compile(given, None, job(tmp_path))

    assert product.placement is not None
    assert product.placement.fallback_ops == ("L2_NORMALIZATION",)
    assert product.placement.accelerator_macs == 1.0


@needs("vela")
def test_the_same_model_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    given = write_convnet(tmp_path / "model.tflite")
    first, second = tmp_path / "first", tmp_path / "second"

    made = [TARGET.compile(given, None, job(folder)).path for folder in (first, second)]

    assert made[0] != made[1]
    assert made[0].read_bytes() == made[1].read_bytes()


@needs("vela")
def test_what_vela_refuses_comes_back_in_its_words_with_its_log(tmp_path: Path) -> None:
    request = {
        "model": str(write_convnet(tmp_path / "model.tflite")),
        "artifact": str(tmp_path / "made.tflite"),
        "accelerator_config": "ethos-u65-256",
        "system_config": "Ethos_U65_Moon",
        "memory_mode": "Dedicated_Sram",
    }

    with pytest.raises(BuildError, match=r"Ethos_U65_Moon not found.*; log: ") as caught:
        drive("vela", request, driver="vela", folder=tmp_path, produces=[])

    assert "Traceback" not in caught.value.message


@needs("vela")
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "model.tflite"
    broken.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    request = {
        "model": str(broken),
        "artifact": str(tmp_path / "made.tflite"),
        "accelerator_config": "ethos-u55-128",
        "system_config": None,
        "memory_mode": None,
    }

    with pytest.raises(BuildError, match="tool chain vela"):
        drive("vela", request, driver="vela", folder=tmp_path, produces=[tmp_path / "made.tflite"])


@needs("vela")
def test_a_model_in_float_is_refused_before_vela_starts(tmp_path: Path) -> None:
    write_dense(tmp_path / "model.tflite")

    with pytest.raises(BuildError, match="is in float, FULLY_CONNECTED") as caught:
        TARGET.compile(tmp_path / "model.tflite", None, job(tmp_path))

    assert "--data" in str(caught.value.hint)


def test_without_vela_the_error_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "none"))

    with pytest.raises(ToolChainMissing) as caught:
        TARGET.compile(write_convnet(tmp_path / "model.tflite"), None, job(tmp_path))

    assert "edgekit doctor --install vela" in str(caught.value.hint)


def test_an_npu_that_vela_does_not_know_is_refused() -> None:
    with pytest.raises(BuildError, match="ethos-u99-1"):
        chip_of(engine(accelerator_config="ethos-u99-1"))


def test_clocks_of_another_family_are_refused() -> None:
    wrong = engine(
        accelerator_config="ethos-u55-128",
        system_config="Ethos_U65_High_End",
        memory_mode="Dedicated_Sram",
    )

    with pytest.raises(BuildError, match="Ethos_U65_High_End is not one of ethos-u55-128"):
        chip_of(wrong)


def test_half_of_a_configuration_is_refused() -> None:
    with pytest.raises(BuildError, match="one of system_config and memory_mode"):
        chip_of(engine(accelerator_config="ethos-u55-128", memory_mode="Shared_Sram"))


def test_only_engines_that_name_an_ethos_are_its_own() -> None:
    assert TARGET.makes_for(engine(accelerator_config="ethos-u65-256"))
    assert not TARGET.makes_for(engine(target_platform="rk3588"))
    assert not TARGET.makes_for(EngineSpec(name="litert", version="2.3"))


def test_the_compilers_settings_are_not_handed_to_the_delegate() -> None:
    found = TARGET.options(engine(accelerator_config="ethos-u65-256", device="/dev/ethosu0"))

    expected = {"name": "libethosu_delegate.so", "options": {"device": "/dev/ethosu0"}}
    assert found["delegates"] == [expected]


def test_each_family_has_rules_of_its_own() -> None:
    u55, u65, u85 = (
        rules_for(Chip(accelerator_config=name))
        for name in ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
    )

    assert (u55.title, u65.title, u85.title) == (
        "Arm Ethos-U55",
        "Arm Ethos-U65",
        "Arm Ethos-U85",
    )
    assert u55.operators == u65.operators
    assert set(u85.operators) - set(u65.operators) >= {"Gather", "Where", "Equal"}


def test_every_offer_is_in_integers_whole() -> None:
    board = profile.find("imx93")
    model = normal_form(
        graph_model([node("Relu", ["x"], ["y"], "only")], {}, output=[1, 3, 8, 8])
    ).model

    steps = TARGET.offers({}, model=model, engine=ethos_engine(board))

    assert {step.precision for step in steps} == {"int8"}
    assert {step.name for step in steps} == {"ethosu"}
    assert all("keep_float" not in step.options for step in steps)
    assert TARGET.step(steps[0].options) == steps[0]
    with pytest.raises(RecipeError, match="computes in integers only"):
        TARGET.offers({"keep_float": ("first",)}, model=model, engine=ethos_engine(board))


@pytest.mark.slow
@needs("onnx2tf", "litert-quantizer", "vela")
def test_a_classifier_compiles_whole_and_its_integers_agree_with_the_float_model(
    tmp_path: Path,
) -> None:
    write_lite0(tmp_path / "source.onnx")
    normal = normal_form(onnx.load_model(tmp_path / "source.onnx"), max_opset=18)
    (tmp_path / "model.onnx").write_bytes(serialise(normal.model))
    samples = np.load(write_photos(tmp_path, crops=2))["input"]
    board = profile.find("ethos-u55-128")
    calibration = Calibration(
        inputs=normal.inputs, arrays={"input": samples[::2]}, scratch=tmp_path
    )
    work = job_of(
        board,
        ethos_engine(board),
        tmp_path / "job",
        inputs=normal.inputs,
        outputs=normal.outputs,
        calibration=calibration,
    )
    (step, *_) = TARGET.offers({}, model=normal.model, engine=work.engine)

    product = TARGET.compile(tmp_path / "model.onnx", step, work)
    answers = TARGET.answers(product, {"input": samples[1::2]}, work)["logits"]

    assert TARGET.coverage(normal.model, work.engine).accelerator_macs == 1.0
    assert product.placement is not None
    assert product.placement.accelerator_macs == 1.0
    assert [operator.name for operator in tflite.operators(product.path)] == ["ethos-u"]
    wanted = [answer(normal.model, input=crop[None]).argmax() for crop in samples[1::2]]
    assert np.mean(answers.argmax(axis=1) == wanted) >= 0.9
