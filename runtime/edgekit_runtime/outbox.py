"""Outbox: what the coordinator must know, on disk until it says that it has stored it.

Promise: a message is known by (boot, seq), counted up from 1 without gaps within a boot; it leaves
the outbox when it is acknowledged, or when room is needed, and then `dropped` counts it. A kill
loses nothing that was appended. A disk that is full or damaged costs messages, never the daemon.

Room is made by dropping the oldest telemetry first, the oldest events only when no telemetry is
left. Source of the cumulative acknowledgement: TCP, RFC 9293, section 3.4.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from edgekit import messages, storage
from edgekit.messages import Event, Telemetry

log = logging.getLogger(__name__)

Kind = Literal["telemetry", "event"]
KINDS: dict[Kind, type[Telemetry] | type[Event]] = {"telemetry": Telemetry, "event": Event}
T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  boot TEXT NOT NULL,
  seq INTEGER NOT NULL,
  kind TEXT NOT NULL,
  payload BLOB NOT NULL,
  UNIQUE (boot, seq)
)
"""
# A kill loses nothing that was committed; a power cut may lose the last commits, whose numbers are
# then of a boot that is over.
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -512",
    "PRAGMA journal_size_limit = 1048576",
)
_IN_MEMORY = Path(":memory:")


class Pending(NamedTuple):
    """A message that is not acknowledged; `position` orders messages of all boots."""

    position: int
    boot: str
    seq: int
    kind: Kind
    payload: bytes


class Outbox:
    """The queue, safe for use by several threads.

    Args:
        path: the database; its folder is made where it is missing.
        boot: 16 hex digits, new at each start of the daemon.
        max_rows: most messages held.
        max_bytes: most bytes of payloads held.
    """

    def __init__(self, path: Path, *, boot: str, max_rows: int, max_bytes: int) -> None:
        storage.make_folder(path.parent)
        self._path = path
        self._boot = boot
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._seq = 0
        self._rows = self._bytes = 0
        self.dropped = 0
        self._was_damaged = False
        self._db = self._open()

    def append(self, kind: Kind, make_payload: Callable[[int], Telemetry | Event]) -> bool:
        """Add a message; `make_payload` gets its `seq`. `False`: it was dropped, and counted."""
        with self._lock:
            payload = messages.encode(make_payload(self._seq + 1))
            stored = self._guarded(lambda: self._insert(kind, payload), otherwise=False)
            if not stored:
                self.dropped += 1
            return stored

    def pending(self, limit: int, *, after: int = 0) -> list[Pending]:
        """The oldest messages behind a position, in order, with `floor` as it is now."""
        with self._lock:
            return self._guarded(lambda: self._pending(limit, after), otherwise=[])

    def ack(self, boot: str, seq: int) -> int:
        """Forget every message of `boot` up to and including `seq`; returns how many those were."""
        with self._lock:
            return self._guarded(lambda: self._forget(boot, seq), otherwise=0)

    def count(self, *, up_to: int | None = None) -> int:
        """How many messages wait, at all or up to a position."""
        if up_to is None:
            return self._rows
        with self._lock:
            query = "SELECT count(*) FROM messages WHERE position <= ?"
            return self._guarded(lambda: self._number(query, up_to), otherwise=0)

    def take_damage(self) -> bool:
        """Whether the file was set aside since this was last asked."""
        with self._lock:
            damaged, self._was_damaged = self._was_damaged, False
            return damaged

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _insert(self, kind: Kind, payload: bytes) -> bool:
        with self._db:
            gone = self._make_room(len(payload), event=kind == "event")
            if gone is None:
                return False
            self._db.execute(
                "INSERT INTO messages (boot, seq, kind, payload) VALUES (?, ?, ?, ?)",
                (self._boot, self._seq + 1, kind, payload),
            )
        # Only now: what a full disk rolled back is neither counted nor numbered.
        self._seq += 1
        self._rows += 1 - len(gone)
        self._bytes += len(payload) - sum(gone)
        self.dropped += len(gone)
        return True

    def _make_room(self, size: int, *, event: bool) -> list[int] | None:
        """Delete the oldest of the least important; their sizes, or `None` for no room.

        Telemetry never makes an event go.
        """
        gone: list[int] = []
        if size > self._max_bytes:
            return None
        while len(gone) <= self._rows:
            rows, held = self._rows - len(gone), self._bytes - sum(gone)
            if rows < self._max_rows and held + size <= self._max_bytes:
                return gone
            row = self._db.execute(
                "SELECT position, length(payload) FROM messages WHERE kind = 'telemetry' OR ?"
                " ORDER BY kind = 'event', position LIMIT 1",
                (event,),
            ).fetchone()
            if row is None:
                break
            self._db.execute("DELETE FROM messages WHERE position = ?", (row[0],))
            gone.append(row[1])
        self._db.rollback()
        return None

    def _pending(self, limit: int, after: int) -> list[Pending]:
        rows = self._db.execute(
            "SELECT position, boot, seq, kind, payload FROM messages WHERE position > ?"
            " ORDER BY position LIMIT ?",
            (after, limit),
        ).fetchall()
        query = "SELECT min(seq) FROM messages WHERE boot = ?"
        floors = {boot: self._number(query, boot) for boot in {row[1] for row in rows}}
        return [
            Pending(position, boot, seq, kind, _with_floor(payload, kind, floors[boot]))
            for position, boot, seq, kind, payload in rows
        ]

    def _forget(self, boot: str, seq: int) -> int:
        with self._db:
            where = (boot, seq)
            count, size = self._db.execute(
                "SELECT count(*), coalesce(sum(length(payload)), 0) FROM messages"
                " WHERE boot = ? AND seq <= ?",
                where,
            ).fetchone()
            self._db.execute("DELETE FROM messages WHERE boot = ? AND seq <= ?", where)
        self._rows -= count
        self._bytes -= size
        return int(count)

    def _number(self, query: str, value: str | int) -> int:
        return int(self._db.execute(query, (value,)).fetchone()[0])

    def _guarded(self, work: Callable[[], T], *, otherwise: T) -> T:
        """Run `work`; a full disk gives `otherwise`, a damaged file is set aside as well."""
        try:
            return work()
        except sqlite3.OperationalError as e:
            log.warning("outbox cannot be used now", extra={"error": str(e)})
        except sqlite3.DatabaseError as e:
            log.error("outbox is damaged, begun anew", extra={"error": str(e)})
            self._db.close()
            self._set_aside()
            self._db = self._open()
        return otherwise

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect(self._path)
        except sqlite3.OperationalError as e:
            # A full or read-only disk: until the next start a kill loses what is not acknowledged.
            log.error("outbox is kept in memory", extra={"path": str(self._path), "error": str(e)})
            return self._connect(_IN_MEMORY)
        except sqlite3.DatabaseError as e:
            log.error("outbox is damaged, begun anew", extra={"error": str(e)})
            self._set_aside()
            return self._connect(self._path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        try:
            for pragma in _PRAGMAS:
                db.execute(pragma)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            with db:
                db.execute(_SCHEMA)
            self._db = db
            self._count()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _count(self) -> None:
        query = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM messages"
        self._rows, self._bytes = self._db.execute(query).fetchone()

    def _set_aside(self) -> None:
        """Keep the damaged file for whoever looks, one at most, and let a new one begin."""
        self._was_damaged = True
        self._path.replace(self._path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _with_floor(payload: bytes, kind: Kind, floor: int) -> bytes:
    """The payload as it is sent: `floor` is of the moment of sending."""
    try:
        message = msgspec.json.decode(payload, type=KINDS[kind])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as e:
        # Only a damaged file gives back what was never put in.
        raise sqlite3.DatabaseError(f"a row is not a message: {e}") from e
    return messages.encode(msgspec.structs.replace(message, floor=floor))
