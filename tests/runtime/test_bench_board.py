"""What a bench on a board carries, how it names a board, and how figures get into a report."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import bundle, errors
from edgekit.bundle import Bundle
from edgekit.errors import (
    EngineError,
    EngineNotInstalled,
    GoldenMismatch,
    IntegrityError,
    LinkError,
    UsageError,
)
from edgekit.signing import SigningKey
from edgekit_runtime.bench import Measured, Skipped
from edgekit_runtime.board import figures, replies, report, ship, ssh
from edgekit_runtime.board.conditions import Conditions, Reading
from edgekit_runtime.board.figures import Board, BoardBench
from edgekit_runtime.board.ssh import Destination
from tests import bundles

BOARD = Board(
    architecture="x86_64",
    bits=64,
    python="3.11.2",
    implementation="CPython",
    glibc="2.36",
    device_tree_model=None,
    processor="a processor <of sorts>",
    cores=4,
    memory_mb=8192,
    system="Debian",
    kernel="6.6",
)
BUILT: dict[str, Any] = {
    "variants": [
        {"name": "float", "evidence": "simulated", "latency_ms": None, "speedup": None},
        {"name": "gone", "evidence": "linted", "latency_ms": None},
    ],
    "notes": ["as it was built"],
}
PAGE = b"<html><body><main><p>no latency</p></main></body></html>\n"


def measured(*, void: tuple[str, ...] = (), unlike: tuple[str, ...] = ()) -> BoardBench:
    quiet = Reading(at_s=0.0)
    return BoardBench(
        at="2026-11-22T06:00:00Z",
        edgekit="0.1.0",
        device="pi@board",
        board=BOARD,
        profile="generic-x86_64",
        digests={},
        engines={"onnxruntime": "1.23.2"},
        packages={},
        results=(
            Measured(
                label="tiny 1.0.0 float",
                engine="onnxruntime",
                variant="float",
                runs=10,
                p50_ms=2.0,
                p90_ms=3.0,
                p99_ms=4.0,
                per_second=450.0,
                cpu_ms=2.5,
                memory_mb=12.0,
            ),
        ),
        skipped=(Skipped(label="tiny 1.0.0 <npu>", reason="no such engine"),),
        golden=(),
        conditions=Conditions(before=quiet, during=(), after=quiet),
        mismatches=unlike,
        void=void,
    )


@pytest.fixture
def built(tmp_path: Path) -> Bundle:
    """An unpacked bundle with the reports of a build."""
    plain = bundles.unpacked(tmp_path)
    entries: dict[str, bytes | Path] = {name: plain.path / name for name in plain.manifest.entries}
    path = tmp_path / "built.edge"
    reports = {"reports/report.json": json.dumps(BUILT).encode(), "reports/report.html": PAGE}
    bundle.write(path, plain.manifest, entries=entries, reports=reports, key=SigningKey.generate())
    with Bundle.open(path) as packed:
        return Bundle.open(packed.unpack(tmp_path / "built"))


def test_figures_get_into_the_report_and_the_digest_stays(built: Bundle, tmp_path: Path) -> None:
    key = SigningKey.generate()

    path = report.sign_into(built, measured(), key=key, folder=tmp_path / "out")

    with Bundle.open(path) as signed:
        assert signed.digest == built.digest
        assert signed.verify([key.public]).id == key.public.id
        told = json.loads(signed.read("reports/report.json"))
        page = signed.read("reports/report.html").decode()
        document = msgspec.json.decode(signed.read("reports/board.json"), type=BoardBench)
    mine, other = told["variants"]
    assert mine["latency_ms"] == {"p50": 2.0, "p99": 4.0}
    assert mine["evidence"] == mine["figure_evidence"]["latency_ms"] == "executed"
    assert mine["speedup"] == 1.0
    assert other == BUILT["variants"][1]
    assert told["notes"][0] == "as it was built"
    assert "a processor &lt;of sorts&gt;" in page
    assert "&lt;npu&gt;" in page
    assert document == measured()


def test_a_second_bench_replaces_the_first_in_the_report(built: Bundle, tmp_path: Path) -> None:
    key = SigningKey.generate()
    once = report.sign_into(built, measured(), key=key, folder=tmp_path / "once")
    with Bundle.open(once) as packed:
        unpacked = Bundle.open(packed.unpack(tmp_path / "again"))

    twice = report.sign_into(unpacked, measured(), key=key, folder=tmp_path / "twice")

    assert twice.read_bytes() == once.read_bytes()


def test_void_figures_and_those_of_another_board_stay_out(built: Bundle, tmp_path: Path) -> None:
    key = SigningKey.generate()

    with pytest.raises(EngineError, match="void: throttled"):
        report.sign_into(built, measured(void=("throttled",)), key=key, folder=tmp_path / "out")
    with pytest.raises(UsageError, match="not the board of this bundle: another"):
        report.sign_into(built, measured(unlike=("another",)), key=key, folder=tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_file_that_changed_since_it_ran_is_not_signed(built: Bundle, tmp_path: Path) -> None:
    (built.path / "artifacts" / "float.onnx").write_bytes(b"another model")

    with pytest.raises(IntegrityError, match=r"artifacts/float\.onnx changed"):
        report.sign_into(built, measured(), key=SigningKey.generate(), folder=tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_board_that_is_not_the_profiles_is_named() -> None:
    profile = msgspec.structs.replace(
        bundles.PROFILE,
        architecture="aarch64",
        identify=msgspec.convert(
            {"device_tree_model": "Raspberry Pi 5"}, type(bundles.PROFILE.identify)
        ),
    )

    architecture, model = figures.mismatches(profile, BOARD, {"onnxruntime": "1.23.2"})

    assert architecture == "profile generic-x86_64 is for aarch64, the board is x86_64"
    assert "Raspberry Pi 5" in model
    assert figures.mismatches(bundles.PROFILE, BOARD, {"onnxruntime": "1.23.2"}) == ()
    assert "ran 2.0" in figures.mismatches(bundles.PROFILE, BOARD, {"onnxruntime": "2.0"})[0]


@pytest.mark.parametrize(
    ("version", "prefix", "fits"),
    [("1.23.2", "1.23", True), ("1.23.2", "1.2", False), ("1.23.2", "1.23.2", True)],
)
def test_a_version_fits_a_prefix_by_its_numbers(version: str, prefix: str, fits: bool) -> None:
    assert figures.fits(version, prefix) is fits


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("pi@192.168.1.20", "pi@192.168.1.20", None),
        ("jetson", "jetson", None),
        ("root@board.local:2222", "root@board.local", 2222),
        ("pi@[fe80::1%eth0]:22", "pi@fe80::1%eth0", 22),
        ("pi@fe80::1", "pi@fe80::1", None),
    ],
)
def test_a_board_is_named_as_for_ssh(text: str, host: str, port: int | None) -> None:
    assert ssh.parse(text) == Destination(host=host, port=port)


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=id", "pi@-oProxyCommand=id", "a b", "pi@host;id", "pi@host:0", "h:99999",
     "$(id)@host", "host\n", "a@b@c", "pi@"],
)  # fmt: skip
def test_what_is_no_name_of_a_board_never_reaches_ssh(text: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        ssh.parse(text)


@given(st.text(max_size=30))
def test_a_name_that_passes_has_nothing_that_a_shell_or_ssh_reads(text: str) -> None:
    try:
        found = ssh.parse(text)
    except UsageError:
        return
    assert not found.host.startswith("-")
    assert not set(found.host) & set(" \t\n'\"\\$`;&|<>()*?!#~{}")


@pytest.mark.parametrize(
    "error", [GoldenMismatch("differs", hint="do not serve"), EngineNotInstalled("none")]
)
def test_an_error_of_the_board_is_the_same_error_here(error: errors.EdgekitError) -> None:
    line = json.dumps(replies.encode_error(error)).encode()

    with pytest.raises(type(error), match=f"on the board: {error.message}") as raised:
        replies.decode(line)

    assert raised.value.hint == error.hint


@given(st.binary(max_size=60))
def test_a_line_that_is_no_reply_is_an_error_of_the_link(line: bytes) -> None:
    try:
        assert isinstance(replies.decode(line), dict)
    except LinkError:
        return


def test_the_code_that_is_carried_is_the_same_each_time_and_without_the_fleet() -> None:
    first, second = ship.code(), ship.code()

    assert first == second
    with tarfile.open(first.path) as archive:
        names = archive.getnames()
    assert "edgekit/bundle.py" in names
    assert "edgekit_runtime/board/there.py" in names
    assert not [name for name in names if name.startswith(("edgekit/fleet", "edgekit_converters"))]


def test_a_board_gets_the_engine_that_its_profile_pins(tmp_path: Path) -> None:
    with Bundle.open(bundles.write(tmp_path)) as packed:
        engines = ship.engines_of([packed.manifest])

    wanted = ship.requirements(engines)

    assert "onnxruntime==1.*" in wanted
    assert not [line for line in wanted if line.startswith(("paho", "onnx>", "starlette"))]


def test_an_engine_from_elsewhere_needs_the_users_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "onnxruntime_gpu-1.23.0-cp310-cp310-linux_aarch64.whl"
    wheel.write_bytes(b"")
    engines = {"onnxruntime": "from NVIDIA's index"}

    with pytest.raises(UsageError, match="NVIDIA's index") as refused:
        ship.requirements(engines)

    assert "--wheels" in str(refused.value.hint)
    assert str(wheel) in ship.requirements(engines, wheels=[wheel])


@pytest.mark.parametrize(
    ("architecture", "glibc", "platform"),
    [
        ("aarch64", "2.35", "aarch64-manylinux_2_35"),
        ("aarch64", "2.30", "aarch64-manylinux_2_28"),
        ("x86_64", "2.99", "x86_64-manylinux_2_40"),
    ],
)
def test_wheels_are_for_the_boards_own_c_library(
    architecture: str, glibc: str, platform: str
) -> None:
    board = msgspec.structs.replace(BOARD, architecture=architecture, glibc=glibc)

    assert ship.platform_of(board) == platform


@pytest.mark.parametrize(
    "facts",
    [{"glibc": None}, {"architecture": "armv7l"}, {"bits": 32}, {"implementation": "PyPy"},
     {"glibc": "2.12"}],
)  # fmt: skip
def test_a_board_without_wheels_is_refused_by_name(facts: dict[str, object]) -> None:
    with pytest.raises(EngineNotInstalled, match="no engine has wheels"):
        ship.platform_of(msgspec.structs.replace(BOARD, **facts))


def test_two_bundles_that_pin_different_engines_do_not_share_a_run(tmp_path: Path) -> None:
    with Bundle.open(bundles.write(tmp_path)) as packed:
        one = packed.manifest
    engines = tuple(msgspec.structs.replace(engine, version="2") for engine in one.profile.engines)
    other = msgspec.structs.replace(
        one, profile=msgspec.structs.replace(one.profile, engines=engines)
    )

    with pytest.raises(UsageError, match="onnxruntime 1 and 2"):
        ship.engines_of([one, other])


def test_what_a_board_says_cannot_move_the_cursor() -> None:
    line = json.dumps(
        {"error": {"kind": "EngineError", "message": "a\x1b[2Jb\nc", "hint": None}}
    ).encode()

    with pytest.raises(EngineError) as raised:
        replies.decode(line)

    assert raised.value.message == "on the board: a\ufffd[2Jb\ufffdc"
