"""Outbox: what the coordinator must know, kept until it says that it has stored it.

Promise: a message is known by (boot, seq), counted up from 1 within a boot; it leaves the outbox
when it is acknowledged, or when it is given up, and then `dropped` counts it. What is given up is
what is too old, and where room is needed the least important: the oldest telemetry, then the
oldest events, errors at the very last. A disk that is full or damaged costs messages, never the
daemon.

Flash: telemetry waits in memory and is written every `COMMIT_S` in one transaction; acknowledged
before that, it is never written. An event is on the medium when `append` returns, while the
allowance of writes lasts. So a kill or a power cut can cost the telemetry of the last `COMMIT_S`
that was not acknowledged, and an event of a storm; never anything that is acknowledged.

Age is counted by a clock of the outbox's own, which runs while the daemon does: a wall clock that
steps neither keeps a message for ever nor throws it away. Source of the cumulative
acknowledgement: TCP, RFC 9293, section 3.4.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from edgekit import messages
from edgekit.clock import Clock
from edgekit.messages import IMPORTANCES, Event, OutboxFigures, Telemetry
from edgekit_runtime.outbox.allowance import Allowance
from edgekit_runtime.outbox.entry import KINDS, Entry, Kind, Limits, Loss, Pending, rank_of
from edgekit_runtime.outbox.file import File
from edgekit_runtime.outbox.tail import Tail

__all__ = ["Kind", "Outbox", "Pending"]

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_S = 300.0
# Writes at once, for events: so many in a row, and one more with every step of this many seconds.
URGENT_BURST = 60
URGENT_EVERY_S = 30.0
# Most that waits for the next commit, and most that waits while the disk takes nothing.
TAIL_ROWS = 64
TAIL_BYTES = 64 << 10
STUCK_ROWS = 1000
STUCK_BYTES = 1 << 20
# What a full disk makes the file give up for what matters more: first a page, then more of them.
FREE_BYTES = (4 << 10, 16 << 10, 64 << 10)
# Sending adds digits to what was stored, and a payload has its limit.
LONGEST_BYTES = messages.MAX_PAYLOAD_BYTES - 1024
# While the disk takes nothing, it is tried again this often.
RETRY_S = 60.0


class Outbox:
    """The queue, safe for use by several threads.

    Args:
        path: the database; its folder is made where it is missing.
        boot: 16 hex digits, new at each start of the daemon.
        max_rows: most messages held.
        max_bytes: most bytes of payloads held.
        max_age_s: a message is held for so long while the daemon runs.
        clock: tells the age of messages, and when to write.
    """

    def __init__(
        self,
        path: Path,
        *,
        boot: str,
        max_rows: int,
        max_bytes: int,
        max_age_s: float,
        clock: Clock,
    ) -> None:
        self._boot = boot
        self._clock = clock
        self._lock = threading.Lock()
        self._file = File(path)
        # What the tail may hold beside the file is not the file's: together they keep the limits.
        rows, size_bytes = min(TAIL_ROWS, max_rows // 16), min(TAIL_BYTES, max_bytes // 16)
        self._tail = Tail(rows=rows, size_bytes=size_bytes)
        age_ms = round(max_age_s * 1000)
        self._limits = Limits(max_rows - rows, max_bytes - size_bytes, age_ms)
        now_s = self._clock.monotonic()
        self._allowance = Allowance(burst=URGENT_BURST, every_s=URGENT_EVERY_S, now_s=now_s)
        self._retry_at_s = now_s
        self._seq = 0
        self._position, lived_ms = self._guarded(self._file.last, otherwise=(0, 0))
        self._born_ms = round(now_s * 1000) - lived_ms
        self._lost = Loss()

    @property
    def dropped(self) -> int:
        """Messages that were given up since the start."""
        return self._lost.count

    def figures(self) -> OutboxFigures:
        """What waits, and what was given up since the start."""
        with self._lock:
            return OutboxFigures(
                waiting=self._waiting(),
                dropped={IMPORTANCES[rank]: count for rank, (count, _) in self._lost.items()},
                dropped_bytes=self._lost.size_bytes,
            )

    def append(self, kind: Kind, make_payload: Callable[[int], Telemetry | Event]) -> bool:
        """Add a message; `make_payload` gets its `seq`. `False`: it was given up, and counted."""
        with self._lock:
            message = make_payload(self._seq + 1)
            payload, rank = messages.encode(message), rank_of(message)
            if len(payload) > min(self._limits.size_bytes, LONGEST_BYTES):
                self._lost.note(rank, len(payload))
                return False
            self._seq += 1
            self._position += 1
            self._tail.add(
                Entry(self._position, self._boot, self._seq, kind, rank, self._lived_ms(), payload)
            )
            urgent = rank > 0 and self._allowance.take(self._clock.monotonic())
            given_up = self._spill() if urgent or self._tail.is_full else set()
            return self._position not in given_up

    def tick(self) -> float:
        """Write what has waited long enough; returns seconds until there may be more to write."""
        with self._lock:
            if self._tail.waits_ms(self._lived_ms()) >= COMMIT_S * 1000:
                self._spill()
            due_s = COMMIT_S - self._tail.waits_ms(self._lived_ms()) / 1000
            return due_s if due_s > 0 else RETRY_S

    def pending(self, limit: int, *, after: int = 0) -> list[Pending]:
        """The oldest messages behind a position, in order, as they are sent now."""
        with self._lock:
            return self._guarded(lambda: self._pending(limit, after), otherwise=[])

    def ack(self, boot: str, seq: int) -> int:
        """Forget every message of `boot` up to and including `seq`; returns how many those were."""
        with self._lock:
            on_disk = self._guarded(lambda: self._file.acknowledge(boot, seq), otherwise=0)
            # At ordinary times this keeps the file small; else the next commit deletes.
            if on_disk and self._allowance.take(self._clock.monotonic()):
                self._store([])
            return on_disk + self._tail.forget(boot, seq)

    def count(self, *, up_to: int | None = None) -> int:
        """How many messages wait, at all or up to a position."""
        with self._lock:
            if up_to is None:
                return self._waiting()
            on_disk = self._guarded(lambda: self._file.up_to(up_to), otherwise=0)
            return on_disk + self._tail.up_to(up_to)

    def take_damage(self) -> bool:
        """Whether the file was set aside since this was last asked."""
        with self._lock:
            damaged, self._file.was_damaged = self._file.was_damaged, False
            return damaged

    def close(self) -> None:
        """Write what waits, and let the file go."""
        with self._lock:
            self._retry_at_s = self._clock.monotonic()
            if self._tail:
                self._spill()
            self._file.close()

    def _waiting(self) -> int:
        return self._file.rows + len(self._tail)

    def _lived_ms(self) -> int:
        return round(self._clock.monotonic() * 1000) - self._born_ms

    def _spill(self) -> set[int]:
        """Write the tail, or keep what matters most of it; the positions of what was given up."""
        held = {entry.position for entry in self._tail.entries}
        now_s = self._clock.monotonic()
        if now_s >= self._retry_at_s:
            kept = self._store(self._tail.entries)
            if kept is not None:
                self._tail.clear()
                return held.difference(entry.position for entry in kept)
            self._retry_at_s = now_s + RETRY_S
        rows, size_bytes = min(STUCK_ROWS, self._limits.rows), STUCK_BYTES
        self._note(self._tail.shrink(rows=rows, size_bytes=size_bytes))
        return held.difference(entry.position for entry in self._tail.entries)

    def _store(self, entries: Sequence[Entry]) -> list[Entry] | None:
        """Write entries; those that stay, or `None` where the disk took nothing.

        Where it is full, what matters less makes room within the file, as little as will do.
        """
        found: list[Entry] | sqlite3.Error = []
        for free_bytes in (0, *FREE_BYTES):
            found = self._try_store(entries, free_bytes=free_bytes)
            if not isinstance(found, sqlite3.Error):
                return found
        log.warning("outbox cannot be written now", extra={"error": str(found)})
        return None

    def _try_store(
        self, entries: Sequence[Entry], *, free_bytes: int
    ) -> list[Entry] | sqlite3.Error:
        try:
            kept, loss = self._file.store(
                entries, limits=self._limits, lived_ms=self._lived_ms(), free_bytes=free_bytes
            )
        except sqlite3.OperationalError as e:
            self._file.restart_log()
            return e
        except sqlite3.DatabaseError as e:
            self._begin_anew(e)
            return e
        self._note(loss)
        return kept

    def _note(self, loss: Loss) -> None:
        for rank, (count, size) in loss.items():
            self._lost.note(rank, size, count=count)

    def _pending(self, limit: int, after: int) -> list[Pending]:
        found = self._file.after(after, limit)
        found += self._tail.after(after, limit - len(found))
        floors = self._file.floors({entry.boot for entry in found})
        floors.setdefault(self._boot, self._tail.floor or 0)
        return [
            Pending(
                *(entry.position, entry.boot, entry.seq, entry.kind),
                self._as_sent(entry, floor=floors[entry.boot]),
            )
            for entry in found
        ]

    def _as_sent(self, entry: Entry, *, floor: int) -> bytes:
        """The payload with what is of the moment of sending."""
        sent = round(self._clock.monotonic() * 1000) if entry.boot == self._boot else 0
        try:
            message = msgspec.json.decode(entry.payload, type=KINDS[entry.kind])
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as e:
            # Only a damaged file gives back what was never put in.
            raise sqlite3.DatabaseError(f"a row is not a message: {e}") from e
        return messages.encode(msgspec.structs.replace(message, floor=floor, sent=sent))

    def _guarded(self, work: Callable[[], T], *, otherwise: T) -> T:
        """Run `work`; a disk that cannot be used gives `otherwise`."""
        try:
            return work()
        except sqlite3.OperationalError as e:
            log.warning("outbox cannot be used now", extra={"error": str(e)})
        except sqlite3.DatabaseError as e:
            self._begin_anew(e)
        return otherwise

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        log.error("outbox is damaged, begun anew", extra={"error": str(error)})
        self._file.begin_anew()
