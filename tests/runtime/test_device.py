"""`edgekit device`: what a person at the board sees, without a running daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import ConfigError, UsageError
from edgekit_runtime import linkage
from edgekit_runtime.device import daemon, device
from edgekit_runtime.linkage import LinkStatus
from edgekit_runtime.lock import StateLock
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record, SlotName
from tests import bundles


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(
        '[device]\nsite = "demo"\nid = "board-1"\nprofile = "generic-x86_64"\n'
        f'[state]\nfolder = "{tmp_path / "state"}"\n'
    )
    return path


def install(slots: Slots, folder: Path, versions: dict[SlotName, str]) -> None:
    held: dict[SlotName, Installed] = {}
    for slot, version in versions.items():
        with Bundle.open(bundles.write(folder, version=version)) as bundle:
            slots.install("tiny", slot, bundle)
            held[slot] = Installed(version=version, digest=bundle.digest)
    previous: SlotName | None = "b" if "b" in held else None
    slots.write("tiny", Record(slots=held, active="a", previous=previous))


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(device, [*arguments, "--config", str(config)])


def test_status_says_what_is_installed(config: Path, tmp_path: Path) -> None:
    install(Slots(tmp_path / "state"), tmp_path, {"a": "1.1.0", "b": "1.0.0"})

    found = json.loads(run(config, "status", "--json").stdout)
    assert found["running"] is False
    assert found["models"]["tiny"]["version"] == "1.1.0"
    assert found["models"]["tiny"]["previous"] == "1.0.0"
    text = run(config, "status").stdout
    assert "demo/board-1 (generic-x86_64), daemon not running" in text
    assert "tiny: 1.1.0 in slot a, before it 1.0.0" in text


def test_status_of_an_empty_board_says_so(config: Path) -> None:
    assert "no model is installed" in run(config, "status").stdout


def test_the_link_of_a_daemon_that_has_ended_is_not_told(config: Path, tmp_path: Path) -> None:
    config.write_text(
        config.read_text() + f'[fleet]\nidentity = "{tmp_path / "state" / "identity"}"\n'
    )
    link = LinkStatus(up=True, since_ms=1)
    storage.write(tmp_path / "state" / linkage.FILE, msgspec.json.encode(link))
    lock = StateLock(tmp_path / "state")
    assert json.loads(run(config, "status", "--json").stdout)["link"]["up"] is True

    lock.close()

    assert json.loads(run(config, "status", "--json").stdout)["link"] is None
    assert "link" not in run(config, "status").stdout


def test_a_rollback_is_left_for_the_daemon(config: Path, tmp_path: Path) -> None:
    slots = Slots(tmp_path / "state")
    install(slots, tmp_path, {"a": "1.1.0", "b": "1.0.0"})

    answer = run(config, "rollback", "tiny")

    assert "tiny goes back to 1.0.0 at the daemon's next start" in answer.stdout
    assert slots.asked("rollback") == ["tiny"]


def test_a_rollback_that_cannot_be_is_refused(config: Path, tmp_path: Path) -> None:
    slots = Slots(tmp_path / "state")
    assert isinstance(run(config, "rollback", "tiny").exception, UsageError)
    install(slots, tmp_path, {"a": "1.1.0"})

    refused = run(config, "rollback", "tiny").exception

    assert isinstance(refused, UsageError)
    assert "no version to go back to" in refused.message
    assert slots.asked("rollback") == []


@pytest.mark.parametrize("asks", ["status", "doctor", "rollback tiny", "cancel tiny"])
def test_whoever_may_not_look_into_the_state_folder_is_told_who_may(
    config: Path, tmp_path: Path, asks: str
) -> None:
    """Root without the capabilities that pass over permissions stands for another user."""
    state = tmp_path / "state"
    install(Slots(state), tmp_path, {"a": "1.1.0", "b": "1.0.0"})
    os.chown(state, *((65534, 65534) if os.geteuid() == 0 else (-1, -1)))
    state.chmod(0o700 if os.geteuid() == 0 else 0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    program = "from edgekit.cli import main; main()"
    answer = subprocess.run(
        [
            *(drop if os.geteuid() == 0 else []),
            *(sys.executable, "-c", program, "device", *asks.split(), "--config", str(config)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    state.chmod(0o700)

    assert answer.returncode == 2
    assert f"{state} cannot be read by this user" in answer.stderr
    assert "sudo -u" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_daemon_without_a_configuration_says_which_file(tmp_path: Path) -> None:
    answer = CliRunner().invoke(daemon, ["--config", str(tmp_path / "nowhere.toml")])

    assert isinstance(answer.exception, ConfigError)
    assert "nowhere.toml" in answer.exception.message
