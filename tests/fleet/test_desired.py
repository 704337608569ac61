"""What devices shall serve is said until they report that they took it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgekit.fleet import desired, inventory
from edgekit.fleet.desired import Sender
from edgekit.fleet.store import Store
from edgekit.messages import Desired, Message, Reported, Status, Wanted
from tests.clock import ManualClock

DEVICE = "site/board-1"
BOOT = "00000000000000aa"
WANTED = Wanted(
    version="1.0.0", digest="sha256:" + "0" * 64, url="a", sha256="0" * 64, size_bytes=1
)


class Side:
    """The coordinator's side of one device, and what it published."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = ManualClock()
        self.said: list[Desired] = []
        self.sender = Sender(store=store, clock=self.clock, publish=self._publish)
        self.hear(Status(online=True, boot=BOOT, profile="jetson", version="1"))

    def _publish(self, topic: str, payload: bytes) -> bool:
        assert topic == f"edgekit/v1/{DEVICE}/state/desired"
        self.said.append(msgspec.json.decode(payload, type=Desired))
        return True

    def hear(self, body: Message) -> None:
        changes = inventory.Changes(now_ms=1)
        changes.add(DEVICE, body)
        with self.store.write() as connection:
            changes.write(connection)

    def ask(self) -> int:
        """Want something new."""
        with self.store.write() as connection:
            device = inventory.find(connection, DEVICE)
            return desired.assign(
                connection, device, model="tiny", wanted=WANTED, now_ms=self.clock.now_ms()
            )

    def flush(self, *, after_s: float) -> int:
        """How many messages went when that time has gone by."""
        before = len(self.said)
        self.clock.advance(after_s)
        assert self.sender.flush()
        return len(self.said) - before


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    store = Store.in_folder(tmp_path)
    yield Side(store)
    store.close()


def test_what_was_not_taken_is_said_again_more_and_more_rarely(side: Side) -> None:
    serial = side.ask()

    assert [side.flush(after_s=s) for s in (0, 9, 2, 18, 3, 38, 3)] == [1, 0, 1, 0, 1, 0, 1]
    assert {said.serial for said in side.said} == {serial}


DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("reported", "follows"),
    [(-5, False), (DAY_MS // 2, True), (2 * DAY_MS, False), ((1 << 53) - 1, False)],
)
def test_the_serial_is_by_the_clock_and_follows_a_device_for_a_day(
    side: Side, reported: int, follows: bool
) -> None:
    now_ms = side.clock.now_ms()
    taken = min(now_ms + reported, 1 << 53)
    side.hear(Reported(boot=BOOT, at=1, serial=taken))

    assert side.ask() == (taken + 1 if follows else now_ms)
    assert side.ask() == (taken + 2 if follows else now_ms + 1)


def test_what_was_taken_is_said_once(side: Side) -> None:
    serial = side.ask()
    assert side.flush(after_s=0) == 1
    side.hear(Reported(boot=BOOT, at=1, serial=serial))

    assert [side.flush(after_s=s) for s in (11, 100, 10_000)] == [0, 0, 0]


def test_a_device_that_is_away_is_waited_for(side: Side) -> None:
    side.ask()
    assert side.flush(after_s=0) == 1
    side.hear(Status(online=False, boot=BOOT))
    assert [side.flush(after_s=s) for s in (11, 11, 11)] == [0, 0, 0]
    side.hear(Status(online=True, boot=BOOT, profile="jetson", version="1"))

    assert side.flush(after_s=11) == 1


def test_a_new_wish_is_said_as_soon_as_the_first_was(side: Side) -> None:
    side.ask()
    assert [side.flush(after_s=s) for s in (0, 11, 21)] == [1, 1, 1]
    side.ask()

    assert [side.flush(after_s=s) for s in (0, 11)] == [1, 1]
