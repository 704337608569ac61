"""Tail: the newest messages of the outbox, which are only in memory yet."""

from __future__ import annotations

from edgekit_runtime.outbox.entry import Entry, Loss


class Tail:
    """Messages of this boot, in order.

    Args:
        rows: more than these are to be written to disk.
        size_bytes: likewise, bytes of payloads.
    """

    def __init__(self, *, rows: int, size_bytes: int) -> None:
        self._most_rows = rows
        self._most_bytes = size_bytes
        self.entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def size_bytes(self) -> int:
        return sum(len(entry.payload) for entry in self.entries)

    @property
    def is_full(self) -> bool:
        return len(self.entries) > self._most_rows or self.size_bytes > self._most_bytes

    @property
    def floor(self) -> int | None:
        """The lowest number; `None` where nothing waits."""
        return self.entries[0].seq if self.entries else None

    def waits_ms(self, lived_ms: int) -> int:
        """How long the oldest message has waited."""
        return lived_ms - self.entries[0].lived_ms if self.entries else 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def after(self, position: int, limit: int) -> list[Entry]:
        """The oldest behind a position."""
        return [entry for entry in self.entries if entry.position > position][:limit]

    def up_to(self, position: int) -> int:
        """How many there are up to a position."""
        return sum(entry.position <= position for entry in self.entries)

    def forget(self, boot: str, seq: int) -> int:
        """Drop what is acknowledged; how many messages that were."""
        before = len(self.entries)
        self.entries = [e for e in self.entries if e.boot != boot or e.seq > seq]
        return before - len(self.entries)

    def clear(self) -> None:
        self.entries = []

    def shrink(self, *, rows: int, size_bytes: int) -> Loss:
        """Give up the least important, the oldest first, until the rest is within these limits."""
        loss = Loss()
        total = self.size_bytes
        gone: set[int] = set()
        for entry in sorted(self.entries, key=lambda e: (e.rank, e.position)):
            if len(self.entries) - len(gone) <= rows and total <= size_bytes:
                break
            gone.add(entry.position)
            total -= len(entry.payload)
            loss.note(entry.rank, len(entry.payload))
        self.entries = [entry for entry in self.entries if entry.position not in gone]
        return loss
