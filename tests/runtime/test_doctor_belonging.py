"""The doctor says whom a board trusts, who it is to its fleet, and why it is not heard."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgekit import storage
from edgekit.clock import SystemClock
from edgekit_runtime import config as configs
from edgekit_runtime import linkage
from edgekit_runtime.config import Config
from edgekit_runtime.doctor import belonging
from edgekit_runtime.doctor.findings import Finding
from edgekit_runtime.identity.enrol import enroll
from edgekit_runtime.linkage import LinkStatus, Trouble
from tests.fleet.enrolling import DAY_S, Enrolling, enrolling

DEVICE = '[device]\nsite = "berlin"\nid = "cam"\nprofile = "generic-x86_64"\n'


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enrolling]:
    with enrolling(tmp_path_factory.mktemp("office") / "fleet") as made:
        yield made


def read(folder: Path, more: str = "[fleet]\n") -> Config:
    path = folder / "device.toml"
    path.write_text(f'{DEVICE}[state]\nfolder = "{folder}"\n{more}')
    return configs.read(path)


def said(config: Config, *, now_ms: int | None = None) -> dict[str, Finding]:
    now_ms = SystemClock().now_ms() if now_ms is None else now_ms
    return {found.subject: found for found in belonging.findings(config, now_ms=now_ms)}


def test_an_identity_is_where_the_state_is_unless_the_configuration_says_otherwise(
    tmp_path: Path,
) -> None:
    own = read(tmp_path).fleet
    named = read(tmp_path, '[fleet]\nidentity = "/elsewhere"\n').fleet

    assert own is not None
    assert own.identity == tmp_path / "identity"
    assert named is not None
    assert named.identity == Path("/elsewhere")


def test_a_board_that_never_enrolled_is_told_how(tmp_path: Path) -> None:
    found = said(read(tmp_path))

    assert found["identity"].status == "wrong"
    assert "holds no identity" in found["identity"].detail
    assert found["identity"].command is not None
    assert found["identity"].command.startswith("edgekit device enroll")
    assert found["link"].status == "unknown"


def test_an_enrolled_board_is_well_until_its_certificate_ends(
    office: Enrolling, tmp_path: Path
) -> None:
    config = read(tmp_path)
    enroll(
        tmp_path / "identity",
        office.token("cam"),
        coordinator=office.url,
        name="berlin/cam",
        clock=office.clock,
    )
    now_ms = office.clock.now_ms()
    another = msgspec.structs.replace(
        config, device=msgspec.structs.replace(config.device, id="other")
    )

    well = said(config, now_ms=now_ms)["identity"]
    late = said(config, now_ms=now_ms + 4000 * round(DAY_S) * 1000)["identity"]
    stranger = said(another, now_ms=now_ms)["identity"]

    assert (well.status, well.found) == ("ok", "berlin/cam")
    assert late.status == "wrong"
    assert "clock says" in late.detail
    assert stranger.status == "wrong"
    assert "berlin/other" in stranger.detail


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (None, "ok"),
        (Trouble.BROKER_UNREACHABLE, "note"),
        (Trouble.CLOCK_WRONG, "wrong"),
        (Trouble.CERTIFICATE_REFUSED, "wrong"),
    ],
)
def test_why_the_link_is_down_is_as_the_daemon_wrote_it(
    tmp_path: Path, reason: Trouble | None, status: str
) -> None:
    link = LinkStatus(
        up=reason is None, reason=reason, detail="in words", since_ms=1_790_000_000_000
    )
    storage.write(tmp_path / linkage.FILE, msgspec.json.encode(link))

    found = said(read(tmp_path))["link"]

    assert found.status == status
    assert "2026-09-21 14:13 UTC" in found.detail


def test_a_key_that_is_none_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text("no key")
    found = said(read(tmp_path, f'[trust]\nkeys = ["{tmp_path}/a.pub", "{tmp_path}/b.pub"]\n'))

    assert {one.status for one in found.values()} == {"wrong"}
    assert set(found) == {f"{tmp_path}/a.pub", f"{tmp_path}/b.pub"}


def test_a_board_that_trusts_nobody_is_noted(tmp_path: Path) -> None:
    found = said(read(tmp_path, ""))

    assert found["[trust] keys"].status == "note"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to read as another user")
def test_an_identity_of_another_user_is_not_called_missing(
    office: Enrolling, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    enroll(
        tmp_path / "identity",
        office.token("cam"),
        coordinator=office.url,
        name="berlin/cam",
        clock=office.clock,
    )
    program = (
        "import os, sys; from pathlib import Path\n"
        "from edgekit_runtime.identity import Identity\n"
        "os.setgroups([]); os.setuid(65534)\n"
        "try: Identity.read(Path(sys.argv[1]))\n"
        "except Exception as e: print(e, e.hint)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "identity")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert "Permission denied" in asked.stdout
    assert "65534" in asked.stdout
    assert "chown" in asked.stdout
