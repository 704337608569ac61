"""Root enrols for the user of a state folder, who gets an identity and nothing of root's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.clock import SystemClock
from edgekit.errors import ConfigError, StorageError
from edgekit.signing import SigningKey
from edgekit_runtime.identity import Identity, files
from edgekit_runtime.identity.enrol import enroll
from tests.fleet.enrolling import enrolling

USER = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can enrol for another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user can reach: pytest's own cannot be."""
    with tempfile.TemporaryDirectory(prefix="edgekit-root-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def state(place: Path) -> Path:
    """A state folder of the service's user."""
    folder = place / "state"
    folder.mkdir(mode=0o750)
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture
def secret(place: Path) -> Path:
    """A private key of root's."""
    path = place / "root.key"
    path.write_bytes(SigningKey.generate().pem())
    path.chmod(0o600)
    return path


class Attack(dict[str, bytes]):
    """Files of an identity; in the midst of their writing the folder's owner puts links there."""

    def __init__(self, state: Path, victim: Path) -> None:
        super().__init__({"a.pem": b"a", "b.pem": b"b"})
        self._state = state
        self._victim = victim

    def items(self):  # type: ignore[no-untyped-def]
        yield "a.pem", b"a"
        (fresh,) = self._state.glob(".identity-*")
        mine = self._state / "mine"
        fresh.rename(self._state / "away")
        mine.mkdir()
        (mine / "a.pem").symlink_to(self._victim)
        fresh.symlink_to(mine.name)
        yield "b.pem", b"b"


def test_an_identity_belongs_to_the_user_of_its_folder(place: Path, state: Path) -> None:
    with enrolling(place / "fleet") as office:
        enroll(
            state / "identity",
            office.token(),
            coordinator=office.url,
            name=None,
            clock=SystemClock(),
        )

    folder = Identity.read(state / "identity").folder
    for path in (state / "identity", folder, *folder.resolve().iterdir()):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (USER, USER), path
    assert (folder / "device.key").stat().st_mode & 0o777 == 0o600
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_a_link_in_place_of_a_file_gives_nothing_away(state: Path, secret: Path) -> None:
    files.switch(state / "identity", Attack(state, secret), check=lambda _: None)

    assert secret.stat().st_uid == 0
    assert os.geteuid() == 0


def test_a_link_to_a_folder_of_roots_gets_nothing_written_there(place: Path, state: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    (state / "nested").symlink_to(theirs)

    with pytest.raises(StorageError):
        files.switch(state / "nested" / "identity", {"a.pem": b"a"}, check=lambda _: None)

    assert list(theirs.iterdir()) == []


def test_a_key_of_roots_is_not_taken_for_the_one_that_waits(state: Path, secret: Path) -> None:
    (state / ".identity.pending-0011223344556677.key").symlink_to(secret)

    with pytest.raises(ConfigError, match="cannot be read"):
        files.pending_key(state / "identity", "0011223344556677")
