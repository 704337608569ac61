"""`edgekit build` and `inspect` as a person or a program calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.bundle import Bundle
from edgekit.cli import main
from edgekit.errors import GateRefused
from edgekit_converters.commands import build, default_name
from tests.converters.building import HERE, images, write_data, write_model
from tests.converters.tflite_models import write_dense


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]
START = "from edgekit.cli import main; main()"


@pytest.fixture
def edgekit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line, entered the way its script enters it."""

    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        return Result(code, *capfd.readouterr())

    return run


def edgekit_with_small_files(kilobytes: int, *arguments: str | Path) -> Result:
    """The command line in a process whose files cannot grow beyond a size, as on a full disk."""
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash"]
    command = [*limited, sys.executable, "-c", START, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(run.returncode, run.stdout, run.stderr)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def test_json_is_one_document_with_the_promised_fields(
    edgekit: Run, model: Path, tmp_path: Path
) -> None:
    data, out = write_data(tmp_path), tmp_path / "out"

    run = edgekit("build", model, "--profile", HERE, "--data", data, "--out", out, "--json")

    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    (found,) = json.loads(run.stdout)["bundles"]
    promised = {
        *("path", "profile", "name", "version", "digest", "variants", "rejected", "gate"),
        *("measured_on", "report", "seconds"),
    }
    assert promised <= set(found)
    variant = found["variants"][0]
    assert {"p50", "p99"} <= set(variant["latency_ms"])
    assert {"name", "value", "float", "ci95"} <= set(variant["metric"])
    assert {"accelerator_macs", "fallback_ops"} == set(variant["placement"])
    assert Path(found["report"]).is_file()
    with Bundle.open(Path(found["path"])) as opened:
        assert opened.digest == found["digest"]
        inside = json.loads(opened.read("reports/report.json"))
    assert inside["variants"] == found["variants"]


def test_a_board_that_cannot_be_built_for_does_not_stop_the_others(
    edgekit: Run, tmp_path: Path
) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)

    run = edgekit(
        *("build", model, "--profile", "jetson", "--profile", HERE),
        *("--out", tmp_path, "--json"),
    )

    assert run.returncode == 3
    document = json.loads(run.stdout)
    assert [found["profile"] for found in document["bundles"]] == [HERE]
    assert [failed["profile"] for failed in document["failed"]] == ["jetson"]
    assert "error: profile jetson" in run.stderr
    assert "hint:" in run.stderr


def missing(folder: Path) -> tuple[Path, list[str]]:
    return folder / "nothing.onnx", []


def truncated(folder: Path) -> tuple[Path, list[str]]:
    path = write_model(folder)
    path.write_bytes(path.read_bytes()[:1000])
    return path, []


def foreign(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "model.onnx"
    path.write_text("not a model")
    return path, []


def unfit_data(folder: Path) -> tuple[Path, list[str]]:
    data = write_data(folder, image=np.zeros((160, 3, 8, 8), np.float32))
    return write_model(folder), ["--data", str(data)]


def wrong_shape(folder: Path) -> tuple[Path, list[str]]:
    return write_model(folder), ["--input", "image"]


def wrong_version(folder: Path) -> tuple[Path, list[str]]:
    return write_model(folder), ["--version", "one"]


def unknown_profile(folder: Path) -> tuple[Path, list[str]]:
    return write_model(folder), ["--profile", "toaster"]


def wrong_recipe(folder: Path) -> tuple[Path, list[str]]:
    recipe = folder / "recipe.yaml"
    recipe.write_text("budget: {accuracy: 1}\n")
    return write_model(folder), ["--recipe", str(recipe)]


def unwritable(folder: Path) -> tuple[Path, list[str]]:
    (folder / "file").write_text("")
    return write_model(folder), ["--out", str(folder / "file" / "out")]


@pytest.mark.parametrize(
    ("prepare", "code", "message"),
    [
        (missing, 3, "cannot be read: No such file"),
        (truncated, 3, "is not an ONNX model"),
        (foreign, 3, "is not an ONNX model"),
        (unfit_data, 2, "does not fit"),
        (wrong_shape, 2, "not NAME=SHAPE"),
        (wrong_version, 2, "not a semantic version"),
        (unknown_profile, 2, "there is no profile called 'toaster'"),
        (wrong_recipe, 2, "`accuracy`"),
        (unwritable, 2, "cannot be made"),
    ],
)
def test_bad_input_ends_in_one_message_its_exit_code_and_no_file(
    prepare: Callable[[Path], tuple[Path, list[str]]],
    code: int,
    message: str,
    edgekit: Run,
    tmp_path: Path,
) -> None:
    path, options = prepare(tmp_path)
    out = tmp_path / "out"

    run = edgekit("build", path, "--profile", HERE, "--out", out, *options)

    assert run.returncode == code
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.edge"))


def test_a_full_disk_leaves_nothing_half_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    run = edgekit_with_small_files(56, "build", model, "--profile", HERE, "--out", out)

    assert run.returncode == 2
    assert "cannot be written: File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(out.iterdir()) == []


def test_a_refused_gate_is_exit_code_3(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("budget: {max_size_mb: 0.001}\n")

    run = CliRunner().invoke(
        build,
        [str(model), "--profile", HERE, "--recipe", str(recipe), "--json"],
    )

    assert isinstance(run.exception, GateRefused)
    assert run.exception.exit_code == 3
    (found,) = json.loads(run.stdout)["bundles"]
    assert found["path"] is None
    assert found["gate"]["outcome"] == "refused"


@pytest.mark.parametrize(
    ("file", "name"),
    [("Lite0.onnx", "lite0"), ("My Model (v2).onnx", "my-model-v2"), ("---.onnx", "model")],
)
def test_a_models_name_comes_from_its_files(file: str, name: str) -> None:
    assert default_name(Path(file)) == name


# Inspect.


def test_a_model_is_shown_in_numbers(edgekit: Run, model: Path) -> None:
    run = edgekit("inspect", model, "--json")

    facts = json.loads(run.stdout)
    assert facts["operators"]["Conv"] == 2
    assert facts["macs"] == 16 * 64 * 9 + 16 * 64 * 9 + 1024 * 10
    assert facts["parameters"] == 16 * 9 + 16 * 9 + 1024 * 10
    assert facts["peak_activation_bytes"] == 2 * 16 * 64 * 4


def test_a_tflite_model_is_shown_too(edgekit: Run, tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)

    run = edgekit("inspect", model)

    assert run.returncode == 0
    assert "FULLY_CONNECTED 1" in run.stdout


def test_a_bundle_is_shown_with_its_signature_and_evidence(edgekit: Run, tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)
    pictures, labels = images()
    data = write_data(tmp_path, image=pictures.reshape(-1, 64), labels=labels)
    edgekit("build", model, "--profile", HERE, "--data", data, "--out", tmp_path)

    run = edgekit("inspect", tmp_path / f"dense-0.1.0-{HERE}.edge")

    assert "trusted here" in run.stdout
    assert "executed" in run.stdout


def test_neither_model_nor_bundle_is_named(edgekit: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.edge"
    path.write_text("nothing")

    run = edgekit("inspect", path)

    assert run.returncode == 4
    assert "Traceback" not in run.stderr
