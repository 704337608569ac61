"""Served: a coordinator's view of the fleet's signed repository, and its part in it.

`edgekit publish --fleet` may write into the folder while a coordinator runs, or while none does.
What is signed there is the truth; the store's rows follow it whenever the timestamp is another
one. The coordinator signs for candidates of rounds, and keeps snapshot and timestamp from
expiring; it cannot release.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import sqlalchemy as sa

from edgekit import released
from edgekit.clock import Clock
from edgekit.errors import BundleError, FleetError, StorageError
from edgekit.fleet import repository, store
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.repository import Published, Repository
from edgekit.fleet.store import Store, UnknownId
from edgekit.fleet.tuf import publish, refresh, roles
from edgekit.fleet.tuf.editor import Editor
from edgekit.fleet.tuf.publish import Entry

log = logging.getLogger(__name__)

FRESHEN_EVERY_S = 3600.0
# One part of the path of a file that may be served; no part begins with a dot.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+%-]*\Z")
_TOP = frozenset({released.METADATA_FOLDER, released.TARGETS_FOLDER})


class FleetRepository(Repository):
    """The signed repository in a fleet's folder, and its rows in the store.

    Args:
        fleet: with the control key and the online key in their places.
        work: folder for what is being received.
    """

    def __init__(self, *, store: Store, fleet: FleetFolder, work: Path, clock: Clock) -> None:
        super().__init__(store=store, folder=work, trusted=[], clock=clock)
        self._fleet = fleet
        self._seen: tuple[int, int] | None = None
        self._freshened_s: float | None = None

    def served(self, name: str) -> Path:
        """The file behind `/repository/NAME`: metadata, or a target under its stored name."""
        parts = name.split("/")
        path = self._fleet.repository / name
        is_plain = f"{parts[0]}/" in _TOP and all(_PART.match(part) for part in parts)
        if not is_plain or not path.is_file():
            raise UnknownId(f"there is no {name[: released.MAX_PATH_CHARS]} in the repository")
        return path

    def file(self, name: str) -> Path:
        """The bundle `SHA256.edge`, where the store knows it."""
        table = store.bundles
        query = sa.select(table.c.target).where(
            table.c.file_sha256 == name.removesuffix(repository.SUFFIX)
        )
        with self._store.read() as connection:
            target = connection.scalar(query)
        if target is None:
            raise UnknownId(f"there is no bundle {name} in the repository")
        sha256 = name.removesuffix(repository.SUFFIX)
        return self._fleet.repository / released.stored(target, sha256)

    def publish(self, received: Path) -> tuple[Published, bool]:
        """Refuse: a coordinator has no key to release with."""
        received.unlink(missing_ok=True)
        raise FleetError(
            "this coordinator cannot release: its repository is signed by the release key",
            hint="edgekit publish BUNDLE --fleet DIR, where the key is",
        )

    def publish_copy(self, built: Path) -> Published:
        """Publish the candidate of a round, signed by the coordinator's own key."""
        added = publish.publish(self._fleet, built, clock=self._clock, candidate=True)
        self.notice()
        with self._store.read() as connection:
            found = repository.by_digest(connection, added.entry.custom.digest)
        if found is None:
            raise FleetError(f"{added.entry.path} was signed and cannot be read back")
        return found

    def notice(self) -> None:
        """Take in what was published since the last time; a glance where nothing was."""
        timestamp = self._fleet.metadata / f"{roles.TIMESTAMP}.json"
        try:
            status = timestamp.stat()
        except OSError as e:
            raise StorageError(f"{timestamp} cannot be read: {e.strerror}") from e
        seen = (status.st_mtime_ns, status.st_ino)
        if seen == self._seen:
            return
        # A damaged repository is told once. What is published while this reads has another
        # timestamp, and is read the next time.
        self._seen = seen
        found = publish.entries(Editor(self._fleet, clock=self._clock))
        with self._store.read() as connection:
            known = {row.target: row.file_sha256 for row in repository.every(connection)}
        new = [entry for entry in found if known.get(entry.path) != entry.sha256]
        # A release takes the place of its candidate, and never the other way round.
        for entry in sorted(new, key=lambda item: not item.path.startswith(released.CANDIDATES)):
            self._take(entry)

    def look_after(self) -> None:
        """`notice`, and once an hour sign again what is going to expire, by the keys that are here.

        What is wrong with the repository is logged: rollouts of what is known go on.
        """
        try:
            self.notice()
            self._freshen()
        except FleetError as e:
            log.error("the signed repository needs an operator: %s", e.with_hint)

    def _freshen(self) -> None:
        now_s = self._clock.monotonic()
        if self._freshened_s is not None and now_s - self._freshened_s < FRESHEN_EVERY_S:
            return
        self._freshened_s = now_s
        done = refresh.refresh(self._fleet, clock=self._clock)
        if done.signed:
            log.info("repository signed again", extra={"roles": len(done.signed)})
        if done.waiting:
            first = min(done.waiting.values())
            log.warning(
                "metadata waits for a key that is not here: edgekit fleet refresh signs it",
                extra={"roles": sorted(done.waiting)[:8], "expires": first.isoformat()},
            )

    def _take(self, entry: Entry) -> None:
        file = self._fleet.repository / released.stored(entry.path, entry.sha256)
        try:
            found = repository.describe(file, at_ms=self._clock.now_ms(), target=entry.path)
        except (BundleError, StorageError) as e:
            log.error("a published bundle cannot be read: %s", e, extra={"target": entry.path})
            return
        if (found.file_sha256, found.digest) != (entry.sha256, entry.custom.digest):
            log.error("a published file is not what was signed", extra={"target": entry.path})
            return
        with self._store.write() as connection:
            known = repository.by_profile(connection, name=found.name, version=found.version)
            before = known.get(found.profile)
            is_candidate = entry.path.startswith(released.CANDIDATES)
            if is_candidate and before is not None and before.target != entry.path:
                return
            repository.record(connection, found)
