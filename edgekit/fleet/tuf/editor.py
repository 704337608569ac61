"""Editor: one change of a repository, which readers see whole or not at all.

Promise: a static server over the folder never shows a state that does not fit together, and a
process that is killed at any moment leaves the old state or the new one. Metadata is written under
names that carry a version and that nobody asks for yet; `timestamp.json`, renamed into place last,
is what makes them count. One change at a time: a lock outside the served folder is held from
reading to renaming.

No two files of targets metadata ever have the same version, whichever their roles. All bins are
signed by one key and do not say which bin they are; a server that gave one bin for another of the
same version would be believed, and would hide a bundle for as long as the device keeps the file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import FleetError, StorageError
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import roles

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

LOCK = ".repository.lock"


@contextmanager
def locked(folder: FleetFolder) -> Iterator[None]:
    """Hold the repository; another process that changes it is waited for."""
    path = folder.path / LOCK
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror}") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever wrote these was killed: the lock was theirs.
        for left_over in folder.repository.rglob(".*.tmp"):
            left_over.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


class Editor:
    """What a repository says now, and what it is going to say. Used under `locked`.

    Args:
        folder: the fleet's folder; its repository must be made.
        clock: gives expiries and the time of signing.

    Raises (every method):
        FleetError: the folder holds no repository, or one that is damaged.
        StorageError: it cannot be read or written.
    """

    def __init__(self, folder: FleetFolder, *, clock: Clock) -> None:
        self._folder = folder.metadata
        self.now: datetime = roles.now(clock)
        self._now_ms = clock.now_ms()
        self.root = self._newest_root()
        self.timestamp = self._read(f"{roles.TIMESTAMP}.json", Timestamp)
        self.snapshot = self._read(
            f"{self.timestamp.signed.snapshot_meta.version}.{roles.SNAPSHOT}.json", Snapshot
        )
        self._loaded: dict[str, Metadata[Targets]] = {}
        self._changed: set[str] = set()
        self._last_version = max(_versions(self._folder, "*"))

    def read(self, role: str) -> Metadata[Targets]:
        """The metadata of targets or of a delegated role, always the same object of it."""
        if role not in self._loaded:
            meta = self.snapshot.signed.meta.get(f"{role}.json")
            if meta is None:
                raise FleetError(f"{self._folder}: the snapshot does not list {role}")
            self._loaded[role] = self._read(f"{meta.version}.{role}.json", Targets)
        return self._loaded[role]

    def targets_roles(self) -> list[str]:
        """Every role in the snapshot: targets and all that it delegates to."""
        return [name.removesuffix(".json") for name in self.snapshot.signed.meta]

    def delegated(self, role: str) -> list[str]:
        """Ids of the keys that sign for a role which targets delegate to."""
        delegations = self.read(roles.TARGETS).signed.delegations
        found = (delegations.roles or {}) if delegations else {}
        return list(found[role].keyids) if role in found else []

    def change(self, role: str, *signers: Signer) -> None:
        """Sign what was made of a role's metadata as its next version."""
        metadata = self.read(role)
        if role not in self._changed:
            self._last_version += 1
            metadata.signed.version = self._last_version
        self._signed(role, metadata, signers)
        self._changed.add(role)

    def commit(self, online: Sequence[Signer], *, renew: bool = False) -> None:
        """Write what was changed, sign snapshot and timestamp and let them count.

        Args:
            online: the keys of snapshot and timestamp; more than one while they are exchanged.
            renew: sign a new snapshot although no role changed.
        """
        for role in sorted(self._changed):
            metadata = self.read(role)
            self._write(f"{metadata.signed.version}.{role}.json", metadata)
            self.snapshot.signed.meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        if self._changed or renew:
            self.snapshot.signed.version += 1
            self._signed(roles.SNAPSHOT, self.snapshot, online)
            version = self.snapshot.signed.version
            raw = self._write(f"{version}.{roles.SNAPSHOT}.json", self.snapshot)
            self.timestamp.signed.snapshot_meta = MetaFile.from_data(version, raw, ["sha256"])
        self.timestamp.signed.version += 1
        self.timestamp.signed.unrecognized_fields[roles.SIGNED_AT] = self._now_ms
        self._signed(roles.TIMESTAMP, self.timestamp, online)
        self._write(f"{roles.TIMESTAMP}.json", self.timestamp)
        self._changed.clear()

    def next_root(self, root: Metadata[Root], signers: Sequence[Signer]) -> Metadata[Root]:
        """Sign the next root, raising `FleetError` where too few keys are here for devices."""
        root.signed.version = self.root.signed.version + 1
        self._signed(roles.ROOT, root, signers)
        try:
            for judge in (self.root.signed, root.signed):
                judge.verify_delegate(roles.ROOT, root.signed_bytes, root.signatures)
        except UnsignedMetadataError as e:
            raise FleetError(
                f"the new root has too few signatures: {e}",
                hint=f"bring {roles.ROOT_THRESHOLD} of the root keys to the folder they had",
            ) from e
        return root

    def write_root(self, root: Metadata[Root]) -> None:
        """Write a root that `next_root` signed. It counts at once, so all it lists is signed."""
        self._write(f"{root.signed.version}.{roles.ROOT}.json", root)
        self.root = root

    def _signed(self, role: str, metadata: Metadata[S], signers: Sequence[Signer]) -> Metadata[S]:
        metadata.signed.expires = self.now + roles.valid_for(role)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata

    def _newest_root(self) -> Metadata[Root]:
        versions = _versions(self._folder, roles.ROOT)
        if not versions:
            raise FleetError(
                f"{self._folder} holds no root: there is no signed repository",
                hint="edgekit fleet init DIR makes a fleet with one",
            )
        return self._read(f"{max(versions)}.{roles.ROOT}.json", Root)

    def _read(self, name: str, kind: type[S]) -> Metadata[S]:
        path = self._folder / name
        try:
            metadata = Metadata[S].from_bytes(path.read_bytes())
        except OSError as e:
            raise StorageError(f"{path} cannot be read: {e.strerror}") from e
        except RepositoryError as e:
            raise FleetError(
                f"{path} is damaged: {e}", hint="copy the repository back from a mirror"
            ) from e
        if not isinstance(metadata.signed, kind):
            raise FleetError(f"{path} is {metadata.signed.type} metadata")
        return metadata

    def _write(self, name: str, metadata: Metadata[S]) -> bytes:
        return write(self._folder / name, metadata)


def _versions(folder: Path, role: str) -> list[int]:
    """The versions of a role that lie in a folder, also those that never came to count."""
    return [int(path.name.split(".")[0]) for path in folder.glob(f"[0-9]*.{role}.json")]


def write(path: Path, metadata: Metadata[S]) -> bytes:
    """Put metadata at `path`, whole and on disk for good, and return its bytes."""
    raw = metadata.to_bytes()
    storage.write(path, raw)
    return raw
