"""`edgekit device wheelhouse`: which packages a board needs, and a folder that it installs from.

What was fetched for Arm is looked at here, and run nowhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgekit import profile as profiles
from edgekit.errors import UsageError
from edgekit.profile import DeviceProfile
from edgekit_runtime.device import device
from edgekit_runtime.install import wheels
from edgekit_runtime.install.script import install_script
from edgekit_runtime.install.wheels import Choice, goal

HOSTED = [
    profiles.find(name)
    for name in profiles.names()
    if profiles.find(name).runtime in ("native", "container")
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse for this machine's own Python."""
    folder = tmp_path_factory.mktemp("wheels") / "house"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    _collected("generic-x86_64", folder, "--python", version)
    return folder


def of(name: str, **choice: object) -> wheels.Goal:
    return goal(profiles.find(name), Choice(**choice))  # type: ignore[arg-type]


def test_a_board_gets_its_python_its_c_library_and_the_engines_that_its_profile_pins() -> None:
    found = of("raspberry-pi-5")

    assert (found.machine, found.python, found.glibc_minor) == ("aarch64", "3.11", 36)
    assert found.requirements == ("edgekit-ml[device]", "onnxruntime==1.31.*")
    assert found.missing == ()
    assert found.platforms[0] == "manylinux_2_36_aarch64"
    assert not found.uses_system


def test_an_accelerators_own_packages_come_along() -> None:
    assert "rknn-toolkit-lite2==2.5.*" in of("rk3588").requirements
    assert "onnxruntime-qnn" in of("qcs6490").requirements


def test_what_only_a_vendor_has_is_named_with_its_source() -> None:
    found = of("jetson-orin-nano")

    assert [missing.what for missing in found.missing] == [
        "onnxruntime 1.23 for the gpu",
        "cuda 12.6",
        "tensorrt 10.3",
        "cudnn 9.3",
    ]
    assert "NVIDIA's" in found.missing[0].source
    # The index's build runs on the CPU meanwhile; the vendor's is the system's.
    assert "onnxruntime==1.23.*" in found.requirements
    assert found.uses_system
    assert "--system-site-packages" in install_script(found, pip="tools/pip.whl")
    (library,) = of("rk3588").missing
    assert library.source == "librknnrt.so from Rockchip's repository"


def test_the_caller_chooses_engines_extras_and_what_the_profile_says_otherwise() -> None:
    found = of("generic-x86_64", engines=("litert",), extras=("grpc",), python="3.12", glibc="2.39")

    assert found.requirements == ("edgekit-ml[device,grpc]", "ai-edge-litert==2.3.*")
    assert (found.python, found.glibc_minor) == ("3.12", 39)


@pytest.mark.parametrize(
    ("name", "choice", "says"),
    [
        ("rk3588", {"engines": ("hailo",)}, "has no engine hailo"),
        ("rk3588", {"python": "3"}, "not a version such as 3.11"),
        ("rk3588", {"glibc": "2.5"}, "not a version such as 2.36"),
        ("ethos-u55-128", {}, "does not run on"),
    ],
)
def test_what_no_board_can_have_is_refused(name: str, choice: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        of(name, **choice)


@pytest.mark.parametrize("profile", HOSTED, ids=lambda profile: profile.name)
def test_every_board_that_hosts_the_daemon_has_a_goal(profile: DeviceProfile) -> None:
    found = goal(profile, Choice())

    assert found.requirements[0] == "edgekit-ml[device]"
    assert re.fullmatch(r"(x86_64|aarch64)-manylinux_2_\d\d", found.resolver_platform)
    subprocess.run(
        ["sh", "-n"], input=install_script(found, pip="tools/pip.whl"), text=True, check=True
    )


@given(st.integers(17, 60))
def test_no_tag_is_newer_than_the_boards_c_library(minor: int) -> None:
    found = of("rk3588", glibc=f"2.{minor}")

    tags = [int(m[1]) for tag in found.platforms if (m := re.search(r"_2_(\d+)_", tag))]
    assert tags == sorted(range(17, minor + 1), reverse=True)
    known = re.search(r"_2_(\d+)", found.resolver_platform)
    assert known is not None
    assert int(known[1]) <= minor


def test_a_wheel_of_another_name_takes_its_engines_place_and_a_plugin_does_not() -> None:
    gpu = Path("onnxruntime_gpu-1.23.0-cp310-cp310-linux_aarch64.whl")
    plugin = Path("onnxruntime_qnn-2.7.0-cp311-cp311-manylinux_2_34_aarch64.whl")

    assert wheels.replaced_by([gpu]) == ("onnxruntime",)
    assert wheels.replaced_by([plugin]) == ()
    with pytest.raises(UsageError, match="not called as a wheel is"):
        wheels.name_of(Path("onnxruntime.whl"))


@pytest.mark.system
@pytest.mark.slow
def test_a_wheelhouse_for_arm_holds_only_wheels_that_run_there(tmp_path: Path) -> None:
    found = _collected("jetson-orin-nano", tmp_path / "house")

    python = "cp310"
    tagged = [wheel["file"].removesuffix(".whl").split("-") for wheel in found["wheels"]]
    # tomli is for Python 3.10 alone: versions are the board's, not this machine's.
    assert {"onnxruntime", "numpy", "edgekit_ml", "tomli"} <= {parts[0] for parts in tagged}
    for *_, interpreter, abi, platform in tagged:
        assert platform == "any" or "aarch64" in platform
        assert "py3" in interpreter or abi == "abi3" or interpreter == python


@pytest.mark.system
@pytest.mark.slow
def test_a_board_without_internet_installs_from_its_wheelhouse_and_runs_the_daemon(
    house: Path, tmp_path: Path
) -> None:
    target = tmp_path / "edgekit"
    # No index, no cache, no settings of this machine.
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable}
    no_network = ["unshare", "--net"] if _may_unshare() else []

    subprocess.run([*no_network, "sh", house / "install.sh", target], env=alone, check=True)

    said = subprocess.run(
        [target / "bin/edgekit", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("edgekit, version")
    config = tmp_path / "device.toml"
    config.write_text(
        '[device]\nsite = "s"\nid = "d"\nprofile = "generic-x86_64"\n'
        f'[state]\nfolder = "{tmp_path / "state"}"\n'
        f'[serve]\nlisten = ""\nunix = "{tmp_path / "socket"}"\n'
    )
    daemon = subprocess.Popen(
        [target / "bin/edgekitd", "--config", config], stderr=subprocess.PIPE, text=True, env=alone
    )
    assert daemon.stderr is not None
    with daemon.stderr as logs:
        assert any("server listens" in line for line in logs)
        daemon.send_signal(signal.SIGTERM)
        logs.read()
    assert daemon.wait(30) == 0


@pytest.mark.system
@pytest.mark.slow
def test_a_wheel_that_was_changed_on_its_way_is_not_installed(house: Path, tmp_path: Path) -> None:
    house = shutil.copytree(house, tmp_path / "house")
    wheel = next((house / "wheels").glob("click-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    ran = subprocess.run(
        ["sh", house / "install.sh", tmp_path / "edgekit"],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert f"wheels/{wheel.name}: FAILED" in ran.stdout
    assert not (tmp_path / "edgekit").exists()


def _collected(profile: str, out: Path, *options: str) -> dict[str, list[dict[str, str]]]:
    if shutil.which("uv") is None:
        pytest.skip("uv is not here: pip install uv")
    arguments = ["wheelhouse", "--profile", profile, "--out", str(out), "--json", *options]
    result = CliRunner().invoke(device, arguments)
    assert result.exception is None, result.exception
    found: dict[str, list[dict[str, str]]] = json.loads(result.stdout)
    return found


def _may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0
    )
