"""Hailo: the lint of ONNX graphs, and what is said where the Dataflow Compiler is missing or fails.

The compiler is in no package index: `fake_compiler` is a script that only shows how a program of
its name is driven.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit import profile
from edgekit.errors import BuildError, RecipeError, ToolChainMissing
from edgekit.profile import EngineSpec, Provider
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import spec_of
from edgekit_converters.targets import Job, Product
from edgekit_converters.targets.hailo import TARGET, Hailo, arch_of
from edgekit_converters.toolchains.driving import Limits
from tests.converters.graph_models import model, noise, normal_form
from tests.converters.target_jobs import job_of

_BOARD = "raspberry-pi-5-hailo8l"


def convnet(*, last: str = "Relu") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node(last, ["a"], ["y"], "last"),
    ]
    source = model(nodes, {"w": noise(4, 3, 3, 3)}, output=["n", 4, 8, 8], shape=["n", 3, 8, 8])
    return normal_form(source).model


def engine() -> EngineSpec:
    return next(e for e in profile.find(_BOARD).engines if TARGET.makes_for(e))


def job(tmp_path: Path, source: onnx.ModelProto) -> Job:
    inputs = tuple(spec_of(value) for value in source.graph.input)
    samples = {"x": noise(6, 3, 8, 8)}
    return job_of(
        profile.find(_BOARD),
        engine(),
        tmp_path / "job",
        inputs=inputs,
        outputs=tuple(spec_of(value) for value in source.graph.output),
        calibration=Calibration(inputs=inputs, arrays=samples, scratch=tmp_path),
    )


def written(tmp_path: Path, source: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save_model(source, path)
    return path


def fake_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script that is called as the compiler is; it compiles nothing."""
    program = folder / "bin" / "hailo"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def fake_python(folder: Path, script: str) -> None:
    """A shell script that is called as the compiler's own Python is; it emulates nothing."""
    program = folder / "bin" / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_an_operator_that_no_hef_holds_refuses_the_model_with_what_to_do() -> None:
    found = TARGET.coverage(convnet(last="Erf"), engine())

    (finding,) = found.refused
    assert (finding.node, finding.operator) == ("last", "Erf")
    assert "Dataflow Compiler 3.x" in finding.reason
    assert "Gelu" in finding.instead
    assert not found.fallback


def test_a_convnet_is_taken_whole_by_the_lint() -> None:
    found = TARGET.coverage(convnet(), engine())

    assert not found.refused
    assert found.accelerator_macs == 1.0


def test_without_the_compiler_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = convnet()

    with pytest.raises(ToolChainMissing, match="hailo is not on PATH"):
        TARGET.compile(written(tmp_path, source), TARGET.step({}), job(tmp_path, source))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'UnsupportedOperation in op last'; exit 1", "UnsupportedOperation in op last"),
        ("exit 0", "hailo parser wrote nothing"),
        ("echo har > parsed.har; echo har > quantised.har; exit 0", "wrote 0 files of type .hef"),
    ],
    ids=["refuses", "exits-0", "no-hef"],
)
def test_a_program_that_makes_no_hef_is_refused_in_one_line(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, script, monkeypatch)
    source = convnet()

    with pytest.raises(BuildError) as caught:
        TARGET.compile(written(tmp_path, source), TARGET.step({}), job(tmp_path, source))

    assert said in caught.value.message
    assert "; log: " in caught.value.message


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, "sleep 60", monkeypatch)
    source = convnet()
    hasty = Hailo(limits=Limits(time_s=0.5))

    with pytest.raises(BuildError, match=r"took longer than 0.5 s"):
        hasty.compile(written(tmp_path, source), hasty.step({}), job(tmp_path, source))


def test_the_program_is_given_a_fixed_model_and_samples_with_channels_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    # $1 is the step; $3 of the parser is the model, $6 of optimize the samples.
    fake_compiler(
        tmp_path,
        f'case $1 in parser) cp "$3" {kept}/given.onnx; echo har > parsed.har;;'
        f' optimize) cp "$6" {kept}/samples.npy; echo har > quantised.har;;'
        " compiler) echo hef > model.hef;; esac",
        monkeypatch,
    )
    source = convnet()

    product = TARGET.compile(written(tmp_path, source), TARGET.step({}), job(tmp_path, source))

    given = onnx.load_model(kept / "given.onnx")
    assert [d.dim_value for d in given.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]
    samples = np.load(kept / "samples.npy")
    np.testing.assert_array_equal(samples, np.moveaxis(noise(6, 3, 8, 8), 1, -1))
    assert product.path.suffix == ".hef"
    assert product.placement is not None
    assert product.placement.evidence == "linted"


@pytest.mark.parametrize(
    "shape", [(6, 8, 8, 4), (6, 1, 1, 256)], ids=["channels-last", "flattened"]
)
def test_answers_of_the_emulator_come_back_as_the_source_shapes_them(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = noise(*shape)
    np.savez(tmp_path / "answers.npz", o0=answers)
    fake_compiler(tmp_path, "exit 1", monkeypatch)
    # $2 to $5 of the emulator: archive, chip, samples, where the answers go.
    fake_python(tmp_path, f'cp "$4" {tmp_path}/given.npz; cp {tmp_path}/answers.npz "$5"')
    work = job(tmp_path, convnet())
    product = Product(path=tmp_path / "model.hef", stand_in=tmp_path / "model.har")

    found = TARGET.answers(product, {"x": noise(6, 3, 8, 8)}, work)["y"]

    assert found.shape == (6, 4, 8, 8)
    if shape == (6, 8, 8, 4):
        np.testing.assert_array_equal(found, np.moveaxis(answers, -1, 1))
    with np.load(tmp_path / "given.npz") as given:
        np.testing.assert_array_equal(given["i0"][:, 0], noise(6, 3, 8, 8))


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'no module hailo_sdk_client'; exit 1", "the emulator: no module"), ("exit 0", "")],
    ids=["refuses", "exits-0"],
)
def test_what_a_hef_answers_is_never_made_up(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, "exit 1", monkeypatch)
    fake_python(tmp_path, script)
    product = Product(path=tmp_path / "model.hef", stand_in=tmp_path / "model.har")

    with pytest.raises(BuildError) as caught:
        TARGET.answers(product, {"x": noise(6, 3, 8, 8)}, job(tmp_path, convnet()))

    assert said in caught.value.message
    assert "log: " in caught.value.message


def test_answers_that_cannot_be_the_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "answers.npz", o0=noise(6, 10))
    fake_compiler(tmp_path, "exit 1", monkeypatch)
    fake_python(tmp_path, f'cp {tmp_path}/answers.npz "$5"')
    product = Product(path=tmp_path / "model.hef", stand_in=tmp_path / "model.har")

    with pytest.raises(BuildError, match=r"answers \[6, 10\] for output 'y'"):
        TARGET.answers(product, {"x": noise(6, 3, 8, 8)}, job(tmp_path, convnet()))


def test_a_model_without_samples_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, "exit 0", monkeypatch)
    source = convnet()

    with pytest.raises(BuildError, match="computes in integers"):
        TARGET.compile(written(tmp_path, source), None, job(tmp_path, source))


def test_options_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(RecipeError, match="'speed'"):
        TARGET.step({"speed": "fast"})


def test_the_chip_comes_from_the_profile() -> None:
    assert arch_of(engine()) == "hailo8l"

    nameless = EngineSpec(
        name="hailo", version="4", accelerator="npu", providers=(Provider(name="libhailort.so"),)
    )
    with pytest.raises(BuildError, match="has the option arch"):
        arch_of(nameless)
