"""Old metadata goes, and whatever a device may still ask for stays.

Who judges is a device's own client over a static server, as in `test_tuf`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from edgekit.fleet.tuf import publish, refresh, roles, rotate, sweep
from edgekit_runtime.trusted import __main__ as child
from edgekit_runtime.trusted.repository import LIMIT_BYTES, outcome
from edgekit_runtime.trusted.target import Request, Target
from tests.clock import ManualClock
from tests.runtime.hostile_repository import DAY_S, Handler, Server, SignedFleet, says

PATH = "tiny/{}/generic-x86_64.edge"
YEAR_2026 = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with an empty repository, made four weeks ago; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    SignedFleet.make(folder, clock=days_ago(28))
    return folder


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> SignedFleet:
    return SignedFleet(Path(shutil.copytree(made, tmp_path / "work")), clock=days_ago(28))


@pytest.fixture
def server(signed: SignedFleet) -> Iterator[Server]:
    with Server(signed.fleet.repository) as running:
        yield running


def days_ago(days: float) -> ManualClock:
    return ManualClock(now_ms=round((time.time() - days * DAY_S) * 1000))


def find(signed: SignedFleet, server: Server, version: str, *, device: str = "device") -> Target:
    """What a device finds."""
    request = Request(
        path=PATH.format(version),
        urls=(server.url,),
        root=signed.fleet.trust_root,
        state=signed.work / device,
        ca=None,
        limit_s=20.0,
        limit_bytes=LIMIT_BYTES,
    )
    return outcome(child.answer(request))


def names(signed: SignedFleet) -> set[str]:
    return {path.name for path in signed.fleet.metadata.iterdir()}


def test_a_repository_does_not_grow_with_its_age(signed: SignedFleet, server: Server) -> None:
    at = {}
    for day in range(28, 0, -2):
        signed.at(days_ago(day))
        signed.publish(f"1.{day}.0")
        at[day] = len(names(signed))

    # Two bins and a snapshot of the last week's releases are all that is kept beside the current.
    assert at[2] == at[14]
    assert at[2] < at[20] + 3
    for day in range(28, 0, -2):
        assert find(signed, server, f"1.{day}.0").path == PATH.format(f"1.{day}.0")


def test_whatever_a_timestamp_names_that_has_not_expired_is_there(signed: SignedFleet) -> None:
    shown: list[Timestamp] = []
    for number, day in enumerate((28, 25.5, 21.5, 21, 20.9, 17, 14, 13, 8, 7.5, 6, 3, 1)):
        signed.at(days_ago(day))
        if number % 4 == 3:
            refresh.refresh(signed.fleet, clock=signed.clock, every=True)
        elif number % 4 == 2:
            rotate.rotate(signed.fleet, ["online", "release"], clock=signed.clock)
        else:
            signed.publish(f"1.{number}.0")
        file = signed.fleet.metadata / f"{roles.TIMESTAMP}.json"
        shown.append(Metadata[Timestamp].from_file(str(file)).signed)

        present, now = names(signed), roles.now(signed.clock)
        for timestamp in shown:
            if timestamp.expires.replace(tzinfo=timezone.utc) >= now:
                version = timestamp.snapshot_meta.version
                assert f"{version}.snapshot.json" in present
                snapshot = Metadata[Snapshot].from_file(
                    str(signed.fleet.metadata / f"{version}.snapshot.json")
                )
                needed = {f"{meta.version}.{name}" for name, meta in snapshot.signed.meta.items()}
                assert needed <= present
    assert {f"{number}.root.json" for number in range(1, 5)} <= names(signed)
    assert "1.snapshot.json" not in names(signed)


def test_a_device_in_the_middle_of_a_look_finds_what_its_timestamp_names(
    signed: SignedFleet, server: Server
) -> None:
    signed.publish("1.0.0")
    signed.at(days_ago(6.5))
    signed.publish("1.1.0")
    timestamp = (signed.fleet.metadata / "timestamp.json").read_bytes()

    def publish_and_answer(handler: Handler) -> None:
        signed.at(days_ago(0))
        signed.publish("1.2.0")
        says(timestamp)(handler)

    server.bent["metadata/timestamp.json"] = publish_and_answer

    assert find(signed, server, "1.1.0").path == PATH.format("1.1.0")
    assert len(targets(signed)) == 3
    assert "metadata/3.snapshot.json" in server.asked
    assert "1.snapshot.json" not in names(signed)


def targets(signed: SignedFleet) -> list[Path]:
    return list(signed.fleet.targets.rglob("*.edge"))


def test_a_device_that_slept_follows_roots_and_finds_what_is_new(
    signed: SignedFleet, server: Server
) -> None:
    signed.publish("1.0.0")
    # The device's clock is the true one: what it saw last must not have expired for it.
    signed.at(days_ago(1))
    refresh.refresh(signed.fleet, clock=signed.clock, every=True)
    find(signed, server, "1.0.0")
    for name in ("root-1", "online", "release", "targets"):
        rotate.rotate(signed.fleet, [name], clock=signed.clock)
    signed.at(days_ago(0))
    signed.publish("1.1.0")

    assert find(signed, server, "1.1.0").path == PATH.format("1.1.0")
    assert find(signed, server, "1.0.0", device="a new device").path == PATH.format("1.0.0")


def test_signing_again_removes_what_is_old_and_says_how_much(
    signed: SignedFleet, server: Server
) -> None:
    rotate.rotate(signed.fleet, ["release"], clock=signed.clock)
    before = names(signed)
    signed.at(days_ago(0))

    done = refresh.refresh(signed.fleet, clock=signed.clock)

    # The snapshot before the exchange, targets, releases and each bin were all signed anew.
    assert done.removed == 2**roles.BIN_BITS + 3
    assert len(before - names(signed)) == done.removed
    assert not any(name.endswith(".root.json") for name in before - names(signed))
    assert refresh.refresh(signed.fleet, clock=signed.clock).removed == 0


def test_no_target_goes(signed: SignedFleet, server: Server) -> None:
    for day, seed in ((28, 0), (20, 1), (10, 2), (0, 3)):
        signed.at(days_ago(day))
        signed.publish(f"1.{seed}.0", seed=seed)

    assert len(targets(signed)) == 4
    refresh.refresh(signed.fleet, clock=signed.clock, every=True)
    assert len(targets(signed)) == 4


def test_the_version_of_a_change_that_was_killed_is_never_given_again(
    signed: SignedFleet, server: Server
) -> None:
    """Its files were signed, and somebody may have fetched them: they are never equalled."""
    signed.publish("1.0.0")
    orphan = signed.fleet.metadata / "9000.releases-00.json"
    shutil.copyfile(next(signed.fleet.metadata.glob("*.releases-00.json")), orphan)
    signed.at(days_ago(1))

    refresh.refresh(signed.fleet, clock=signed.clock)
    assert orphan.exists()

    signed.publish("1.1.0")
    assert not orphan.exists()
    assert max(int(name.split(".")[0]) for name in names(signed) - {"timestamp.json"}) > 9000
    assert find(signed, server, "1.1.0").path == PATH.format("1.1.0")


def test_a_snapshot_that_is_damaged_helps_nobody_and_goes(
    signed: SignedFleet, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    signed.publish("1.0.0")
    (signed.fleet.metadata / "1.snapshot.json").write_bytes(b"{")
    signed.publish("1.1.0")

    assert "an old snapshot cannot be read" in caplog.text
    assert "1.snapshot.json" not in names(signed)
    assert publish.publish(signed.fleet, signed.bundle("1.1.0"), clock=signed.clock).new is False


moments = st.integers(-400, 400).map(lambda days: YEAR_2026 + timedelta(days=days))


@given(st.dictionaries(st.integers(1, 30), moments, min_size=1, max_size=12), moments)
def test_the_current_snapshot_is_always_needed_and_a_recent_one_too(
    signed: dict[int, datetime], now: datetime
) -> None:
    current = max(signed)

    found = sweep.needed(signed, current=current, now=now)

    assert current in found
    assert found <= set(signed)
    lifetime = roles.valid_for(roles.TIMESTAMP)
    for version, at in signed.items():
        if at + lifetime >= now:
            assert version in found
