"""Slots on disk: what a kill leaves is cleaned up, what is readable is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import StorageError
from edgekit.messages import Desired, Wanted
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.lock import StateLock, is_running
from edgekit_runtime.slots import RECORD, SETTLED, Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles

MODEL = "tiny"


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "state")


def install(slots: Slots, folder: Path, slot: str, version: str) -> Installed:
    assert slot in ("a", "b")
    path = bundles.write(folder, name=MODEL, version=version)
    with Bundle.open(path) as bundle:
        slots.install(MODEL, "a" if slot == "a" else "b", bundle)
        return Installed(version=version, digest=bundle.digest)


def test_a_model_that_was_never_installed_has_an_empty_record(slots: Slots) -> None:
    assert slots.read(MODEL) == Record()
    assert slots.names() == []


def test_a_record_is_read_back_as_it_was_written(slots: Slots, tmp_path: Path) -> None:
    held = install(slots, tmp_path, "a", "1.0.0")
    slots.write(MODEL, Record(slots={"a": held}, active="a"))

    assert Slots(tmp_path / "state").read(MODEL).serving == held
    assert slots.names() == [MODEL]


def test_what_a_kill_left_behind_is_removed(slots: Slots, tmp_path: Path) -> None:
    held = install(slots, tmp_path, "a", "1.0.0")
    install(slots, tmp_path, "b", "1.1.0")
    slots.write(MODEL, Record(slots={"a": held}, active="a"))
    home = slots.folder(MODEL, "a").parent
    (home / ".b.123.tmp" / "artifacts").mkdir(parents=True)
    (home / ".state.json.12ab.tmp").write_bytes(b"{")

    slots.tidy()

    assert sorted(path.name for path in home.iterdir()) == ["a", SETTLED, RECORD]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"active": "a"}', b"\xff\xfe", b'{"active": "c"}'])
def test_a_damaged_record_is_rebuilt_from_the_slots_that_open(
    slots: Slots, tmp_path: Path, raw: bytes
) -> None:
    old = install(slots, tmp_path, "b", "1.0.0")
    new = install(slots, tmp_path, "a", "1.1.0")
    (slots.folder(MODEL, "a").parent / RECORD).write_bytes(raw)

    record = slots.read(MODEL)

    assert (record.serving, record.previous) == (new, "b")
    assert record.slots["b"] == old


def test_a_rebuilt_record_leaves_a_damaged_slot_out(slots: Slots, tmp_path: Path) -> None:
    install(slots, tmp_path, "b", "1.0.0")
    install(slots, tmp_path, "a", "1.1.0")
    (slots.folder(MODEL, "a") / "manifest.json").write_bytes(b"{}")
    (slots.folder(MODEL, "a").parent / RECORD).write_bytes(b"")

    record = slots.read(MODEL)

    assert set(record.slots) == {"b"}
    assert record.active == "b"


def test_a_request_to_go_back_waits_until_it_is_answered(slots: Slots) -> None:
    slots.ask("lite0.v1", "rollback")
    assert slots.asked("rollback") == ["lite0.v1"]
    assert slots.asked("cancel") == []

    slots.answered("lite0.v1", "rollback")
    assert slots.asked("rollback") == []


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match="file"):
        Slots(tmp_path / "file").ask("tiny", "rollback")


def test_two_daemons_cannot_share_a_state_folder(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    first = StateLock(tmp_path)
    assert is_running(tmp_path)

    with pytest.raises(StorageError, match="another daemon"):
        StateLock(tmp_path, attempts=1)

    first.close()
    assert not is_running(tmp_path)


def wish(serial: int, version: str = "1.0.0") -> Desired:
    what = Wanted(
        version=version,
        digest="sha256:" + "0" * 64,
        url="x",
        sha256="0" * 64,
        size_bytes=1,
    )
    return Desired(serial=serial, models={MODEL: what})


def test_what_is_wanted_survives_a_restart(tmp_path: Path) -> None:
    desired = DesiredState(tmp_path)
    assert desired.offer(wish(3))
    assert desired.serial == 0
    assert desired.take()

    assert DesiredState(tmp_path).serial == 3
    assert DesiredState(tmp_path).models == wish(3).models


def test_an_older_or_known_wish_is_not_taken(tmp_path: Path) -> None:
    desired = DesiredState(tmp_path)
    desired.offer(wish(3))
    desired.take()

    assert not desired.offer(wish(2))
    assert not desired.offer(wish(3))
    assert not desired.offer(wish(3, version="1.1.0"))
    assert desired.offer(wish(4, version="1.1.0"))


def test_a_damaged_wish_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "desired.json").write_bytes(b"{")

    assert DesiredState(tmp_path).serial == 0
