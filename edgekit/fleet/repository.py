"""Repository: the bundles of a fleet, each checked and trusted before any device may hear of it.

A file lies at `STATE/repository/SHA256.edge`, whole or not at all. One name, version and profile
is one digest for ever: publishing the same again changes nothing, another one is refused. This is
the repository of an insecure fleet; an enrolled one has a signed repository (`tuf.served`), whose
rows are the same.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa

from edgekit import bundle, storage, training
from edgekit.bundle import Bundle
from edgekit.clock import Clock
from edgekit.errors import BundleError, FleetError, StorageError
from edgekit.fleet import store
from edgekit.fleet.store import Store, UnknownId
from edgekit.manifest import Version
from edgekit.messages import Wanted
from edgekit.signing import PublicKey

SUFFIX = ".edge"
_INCOMING = ".incoming-"
_FILE = re.compile(r"[0-9a-f]{64}\.edge")


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that devices may fetch.

    Attributes:
        digest: of the bundle: sha256 of its manifest.
        file_sha256: of the whole file; also its name.
        signer: id of the trusted key that signed.
        trainable: whether it carries what a federated round needs.
        target: its path in a signed repository; "" in an insecure fleet.
    """

    name: str
    version: str
    profile: str
    digest: str
    file_sha256: str
    size_bytes: int
    signer: str
    trainable: bool
    published_ms: int
    target: str = ""

    def wanted(self) -> Wanted:
        """What a device is told: a target of the signed repository, or a relative address."""
        return Wanted(
            version=self.version,
            digest=self.digest,
            url=self.target or f"{self.file_sha256}{SUFFIX}",
            sha256=self.file_sha256,
            size_bytes=self.size_bytes,
        )


class Repository:
    """The folder of bundles and its rows in the store.

    Args:
        folder: where the files go.
        trusted: keys whose bundles are taken.
    """

    def __init__(
        self, *, store: Store, folder: Path, trusted: Sequence[PublicKey], clock: Clock
    ) -> None:
        self._store = store
        self._folder = folder
        self._trusted = list(trusted)
        self._clock = clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(f"{_INCOMING}*"):
                left_over.unlink()
        except OSError as e:
            raise StorageError(f"repository {folder} cannot be used: {e.strerror}") from e

    def notice(self) -> None:
        """Take in what was published past this process: here, nothing can be."""

    def look_after(self) -> None:
        """`notice`, and sign again what is going to expire: here, nothing does."""

    def incoming(self) -> Path:
        """A new path on the repository's own file system, for a bundle that is being received."""
        return self._folder / f"{_INCOMING}{secrets.token_hex(8)}"

    def served(self, name: str) -> Path:
        """The file behind `/repository/NAME`, raising `UnknownId` where there is none."""
        return self.file(name)

    def file(self, name: str) -> Path:
        """The bundle `SHA256.edge`."""
        path = self._folder / name
        if _FILE.fullmatch(name) is None or not path.is_file():
            raise UnknownId(f"there is no bundle {name} in the repository")
        return path

    def publish(self, received: Path) -> tuple[Published, bool]:
        """Check a received file and take it over; says whether it is new.

        The file is gone from `received` afterwards, whatever happens.

        Raises:
            BundleError, ManifestError, IntegrityError: the bundle breaks a rule of the format.
            UntrustedError: no trusted key signed it.
            FleetError: the name, version and profile belong to another bundle.
        """
        try:
            candidate = self._check(received)
            with self._store.read() as connection:
                known = self._same(connection, candidate)
            if known is not None:
                return known, False
            os.replace(received, self._folder / f"{candidate.file_sha256}{SUFFIX}")
            storage.sync_folder(self._folder)
            return self._record(candidate)
        finally:
            received.unlink(missing_ok=True)

    def publish_copy(self, built: Path) -> Published:
        """Publish a file that stays where it is."""
        received = self.incoming()
        try:
            shutil.copyfile(built, received)
        except OSError as e:
            received.unlink(missing_ok=True)
            raise StorageError(f"{built} cannot be copied: {e.strerror}") from e
        return self.publish(received)[0]

    def _check(self, received: Path) -> Published:
        try:
            with Bundle.open(received) as opened:
                opened.verify(self._trusted)
        except BundleError as e:
            # The path is the coordinator's own and says nothing to whoever sent the bundle.
            message = e.message.replace(f"{received}: ", "").replace(str(received), "the file")
            raise type(e)(f"the bundle is refused: {message}", hint=e.hint) from e
        return describe(received, at_ms=self._clock.now_ms())

    def _same(self, connection: sa.Connection, candidate: Published) -> Published | None:
        known = _one(connection, candidate.name, candidate.version, candidate.profile)
        if known is not None and known.digest != candidate.digest:
            raise FleetError(
                f"{known.name} {known.version} for {known.profile} is published already, "
                f"with digest {known.digest}",
                hint="build with a higher --version",
            )
        return known

    def _record(self, candidate: Published) -> tuple[Published, bool]:
        with self._store.write() as connection:
            # Another upload of the same bundle may have come first.
            known = self._same(connection, candidate)
            if known is not None:
                return known, False
            record(connection, candidate)
        return candidate, True


def describe(file: Path, *, at_ms: int, target: str = "") -> Published:
    """What the store keeps of a signed bundle, whose signature the caller has judged."""
    with Bundle.open(file) as opened:
        manifest, digest, signature = opened.manifest, opened.digest, opened.signature
    described = bundle.describe(file)
    return Published(
        name=manifest.name,
        version=manifest.version,
        profile=manifest.profile.name,
        digest=digest,
        file_sha256=described.sha256,
        size_bytes=described.size_bytes,
        signer=signature.hint if signature else "",
        trainable=training.TRAIN in manifest.entries,
        published_ms=at_ms,
        target=target,
    )


def record(connection: sa.Connection, published: Published) -> None:
    """Keep a bundle's row, in the place of one with its name, version and profile."""
    row = msgspec.structs.asdict(published)
    keys = {column.name for column in store.bundles.primary_key}
    store.upsert(connection, store.bundles, [row], replace=sorted(row.keys() - keys))
    store.log_action(
        connection,
        at_ms=published.published_ms,
        action="publish",
        subject=f"{published.name} {published.version} {published.profile}",
        detail=published,
    )


def every(connection: sa.Connection) -> list[Published]:
    """All bundles, the latest first."""
    query = sa.select(store.bundles).order_by(store.bundles.c.published_ms.desc())
    return [_published(row) for row in connection.execute(query).mappings()]


def by_profile(connection: sa.Connection, *, name: str, version: str) -> dict[str, Published]:
    """The bundles of one model and version, by profile."""
    table = store.bundles
    query = sa.select(table).where(table.c.name == name, table.c.version == version)
    found = [_published(row) for row in connection.execute(query).mappings()]
    return {item.profile: item for item in found}


def by_digest(connection: sa.Connection, digest: str | None) -> Published | None:
    """The bundle with a digest, if it was published."""
    row = connection.execute(sa.select(store.bundles).where(store.bundles.c.digest == digest))
    found = row.mappings().first()
    return _published(found) if found else None


def versions(connection: sa.Connection, *, name: str, profile: str) -> list[Published]:
    """The bundles of one model for one profile, the highest version first."""
    table = store.bundles
    query = sa.select(table).where(table.c.name == name, table.c.profile == profile)
    found = [_published(row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda item: Version(item.version), reverse=True)


def _one(connection: sa.Connection, name: str, version: str, profile: str) -> Published | None:
    return by_profile(connection, name=name, version=version).get(profile)


def _published(row: store.Row) -> Published:
    return Published(**row)
