"""What the outbox writes to flash in an hour: with a link, without one, and in a storm of events.

    python -m benchmarks.device.flash_writes [--hours 24] [--folder F] [--json FILE]

The real outbox, its file on a real disk (not in memory: name a --folder on one), on a clock that is
turned by hand, so that a day takes seconds: the same messages, transactions and fsyncs as in real
time. Bytes are `write_bytes` of /proc/self/io: pages that this process has made dirty, the
write-ahead log, its checkpoints and the database alike. What a file system adds (its journal,
erase blocks) is not in it. Telemetry of one model every minute, two events an hour, where nothing
else is said.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.device.telemetry_bytes import write_bytes
from benchmarks.fleet import ingest
from benchmarks.process import tell
from edgekit.messages import Event, Telemetry
from edgekit_runtime.outbox import COMMIT_S, TAIL_ROWS, URGENT_BURST, URGENT_EVERY_S, Outbox
from tests.clock import ManualClock

INTERVAL_S = 60.0
BATCH = 5
BOOT = ingest.BOOT


class Device:
    """An outbox that gets what a device tells.

    Args:
        has_link: whether everything is acknowledged, telemetry in batches.
        event_every_s: between two events.
    """

    def __init__(self, folder: Path, *, has_link: bool, event_every_s: float) -> None:
        self.clock = ManualClock()
        self.messages = 0
        self._has_link = has_link
        self._event_every_s = event_every_s
        self._outbox = Outbox(
            folder / "outbox.db",
            boot=BOOT,
            max_rows=100_000,
            max_bytes=64 << 20,
            max_age_s=14 * 86_400.0,
            clock=self.clock,
        )

    def live(self, seconds: float) -> None:
        """Let time pass, in steps of the shortest thing that happens."""
        step_s = min(INTERVAL_S, self._event_every_s)
        to_tell, to_say = 0.0, 0.0
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            to_tell += step_s
            to_say += step_s
            if to_tell >= INTERVAL_S:
                to_tell -= INTERVAL_S
                self._append("telemetry", _telemetry)
                if self._has_link and self.messages % BATCH == 0:
                    self._outbox.ack(BOOT, self.messages)
            if to_say >= self._event_every_s:
                to_say -= self._event_every_s
                self._append("event", _event)
                if self._has_link:
                    self._outbox.ack(BOOT, self.messages)
            self._outbox.tick()

    def close(self) -> None:
        self._outbox.close()

    def _append(self, kind: Any, make: Callable[[int], Any]) -> None:
        assert self._outbox.append(kind, make)
        self.messages += 1


def _telemetry(seq: int) -> Telemetry:
    return msgspec.json.decode(ingest.telemetry(seq), type=Telemetry)


def _event(seq: int) -> Event:
    return Event(
        boot=BOOT, seq=seq, floor=seq, at=seq, kind="update_failed", level="error",
        message="lite0 1.2.0: output y differs by 0.31, allowed are 0.02", facts={"model": "lite0"},
    )  # fmt: skip


def measure(folder: Path, *, hours: float, has_link: bool, event_every_s: float) -> dict[str, Any]:
    """Bytes and messages in an hour."""
    folder.mkdir()
    device = Device(folder, has_link=has_link, event_every_s=event_every_s)
    before = write_bytes(os.getpid())
    device.live(hours * 3600)
    written = write_bytes(os.getpid()) - before
    device.close()
    return {
        "messages_an_hour": round(device.messages / hours),
        "kB_an_hour": round(written / hours / 1000, 1),
        "commits_an_hour_at_most": round(
            3600 / COMMIT_S + 3600 / URGENT_EVERY_S + device.messages / hours / TAIL_ROWS
        ),
        "and_once": URGENT_BURST,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    half_hour_s, hours = 1800.0, given.hours
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        figures = {
            "link": measure(folder / "link", hours=hours, has_link=True, event_every_s=half_hour_s),
            "no link": measure(
                folder / "no-link", hours=hours, has_link=False, event_every_s=half_hour_s
            ),
            "no link, an event a second": measure(
                folder / "storm", hours=min(hours, 6.0), has_link=False, event_every_s=1.0
            ),
        }
    tell(figures, file=given.json)


if __name__ == "__main__":
    main()
