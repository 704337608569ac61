"""`edgekit demo` as a user runs it; its figures are looked at, not its speed."""

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

from tests.system.daemons import wait_for

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of one whole demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    ran = subprocess.run(
        [sys.executable, "-m", "edgekit", "demo", "--out", str(out), "--json"],
        # Two demos of one digest and two keys would unpack into each other's folder.
        env={**os.environ, "XDG_CACHE_HOME": str(out.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    facts: dict[str, Any] = json.loads(ran.stdout)
    return facts


def test_the_classifier_is_built_for_three_boards_and_says_what_was_run(
    told: dict[str, Any],
) -> None:
    default = {board: bundle["variants"][0] for board, bundle in told["build"].items()}

    assert {board: variant["evidence"] for board, variant in default.items()} == {
        next(iter(default)): "executed",
        "raspberry-pi-5": "simulated",
        "jetson": "linted",
    }
    for variant in default.values():
        assert variant["agreement"] >= 0.85
    for board in ("raspberry-pi-5", "jetson"):
        assert default[board]["latency_ms"] is None
        assert default[board]["speedup"] is None


def test_photographs_are_named_over_http(told: dict[str, Any]) -> None:
    # The float network names 18 of the 20 centre crops.
    assert told["serve"]["right"] >= 16
    assert told["rollout"]["right"] == 3 * told["serve"]["right"]


def test_a_damaged_version_halts_its_rollout_and_serves_nowhere(told: dict[str, Any]) -> None:
    assert told["rollout"] | {"right": 0, "answers": 0} == {
        "moved": 3,
        "state": "done",
        "right": 0,
        "answers": 0,
    }
    assert told["refused"]["state"] == "halted"
    assert "golden" in told["refused"]["reason"]
    assert told["refused"]["serving"] == ["1.0.0"]


def test_the_fleet_learns_digits_that_the_factory_never_saw(told: dict[str, Any]) -> None:
    assert told["learn"]["after"] > told["learn"]["before"] + 0.15
    assert told["learn"]["version"] == "1.1.0"


def test_a_demo_that_is_ended_leaves_no_process_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "demo", "--out", str(tmp_path / "out")],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "models" in process.stdout.readline()
        wait_for(lambda: children(process.pid), "the build")
        begun = children(process.pid)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not [pid for pid in begun if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended while we looked
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found
