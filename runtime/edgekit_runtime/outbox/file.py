"""File: the part of the outbox that is on disk, as rows of an SQLite database.

Promise: a transaction is whole or leaves no trace, also when the plug is pulled; what it committed
is on the medium, not in a cache (WAL with synchronous FULL). A damaged file is set aside and begun
anew. What cannot be opened at all is kept in memory until the next start.

Acknowledged rows are only noted, in memory; the next transaction deletes them. A kill in between
makes them be sent again, which the coordinator notices.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from edgekit import storage
from edgekit.messages import IMPORTANCES
from edgekit_runtime.outbox.entry import Entry, Limits, Loss

log = logging.getLogger(__name__)

_COLUMNS = "position, boot, seq, kind, rank, lived_ms, payload"
_INSERT = (
    "INSERT INTO messages (position, boot, seq, kind, rank, lived_ms, payload)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  boot TEXT NOT NULL,
  seq INTEGER NOT NULL,
  kind TEXT NOT NULL,
  payload BLOB NOT NULL,
  rank INTEGER NOT NULL DEFAULT 0,
  lived_ms INTEGER NOT NULL DEFAULT 0,
  UNIQUE (boot, seq)
)
"""
# A file of the version before had no importance and no age.
_LATER_COLUMNS = ("rank INTEGER NOT NULL DEFAULT 0", "lived_ms INTEGER NOT NULL DEFAULT 0")
_ACKED = "CREATE TEMP TABLE acked (boot TEXT PRIMARY KEY, seq INTEGER NOT NULL)"
_OPEN_ROWS = (
    " FROM messages AS m WHERE NOT EXISTS"
    " (SELECT 1 FROM temp.acked AS a WHERE a.boot = m.boot AND a.seq >= m.seq)"
)
_HELD = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM messages"
_NOTE_ACKED = (
    "INSERT INTO temp.acked VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)"
)
# Later positions have lived later, so the search ends at the first row that is young enough.
_FIRST_YOUNG = "SELECT position FROM messages WHERE lived_ms >= ? ORDER BY position LIMIT 1"
_DELETE_BEFORE = "DELETE FROM messages WHERE position < ? RETURNING rank, length(payload)"
_FLOOR = f"SELECT m.seq{_OPEN_ROWS} AND m.boot = ? ORDER BY m.seq LIMIT 1"
_OLDEST = "SELECT position, length(payload) FROM messages WHERE rank = ? ORDER BY position LIMIT ?"
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -512",
    "PRAGMA journal_size_limit = 1048576",
)
_IN_MEMORY = Path(":memory:")
_AT_ONCE = 500


class File:
    """The rows; one thread at a time.

    Args:
        path: the database; its folder is made where it is missing.

    Every method may raise `sqlite3.OperationalError` (full, read-only), after which the file is as
    it was, and `sqlite3.DatabaseError` (damaged), after which `begin_anew` is to be called.
    """

    def __init__(self, path: Path) -> None:
        storage.make_folder(path.parent)
        self._path = path
        self.was_damaged = False
        # Not acknowledged: rows, and bytes of their payloads.
        self.rows = self.size_bytes = 0
        self._db = self._open()

    def last(self) -> tuple[int, int]:
        """The highest position, and the longest life, that rows have; 0 without rows."""
        return self._pair(
            "SELECT coalesce(max(position), 0), coalesce(max(lived_ms), 0) FROM messages"
        )

    def store(
        self, entries: Sequence[Entry], *, limits: Limits, lived_ms: int, free_bytes: int = 0
    ) -> tuple[list[Entry], Loss]:
        """Add rows; delete what is acknowledged, too old, or least important beyond the limits.

        All in one transaction. Entries are within the limits too: those that stay are returned.

        Args:
            free_bytes: of payloads that matter less than the entries, to be deleted for the room
                that they take in the file.
        """
        loss = Loss()
        oldest_ms = lived_ms - limits.age_ms
        with self._db:
            self._delete_acked()
            self._delete_older(oldest_ms, loss)
            rows, size_bytes = self.rows - loss.count, self.size_bytes - loss.size_bytes
            fresh = [entry for entry in entries if entry.lived_ms >= oldest_ms]
            kept, gone = self._make_room(fresh, rows, size_bytes, limits)
            self._free(free_bytes, below=max((entry.rank for entry in kept), default=0), loss=gone)
            self._db.executemany(_INSERT, kept)
        for entry in set(entries).difference(fresh):
            gone.note(entry.rank, len(entry.payload))
        for rank, (count, size) in gone.items():
            loss.note(rank, size, count=count)
        # What left was in the file or among the entries; what did not is in the file now.
        self.rows += len(entries) - loss.count
        self.size_bytes += sum(len(entry.payload) for entry in entries) - loss.size_bytes
        return kept, loss

    def acknowledge(self, boot: str, seq: int) -> int:
        """Note that rows of `boot` up to `seq` may go; returns how many those are."""
        query = (
            "SELECT count(*), coalesce(sum(length(m.payload)), 0)"
            f"{_OPEN_ROWS} AND m.boot = ? AND m.seq <= ?"
        )
        with self._db:
            count, size_bytes = self._pair(query, boot, seq)
            if count:
                self._db.execute(_NOTE_ACKED, (boot, seq))
        self.rows -= count
        self.size_bytes -= size_bytes
        return count

    def after(self, position: int, limit: int) -> list[Entry]:
        """The oldest rows behind a position that are not acknowledged, in order."""
        query = f"SELECT {_COLUMNS}{_OPEN_ROWS} AND m.position > ? ORDER BY m.position LIMIT ?"
        return [Entry(*row) for row in self._db.execute(query, (position, limit))]

    def up_to(self, position: int) -> int:
        """How many rows up to a position are not acknowledged."""
        query = f"SELECT count(*), 0{_OPEN_ROWS} AND m.position <= ?"
        return self._pair(query, position)[0]

    def floors(self, boots: Iterable[str]) -> dict[str, int]:
        """The lowest number of each boot that is not acknowledged."""
        found = {boot: self._db.execute(_FLOOR, (boot,)).fetchone() for boot in boots}
        return {boot: row[0] for boot, row in found.items() if row is not None}

    def restart_log(self) -> None:
        """Bring the write-ahead log home, so that the next writes take its place, not new space.

        On a disk that takes nothing at all this does nothing.
        """
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def begin_anew(self) -> None:
        """Set a damaged file aside and go on with an empty one."""
        self._db.close()
        self._set_aside()
        self._db = self._open()

    def close(self) -> None:
        self._db.close()

    def _delete_acked(self) -> None:
        for acked in self._db.execute("SELECT boot, seq FROM temp.acked").fetchall():
            self._db.execute("DELETE FROM messages WHERE boot = ? AND seq <= ?", acked)
        self._db.execute("DELETE FROM temp.acked")

    def _delete_older(self, lived_ms: int, loss: Loss) -> None:
        young = self._db.execute(_FIRST_YOUNG, (lived_ms,)).fetchone()
        first = young[0] if young is not None else sys.maxsize
        for rank, size in self._db.execute(_DELETE_BEFORE, (first,)).fetchall():
            loss.note(rank, size)

    def _make_room(
        self, entries: Sequence[Entry], rows: int, size_bytes: int, limits: Limits
    ) -> tuple[list[Entry], Loss]:
        """Delete the least important of rows and entries, the oldest first, until all fit.

        Rows are older than entries of the same importance. Returns the entries that stay.
        """
        loss = Loss()
        rows += len(entries) - limits.rows
        size_bytes += sum(len(entry.payload) for entry in entries) - limits.size_bytes
        left = sorted(entries, key=lambda entry: (entry.rank, entry.position))
        for rank in range(len(IMPORTANCES)):
            while rows > loss.count or size_bytes > loss.size_bytes:
                if self._give_up(rank, min(rows - loss.count, _AT_ONCE), loss):
                    continue
                if not left or left[0].rank != rank:
                    break
                loss.note(rank, len(left.pop(0).payload))
        return sorted(left), loss

    def _free(self, size_bytes: int, *, below: int, loss: Loss) -> None:
        """Delete the oldest of what matters less, or is telemetry, until so much is free."""
        aim = loss.size_bytes + size_bytes
        for rank in range(max(1, below)):
            while loss.size_bytes < aim and self._give_up(rank, 1, loss):
                pass

    def _give_up(self, rank: int, count: int, loss: Loss) -> bool:
        """Delete the oldest rows of a rank, at least one; whether there was any."""
        found = self._db.execute(_OLDEST, (rank, max(1, count))).fetchall()
        for position, size_bytes in found:
            self._db.execute("DELETE FROM messages WHERE position = ?", (position,))
            loss.note(rank, size_bytes)
        return bool(found)

    def _pair(self, query: str, *values: str | int) -> tuple[int, int]:
        first, second = self._db.execute(query, values).fetchone()
        return int(first), int(second)

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect(self._path)
        except sqlite3.OperationalError as e:
            # A full or read-only disk: until the next start a kill loses what is not acknowledged.
            log.error("outbox is kept in memory", extra={"path": str(self._path), "error": str(e)})
            return self._connect(_IN_MEMORY)
        except sqlite3.DatabaseError as e:
            log.error("outbox is damaged, begun anew", extra={"error": str(e)})
        try:
            self._set_aside()
            return self._connect(self._path)
        except (OSError, sqlite3.Error) as e:
            # Read-only as well: what is lost are messages, not the daemon.
            log.error("outbox is kept in memory", extra={"path": str(self._path), "error": str(e)})
            return self._connect(_IN_MEMORY)

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
                names = {row[1] for row in db.execute("PRAGMA table_info(messages)")}
                for column in _LATER_COLUMNS:
                    if column.split()[0] not in names:
                        db.execute(f"ALTER TABLE messages ADD COLUMN {column}")
                db.execute(_ACKED)
            self.rows, self.size_bytes = db.execute(_HELD).fetchone()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _set_aside(self) -> None:
        """Keep the damaged file for whoever looks, one at most, and let a new one begin."""
        self.was_damaged = True
        self._path.replace(self._path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
