"""Disks that are full or cannot be written, around a real `edgekit run` and `edgekitd`.

Each has such a disk in a mount namespace of its own, which takes the rights of root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit.signing import new_pair
from tests import bundles
from tests.runtime.served import HOST, infer, post
from tests.system.daemons import EdgeDaemon, wait_for
from tests.system.edge_run import END_S, running

pytestmark = pytest.mark.system

SAMPLES = bundles.samples(8)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    return bundles.write(tmp_path)


def with_disk(folder: Path, options: str) -> Sequence[str]:
    """A command that runs another one, which sees an empty tmpfs in this place.

    Skips the test where that takes rights that we do not have.
    """
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", options, str(folder)]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {tried.stderr.strip()}")
    return command


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with (
        Path("/dev/zero").open("rb") as zeros,
        path.open("wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        shutil.copyfileobj(zeros, file)


def test_a_full_dev_shm_is_told_and_workers_do_without_it(edge: Path, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    words = ["--workers", "process"]
    within = with_disk(shm, "size=64k")
    output_size = EXPECTED.nbytes
    into_region = infer(
        SAMPLES,
        outputs=[
            {
                "name": "y",
                "parameters": {
                    "shared_memory_region": "region",
                    "shared_memory_byte_size": output_size,
                },
            }
        ],
    )
    with running(edge, *words, log=tmp_path / "log", within=within) as server:
        seen_by_it = Path(f"/proc/{server.pid}/root") / shm.relative_to("/")
        (seen_by_it / "sparse").touch()
        os.truncate(seen_by_it / "sparse", output_size)
        wanted = {"key": "/sparse", "offset": 0, "byte_size": output_size}
        register = post(
            "/v2/systemsharedmemory/region/region/register", json.dumps(wanted).encode()
        )
        assert server.ask(register).status == 200
        fill(seen_by_it / "rest")

        answer = server.ask(into_region)
        assert answer.status == 400
        assert "No space left on device" in answer.error
        (worker,) = server.children()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: server.ask(infer(SAMPLES)).status == 200, "another worker")

        (seen_by_it / "rest").unlink()
        assert server.ask(into_region).status == 200
        found = np.frombuffer((seen_by_it / "sparse").read_bytes(), np.float32)
        np.testing.assert_allclose(found.reshape(EXPECTED.shape), EXPECTED, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=8k", "No space left on device"), ("ro", "Read-only file system")],
)
def test_a_cache_that_cannot_be_written_is_told_at_the_start(
    options: str, reason: str, edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    # What is left behind is only seen where the disk is.
    listing = ["sh", "-c", '"$@"; code=$?; find "$XDG_CACHE_HOME" -type f; exit $code', "sh"]
    command = [sys.executable, "-m", "edgekit", "run", "--insecure", str(edge), "--listen"]
    done = subprocess.run(
        [*with_disk(cache, options), *listing, *command, f"{HOST}:0"],
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )

    assert done.returncode == 2
    (error, *_hint) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert reason in error
    assert str(cache) in error
    assert done.stdout == ""


def test_a_state_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    _, public = new_pair(tmp_path / "keys")
    daemon = EdgeDaemon(tmp_path, trust=public)
    daemon.state.mkdir()
    program = "from edgekit.cli import daemon_main; daemon_main()"
    command = [sys.executable, "-c", program, "--config", str(daemon.config)]
    done = subprocess.run(
        [*with_disk(daemon.state, "ro"), *command],
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )

    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert str(daemon.state) in error
    assert "Read-only file system" in error
    assert "[state] folder" in hint
