"""Messages of all kinds, and an outbox that holds them, on a clock that is turned by hand."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from edgekit.messages import Event, Resources, Telemetry
from edgekit_runtime.outbox import Outbox
from tests.clock import ManualClock

BOOT = "0123456789abcdef"
OTHER = "fedcba9876543210"


def event(seq: int, *, boot: str = BOOT, message: str = "", level: Any = "info") -> Event:
    return Event(
        boot=boot, seq=seq, floor=seq, at=1, up=1, kind="tested", level=level, message=message
    )


def error(seq: int) -> Event:
    return event(seq, level="error")


def telemetry(seq: int) -> Telemetry:
    resources = Resources(cpu_s=0.0, rss_bytes=0)
    return Telemetry(boot=BOOT, seq=seq, floor=seq, at=1, period_s=1.0, resources=resources)


def numbers(outbox: Outbox) -> list[int]:
    return [message.seq for message in outbox.pending(1000)]


def on_disk(path: Path) -> list[int]:
    """Numbers of the rows that another process would find."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        found = [seq for (seq,) in db.execute("SELECT seq FROM messages ORDER BY position")]
    db.close()
    return found


def make(
    path: Path,
    *,
    boot: str = BOOT,
    max_rows: int = 1000,
    max_bytes: int = 1 << 20,
    max_age_s: float = 1e6,
    clock: ManualClock | None = None,
) -> Outbox:
    return Outbox(
        path,
        boot=boot,
        max_rows=max_rows,
        max_bytes=max_bytes,
        max_age_s=max_age_s,
        clock=clock or ManualClock(),
    )
