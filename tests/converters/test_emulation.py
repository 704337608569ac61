"""An Arm board's Python is installed from Debian's packages and run by qemu."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import BuildError
from edgekit_converters.toolchains import TOOLCHAINS, emulation, environments, installation, renew
from edgekit_converters.toolchains.driving import LimitBroken, Limits, drive
from tests.converters.chains import needs

ARM64 = TOOLCHAINS["arm64"]
FEW_SECONDS = Limits(time_s=1.0)

LOOK = """
import os, platform, sys
import numpy

def run(request):
    if request.get("refuse"):
        raise ValueError("it will not")
    with open("/proc/cpuinfo") as file:
        cpu = file.read()
    return {
        "machine": platform.machine(),
        "pointer": sys.maxsize,
        "python": platform.python_version(),
        "numpy": numpy.__file__,
        "cpu": cpu,
        "cpus": open("/sys/devices/system/cpu/possible").read().strip(),
        "there": os.path.exists(request["file"]),
    }
"""
SLEEP = """
import time

def run(request):
    time.sleep(60)
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without tool chains."""
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "toolchains"))
    return tmp_path / "toolchains"


def programs(folder: Path, *names: str) -> str:
    """A PATH with these programs of this machine, or none of the name, and nothing else."""
    folder.mkdir()
    for name in names:
        found = next(
            Path(place, name) for place in os.get_exec_path() if Path(place, name).exists()
        )
        (folder / name).symlink_to(found)
    return str(folder)


def quietly(_: str) -> None:
    """Where an installation's steps go that nobody reads."""


def test_without_qemu_the_package_that_has_it_is_named(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin"))

    found = environments.state("arm64")

    assert found.status == "missing"
    assert "qemu-aarch64-static, which runs it, is not on PATH" in found.detail
    assert found.command == ("apt-get install qemu-user-static && edgekit doctor --install arm64")
    with pytest.raises(BuildError, match="not on PATH") as caught:
        installation.install("arm64", say=quietly)
    assert caught.value.hint == "apt-get install qemu-user-static"


def test_without_debians_tools_it_says_where_they_are(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", programs(folder))
    # Only whether it is there counts before anything is made.
    (folder / "qemu-aarch64-static").symlink_to("/bin/sh")

    with pytest.raises(BuildError, match="apt-get is not here") as caught:
        installation.install("arm64", say=quietly)

    assert caught.value.hint is not None
    assert "Debian 12" in caught.value.hint


@needs("arm64")
def test_an_installation_without_debians_sources_fails_and_leaves_nothing(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "apt.conf"
    settings.write_text('Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "/dev/null";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))

    with pytest.raises(BuildError, match="Unable to locate package"):
        installation.install("arm64", say=quietly)

    assert environments.state("arm64").status == "missing"
    assert [path.name for path in elsewhere.iterdir() if path.is_dir()] == []


@needs("arm64")
def test_a_driver_runs_on_an_arm_cpu_and_sees_the_files_of_this_machine(tmp_path: Path) -> None:
    driver, file = tmp_path / "look.py", tmp_path / "file"
    driver.write_text(LOOK)
    file.touch()

    found = drive("arm64", {"file": str(file)}, driver=driver, folder=tmp_path)

    assert found["machine"] == "aarch64" != platform.machine()
    assert found["python"].startswith(f"{ARM64.python}.")
    assert found["numpy"].startswith(str(environments.home()))
    # Engines choose their kernels by these, and crash without them.
    assert "asimddp" in found["cpu"]
    assert found["cpus"] == "0"
    assert found["there"]


@needs("arm64")
def test_what_a_driver_refuses_comes_back_as_from_any_other_tool_chain(tmp_path: Path) -> None:
    driver = tmp_path / "look.py"
    driver.write_text(LOOK)

    with pytest.raises(BuildError, match="arm64 refused: it will not; log: "):
        drive("arm64", {"refuse": True}, driver=driver, folder=tmp_path)


@needs("arm64")
def test_an_emulation_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    driver = tmp_path / "sleep.py"
    driver.write_text(SLEEP)

    with pytest.raises(LimitBroken, match="took longer than 1 s"):
        drive("arm64", {}, driver=driver, folder=tmp_path, limits=FEW_SECONDS)


@needs("arm64")
def test_the_interpreter_is_found_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(environments.python_of("arm64"))
    code = "import json, sys; print(json.dumps([sys.maxsize, sys.argv[1:]]))"

    done = subprocess.run(
        [str(link), "-I", "-S", "-c", code, "two words"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout) == [2**63 - 1, ["two words"]]


@needs("arm64")
def test_a_ready_emulation_without_qemu_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path / "bin"))

    found = environments.state("arm64")

    assert found.status == "python missing"
    assert found.command == "apt-get install qemu-user-static"


def test_only_other_instructions_that_qemu_has_are_emulated() -> None:
    assert not emulation.is_needed_for(platform.machine())
    assert not emulation.is_needed_for("cortex-m")
    assert emulation.is_needed_for("aarch64") == (platform.machine() != "aarch64")


def test_the_lock_is_of_wheels_for_arm() -> None:
    assert "--python-platform=aarch64-manylinux_2_28" in renew.compile_command(ARM64, upgrade=False)
