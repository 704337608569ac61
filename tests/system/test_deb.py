"""The Debian package in a clean Debian: it installs, serves a bundle, and purging leaves nothing.

`make deb-test` builds the package, makes the clean root with debootstrap and runs this. No systemd
runs in the root; the unit is checked by `systemd-analyze` from outside. A package for another
machine (`make deb-test DEB_ARCH=arm64`) is emulated by qemu: what it installs and answers is shown
by that, and nothing of a board's speed, its kernel or its devices.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit import profile
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.signing import SigningKey, new_pair
from edgekit_converters.demo.processes import free_port
from edgekit_converters.toolchains import emulation
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles

pytestmark = [pytest.mark.system, pytest.mark.slow]

PATIENCE_S = 60
PACKAGE = os.environ.get("EDGEKIT_DEB", "")
BASE = os.environ.get("EDGEKIT_DEB_ROOT", "")
WHEELHOUSE = os.environ.get("EDGEKIT_WHEELHOUSE", "")
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}[Path(PACKAGE).stem.rpartition("_")[2] or "amd64"]
PROFILE = f"generic-{MACHINE}"
EMULATED = emulation.is_needed_for(MACHINE)
SETTINGS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"} | (
    {"QEMU_CPU": emulation.CPU} if EMULATED else {}
)
# The package's files, and what a Debian has of every package.
OURS = ("opt/edgekit", "etc/edgekit", "var/lib/edgekit", "usr/bin/edgekit", "usr/bin/edgekitd")
UNIT = "lib/systemd/system/edgekitd.service"


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        ["chroot", root, *command], capture_output=True, text=True, check=False, env=SETTINGS
    )
    told = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert done.returncode == 0, f"{command}{' (emulated)' if EMULATED else ''}: {told}"
    return done.stdout


def everything(root: Path) -> set[str]:
    """Every path in the root that may be called after the package or its user."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*edgekit*")
        if not path.is_relative_to(root / "proc") and path.name != Path(PACKAGE).name
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean Debian, with the package's file in it."""
    if not PACKAGE or not BASE or os.geteuid() != 0:
        pytest.skip("needs a package and a clean Debian, as root: make deb-test brings both")
    root = tmp_path_factory.mktemp("debian") / "root"
    # With its devices, which reading them would not copy.
    subprocess.run(["cp", "--archive", BASE, root], check=True)
    # Where this machine's apt finds packages, the clean one does too.
    for file in ("etc/resolv.conf", "etc/hosts"):
        shutil.copy(f"/{file}", root / file)
    for settings in Path("/etc/apt/apt.conf.d").glob("99*"):
        shutil.copy(settings, root / "etc/apt/apt.conf.d" / settings.name)
    shutil.copy(PACKAGE, root / Path(PACKAGE).name)
    if EMULATED:
        emulation.describe_cpu(root)
    return root


@pytest.fixture(scope="module")
def installed(clean: Path) -> Path:
    run(clean, "apt-get", "update", "-qq")
    run(clean, "apt-get", "install", "-qq", "--no-install-recommends", f"/{Path(PACKAGE).name}")
    return clean


def test_the_package_installs_in_a_clean_debian_and_tells_its_version(installed: Path) -> None:
    assert run(installed, "edgekit", "--version").startswith("edgekit, version ")
    assert "edgekit" in run(installed, "getent", "passwd", "edgekit")
    status = run(installed, "runuser", "-u", "edgekit", "--", "edgekit", "device", "status")
    assert "daemon not running" in status


def test_its_files_are_roots_and_its_state_the_daemons(installed: Path) -> None:
    assert (installed / "opt/edgekit").stat().st_uid == 0
    user = int(run(installed, "id", "--user", "edgekit"))
    assert (installed / "var/lib/edgekit").stat().st_uid == user
    assert (installed / "var/lib/edgekit").stat().st_mode & 0o777 == 0o750


def test_its_unit_is_one_that_systemd_takes(installed: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: `make system-deps`")
    text = (installed / UNIT).read_text()
    # The verifier looks for the program on this machine.
    here = installed / "edgekitd.service"
    here.write_text(text.replace("/opt/edgekit/bin/edgekitd", "/bin/true"))

    verified = subprocess.run(
        ["systemd-analyze", "verify", here], capture_output=True, text=True, check=False
    )
    here.unlink()

    assert "ExecStart=/opt/edgekit/bin/edgekitd --config /etc/edgekit/device.toml\n" in text
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_doctor_finds_nothing_wrong_there(installed: Path) -> None:
    found = json.loads(run(installed, "edgekit", "device", "doctor", "--json"))

    assert found["ok"] is True
    assert not [one for one in found["findings"] if one["status"] == "wrong"]


def test_the_daemon_serves_a_bundle_as_its_own_user(installed: Path, tmp_path: Path) -> None:
    _serve(installed, tmp_path, programs=Path("/usr/bin"), user="edgekit:edgekit")


def test_removing_keeps_the_state_and_the_settings(installed: Path) -> None:
    before = everything(installed)
    assert {*OURS, UNIT} <= {name.removeprefix("usr/") for name in before} | before

    run(installed, "apt-get", "remove", "-qq", "edgekit")

    left = {name for name in OURS if (installed / name).exists()}
    assert left == {"etc/edgekit", "var/lib/edgekit"}
    assert (installed / "etc/edgekit/device.toml").exists()


def test_purging_leaves_nothing(installed: Path) -> None:
    run(installed, "apt-get", "purge", "-qq", "edgekit")

    assert everything(installed) == set()
    passwd = (installed / "etc/passwd").read_text() + (installed / "etc/group").read_text()
    assert "edgekit" not in passwd


def test_a_wheelhouse_installs_there_without_a_network_and_serves(
    installed: Path, tmp_path: Path
) -> None:
    if not WHEELHOUSE:
        pytest.skip(
            "the wheelhouse of this machine is tried by tests/runtime/test_install_wheels.py"
        )
    shutil.copytree(WHEELHOUSE, installed / "wheelhouse")

    done = subprocess.run(
        ["unshare", "--net", "chroot", installed, "sh", "/wheelhouse/install.sh", "/opt/board"],
        capture_output=True,
        text=True,
        check=False,
        env=SETTINGS,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    _serve(
        installed,
        tmp_path,
        programs=Path("/opt/board/bin"),
        user="nobody:nogroup",
        described="/opt/board/profile.json",
    )


def _serve(
    root: Path, folder: Path, *, programs: Path, user: str, described: str = PROFILE
) -> None:
    """Let the root's `edgekitd` serve a bundle, ask it, and compare with the golden answer.

    Args:
        described: what `--profile` says there.
    """
    port = free_port()
    private, public = new_pair(folder / "keys")
    (root / "etc/edgekit").mkdir(exist_ok=True)
    shutil.copy(public, root / "etc/edgekit/release.pub")
    run(
        root,
        *(f"{programs}/edgekit", "device", "install", "--site", "test", "--id", "b"),
        *("--profile", described, "--trust", "/etc/edgekit/release.pub"),
    )
    config = root / "etc/edgekit/device.toml"
    config.write_text(
        config.read_text().replace("[serve]", f'[serve]\nlisten = "127.0.0.1:{port}"')
    )
    slots = Slots(root / "var/lib/edgekit")
    written = bundles.write(
        folder,
        key=SigningKey.read(private),
        model=bundles.convnet(size=32),
        profile=profile.find(PROFILE),
    )
    with Bundle.open(written) as bundle:
        slots.install("tiny", "a", bundle)
        held = Installed(version="1.0.0", digest=bundle.digest)
        inputs = bundle.tensors(GOLDEN_INPUTS)["x"]
        golden = bundle.tensors(GOLDEN_REFERENCE)["y"]
    slots.write("tiny", Record(slots={"a": held}, active="a", previous=None))
    # What systemd does for the service.
    run(root, "chown", "-R", user, "/var/lib/edgekit")
    owner, _, group = user.partition(":")
    run(root, "install", "-d", "-o", owner, "-g", group, "/run/edgekit")
    with subprocess.Popen(
        ["chroot", f"--userspec={user}", root, programs / "edgekitd"],
        stderr=subprocess.PIPE,
        text=True,
        env=SETTINGS,
    ) as daemon:
        assert daemon.stderr is not None
        try:
            logs = list(takewhile(lambda line: "server listens" not in line, daemon.stderr))
            assert daemon.poll() is None, "".join(logs)
            answer = _infer(port, inputs)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.stderr.read()
    assert daemon.returncode == 0
    np.testing.assert_allclose(answer, golden, atol=1e-4, rtol=1e-4)


def _infer(port: int, inputs: NDArray[np.float32]) -> NDArray[Any]:
    """What the model answers to `inputs` [n, ...] over HTTP."""
    tensor = {"name": "x", "datatype": "FP32", "shape": inputs.shape, "data": inputs.tolist()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}))
    with connection.getresponse() as response:
        body = json.loads(response.read())
    connection.close()
    assert response.status == 200, body
    (output,) = body["outputs"]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])
