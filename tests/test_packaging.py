"""The wheel that users get works on a board as it is: Python 3.10, the extra `device`, no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from edgekit.signing import SigningKey, new_pair
from tests import bundles

ROOT = Path(__file__).parent.parent
BOARD = ROOT / ".venv-board"
WORKSTATION_ONLY = ("onnx", "yaml", "rich", "starlette", "sqlalchemy", "torch")

pytestmark = pytest.mark.system


@pytest.fixture
def board() -> Path:
    if not (BOARD / "ready").exists():
        pytest.skip("there is no Python 3.10 for the board's environment: `make test` makes it")
    return BOARD / "bin"


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and the public key to trust."""
    private, public = new_pair(tmp_path / "keys")
    return bundles.write(tmp_path, key=SigningKey.read(private)), public


@pytest.fixture
def served(board: Path, signed: tuple[Path, Path], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `edgekit run` of the board's environment says once it serves."""
    bundle, public = signed
    process = subprocess.Popen(
        [board / "edgekit", "run", bundle, "--trust", public, "--listen", "127.0.0.1:0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    with process.stdout as output:
        yield json.loads(output.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_wheel_holds_three_packages_and_the_profiles(board: Path) -> None:
    (wheel,) = (BOARD / "dist").glob("*.whl")

    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"edgekit", "edgekit_runtime", "edgekit_converters"}
    profiles = {Path(name).name for name in names if name.startswith("edgekit/device_profiles/")}
    assert profiles == {path.name for path in (ROOT / "device_profiles").glob("*.yaml")}
    assert {"edgekit/py.typed", "edgekit_runtime/py.typed"} <= set(names)
    assert any(name.startswith("edgekit/fleet/web/") for name in names)


def test_the_boards_environment_has_nothing_of_the_workstation(board: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u;"
        f"print([n for n in {WORKSTATION_ONLY!r} if u.find_spec(n)], sys.version_info[:2])"
    )

    found = subprocess.run(
        [board / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert found.stdout.strip() == "[] (3, 10)"


def test_a_command_of_the_workstation_says_which_extra_it_needs(
    board: Path, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [board / "edgekit", "build", "model.onnx", "--profile", "jetson"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 2
    assert "hint: pip install 'edgekit-ml[host]'" in ran.stderr


def test_a_bundle_is_verified_under_python_3_10(
    board: Path, signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed

    ran = subprocess.run(
        [board / "edgekit", "verify", bundle, "--trust", public, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["name"] == "tiny"


def test_a_bundle_is_served_under_python_3_10(served: dict[str, Any]) -> None:
    samples = bundles.samples(1)
    body = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": samples.ravel().tolist()}
        ]
    }
    (url,) = served["addresses"]

    with urlopen(Request(f"{url}/v2/models/tiny/infer", json.dumps(body).encode())) as response:
        (output,) = json.load(response)["outputs"]

    expected = bundles.directly(bundles.mlp(), samples)
    # The board's onnxruntime is an older one, whose kernels may round differently.
    np.testing.assert_allclose(output["data"], expected.ravel(), atol=1e-5)


def test_the_daemon_starts_and_ends_under_python_3_10(board: Path, tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    config.write_text(
        f"""\
[device]
site = "test"
id = "board-1"
profile = "generic-x86_64"
[state]
folder = "{tmp_path / "state"}"
[serve]
listen = ""
unix = "{tmp_path / "edgekit.sock"}"
"""
    )
    process = subprocess.Popen(
        [board / "edgekitd", "--config", config], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stderr is not None
    with process.stderr as logs:
        first = json.loads(logs.readline())
        while not (tmp_path / "edgekit.sock").exists():
            assert process.poll() is None, logs.read()
            os.sched_yield()
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
    assert first["level"] == "info"
