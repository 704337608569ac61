"""Client: one target from one repository, by the rules of TUF and of what was proven before.

The rules and their order are those of TUF's library (python-tuf's `Updater`, the specification's
detailed client workflow). Added here: the time by which expiry is judged, and the mark that must
not go back (`proven`).
"""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import TargetFile, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from edgekit import released
from edgekit.errors import FleetError
from edgekit_runtime.trusted import proven
from edgekit_runtime.trusted.fetcher import Fetcher
from edgekit_runtime.trusted.proven import Proven

SIGNED_AT = "x-edgekit-signed-at-ms"
METADATA_FOLDER = "metadata"
# Above what edgekit writes for a hundred thousand targets, below what a board feels.
CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=64 << 10,
    timestamp_max_length=16 << 10,
    snapshot_max_length=256 << 10,
    targets_max_length=2 << 20,
    app_user_agent="edgekitd",
)
_RELEASES, _CANDIDATES = "releases", "candidates"


class RootDamaged(FleetError):
    """The root that this device trusted first cannot be read any more."""


class NotThere(FleetError):
    """The repository is to be trusted, and does not have the target."""


class Signed(NamedTuple):
    """What is signed for a path: size and sha256, the rest of it, and whose word it is."""

    file: TargetFile
    sha256: str
    custom: released.Custom
    keys: tuple[str, ...]


class _Updater(Updater):
    """The library's client, with the two things of it that it does not offer."""

    @property
    def trusted(self) -> TrustedMetadataSet:
        """What was verified so far."""
        return self._trusted_set

    def judge_by(self, at: datetime) -> None:
        """Judge every expiry by `at` and not by the board's clock."""
        self._trusted_set.reference_time = at


class Client:
    """A repository as one process sees it.

    Args:
        url: base of the repository; ends in `/`.
        root: content of the root that this device trusted first.
        state: folder of metadata and mark.
        wall: what this board's clock says.
    """

    def __init__(
        self, url: str, *, root: bytes, state: Path, wall: datetime, fetcher: Fetcher
    ) -> None:
        self._url = url
        self._root = root
        self._state = state
        self._fetcher = fetcher
        self._wall = wall
        self.proven = proven.read(state)
        self.reference = max(wall, self._proven_at)

    def find(self, path: str) -> Signed:
        """What is signed for a target path; what it proves is kept.

        Raises:
            RepositoryError, DownloadError: of TUF's library.
            NotThere: the path is not signed for.
            RootDamaged: this device has no root to begin with.
            OSError, StorageError: the disk does not take the metadata.
        """
        known = self.proven
        while True:
            updater = self._updater()
            try:
                updater.refresh()
            except ExpiredMetadataError:
                if self.reference == self._wall or _keys(updater.trusted) == self.proven.keys:
                    raise
                # By a time that was proven with a key that a new root has taken away.
                self.reference = self._wall
                continue
            seen = _seen(updater.trusted)
            if (older := self.proven.older(seen)) is not None:
                raise BadVersionNumberError(older)
            self.proven = self.proven.and_(seen)
            if self._proven_at > self.reference:
                # The clock is behind what was signed: judge every expiry again by that.
                self.reference = self._proven_at
                continue
            if known != self.proven:
                proven.write(self._state, self.proven)
            file = updater.get_targetinfo(path)
            if file is None:
                raise NotThere(f"{path} is not in the repository")
            return _signed(updater.trusted, file)

    def forget(self) -> None:
        """Begin anew from the first root; the mark of what was proven stays."""
        folder = self._state / METADATA_FOLDER
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)

    @property
    def _proven_at(self) -> datetime:
        return datetime.fromtimestamp(self.proven.at_ms / 1000, tz=timezone.utc)

    def _updater(self) -> _Updater:
        folder = self._state / METADATA_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        try:
            updater = _Updater(
                str(folder),
                f"{self._url}{released.METADATA_FOLDER}",
                fetcher=self._fetcher,
                config=CONFIG,
                bootstrap=self._root,
            )
        except RepositoryError as e:
            raise RootDamaged(f"the root that this device trusted first is damaged: {e}") from e
        updater.judge_by(self.reference)
        return updater


def _seen(trusted: TrustedMetadataSet) -> Proven:
    timestamp = trusted.timestamp
    signed_at: Any = timestamp.unrecognized_fields.get(SIGNED_AT, 0)
    return Proven(
        at_ms=signed_at if isinstance(signed_at, int) and 0 < signed_at < 1 << 45 else 0,
        root=trusted.root.version,
        timestamp=timestamp.version,
        snapshot=trusted.snapshot.version,
        keys=_keys(trusted),
    )


def _keys(trusted: TrustedMetadataSet) -> tuple[str, ...]:
    """Ids of the keys that may sign timestamps."""
    return tuple(sorted(trusted.root.roles[Timestamp.type].keyids))


def _signed(trusted: TrustedMetadataSet, file: TargetFile) -> Signed:
    role = _CANDIDATES if file.path.startswith(released.CANDIDATES) else _RELEASES
    delegations = trusted.targets.delegations
    if delegations is None or not delegations.roles or role not in delegations.roles:
        raise RepositoryError(f"the repository's targets delegate nothing to {role}")
    keyids = delegations.roles[role].keyids
    keys = [delegations.keys[keyid].keyval.get("public", "") for keyid in keyids]
    try:
        custom = msgspec.convert(file.unrecognized_fields.get("custom"), released.Custom)
        for delta in custom.deltas:
            released.check_path(delta.path)
        return Signed(file, file.hashes["sha256"], custom, tuple(keys))
    except (msgspec.ValidationError, FleetError, KeyError) as e:
        raise RepositoryError(f"{file.path} is signed, and not as edgekit signs: {e}") from e
