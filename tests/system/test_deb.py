"""The Debian package in a clean Debian: it installs, serves a bundle, and purging leaves nothing.

`make deb-test` builds the package, makes the clean root with debootstrap and runs this. No systemd
runs in the root; the unit is checked by `systemd-analyze` from outside.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.signing import SigningKey, new_pair
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles
from tests.system.daemons import free_port

pytestmark = [pytest.mark.system, pytest.mark.slow]

PATIENCE_S = 60
FEATURES = 16
PACKAGE = os.environ.get("EDGEKIT_DEB", "")
BASE = os.environ.get("EDGEKIT_DEB_ROOT", "")
# The package's files, and what a Debian has of every package.
OURS = ("opt/edgekit", "etc/edgekit", "var/lib/edgekit", "usr/bin/edgekit", "usr/bin/edgekitd")
UNIT = "lib/systemd/system/edgekitd.service"


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        ["chroot", root, *command],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
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
    state = installed / "var/lib/edgekit"
    port = free_port()
    private, public = new_pair(tmp_path / "keys")
    shutil.copy(public, installed / "etc/edgekit/release.pub")
    run(
        installed,
        *("edgekit", "device", "install", "--site", "test", "--id", "b"),
        *("--profile", "generic-x86_64", "--trust", "/etc/edgekit/release.pub"),
    )
    config = installed / "etc/edgekit/device.toml"
    config.write_text(
        config.read_text().replace("[serve]", f'[serve]\nlisten = "127.0.0.1:{port}"')
    )
    slots = Slots(state)
    with Bundle.open(bundles.write(tmp_path, key=SigningKey.read(private))) as bundle:
        slots.install("tiny", "a", bundle)
        held = Installed(version="1.0.0", digest=bundle.digest)
    slots.write("tiny", Record(slots={"a": held}, active="a", previous=None))
    # What systemd does for the service.
    run(installed, "chown", "-R", "edgekit:edgekit", "/var/lib/edgekit")
    run(installed, "install", "-d", "-o", "edgekit", "-g", "edgekit", "/run/edgekit")
    daemon = subprocess.Popen(
        ["chroot", "--userspec=edgekit:edgekit", installed, "/usr/bin/edgekitd"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stderr is not None
    with daemon.stderr as logs:
        for line in logs:
            if "server listens" in line:
                break

        status = _infer(port)

        daemon.send_signal(signal.SIGTERM)
        logs.read()
    assert daemon.wait(PATIENCE_S) == 0
    assert status == 200


def test_purging_leaves_nothing(installed: Path) -> None:
    before = everything(installed)
    assert {*OURS, UNIT} <= {name.removeprefix("usr/") for name in before} | before

    run(installed, "apt-get", "purge", "-qq", "edgekit")

    assert everything(installed) == set()
    passwd = (installed / "etc/passwd").read_text() + (installed / "etc/group").read_text()
    assert "edgekit" not in passwd


def _infer(port: int) -> int:
    body = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": [0.0] * FEATURES}
        ]
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v2/models/tiny/infer", json.dumps(body))
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status
