"""Bad input and bad luck through the real command line: one clear error, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import container, profile
from edgekit.signing import SigningKey
from tests import bundles
from tests.converters.building import write_data, write_model


class Home(NamedTuple):
    """A workstation of its own: its folders and what its commands see."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        places = {"XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
        return {**os.environ, **{name: str(self.folder / at) for name, at in places.items()}}

    def edgekit(
        self, *arguments: str | Path, file_kilobytes: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; with a limit, no file can grow beyond it, as on a full disk."""
        limit = "unlimited" if file_kilobytes is None else str(file_kilobytes)
        return subprocess.run(
            ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command(*arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def files(self) -> list[Path]:
        """Every file left in the cache and in temporary folders; engines keep their own beside.

        What a build keeps for the next one is there to stay.
        """
        kept = self.folder / "cache/edgekit/build"
        places = [self.folder / "cache/edgekit", *(self.folder / "tmp").glob("*/")]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        return [path for path in files if not path.is_relative_to(kept)]


def command(*arguments: str | Path) -> Sequence[str]:
    return [sys.executable, "-m", "edgekit", *map(str, arguments)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "tmp").mkdir()
    return Home(tmp_path)


@pytest.fixture
def edge(tmp_path: Path, home: Home) -> Path:
    """A bundle that this workstation trusts."""
    key = SigningKey.generate()
    trusted = home.folder / "config/edgekit/trust.d"
    trusted.mkdir(parents=True)
    (trusted / "edgekit.pub").write_bytes(key.public.pem)
    return bundles.write(tmp_path, key=key)


def refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """One error in plain words, and the exit code that is documented."""
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


# Bundles.


def changed(edge: Path) -> str:
    raw = bytearray(edge.read_bytes())
    header = raw.find(b"PK\x03\x04", 4)  # of the artefact, which stands behind the manifest
    data = (header // container.ALIGNMENT + 1) * container.ALIGNMENT
    raw[data + 100] ^= 1
    edge.write_bytes(raw)
    return "artifacts/float.onnx does not match"


def climbing(edge: Path) -> str:
    edge.write_bytes(edge.read_bytes().replace(b"artifacts/float.onnx", b"../../../float.onnx."))
    return "not allowed"


def bomb(edge: Path) -> str:
    with zipfile.ZipFile(edge, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(50_000_000))
    return "must be stored"


def missing(edge: Path) -> str:
    edge.unlink()
    return "No such file"


def foreign_folder(edge: Path) -> str:
    edge.unlink()
    edge.mkdir()
    (edge / "letters.txt").write_text("mine")
    return "has no manifest.json"


@pytest.mark.parametrize("spoil", [changed, climbing, bomb, missing, foreign_folder])
def test_a_bundle_that_breaks_a_rule_is_not_run(
    spoil: Callable[[Path], str], edge: Path, home: Home
) -> None:
    reason = spoil(edge)

    refused(home.edgekit("run", edge, "--insecure"), 4, reason)

    assert home.files() == []


@pytest.mark.parametrize("name", ["verify", "inspect", "bench"])
def test_every_command_sees_one_changed_byte(name: str, edge: Path, home: Home) -> None:
    reason = changed(edge)

    refused(home.edgekit(name, edge), 4, reason)


@pytest.mark.parametrize("name", ["verify", "run", "bench"])
def test_a_bundle_of_a_stranger_is_refused(name: str, edge: Path, home: Home) -> None:
    stranger = bundles.write(edge.parent, name="stranger")

    refused(home.edgekit(name, stranger), 4, "trust")

    assert home.files() == []


def test_a_disk_that_fills_while_a_bundle_is_installed_leaves_nothing(
    edge: Path, home: Home
) -> None:
    done = home.edgekit("run", edge, "--listen", "127.0.0.1:0", file_kilobytes=1)

    refused(done, 2, "File too large")
    assert home.files() == []


# Files that have no end.


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "{edge}", "--trust", "/dev/zero"),
        ("device", "status", "--config", "/dev/zero"),
        ("build", "{model}", "--profile", "generic-x86_64", "--weights", "/dev/zero"),
    ],
)
def test_a_file_without_end_is_refused(
    arguments: tuple[str, ...], edge: Path, home: Home, tmp_path: Path
) -> None:
    model = write_model(tmp_path)

    done = home.edgekit(*(text.format(edge=edge, model=model) for text in arguments))

    refused(done, 2, "/dev/zero")


# Models.


def linear(path: Path, *, mask: float, weight: float) -> Path:
    """Softmax(x + mask) times a matrix, input `x` [n, 8], output `y` [n, 4].

    The mask stands on the last feature, as one of attention does.
    """
    constants: dict[str, NDArray[np.float32]] = {
        "mask": np.array([0.0] * 7 + [mask], np.float32),
        "w": np.outer(np.full(8, weight), np.arange(4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["masked"], "add"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax"),
        helper.make_node("MatMul", ["p", "w"], ["y"], "matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def write_samples(folder: Path) -> Path:
    path = folder / "samples.npz"
    np.savez(path, x=np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32))
    return path


def build(home: Home, model: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    out = home.folder / "out"
    return home.edgekit("build", model, "--profile", "generic-x86_64", "--out", out, *options)


def test_a_model_that_answers_with_nan_is_not_built(home: Home, tmp_path: Path) -> None:
    model = linear(tmp_path / "nan.onnx", mask=0.0, weight=float("nan"))

    refused(build(home, model, "--data", write_samples(tmp_path)), 3, "'y' holds NaN")

    assert list((tmp_path / "out").iterdir()) == []
    assert home.files() == []


def test_a_model_that_masks_with_infinity_is_built(home: Home, tmp_path: Path) -> None:
    model = linear(tmp_path / "masked.onnx", mask=float("-inf"), weight=1.0)

    done = build(home, model, "--data", write_samples(tmp_path))

    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.edge"))) == 1


def test_a_name_that_no_bundle_may_have_is_refused_before_any_work(
    home: Home, tmp_path: Path
) -> None:
    done = build(home, write_model(tmp_path), "--name", "../x")

    refused(done, 2, "'../x' must be")
    assert "reading" not in done.stderr


def test_what_the_engine_says_is_said_once(home: Home, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("GatherElements", ["x", "far"], ["y"], axis=1)],
        "far",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([[99]]), "far")],
    )
    opset = helper.make_opsetid("", 17)
    model = tmp_path / "far.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), model)

    done = home.edgekit("bench", model)

    refused(done, 5, "far.onnx")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_whose_file_has_spaces_and_accents_gets_a_plain_name(
    home: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "mes modèles"
    folder.mkdir()
    model = write_model(folder, name="Été (v2)")

    done = home.edgekit("build", model, "--profile", "generic-x86_64", "--out", folder / "là")

    assert done.returncode == 0, done.stderr
    assert (folder / "là/ete-v2-0.1.0-generic-x86_64.edge").is_file()


# Documents.


def test_a_recipe_that_is_no_yaml_is_told_by_line_and_column(home: Home, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("budget: [1\nmetric: top1\n")

    done = build(home, write_model(tmp_path), "--recipe", recipe)

    refused(done, 2, "line 2")
    assert len(done.stderr.splitlines()) == 1


# Interruptions.


def test_an_interrupted_build_leaves_nothing(home: Home, tmp_path: Path) -> None:
    model, data, out = write_model(tmp_path), write_data(tmp_path), tmp_path / "out"
    with subprocess.Popen(
        command("build", model, "--profile", "generic-x86_64", "--data", data, "--out", out),
        env=home.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as build:
        assert build.stderr is not None
        said = ""
        while "trial 1" not in said:
            said = build.stderr.readline()
            assert said, "the build ended before it could be interrupted"
        build.send_signal(signal.SIGINT)
        _, rest = build.communicate(timeout=30)

    assert build.returncode == 130
    assert "Traceback" not in rest
    assert list(out.iterdir()) == []
    assert home.files() == []


def test_a_reader_that_leaves_early_causes_no_traceback(home: Home) -> None:
    done = subprocess.run(
        ["bash", "-c", 'exec 3>&2; "$@" 2>&3 | true', "bash", *command("profiles", "list")],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# What programs and people read.


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{edge}"),
        ("verify", "{edge}"),
        ("bench", "{edge}", "--seconds", "0.1"),
        ("profiles", "list"),
    ],
)
def test_json_is_one_document_and_all_that_is_said(
    arguments: tuple[str, ...], edge: Path, home: Home
) -> None:
    done = home.edgekit(*(text.format(edge=edge) for text in arguments), "--json")

    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stderr == ""


def test_the_list_of_profiles_has_a_line_each_in_80_columns(home: Home) -> None:
    lines = home.edgekit("profiles", "list").stdout.splitlines()

    assert len(lines) == 1 + len(profile.names())
    assert max(map(len, lines)) <= 80


def test_a_folder_of_someone_else_is_no_place_for_a_demo(home: Home, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letters.txt").write_text("dear")

    refused(home.edgekit("demo", "--out", mine), 2, "not empty")

    assert [path.name for path in mine.iterdir()] == ["letters.txt"]
