"""`edgekit device doctor`: this machine and boards made of files, held against real profiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from edgekit import profile as profiles
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EngineError, ProfileError, UsageError
from edgekit.manifest import Golden, Manifest, Model, Needs, TensorSpec, Variant
from edgekit.profile import DeviceProfile, EngineSpec, Placement, Provider
from edgekit_runtime.compiled_store import Entry, HoldsFor
from edgekit_runtime.device import device
from edgekit_runtime.doctor import checks, facts, ties
from edgekit_runtime.doctor.facts import Facts
from edgekit_runtime.doctor.findings import Finding, verdict
from edgekit_runtime.doctor.page import WIDTH
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles

DPKG = """\
Package: libnvinfer10
Status: install ok installed
Architecture: arm64
Version: 10.3.0.30-1+cuda12.5
Description: TensorRT

Package: libcudnn9-cuda-12
Status: deinstall ok config-files
Version: 9.3.0.75-1

Package: hailort
Status: install ok installed
Version: 1:4.20.0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(
        '[device]\nsite = "demo"\nid = "board-1"\nprofile = "generic-x86_64"\n'
        f'[state]\nfolder = "{tmp_path / "state"}"\n'
    )
    return path


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(device, ["doctor", "--config", str(config), *arguments])


def examined(config: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(config, "--json", *arguments).stdout)
    return found


def install(state: Path, folder: Path, **options: Any) -> None:
    slots = Slots(state)
    with Bundle.open(bundles.write(folder, **options)) as bundle:
        slots.install("tiny", "a", bundle)
        held = Installed(version="1.0.0", digest=bundle.digest)
    slots.write("tiny", Record(slots={"a": held}, active="a", previous=None))


def board(**told: Any) -> Facts:
    """A board with nothing on it but what is told."""
    plain = Facts(
        machine="aarch64",
        system="Debian GNU/Linux 12 (bookworm)",
        python="3.11.2",
        interpreter="/opt/edgekit/bin/python3",
        glibc="2.36",
        engines={},
        providers=(),
        packages={},
        drivers={},
        libraries={},
        firmware={},
        devices=(),
    )
    return msgspec.structs.replace(plain, **told)


def by_subject(findings: Any) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_a_machine_that_is_the_board_is_well(config: Path) -> None:
    answer = run(config)

    assert answer.exception is None
    assert "engine    ok     onnxruntime (cpu): 1." in answer.stdout
    assert all(len(line) <= WIDTH for line in answer.stdout.splitlines())


def test_the_doctor_changes_nothing(config: Path, tmp_path: Path) -> None:
    run(config)

    assert list(tmp_path.iterdir()) == [config]


def test_another_board_is_wrong_in_its_hardware_its_engine_and_its_library(config: Path) -> None:
    answer = run(config, "--profile", "rk3588")

    assert isinstance(answer.exception, EngineError)
    assert "this machine is no Rockchip RK3588" in answer.stdout
    assert "> install it from: PyPI (rknn-toolkit-lite2" in answer.stdout
    assert "librknnrt.so: not found" in answer.stdout


def test_a_profile_is_taken_from_an_installed_bundle_where_nothing_else_has_it(
    config: Path, tmp_path: Path
) -> None:
    config.write_text(config.read_text().replace("generic-x86_64", "site-gateway"))
    assert isinstance(run(config).exception, ProfileError)
    own = msgspec.structs.replace(bundles.PROFILE, name="site-gateway")
    install(tmp_path / "state", tmp_path, profile=own)

    assert examined(config)["profile"] == "site-gateway"


def test_a_bundle_that_was_damaged_in_its_slot_is_told_and_ends_with_its_class(
    config: Path, tmp_path: Path
) -> None:
    install(tmp_path / "state", tmp_path)
    assert run(config).exception is None
    artifact = tmp_path / "state/models/tiny/a/artifacts/float.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\0")

    answer = run(config)

    assert isinstance(answer.exception, BundleError)
    assert "> edgekit device rollback tiny" in answer.stdout


def test_a_bundle_for_the_cpu_goes_on_whatever_driver_changes(config: Path, tmp_path: Path) -> None:
    install(tmp_path / "state", tmp_path)

    (tie,) = examined(config)["ties"]

    assert (tie["on_change"], tie["bound_to"], tie["stays"]) == ("goes on", [], None)


def test_a_variant_made_for_a_chip_breaks_and_the_one_that_stays_is_named(
    config: Path, tmp_path: Path
) -> None:
    install(tmp_path / "state", tmp_path, variants=(_variant("npu", "rknn", "npu", "npu.rknn"),))

    found = examined(config)

    npu, cpu = found["ties"]
    assert (npu["on_change"], npu["stays"]) == ("breaks", cpu["variant"])
    assert "librknnrt.so" in npu["bound_to"]
    # It has another variant, and so the board still serves.
    (slot,) = [one for one in found["findings"] if one["area"] == "bundle"]
    assert slot["status"] == "note"
    assert "npu (no rknn)" in slot["detail"]
    assert "npu: breaks (bound to librknnrt.so," in " ".join(run(config).stdout.split())


def test_files_of_another_owner_in_the_state_folder_are_told(config: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    install(state, tmp_path)
    try:
        shutil.chown(state, 12345)
    except PermissionError:
        pytest.skip("only root may give files away")

    answer = run(config)

    assert isinstance(answer.exception, UsageError)
    assert f"> chown -R --reference={state} {state}" in answer.stdout


def test_a_jetson_is_read_from_its_own_files(tmp_path: Path) -> None:
    for name, text in {
        "var/lib/dpkg/status": DPKG,
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    jetson = profiles.find("jetson-orin-nano")

    found = facts.gather(root=tmp_path)

    assert (found.drivers["cuda"], found.drivers["tensorrt"]) == ("12.6.68", "10.3.0.30-1+cuda12.5")
    # A package that was removed, and left its settings, is not there.
    assert by_subject(checks.drivers(jetson, found))["cudnn"].status == "wrong"
    assert by_subject(checks.firmware(jetson, found))["Jetson Linux"].status == "ok"
    older = msgspec.structs.replace(found, firmware={"Jetson Linux": "35.4.1"})
    assert by_subject(checks.firmware(jetson, older))["Jetson Linux"].status == "wrong"


def test_a_rockchip_is_read_from_its_own_files(tmp_path: Path) -> None:
    library = tmp_path / "usr/lib/librknnrt.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF\0\0librknnrt version: 2.3.0 (c949ad889d@2024-11-07)\0")
    module = tmp_path / "sys/module/rknpu/version"
    module.parent.mkdir(parents=True)
    module.write_text("0.9.8\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/devices").write_text(
        "Character devices:\n  1 mem\n226 drm\n\nBlock devices:\n"
    )
    rk3588 = profiles.find("rk3588")

    found = facts.gather(libraries=checks.libraries_of(rk3588), root=tmp_path)

    assert (found.drivers["librknnrt"], found.drivers["rknpu"]) == ("2.3.0", "0.9.8")
    assert by_subject(checks.libraries(rk3588, found))["librknnrt.so"].status == "ok"
    (nodes,) = checks.devices(rk3588, found)
    assert (nodes.status, nodes.found) == ("ok", "char-drm")


def test_an_engine_is_needed_first_by_the_profile_and_then_by_bundles() -> None:
    pi = profiles.find("raspberry-pi-5")

    alone = by_subject(checks.engines(pi, board(), needed=()))
    with_bundle = by_subject(checks.engines(pi, board(), needed=("litert",)))

    assert alone["onnxruntime (cpu)"].status == "wrong"
    assert alone["litert (cpu)"].status == "note"
    assert with_bundle["litert (cpu)"].status == "wrong"
    assert "install.sh" in (with_bundle["litert (cpu)"].command or "")


def test_a_gpu_build_must_have_its_provider_and_is_believed_only_by_golden_inputs() -> None:
    jetson = profiles.find("jetson-orin-nano")
    plain = board(engines={"onnxruntime": "1.23.2"}, providers=("CPUExecutionProvider",))
    gpu = board(
        engines={"onnxruntime": "1.23.0"},
        providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    )

    lacking = by_subject(checks.engines(jetson, plain, needed=()))["onnxruntime (gpu)"]
    listed = by_subject(checks.engines(jetson, gpu, needed=()))["onnxruntime (gpu)"]

    assert (lacking.status, lacking.detail) == ("wrong", "it lacks TensorrtExecutionProvider")
    assert listed.status == "unknown"


def test_python_packages_are_held_against_edgekits_own_record() -> None:
    required = [
        "numpy>=1.26",
        "tuf>=6.0; extra == 'device'",
        "onnx>=1.18; extra == 'host'",
        "click>=8.1",
    ]

    found = by_subject(checks.packages(required, board(packages={"numpy": "2.4.6", "tuf": "5.0"})))

    assert {name: one.status for name, one in found.items()} == {
        "numpy": "ok",
        "tuf": "wrong",
        "click": "wrong",
    }


def test_an_older_python_runs_no_daemon_and_a_newer_one_is_only_noted() -> None:
    pi = profiles.find("raspberry-pi-5")

    assert checks.python(pi, board(python="3.9.2")).status == "wrong"
    assert checks.python(pi, board(python="3.13.1")).status == "note"
    assert checks.libc(pi, board(glibc=None)).status == "wrong"


def test_what_was_compiled_here_says_what_changed_since() -> None:
    entry = Entry(
        holds_for=HoldsFor(
            artifact_sha256="0" * 64,
            engine="openvino",
            engine_version="2026.4",
            device={"npu_driver": "1.13", "kernel": "6.8"},
            options={},
        ),
        files={},
        took_s=12.0,
        artifact_bytes=1,
    )

    changed = ties.changes(entry, {"npu_driver": "1.17", "kernel": "6.8"}, engine_version="2026.4")

    assert changed == ("npu_driver: 1.13 -> 1.17",)


@pytest.mark.parametrize(
    ("variant", "holds_context", "compiles", "change"),
    [
        (("v", "hailo", "npu", "v.hef"), False, False, "breaks"),
        (("v", "litert", "tpu", "v.tflite"), False, False, "breaks"),
        (("v", "litert", "cpu", "v.tflite"), False, False, "goes on"),
        (("v", "openvino", "npu", "v.blob"), False, False, "breaks"),
        (("v", "openvino", "npu", "v.onnx"), False, True, "is compiled again"),
        (("v", "onnxruntime", "npu", "v.onnx"), True, False, "breaks"),
    ],
)
def test_what_a_change_does_follows_from_how_an_artefact_was_made(
    variant: tuple[str, str, str, str], holds_context: bool, compiles: bool, change: str
) -> None:
    engines = (
        EngineSpec(
            name="litert",
            version="2.3",
            accelerator="tpu",
            providers=(Provider(name="libedgetpu.so.1"),),
        ),
    )
    manifest = _manifest(msgspec.structs.replace(bundles.PROFILE, engines=engines))

    found, _ = ties.change_of(
        _variant(*variant), manifest, holds_context=holds_context, compiles=compiles
    )

    assert found == change


def test_a_library_older_than_the_tool_kit_of_an_artefact_is_a_problem() -> None:
    manifest = msgspec.structs.replace(_manifest(bundles.PROFILE), tools={"rknn-toolkit2": "2.5.0"})
    variant = _variant("npu", "rknn", "npu", "npu.rknn")

    assert "here is older: 2.3.0" in ties.problem_of(
        variant, manifest, drivers={"librknnrt": "2.3.0"}
    )
    assert ties.problem_of(variant, manifest, drivers={"librknnrt": "2.5.1"}) == ""
    assert ties.problem_of(variant, manifest, drivers={}) == ""


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(1, 4))
def test_a_version_fits_every_prefix_of_itself_and_no_other(numbers: list[int], kept: int) -> None:
    version = ".".join(map(str, numbers))
    prefix = ".".join(map(str, numbers[:kept]))

    assert checks.fits(version, prefix)
    assert not checks.fits(version, f"{numbers[0] + 1}")


@given(
    st.lists(
        st.sampled_from(["board", "engine", "bundle", "package", "trust", "fleet"]), max_size=5
    )
)
def test_the_gravest_finding_decides_what_the_command_ends_with(areas: list[Any]) -> None:
    found = verdict([Finding(area=area, subject=area, status="wrong") for area in areas])

    codes = {"bundle": 4, "engine": 5, "board": 2, "package": 2, "trust": 2, "fleet": 2}
    order = [4, 5, 2]
    expected = min((order.index(codes[area]) for area in areas), default=None)
    assert (found.exit_code if found else None) == (None if expected is None else order[expected])


def _variant(name: str, engine: str, accelerator: Any, file: str) -> Variant:
    return Variant(
        name=name,
        artifact=f"artifacts/{file}",
        engine=engine,
        accelerator=accelerator,
        precision="int8",
        needs=Needs(memory_mb=1),
        placement=Placement(),
        golden=Golden(reference_atol=1.0),
    )


def _manifest(profile: DeviceProfile) -> Manifest:
    spec = (TensorSpec(name="x", datatype="FP32", shape=(1,)),)
    return Manifest(
        name="m",
        version="1.0.0",
        profile=profile,
        model=Model(source_sha256="0" * 64, inputs=spec, outputs=spec),
        variants=(_variant("v", "onnxruntime", "cpu", "v.onnx"),),
    )
