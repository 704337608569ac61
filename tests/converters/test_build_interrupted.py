"""A build that is stopped leaves nothing half-written, and the same command goes on from there."""

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

from tests.converters.building import HERE, write_data, write_model

START = "from edgekit.cli import main; main()"
TRIALS = "edgekit/build/trial/[0-9a-f]*"
PATIENCE_S = 60


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [{name: static-int8}]\n")
    (tmp_path / "scratch").mkdir()
    arguments = [
        *("build", write_model(tmp_path), "--profile", HERE, "--data", write_data(tmp_path)),
        *("--recipe", recipe, "--out", tmp_path / "out", "--json"),
    ]
    return [sys.executable, "-c", START, *map(str, arguments)]


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder / "scratch"), "XDG_CACHE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(build: subprocess.Popen[str]) -> Any:
    out, err = build.communicate(timeout=PATIENCE_S)
    assert build.returncode == 0, err
    (found,) = json.loads(out)["bundles"]
    return found


def stopped(build: subprocess.Popen[str], folder: Path, number: signal.Signals) -> str:
    """Send a signal once the first trial is in the cache; what the build said."""
    limit_s = time.monotonic() + PATIENCE_S
    while not list(folder.glob(TRIALS)) and build.poll() is None:
        assert time.monotonic() < limit_s
        time.sleep(0.01)
    build.send_signal(number)
    out, err = build.communicate(timeout=PATIENCE_S)
    assert out == ""
    return err


def builds_left(folder: Path) -> list[Path]:
    return list((folder / "scratch").glob("edgekit-build-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_asked_to_stop_cleans_up(
    number: signal.Signals, command: list[str], tmp_path: Path
) -> None:
    build = started(command, tmp_path)

    said = stopped(build, tmp_path, number)

    assert build.returncode == 130
    assert "Traceback" not in said
    assert builds_left(tmp_path) == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_from_its_cache_to_the_same_bundle(
    command: list[str], tmp_path: Path
) -> None:
    stopped(started(command, tmp_path), tmp_path, signal.SIGKILL)
    kept = {entry: entry.stat().st_ino for entry in tmp_path.glob(TRIALS)}
    assert list((tmp_path / "out").iterdir()) == []

    found = finished(started(command, tmp_path))

    assert kept.items() <= {e: e.stat().st_ino for e in tmp_path.glob(TRIALS)}.items()
    assert [path.suffix for path in sorted((tmp_path / "out").iterdir())] == [".edge", ".html"]
    assert finished(started(command, tmp_path))["digest"] == found["digest"]


@pytest.mark.slow
def test_two_builds_of_the_same_inputs_at_once_both_succeed(
    command: list[str], tmp_path: Path
) -> None:
    builds = [started(command, tmp_path) for _ in range(2)]

    found = [finished(build) for build in builds]

    assert all(Path(one["path"]).is_file() for one in found)
    assert builds_left(tmp_path) == []
