"""Which devices have no rights any more, in the store, and what that means for whoever asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import FleetError
from edgekit.fleet import inventory, overview, rights
from edgekit.fleet.store import Store
from edgekit.messages import Status


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.in_folder(tmp_path)
    yield opened
    opened.close()


def says_it_is_there(store: Store, *devices: str) -> None:
    changes = inventory.Changes(now_ms=1)
    for device in devices:
        body = Status(online=True, boot="00000000000000aa", profile="p", version="0.1.0")
        changes.add(device, body)
    with store.write() as connection:
        changes.write(connection)


def settle(store: Store, *enrolled: str, ever: tuple[str, ...] = ()) -> None:
    with store.write() as connection:
        rights.settle(connection, enrolled=enrolled, ever={*enrolled, *ever})


def counted(store: Store) -> tuple[int, int]:
    with store.read() as connection:
        return overview.count_devices(connection)


def device(store: Store, name: str) -> inventory.Device:
    with store.read() as connection:
        return inventory.find(connection, name)


def test_who_is_not_enrolled_is_revoked_and_offline_and_not_counted(store: Store) -> None:
    says_it_is_there(store, "s/a", "s/b")

    settle(store, "s/a")

    assert (device(store, "s/b").revoked, device(store, "s/b").online) == (True, False)
    assert (device(store, "s/a").revoked, device(store, "s/a").online) == (False, True)
    assert counted(store) == (1, 1)
    with store.read() as connection:
        assert [one.device for one in inventory.every(connection, revoked=False)] == ["s/a"]
        assert [one.device for one in inventory.every(connection)] == ["s/a", "s/b"]
        with pytest.raises(FleetError, match="s/b was revoked"):
            inventory.find_enrolled(connection, "b")


def test_what_was_on_its_way_when_a_device_was_revoked_brings_it_not_back(store: Store) -> None:
    settle(store, "s/a", ever=("s/late",))

    says_it_is_there(store, "s/a", "s/late")

    assert (device(store, "s/late").revoked, device(store, "s/late").online) == (True, False)
    assert counted(store) == (1, 1)


def test_a_device_that_enrols_anew_has_its_rights_and_is_offline_until_it_speaks(
    store: Store,
) -> None:
    says_it_is_there(store, "s/a")
    settle(store)
    assert counted(store) == (0, 0)

    settle(store, "s/a")

    assert (device(store, "s/a").revoked, device(store, "s/a").online) == (False, False)
    says_it_is_there(store, "s/a")
    assert counted(store) == (1, 1)


def test_a_store_of_before_gets_its_marks(tmp_path: Path) -> None:
    before = Store.in_folder(tmp_path)
    says_it_is_there(before, "s/a")
    with before.write() as connection:
        connection.exec_driver_sql("DROP TABLE revoked")
    before.close()

    after = Store.in_folder(tmp_path)
    settle(after)

    assert device(after, "s/a").revoked
    after.close()
