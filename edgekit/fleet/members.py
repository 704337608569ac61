"""Members: which devices belong to a fleet, by which certificates, and whom a token lets in.

In SQLite, because the coordinator (enrolment, renewal) and commands (`token`, `revoke`) write it
from processes of their own. A device is known by site and id; each enrolment of a name is a new
generation, and only certificates of the latest have rights. That a device was revoked stays on
record; a certificate is forgotten when it expired long ago, except for the last of its device.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from edgekit import certificates
from edgekit.enrolment import Token
from edgekit.errors import FleetError, StorageError
from edgekit.fleet.authority import Revoked, Subject
from edgekit.signing import PublicKey

_WAIT_S = 10.0
_DAY_MS = 86_400_000
# A broker whose clock is behind may take an expired certificate for valid, and is told of it still.
_LISTED_MS = _DAY_MS
_KEPT_MS = 30 * _DAY_MS
# Where SQLite counts the transactions that changed a database (its file format, section 1.3).
_COUNTER_AT = 24
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
  id TEXT PRIMARY KEY, secret BLOB NOT NULL, site TEXT NOT NULL, device TEXT NOT NULL,
  expires_ms INTEGER NOT NULL, key TEXT, certificate BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS devices (
  site TEXT NOT NULL, device TEXT NOT NULL, generation INTEGER NOT NULL, revoked_ms INTEGER,
  PRIMARY KEY (site, device)
) STRICT;
CREATE TABLE IF NOT EXISTS certificates (
  serial TEXT PRIMARY KEY, site TEXT NOT NULL, device TEXT NOT NULL, generation INTEGER NOT NULL,
  key TEXT NOT NULL, pem BLOB NOT NULL, issued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
  revoked_ms INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS certificates_of ON certificates (site, device, key);
"""


class Held(NamedTuple):
    """A token on record.

    Attributes:
        key: id of the key that it was used for; `None` while it is unused.
        certificate: what it was answered with, in PEM.
    """

    token: Token
    site: str
    device: str
    expires_ms: int
    key: str | None
    certificate: bytes | None


class Issued(NamedTuple):
    """A certificate that is put on record."""

    serial: int
    key: str
    pem: bytes
    issued_ms: int
    expires_ms: int


class Member(NamedTuple):
    """A name that was enrolled.

    Attributes:
        generation: how often it was.
        revoked_ms: since when it has no rights; `None` while it has.
        expires_ms: end of its latest certificate.
    """

    site: str
    device: str
    generation: int
    revoked_ms: int | None
    expires_ms: int


class Members:
    """The record of one fleet. Every method is one transaction, durable when it returns.

    Args:
        path: the database; made where it is missing, 0600, for it holds secrets of tokens.

    Raises (every method):
        StorageError: the database cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as e:
            raise StorageError(f"{path} cannot be used: {e.strerror}") from e
        with self.change() as change:
            change.prepare()

    @contextmanager
    def change(self) -> Iterator[Change]:
        """What is done within the block is done as a whole, and alone."""
        try:
            connection = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield Change(connection)
                connection.execute("COMMIT")
            finally:
                connection.close()  # rolls back what was not committed
        except sqlite3.Error as e:
            raise StorageError(f"{self._path}: {e}", hint="check space and permissions") from e

    def version(self) -> int:
        """A number that differs after every change, by whichever process."""
        try:
            with self._path.open("rb") as file:
                file.seek(_COUNTER_AT)
                return int.from_bytes(file.read(4), "big")
        except OSError as e:
            raise StorageError(f"{self._path} cannot be read: {e.strerror}") from e

    def current(self) -> list[Subject]:
        """Devices that may take part, in the order of their names."""
        with self.change() as change:
            return change.current()

    def keys(self, site: str, device: str, *, now_ms: int) -> list[PublicKey]:
        """Keys of the certificates with which a device may take part now."""
        with self.change() as change:
            held = change.certificates(site, device, now_ms=now_ms)
        keys = (certificates.key_of(x509.load_pem_x509_certificate(pem)) for pem in held)
        return [key for key in keys if key is not None]

    def every(self) -> list[Member]:
        """All that were ever enrolled, in the order of their names."""
        with self.change() as change:
            return change.every()

    def revoked(self, *, now_ms: int) -> list[Revoked]:
        """Every certificate that was revoked and has not expired yet, for a day more."""
        with self.change() as change:
            return change.revoked(now_ms=now_ms)

    def new_tokens(
        self, names: Sequence[tuple[str, str]], *, expires_ms: int, now_ms: int
    ) -> list[Token]:
        """A token for each (site, device), in their order."""
        made = [Token.new() for _ in names]
        with self.change() as change:
            change.forget_tokens(before_ms=now_ms)
            for token, (site, device) in zip(made, names, strict=True):
                change.add_token(Held(token, site, device, expires_ms, None, None))
        return made


class Change:
    """One transaction on the record."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._do = connection.execute

    def prepare(self) -> None:
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self._do(statement)

    def current(self) -> list[Subject]:
        rows = self._do(
            "SELECT site, device, generation FROM devices WHERE revoked_ms IS NULL ORDER BY 1, 2"
        )
        return [Subject(*row) for row in rows]

    def every(self) -> list[Member]:
        rows = self._do(
            "SELECT site, device, d.generation, d.revoked_ms, MAX(c.expires_ms)"
            " FROM devices d JOIN certificates c USING (site, device) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        return [Member(*row) for row in rows]

    def revoked(self, *, now_ms: int) -> list[Revoked]:
        rows = self._do(
            "SELECT serial, revoked_ms FROM certificates"
            " WHERE revoked_ms IS NOT NULL AND expires_ms > ? ORDER BY 1",
            (now_ms - _LISTED_MS,),
        )
        return [Revoked(int(serial, 16), at_ms) for serial, at_ms in rows]

    def add_token(self, held: Held) -> None:
        token = held.token
        self._do(
            "INSERT INTO tokens (id, secret, site, device, expires_ms) VALUES (?, ?, ?, ?, ?)",
            (token.id, token.secret, held.site, held.device, held.expires_ms),
        )

    def token(self, token_id: str) -> Held | None:
        """The token of an id, used or not."""
        row = self._do(
            "SELECT secret, site, device, expires_ms, key, certificate FROM tokens WHERE id = ?",
            (token_id,),
        ).fetchone()
        return Held(Token(token_id, row[0]), *row[1:]) if row else None

    def forget_tokens(self, *, before_ms: int) -> None:
        """Remove tokens that expired, used ones too."""
        self._do("DELETE FROM tokens WHERE expires_ms < ?", (before_ms,))

    def is_current(self, subject: Subject) -> bool:
        """Whether the latest enrolment of the name is this one, and not revoked."""
        row = self._do(
            "SELECT generation FROM devices WHERE site = ? AND device = ? AND revoked_ms IS NULL",
            (subject.site, subject.device),
        ).fetchone()
        return row is not None and row[0] == subject.generation

    def enrol(self, site: str, device: str, *, now_ms: int) -> Subject:
        """A new generation of a name; what was issued to older ones is revoked."""
        self._revoke_certificates(site, device, now_ms=now_ms)
        row = self._do(
            "INSERT INTO devices (site, device, generation) VALUES (?, ?, 1)"
            " ON CONFLICT DO UPDATE SET generation = generation + 1, revoked_ms = NULL"
            " RETURNING generation",
            (site, device),
        ).fetchone()
        return Subject(site, device, row[0])

    def use_token(self, token: Token, *, key: str, certificate: bytes) -> None:
        """The token is used up: for anybody but the holder of `key`, who may ask again."""
        self._do(
            "UPDATE tokens SET key = ?, certificate = ? WHERE id = ?", (key, certificate, token.id)
        )

    def add_certificate(self, subject: Subject, issued: Issued) -> None:
        self._do(
            "INSERT INTO certificates (serial, site, device, generation, key, pem, issued_ms,"
            " expires_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (f"{issued.serial:x}", *subject, *issued[1:]),
        )

    def forget_certificates(self, *, now_ms: int) -> None:
        """Remove certificates that expired long ago, but the last of each device."""
        self._do(
            "DELETE FROM certificates AS old WHERE expires_ms < ? AND EXISTS"
            " (SELECT 1 FROM certificates AS later WHERE later.site = old.site"
            " AND later.device = old.device AND later.expires_ms > old.expires_ms)",
            (now_ms - _KEPT_MS,),
        )

    def certificate_for(self, subject: Subject, *, key: str, now_ms: int) -> bytes | None:
        """What was issued last to a subject for a key and has not expired, in PEM."""
        row = self._do(
            "SELECT pem FROM certificates WHERE site = ? AND device = ? AND generation = ?"
            " AND key = ? AND revoked_ms IS NULL AND expires_ms > ?"
            " ORDER BY issued_ms DESC LIMIT 1",
            (*subject, key, now_ms),
        ).fetchone()
        return row[0] if row else None

    def certificates(self, site: str, device: str, *, now_ms: int) -> list[bytes]:
        """What the latest enrolment holds that is neither revoked nor expired, in PEM."""
        rows = self._do(
            "SELECT pem FROM certificates JOIN devices USING (site, device, generation)"
            " WHERE site = ? AND device = ? AND certificates.revoked_ms IS NULL"
            " AND devices.revoked_ms IS NULL AND expires_ms > ? ORDER BY issued_ms DESC",
            (site, device, now_ms),
        )
        return [row[0] for row in rows]

    def revoke(self, site: str, device: str, *, now_ms: int) -> Subject | None:
        """Take a device's rights and its tokens; `None` where it had nothing but tokens.

        Doing so again changes nothing.

        Raises:
            FleetError: it had neither.
        """
        tokens = self._do("DELETE FROM tokens WHERE site = ? AND device = ?", (site, device))
        row = self._do(
            "UPDATE devices SET revoked_ms = COALESCE(revoked_ms, ?)"
            " WHERE site = ? AND device = ? RETURNING generation",
            (now_ms, site, device),
        ).fetchone()
        if row is None and not tokens.rowcount:
            raise FleetError(
                f"no device {site}/{device} was ever enrolled, and no token waits for it",
                hint="edgekit fleet members DIR lists all",
            )
        self._revoke_certificates(site, device, now_ms=now_ms)
        return Subject(site, device, row[0]) if row else None

    def _revoke_certificates(self, site: str, device: str, *, now_ms: int) -> None:
        self._do(
            "UPDATE certificates SET revoked_ms = ?"
            " WHERE site = ? AND device = ? AND revoked_ms IS NULL",
            (now_ms, site, device),
        )
