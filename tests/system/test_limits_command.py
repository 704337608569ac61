"""`edgekit limits` and `edgekit plan` as a person or a script starts them, with real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.signing import SigningKey, new_pair
from tests import bundles
from tests.runtime.test_run_command import running

pytestmark = [pytest.mark.system]


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and the public key of who signed it."""
    _, public = new_pair(tmp_path / "keys")
    key = SigningKey.read(tmp_path / "keys" / "edgekit.key")
    return bundles.write(tmp_path, key=key), public


def edgekit(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def answer(*words: str | Path) -> dict[str, Any]:
    done = edgekit(*words, "--json")
    assert done.returncode == 0, done.stderr
    page: dict[str, Any] = json.loads(done.stdout)
    return page


def test_limits_finds_a_rate_and_says_what_ended_it(signed: tuple[Path, Path]) -> None:
    bundle, public = signed

    found = answer("limits", bundle, "--trust", public, "--slo", "p50=200ms", "--seconds", "5")

    assert found["name"] == "tiny"
    assert found["slo"] == ["p50=200ms"]
    assert found["rate_per_s"] > 0
    assert found["predictions_per_s"] > 0
    assert found["at"]["found"][0]["met"]
    assert found["at"]["latency_ms"]["p50"] <= 200
    assert {run["load"] for run in found["runs"]} >= {found["rate_per_s"]}
    if found["above"] is not None:
        assert found["ran_out"]["resource"]
        assert found["above"]["usage"]["server_cores"] > 0


def test_limits_drives_a_server_that_runs_already(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    with running(bundle, "--trust", public, "--listen", "127.0.0.1:0") as hello:
        done = edgekit(
            *("limits", bundle, "--trust", public, "--slo", "p99=1us", "--seconds", "5"),
            *("--server", hello["addresses"][0]),
        )

    assert done.returncode == 0, done.stderr
    assert "no rate meets p99=1us here" in done.stdout
    assert "its CPU and memory are not known" in done.stdout.replace("\n  ", " ")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_plan_runs_the_streams_that_it_is_asked_about(signed: tuple[Path, Path]) -> None:
    bundle, public = signed

    found = answer(
        *("plan", bundle, "--trust", public, "--streams", "2", "--rate", "10"),
        *("--slo", "p50=500ms", "--seconds", "5", "--phases", "aligned"),
    )

    assert found["fits"] is True
    assert found["most"] >= 2
    assert found["runs"][0]["load"] == 2
    assert found["runs"][0]["requests"] == pytest.approx(20 * 5 / 14, abs=16)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--slo", "fast"], 2, "--slo 'fast'"),
        (["--slo", "p99=5ms", "--seconds", "1"], 2, "--seconds"),
        (
            ["--slo", "p99=5ms", "--server", "http://127.0.0.1:1", "--", "--unix", "x"],
            2,
            "after --",
        ),
        (["--slo", "p99=5ms", "--server", "http://127.0.0.1:1"], 6, "cannot connect"),
        (["--slo", "p99=5ms", "--", "--no-such-option"], 6, "ended with code 2"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_hint(
    signed: tuple[Path, Path], words: list[str], code: int, text: str
) -> None:
    bundle, public = signed
    split = words.index("--") if "--" in words else len(words)

    done = edgekit("limits", bundle, *words[:split], "--trust", public, *words[split:])

    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_measurement_that_is_interrupted_leaves_no_process_behind(
    signed: tuple[Path, Path], number: signal.Signals
) -> None:
    bundle, public = signed
    words = ["limits", str(bundle), "--trust", str(public), "--slo", "p99=50ms", "--seconds", "6"]
    command = [sys.executable, "-m", "edgekit", *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.stdout.readline()
        if number is signal.SIGINT:
            # As a terminal does: everybody of the session.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Traceback" not in errors
    until = time.monotonic() + 10
    while _session_lives(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _session_lives(process.pid)


def _session_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True
