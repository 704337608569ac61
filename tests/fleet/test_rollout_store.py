"""Rollouts over a real store, by a clock moved by hand: how long a device may take, whose keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from edgekit import storage
from edgekit.fleet import inventory, repository, rollout_views
from edgekit.fleet.repository import Published
from edgekit.fleet.rollout_views import CanaryEnd, DeviceProgress, RolloutView
from edgekit.fleet.rollouts import Request, Rollouts
from edgekit.fleet.store import Store, events, to_json
from edgekit.fleet.tuf import rotate
from edgekit.fleet.tuf.served import FleetRepository
from edgekit.messages import ModelState, Reported, Status, UpdateState
from edgekit.signing import PublicKey
from tests.clock import ManualClock
from tests.runtime.hostile_repository import SignedFleet

BOOT, DEVICE, PROFILE = "00000000000000aa", "berlin/cam-1", "generic-x86_64"
OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64
TIMEOUT_S = 60.0


class Fleet:
    """A coordinator's store with one device that says what a test lets it say."""

    def __init__(self, folder: Path, *, release_key: Callable[[], str] | None = None) -> None:
        self.clock = ManualClock()
        self.store = Store.in_folder(folder)
        self._release_key = release_key
        self.start()
        changes = inventory.Changes(now_ms=self.clock.now_ms())
        changes.add(DEVICE, Status(online=True, boot=BOOT, profile=PROFILE))
        with self.store.write() as connection:
            changes.write(connection)

    def start(self) -> None:
        """As after a kill: all that is known is in the store."""
        self.rollouts = Rollouts(store=self.store, clock=self.clock, release_key=self._release_key)

    def publish(self) -> None:
        row = Published(
            name="tiny", version="2.0.0", profile=PROFILE, digest=NEW, file_sha256="1" * 64,
            size_bytes=1, signer="a key", trainable=False, published_ms=0,
        )  # fmt: skip
        with self.store.write() as connection:
            repository.record(connection, row)

    def create(self, version: str = "2.0.0") -> int:
        request = Request(model="tiny", version=version, timeout_s=TIMEOUT_S)
        return self.rollouts.create(request)

    def says(self, state: UpdateState, *, progress: float | None = None) -> None:
        is_new = state in ("active", "confirmed")
        model = ModelState(
            version="2.0.0" if is_new else "1.0.0",
            digest=NEW if is_new else OLD,
            state=state,
            target="2.0.0",
            target_digest=NEW,
            progress=progress,
        )
        now_ms = self.clock.now_ms()
        changes = inventory.Changes(now_ms=now_ms)
        changes.add(DEVICE, Reported(boot=BOOT, at=1, serial=1 << 50, models={"tiny": model}))
        with self.store.write() as connection:
            changes.write(connection)

    def tells(self, kind: str, message: str) -> None:
        """An event of its canary."""
        row = {
            "device": DEVICE, "at_ms": 0, "received_ms": self.clock.now_ms(), "kind": kind,
            "level": "info", "message": message,
            "facts": to_json({"model": "tiny", "version": "2.0.0"}),
        }  # fmt: skip
        with self.store.write() as connection:
            connection.execute(events.insert(), [row])

    def passes(self, seconds: float, *, steps: int = 1) -> None:
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            self.rollouts.step()

    def view(self, number: int) -> RolloutView:
        with self.store.read() as connection:
            return rollout_views.view(connection, number)

    def device(self, number: int) -> DeviceProgress:
        (found,) = self.view(number).devices
        return found


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    made.publish()
    yield made
    made.store.close()


def test_the_time_of_a_canary_is_not_counted_whoever_is_killed_meanwhile(fleet: Fleet) -> None:
    number = fleet.create()
    fleet.rollouts.step()
    fleet.passes(TIMEOUT_S * 0.8)
    fleet.says("canary", progress=0.25)
    fleet.passes(14_400, steps=500)
    assert (fleet.device(number).outcome, fleet.device(number).progress) == ("moving", 0.25)

    # Nobody looks for hours; what is reported meanwhile is found when the coordinator is back.
    fleet.start()
    fleet.passes(14_400)
    fleet.says("active")
    fleet.passes(TIMEOUT_S * 0.8, steps=10)
    assert fleet.view(number).state == "running"
    fleet.says("confirmed")
    fleet.rollouts.step()

    assert fleet.view(number).state == "done"


def test_a_device_that_takes_too_long_after_its_canary_has_failed(fleet: Fleet) -> None:
    number = fleet.create()
    fleet.rollouts.step()
    fleet.says("canary")
    fleet.passes(1000, steps=100)
    fleet.says("active")
    fleet.passes(TIMEOUT_S)

    assert fleet.view(number).state == "halted"
    assert fleet.device(number).reason == "timeout: not confirmed within 60 s (was active)"


@pytest.mark.parametrize(
    ("kind", "outcome"), [("canary_passed", "promoted"), ("canary_undecided", "undecided")]
)
def test_a_version_that_was_promoted_is_told_from_one_that_nobody_judged(
    fleet: Fleet, kind: str, outcome: Literal["promoted", "undecided"]
) -> None:
    fleet.tells("canary_passed", "tiny 2.0.0: of a rollout before")
    fleet.clock.advance(1)
    number = fleet.create()
    fleet.rollouts.step()
    assert fleet.device(number).canary is None
    fleet.says("confirmed")
    fleet.passes(1)
    fleet.tells(kind, "tiny 2.0.0: there were no live inputs within 60 s")

    ended = fleet.device(number)
    assert ended.outcome == "moved"
    detail = "there were no live inputs within 60 s"
    assert ended.canary == CanaryEnd(outcome=outcome, detail=detail)


def test_a_release_of_a_key_that_was_exchanged_is_rolled_out_with_a_warning(
    tmp_path: Path,
) -> None:
    signed = SignedFleet.make(tmp_path / "signed")
    storage.write(signed.fleet.trust_release, signed.release_key.public.pem)
    signed.publish("1.0.0")
    fleet = Fleet(tmp_path, release_key=lambda: PublicKey.read(signed.fleet.trust_release).id)
    served = FleetRepository(
        store=fleet.store, fleet=signed.fleet, work=tmp_path / "work", clock=signed.clock
    )
    served.notice()
    before = fleet.create("1.0.0")
    fleet.rollouts.abort(before)
    rotate.rotate(signed.fleet, ["release"], clock=signed.clock)
    signed.publish("1.1.0", seed=1)
    served.notice()
    old = fleet.create("1.0.0")
    fleet.rollouts.abort(old)
    new = fleet.create("1.1.0")

    assert fleet.view(before).warnings == fleet.view(new).warnings == ()
    (warning,) = fleet.view(old).warnings
    assert warning.startswith(f"tiny 1.0.0 for {PROFILE} was signed by a release key that was")
    assert "higher --version" in warning
    fleet.store.close()
