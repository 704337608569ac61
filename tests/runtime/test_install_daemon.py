"""The daemon as its unit runs it: on a read-only system, and heard by the service manager.

Here no systemd runs (`make systemd-test` boots one). What it does is done by hand: mounts that are
read-only but for the state folder, a socket that listens in the manager's place, and the kernel's
own refusal of pages that are written and then run.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.signing import SigningKey, new_pair
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles
from tests.runtime import tflite_models

pytestmark = pytest.mark.system

PATIENCE_S = 30
# A sign of life each 0.1 s, for as long as patience lasts.
MOST_MESSAGES = 300
ROOT = Path(__file__).parents[2]
DAEMON = ("from edgekit.cli import daemon_main; daemon_main()", "--config")
# What ProtectSystem=strict and StateDirectory= come to.
READ_ONLY = 'set -e; mount --bind "$0" "$0"; mount -o remount,bind,ro /; exec "$@"'
# PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN, as MemoryDenyWriteExecute= has it by other means.
DENY = "import ctypes; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with a model in it; its configuration is beside it."""
    folder = tmp_path / "state"
    private, public = new_pair(tmp_path / "keys")
    slots = Slots(folder)
    with Bundle.open(bundles.write(tmp_path, key=SigningKey.read(private))) as bundle:
        slots.install("tiny", "a", bundle)
        held = Installed(version="1.0.0", digest=bundle.digest)
    slots.write("tiny", Record(slots={"a": held}, active="a", previous=None))
    (tmp_path / "device.toml").write_text(
        '[device]\nsite = "demo"\nid = "b"\nprofile = "generic-x86_64"\n'
        f'[state]\nfolder = "{folder}"\n[serve]\nlisten = ""\nunix = "{folder / "s"}"\n'
        f'[trust]\nkeys = ["{public}"]\n'
    )
    return folder


@contextmanager
def running(state: Path, *, inside: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """The daemon, with a socket in the service manager's place that must have heard it serve."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(state / "notify"))
        manager.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [*inside, sys.executable, "-c", *DAEMON, str(state.with_name("device.toml"))],
            env={**os.environ, "NOTIFY_SOCKET": str(state / "notify"), "WATCHDOG_USEC": "300000"},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            wait_for(b"READY=1", manager)
            yield process
            # Signs of life come for as long as it serves.
            wait_for(b"WATCHDOG=1", manager)
            process.send_signal(signal.SIGTERM)
            wait_for(b"STOPPING=1", manager)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            assert process.stderr is not None
            process.stderr.close()
            process.wait()


def wait_for(message: bytes, manager: socket.socket) -> None:
    """Read what the daemon says until it says this, among a bounded number of other things."""
    assert any(manager.recv(4096) == message for _ in range(MOST_MESSAGES)), message


def answer(state: Path) -> int:
    """Ask the model over the Unix socket."""
    connection = http.client.HTTPConnection("edgekit")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(state / "s"))
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": list(range(16))}]
    }
    connection.request("POST", "/v2/models/tiny/infer", json.dumps(body), {"Host": "localhost"})
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status


def test_the_service_manager_hears_a_daemon_that_serves(state: Path) -> None:
    with running(state):
        assert answer(state) == 200


def test_the_daemon_runs_where_everything_but_its_state_is_read_only(state: Path) -> None:
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, str(state)]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("mounts of one's own are not allowed here")
    outside = state.with_name("elsewhere")
    refused = subprocess.run([*inside, "touch", outside], capture_output=True, check=False)
    assert (refused.returncode, outside.exists()) == (1, False)

    with running(state, inside=inside):
        assert answer(state) == 200


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_cpu_engines_run_where_no_page_is_written_and_then_run(engine: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if engine == "onnxruntime":
        model.write_bytes(bundles.convnet())
    else:
        pytest.importorskip("ai_edge_litert")
        model.write_bytes(tflite_models.chain(3))
    program = (
        f"{DENY}\n"
        "import mmap, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from edgekit_runtime.engines import ENGINES\n"
        "from edgekit_runtime.engines.tensors import DTYPES\n"
        "try:\n"
        "    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "except PermissionError:\n"
        f"    session = ENGINES.get({engine!r}).open(Path({str(model)!r}), options={{}})\n"
        "    feeds = {spec.name: np.ones([abs(n) for n in spec.shape], DTYPES[spec.datatype])\n"
        "             for spec in session.inputs}\n"
        "    print(len(session.run(feeds)))\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    if "AssertionError" in ran.stderr:
        pytest.skip("this kernel is older than 6.3, and cannot refuse it")
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0
