"""`edgekit device install`: what it writes, what it keeps, and what systemd says of the unit."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from edgekit import profile as profiles
from edgekit.errors import ConfigError, EdgekitError, ProfileError, UsageError
from edgekit_runtime import config
from edgekit_runtime.device import device
from edgekit_runtime.install import files, settings, unit
from edgekit_runtime.install.access import Access, access_of
from edgekit_runtime.install.profiles import FILE, decode, encode, require_daemon

# By systemd's own reckoning: 0 is closed off entirely, 10 not at all.
MOST_EXPOSURE = 20
HOSTED = [
    name for name in profiles.names() if profiles.find(name).runtime in ("native", "container")
]
UNIT = "etc/systemd/system/edgekitd.service"
CONFIG = "etc/edgekit/device.toml"


def install(root: Path, *arguments: str, program: str = "/bin/true") -> Result:
    return CliRunner().invoke(
        device, ["install", "--root", str(root), "--program", program, *arguments]
    )


def installed(root: Path, *arguments: str) -> dict[str, str]:
    """What became of each file, by its name."""
    result = install(root, "--json", *arguments)
    assert result.exception is None, result.exception
    found = json.loads(result.stdout)
    return {Path(file["path"]).name: file["outcome"] for file in found["files"]}


NEW = ("--site", "plant-1", "--id", "press-3", "--profile", "raspberry-pi-5")


def test_a_new_board_gets_a_configuration_a_profile_a_user_and_a_unit(tmp_path: Path) -> None:
    outcomes = installed(tmp_path, *NEW, "--trust", "/etc/edgekit/release.pub")

    assert set(outcomes.values()) == {"written"}
    found = config.read(tmp_path / CONFIG)
    assert (found.device.site, found.device.id) == ("plant-1", "press-3")
    assert found.trust.keys == (Path("/etc/edgekit/release.pub"),)
    assert found.state.folder == Path("/var/lib/edgekit")
    assert decode(tmp_path / "etc/edgekit" / FILE) == profiles.find("raspberry-pi-5")
    assert "u edgekit -" in (tmp_path / "etc/sysusers.d/edgekit.conf").read_text()
    text = (tmp_path / UNIT).read_text()
    assert "ExecStart=/bin/true --config /etc/edgekit/device.toml\n" in text
    assert "StateDirectory=edgekit\n" in text


def test_an_enrolled_board_is_told_where_its_identity_is(tmp_path: Path) -> None:
    installed(tmp_path, *NEW, "--state", "/data/edgekit")

    outcomes = installed(tmp_path, "--enrolled")

    assert outcomes["device.toml"] == "replaced"
    found = config.read(tmp_path / CONFIG)
    assert found.fleet is not None
    assert found.fleet.identity == Path("/data/edgekit/identity")
    assert found.device.id == "press-3"


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    installed(tmp_path, *NEW)

    assert set(installed(tmp_path).values()) == {"unchanged"}


def test_what_somebody_edited_is_kept_and_the_new_text_put_beside(tmp_path: Path) -> None:
    installed(tmp_path, *NEW)
    path = tmp_path / CONFIG
    edited = path.read_text().replace("[serve]", '[serve]\nlisten = "127.0.0.1:9000"')
    path.write_text(edited)

    outcomes = installed(tmp_path, "--site", "plant-2")

    assert outcomes["device.toml"] == "kept"
    assert path.read_text() == edited
    assert config.read(path.with_name("device.toml.new")).device.site == "plant-2"


def test_a_state_folder_that_an_edited_configuration_contradicts_is_refused(
    tmp_path: Path,
) -> None:
    installed(tmp_path, *NEW)
    path = tmp_path / CONFIG
    path.write_text(path.read_text() + "\n# mine\n")

    refused = install(tmp_path, "--state", "/data/edgekit").exception

    assert isinstance(refused, ConfigError)
    assert "/var/lib/edgekit, not /data/edgekit" in refused.message


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    answer = install(tmp_path, *NEW, "--dry-run")

    assert f"would be written  /{CONFIG}" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_commands_that_remain_are_told(tmp_path: Path) -> None:
    answer = install(tmp_path, *NEW)

    assert f"systemctl --root={tmp_path} enable edgekitd.service" in answer.stdout
    assert "no bundle may run yet" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((), UsageError, "--site and --profile"),
        ((*NEW[:4], "--profile", "no-such-board"), ProfileError, "no profile called"),
        (("--site", "Plant 1", "--profile", "rk3588"), ConfigError, "site"),
        ((*NEW[:4], "--profile", "ethos-u55-128"), UsageError, "does not run on"),
        ((*NEW, "--user", "root;rm"), UsageError, "cannot be a user's name"),
        ((*NEW, "--state", "/var/lib/my state"), UsageError, "cannot stand in a unit"),
        ((*NEW, "--state", "/var/lib/100%"), UsageError, "cannot stand in a unit"),
        ((*NEW, "--config", "device.toml"), UsageError, "absolute"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: tuple[str, ...], error: type[EdgekitError], says: str
) -> None:
    refused = install(tmp_path, *arguments).exception

    assert isinstance(refused, error)
    assert says in refused.message
    assert list(tmp_path.rglob("*.service")) == []


def test_a_profile_of_ones_own_is_taken_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    shown = profiles.find("rk3588")
    file.write_text(encode(msgspec.structs.replace(shown, name="mine")))

    installed(tmp_path, *NEW[:4], "--profile", str(file))

    assert config.read(tmp_path / CONFIG).device.profile == "mine"
    assert "DeviceAllow=/dev/rknpu rw\n" in (tmp_path / UNIT).read_text()


def test_a_state_folder_elsewhere_is_the_one_place_that_may_be_written(tmp_path: Path) -> None:
    installed(tmp_path, *NEW, "--state", "/data/edgekit", "--memory-mb", "1000")

    text = (tmp_path / UNIT).read_text()
    assert "ReadWritePaths=/data/edgekit\n" in text
    assert "RequiresMountsFor=/data/edgekit\n" in text
    assert "StateDirectory=" not in text
    assert "MemoryHigh=900M\nMemoryMax=1000M\n" in text


def test_homes_and_temporary_files_are_closed_unless_something_lies_there() -> None:
    def text_of(program: str) -> str:
        return unit.text(
            unit.Service(
                program=Path(program),
                config=Path("/etc/edgekit/device.toml"),
                state=Path("/var/lib/edgekit"),
                user="edgekit",
                access=Access(),
            )
        )

    assert "ProtectHome=yes\nPrivateTmp=yes\n" in text_of("/opt/edgekit/bin/edgekitd")
    assert "ProtectHome=read-only\n" in text_of("/home/me/venv/bin/edgekitd")
    assert "PrivateTmp=no\n" in text_of("/tmp/venv/bin/edgekitd")


def test_only_a_board_on_cpu_engines_forbids_code_that_is_made_at_run_time() -> None:
    on_cpu = access_of(profiles.find("raspberry-pi-5"))
    with_npu = access_of(profiles.find("rk3588"))
    unknown = access_of(profiles.find("jetson-orin-nano"))

    assert (on_cpu.makes_code, on_cpu.nodes) == (False, ())
    assert with_npu.makes_code
    assert with_npu.nodes is not None
    assert "char-drm" in with_npu.nodes
    assert unknown.nodes is None


@pytest.mark.parametrize("name", HOSTED)
def test_systemd_takes_the_unit_of_every_board_and_finds_it_closed_off(
    name: str, tmp_path: Path
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: `make system-deps`")
    require_daemon(profiles.find(name))
    installed(tmp_path, "--site", "plant-1", "--profile", name)
    path = tmp_path / UNIT

    verified = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (verified.returncode, verified.stderr) == (0, "")
    assert judged.returncode == 0, judged.stdout[-200:]


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=200), st.data())
def test_every_edit_of_a_file_is_noticed(text: str, data: st.DataObject) -> None:
    content = files.stamped(text)
    # The line's own words may be changed; its digest and all behind it may not.
    place = data.draw(st.integers(content.index("sha256 ") + len("sha256 "), len(content) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != content[place]))

    assert not files.is_edited(content)
    assert files.is_edited(content[:place] + other + content[place + 1 :])


@given(st.text(max_size=100))
def test_any_hosts_name_becomes_an_id_that_the_configuration_takes(hostname: str) -> None:
    wishes = settings.Wishes(
        site="s", device=settings.host_id(hostname), profile="rk3588", state=Path("/s")
    )

    assert config.decode(settings.text(wishes).encode(), what="test").device.id
