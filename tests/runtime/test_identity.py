"""A device's identity: read, renewed in time, and whole on disk whatever is cut off when."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.clock import SystemClock
from edgekit.errors import ConfigError, LinkError, StorageError
from edgekit.signing import SigningKey
from edgekit_runtime.identity import Identity, Renewal, files, validity
from edgekit_runtime.identity.enrol import enroll
from edgekit_runtime.identity.renewal import renew
from edgekit_runtime.identity.validity import EARLIEST_MS, Validity
from tests.clock import ManualClock
from tests.fleet.enrolling import DAY_S, NOW_MS, Enrolling, enrolling
from tests.fleet.processes import edgekit
from tests.kills import killed_after

DAY_MS = 86_400_000
_MEMORY = Path("/dev/shm")
MOMENTS = st.integers(0, 10**13)
SPREADS = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is such: hundreds of kills wait for a disk too long."""
    with tempfile.TemporaryDirectory(
        prefix="edgekit-identity-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shared(memory: Path) -> Iterator[Enrolling]:
    with enrolling(memory / "fleet") as made:
        yield made


@pytest.fixture
def office(shared: Enrolling) -> Iterator[Enrolling]:
    yield shared
    shared.wire.lose = 0


@pytest.fixture
def identity(office: Enrolling, tmp_path: Path) -> Identity:
    return enrolled(office, tmp_path / "identity")


def enrolled(office: Enrolling, folder: Path) -> Identity:
    return enroll(folder, office.token(), coordinator=office.url, name=None, clock=office.clock)


# Reading.


def test_a_folder_without_an_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no identity") as caught:
        Identity.read(tmp_path / "identity")
    assert caught.value.hint is not None
    assert "device enroll" in caught.value.hint


def test_files_that_do_not_fit_together_are_no_identity(
    identity: Identity, office: Enrolling, tmp_path: Path
) -> None:
    other = enrolled(office, tmp_path / "other" / "identity")
    for name, match in (("device.crt", "is not the key of"), ("device.key", "is not the key of")):
        kept = (identity.folder / name).read_bytes()
        (identity.folder / name).write_bytes((other.folder / name).read_bytes())
        with pytest.raises(ConfigError, match=match):
            Identity.read(identity.folder)
        (identity.folder / name).write_bytes(kept)
    (identity.folder / "fleet.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"fleet\.json"):
        Identity.read(identity.folder)


def test_a_key_that_others_can_read_is_refused(identity: Identity) -> None:
    (identity.folder / "device.key").chmod(0o644)

    with pytest.raises(ConfigError, match="can be read by others"):
        Identity.read(identity.folder)


def test_no_two_devices_can_guess_each_others_client_id(
    identity: Identity, office: Enrolling, tmp_path: Path
) -> None:
    again = enrolled(office, tmp_path / "again" / "identity")

    assert identity.client_id.startswith("berlin-cam-")
    assert identity.client_id != again.client_id
    assert Identity.read(identity.folder).client_id == identity.client_id


# The rules of time.


@given(starts=MOMENTS, lifetime=st.integers(1, 4000 * DAY_MS), spread=SPREADS)
def test_a_renewal_is_due_well_before_the_end(starts: int, lifetime: int, spread: float) -> None:
    held = Validity(starts, starts + lifetime)

    due_ms = validity.due_at_ms(held, spread=spread)

    assert starts + 0.6 * lifetime <= due_ms + 1
    assert due_ms <= starts + 0.72 * lifetime + 1


@given(now=MOMENTS, starts=MOMENTS, lifetime=st.integers(1, 4000 * DAY_MS))
def test_a_clock_before_the_certificate_is_wrong_and_after_it_has_expired(
    now: int, starts: int, lifetime: int
) -> None:
    found = validity.standing(Validity(starts, starts + lifetime), now_ms=now)

    assert (found == "clock_wrong") == (now < starts or now < EARLIEST_MS)
    assert (found == "valid") == (now >= EARLIEST_MS and starts <= now <= starts + lifetime)


@given(now=MOMENTS, starts=MOMENTS, lifetime=st.integers(1, 4000 * DAY_MS), spread=SPREADS,
       failed=st.booleans())  # fmt: skip
def test_turns_are_a_minute_to_an_hour_apart(
    now: int, starts: int, lifetime: int, spread: float, failed: bool
) -> None:
    held = Validity(starts, starts + lifetime)

    assert 60 <= validity.next_turn_s(held, now_ms=now, spread=spread, failed=failed) <= 3600


# Turns.


class Turns:
    """A renewal, what it told, and how often it had the link connect anew."""

    def __init__(self, identity: Identity, clock: ManualClock) -> None:
        self.told: list[str] = []
        self.connected = 0
        self.renewal = Renewal(
            identity.folder, clock=clock, rng=Random(1), events=self._event, reconnect=self._again
        )

    def _event(self, kind: str, message: str, *, level: str = "info", **facts: object) -> None:
        assert message
        self.told.append(kind)

    def _again(self) -> None:
        self.connected += 1


def test_nothing_happens_before_two_thirds_of_the_lifetime(
    identity: Identity, office: Enrolling
) -> None:
    turns = Turns(identity, office.clock)
    office.clock.advance(50 * DAY_S)

    turns.renewal.turn()

    assert (turns.told, turns.connected) == ([], 0)
    assert Identity.read(identity.folder).expires_at_ms == identity.expires_at_ms


def test_a_certificate_is_renewed_in_time_and_the_link_connects_with_it(
    identity: Identity, office: Enrolling
) -> None:
    turns = Turns(identity, office.clock)
    office.clock.advance(66 * DAY_S)

    turns.renewal.turn()
    turns.renewal.turn()

    assert (turns.told, turns.connected) == (["certificate_renewed"], 1)
    assert Identity.read(identity.folder).expires_at_ms > identity.expires_at_ms


def test_a_coordinator_that_does_not_answer_is_asked_again(
    identity: Identity, office: Enrolling
) -> None:
    turns = Turns(identity, office.clock)
    office.clock.advance(66 * DAY_S)
    office.wire.lose = 2

    waits_s = [turns.renewal.turn() for _ in range(3)]

    assert turns.told == ["renewal_failed", "certificate_renewed"]
    assert all(wait_s <= 3600 for wait_s in waits_s)


def test_an_expired_certificate_is_told_once_and_nothing_else_ends(
    identity: Identity, office: Enrolling
) -> None:
    turns = Turns(identity, office.clock)
    office.clock.advance(91 * DAY_S)

    turns.renewal.turn()
    turns.renewal.turn()

    assert turns.told == ["certificate_expired"]
    assert Identity.read(identity.folder).name == "berlin/cam"


@pytest.mark.parametrize("now_ms", [0, NOW_MS - 365 * DAY_MS])
def test_a_clock_that_is_behind_is_told(identity: Identity, now_ms: int) -> None:
    turns = Turns(identity, ManualClock(now_ms=now_ms))

    turns.renewal.turn()

    assert turns.told == ["clock_wrong"]


def test_a_thread_of_turns_ends_when_told(identity: Identity, office: Enrolling) -> None:
    turns = Turns(identity, office.clock)
    turns.renewal.start()
    turns.renewal.close(timeout_s=5)

    assert turns.told == []


# On disk.


def test_a_folder_of_something_else_is_left_alone(office: Enrolling, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir()
    (folder / "precious").write_text("mine")

    with pytest.raises(ConfigError, match="not made by an enrolment"):
        enrolled(office, folder)

    assert (folder / "precious").read_text() == "mine"


def test_an_empty_folder_may_stand_there(office: Enrolling, tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()

    assert enrolled(office, tmp_path / "identity").name == "berlin/cam"


def test_an_identity_that_is_not_whole_changes_nothing(identity: Identity) -> None:
    with pytest.raises(ConfigError):
        files.switch(
            identity.folder,
            {"device.key": SigningKey.generate().pem()},
            check=Identity.read,
        )

    assert Identity.read(identity.folder).client_id == identity.client_id
    assert [path.name for path in identity.folder.parent.glob(".identity*")] == [
        os.readlink(identity.folder)
    ]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_kill_at_any_moment_of_an_enrolment_leaves_none_and_it_works_again(
    office: Enrolling, memory: Path
) -> None:
    ended, kills = False, 0
    while not ended:
        folder, token = memory / str(kills) / "identity", office.token()

        def work(folder: Path = folder, token: object = token) -> object:
            return enroll(
                folder,
                token,  # type: ignore[arg-type]
                coordinator=office.url,
                name=None,
                clock=SystemClock(),
            )

        ended = killed_after(kills, work)
        if folder.exists():
            assert Identity.read(folder).name == "berlin/cam"
        else:
            assert not ended
            enroll(folder, token, coordinator=office.url, name=None, clock=SystemClock())
            assert Identity.read(folder).name == "berlin/cam"
            left = {path.name for path in folder.parent.iterdir()}
            assert left == {"identity", os.readlink(folder)}
        kills += 1
    assert kills > 20


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_kill_at_any_moment_of_a_renewal_leaves_the_old_identity_or_the_new_one(
    office: Enrolling, memory: Path
) -> None:
    identity = enrolled(office, memory / "renewed" / "identity")
    office.clock.advance(50 * DAY_S)
    ended, kills = False, 0
    while not ended:
        before = Identity.read(identity.folder)

        def work(before: Identity = before) -> None:
            renew(before, clock=SystemClock())

        ended = killed_after(kills, work)
        after = Identity.read(identity.folder)
        assert after.expires_at_ms >= before.expires_at_ms
        if after.expires_at_ms > before.expires_at_ms:
            office.clock.advance(50 * DAY_S)
        kills += 1
    assert after.expires_at_ms > before.expires_at_ms
    assert kills > 20


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_disk_without_room_is_told_and_leaves_the_old_identity(
    identity: Identity, office: Enrolling
) -> None:
    office.clock.advance(50 * DAY_S)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with pytest.raises(StorageError, match="cannot be written"):
            renew(identity, clock=SystemClock())

    assert killed_after(sys.maxsize, work)
    assert Identity.read(identity.folder).client_id == identity.client_id
    assert [path.name for path in identity.folder.parent.glob(".identity*")] == [
        os.readlink(identity.folder)
    ]


# The command.


def test_a_token_is_read_from_a_file_and_never_shown(office: Enrolling, tmp_path: Path) -> None:
    token = office.token("cam")
    (tmp_path / "token").write_text(f"{token.text}\n")

    done = edgekit(
        *("device", "enroll", "--token-file", str(tmp_path / "token")),
        *("--coordinator", office.url, "--state", str(tmp_path / "state")),
    )

    # The office's clock stands in the past of the command's, which does not look at it here.
    assert done.returncode == 0, done.stderr
    assert token.secret.hex() not in done.stdout + done.stderr
    assert Identity.read(tmp_path / "state" / "identity").name == "berlin/cam"


def test_a_device_that_is_configured_as_another_is_refused(
    office: Enrolling, tmp_path: Path
) -> None:
    config = tmp_path / "device.toml"
    config.write_text(
        '[device]\nsite = "berlin"\nid = "other"\nprofile = "generic"\n'
        f'[state]\nfolder = "{tmp_path}/state"\n'
        f'[fleet]\nidentity = "{tmp_path}/state/identity"\n'
    )
    (tmp_path / "token").write_text(office.token("cam").text)

    done = edgekit(
        *("device", "enroll", "--token-file", str(tmp_path / "token")),
        *("--coordinator", office.url, "--config", str(config)),
    )

    assert done.returncode == 8
    assert "this token is for berlin/cam, and berlin/other asks" in done.stderr


def test_no_coordinator_is_told_as_a_link_error(tmp_path: Path, office: Enrolling) -> None:
    with pytest.raises(LinkError, match="no coordinator answers"):
        enroll(
            tmp_path / "identity",
            office.token(),
            coordinator="http://127.0.0.1:1",
            name=None,
            clock=office.clock,
        )
