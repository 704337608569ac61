"""The boards that ship: what each must say, and the types that new kinds of boards need."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit import profile
from edgekit.errors import ProfileError
from edgekit.profile import DeviceProfile, Identify

NAMES = profile.names()
BOARDS = {name: profile.find(name) for name in NAMES}
PROMISED = """
jetson-orin-nano jetson-orin-nx jetson-agx-orin jetson-xavier-nx raspberry-pi-4 raspberry-pi-5
raspberry-pi-5-hailo8l coral-dev-board coral-usb imx8mp imx93 rk3588 rk3566 rv1106 qcs6490
intel-core-ultra intel-n100 generic-aarch64 generic-x86_64 arm-512mb
"""


def test_the_boards_that_were_promised_are_there() -> None:
    assert set(PROMISED.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_board_that_was_not_run_says_what_nobody_ran(name: str) -> None:
    quality = BOARDS[name].quality

    assert quality.verified
    assert quality.unverified
    assert all(source.startswith("https://") for source in quality.sources)
    assert quality.evidence != "executed" or name == "generic-x86_64"


@pytest.mark.parametrize("name", NAMES)
def test_the_daemon_runs_on_a_python_that_it_supports_or_not_at_all(name: str) -> None:
    board = BOARDS[name]

    if board.runtime == "artefact-only":
        assert board.daemon_python is None
    else:
        assert board.daemon_python in {"3.10", "3.11", "3.12", "3.13"}


@pytest.mark.parametrize("name", ["jetson-xavier-nx", "coral-dev-board"])
def test_a_board_with_an_old_python_runs_the_daemon_in_a_container(name: str) -> None:
    board = BOARDS[name]

    assert board.runtime == "container"
    assert board.container is not None
    assert board.daemon_python == board.container.python != board.python


@pytest.mark.parametrize("name", ["rv1106", "ethos-u55-128", "ethos-u85-256"])
def test_a_board_without_the_daemon_only_takes_the_artefact(name: str) -> None:
    assert BOARDS[name].runtime == "artefact-only"
    assert not BOARDS[name].is_this_machine()


@pytest.mark.parametrize("name", NAMES)
def test_no_other_machine_is_taken_for_a_board(name: str) -> None:
    board = BOARDS[name]
    # Any 64-bit Arm board can have a Coral in its USB port.
    any_machine = name.startswith("generic-") or name == "coral-usb"

    if board.runtime != "artefact-only":
        assert (board.identify == Identify()) is any_machine
    assert name == "generic-x86_64" or board.architecture != "x86_64" or board.identify.cpu_model


@pytest.mark.parametrize("name", NAMES)
def test_no_two_boards_with_a_model_name_are_taken_for_each_other(name: str) -> None:
    mine = BOARDS[name].identify.device_tree_model
    others = [
        board.name
        for board in BOARDS.values()
        if mine is not None and board.identify.device_tree_model == mine
    ]

    # A board with an accelerator plugged in is the same board.
    assert others in ([], [name], ["raspberry-pi-5", "raspberry-pi-5-hailo8l"])


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("container", {"image": "a:1"}, "missing required field `python`"),
        ("container", {"image": "a:1", "python": "2.7"}, r"container\.python"),
        ("container", {"image": "", "python": "3.11"}, r"container\.image"),
        ("architecture", "armv6l", "Invalid enum value 'armv6l'"),
        ("title", "", "title"),
        ("runtime", "docker", "Invalid enum value 'docker'"),
    ],
)
def test_a_wrong_field_of_a_board_is_named(field: str, value: object, match: str) -> None:
    tree = msgspec.to_builtins(BOARDS["generic-aarch64"])
    tree[field] = value

    with pytest.raises(ProfileError, match=match):
        profile.resolve("generic-aarch64", tree)


def test_the_merged_tree_of_a_file_is_what_its_fields_are_read_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    parent = profile.search_path()[-1] / "generic-aarch64.yaml"
    path.write_text(
        "name: mine\nextends: generic-aarch64\nmemory_mb: 4096\n"
        'quality: {evidence: linted, checked: "2026-11-22", sources: ["https://a.example"]}\n'
    )

    tree = profile.merged(path)

    assert msgspec.convert(tree, DeviceProfile) == profile.read(path)
    assert tree["engines"] == profile.merged(parent)["engines"]
