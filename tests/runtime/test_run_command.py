"""`edgekit run`, `verify` and `bench` as a person or a script starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.signing import SigningKey, new_pair
from tests import bundles


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and the public key of who signed it."""
    _, public = new_pair(tmp_path / "keys")
    key = SigningKey.read(tmp_path / "keys" / "edgekit.key")
    return bundles.write(tmp_path, key=key), public


def edgekit(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running(*words: str | Path) -> Iterator[dict[str, Any]]:
    """`edgekit run --json` until the block ends; gives what it says of itself."""
    command = [sys.executable, "-m", "edgekit", "run", "--json", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_run_serves_a_trusted_bundle_and_stops_when_told(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    for _ in range(2):
        with running(bundle, "--trust", public, "--listen", "127.0.0.1:0") as hello:
            assert hello["models"][0]["variant"] == "float"
            assert hello["models"][0]["verified_by"]
            assert fetch(f"{hello['addresses'][0]}/v2/models/tiny")["name"] == "tiny"
            assert "insecure" not in fetch(f"{hello['addresses'][0]}/v2")
    unpacked = list((Path(os.environ["XDG_CACHE_HOME"]) / "edgekit" / "run").iterdir())
    assert len(unpacked) == 1

    (unpacked[0] / "artifacts" / "float.onnx").write_bytes(b"changed in the meantime")
    with running(bundle, "--trust", public, "--listen", "127.0.0.1:0") as hello:
        assert hello["models"][0]["probe"]["own_error"] == {"y": 0.0}


def test_run_refuses_a_stranger_unless_insecure_and_then_says_so(
    signed: tuple[Path, Path],
) -> None:
    bundle, _ = signed
    refused = edgekit("run", bundle)
    assert refused.returncode == 4
    assert "trusted" in refused.stderr
    assert "Traceback" not in refused.stderr

    with running(bundle, "--insecure", "--listen", "127.0.0.1:0") as hello:
        assert fetch(f"{hello['addresses'][0]}/v2")["insecure"] == ["tiny 1.0.0"]


def test_run_tells_a_person_what_serves_where(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    path = tmp_path / "s.sock"
    command = [sys.executable, "-m", "edgekit", "run", str(bundle)]
    command += ["--trust", str(public), "--unix", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

    text = "".join(lines)
    assert "tiny 1.0.0: variant float" in text
    assert "3 reproduced" in text
    assert f"serving on unix:{path}" in text
    assert "curl --unix-socket" in text


def test_run_names_the_port_that_is_in_use(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = edgekit("run", bundle, "--trust", public, "--listen", address)

    assert done.returncode == 6
    assert address in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--token-file", "{folder}/none"], 2, "none cannot be read: No such file"),
        (["--tls-cert", "{folder}/none"], 2, "TLS needs both --tls-cert and --tls-key"),
        (["--unix", "{folder}/none/socket"], 6, "none/socket: No such file or directory"),
        (["--cascade", "nan"], 2, "'nan' is not a valid float"),
        (["--workers", "fork"], 2, "'fork' is not one of 'auto', 'loop', 'thread', 'process'"),
        (["--memory-mb", "1"], 6, "needs 16 MB, 15 MB more than the memory budget of 1 MB"),
    ],
)
def test_run_names_an_option_that_cannot_be(
    words: list[str], code: int, said: str, signed: tuple[Path, Path]
) -> None:
    bundle, public = signed
    given = [word.format(folder=bundle.parent) for word in words]

    done = edgekit("run", bundle, "--trust", public, "--listen", "127.0.0.1:0", *given)

    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_refuses_one_model_twice(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    done = edgekit("run", bundle, bundle, "--trust", public, "--listen", "127.0.0.1:0")

    assert done.returncode == 2
    assert "twice" in done.stderr


def test_verify_reports_what_ran_here(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    done = edgekit("verify", bundle, "--trust", public, "--json")

    page = json.loads(done.stdout)
    assert done.returncode == 0
    (variant,) = page["variants"]
    assert variant["status"] == "reproduced"
    assert variant["probe"]["samples"] == 3


def test_verify_refuses_one_changed_byte(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    raw = bytearray(bundle.read_bytes())
    raw[len(raw) // 2] ^= 1
    bundle.write_bytes(raw)

    done = edgekit("verify", bundle, "--trust", public)

    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_verify_tells_of_a_variant_that_differs(tmp_path: Path) -> None:
    new_pair(tmp_path / "keys")
    key = SigningKey.read(tmp_path / "keys" / "edgekit.key")
    bundle = bundles.write(tmp_path, key=key, broken_golden=True)

    done = edgekit("verify", bundle, "--trust", tmp_path / "keys" / "edgekit.pub", "--json")

    assert done.returncode == 5
    assert json.loads(done.stdout)["variants"][0]["status"] == "differs"


def test_bench_measures_bundles_and_models_side_by_side(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, public = signed
    model = tmp_path / "net.onnx"
    model.write_bytes(bundles.mlp())

    done = edgekit("bench", bundle, model, "--trust", public, "--seconds", "0.1", "--json")

    results = json.loads(done.stdout)["results"]
    assert [one["label"] for one in results] == ["tiny 1.0.0 float", "net.onnx"]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in results)
    assert len({one["runs"] for one in results}) == 1


@pytest.mark.parametrize("command", ["run", "verify", "bench"])
def test_help_shows_an_example(command: str) -> None:
    done = edgekit(command, "--help")

    assert done.returncode == 0
    assert f"Example: edgekit {command}" in done.stdout
    assert "--json" in done.stdout
