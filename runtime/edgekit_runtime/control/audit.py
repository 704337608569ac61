"""Audit: who asked what of this device, when, and what came of it. Lines are added, never changed.

    STATE/commands/audit.jsonl, audit.1.jsonl    one JSON object a line, the newest last

Bounded: a full file takes the place of the one before. What nobody trusted signed is noted too, but
only so often: a hostile broker must not wear the flash out, nor push what counts out of the file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from edgekit import storage
from edgekit.clock import Clock
from edgekit.control import Command, Value
from edgekit.errors import StorageError
from edgekit.structs import Strict
from edgekit_runtime.control.journal import FOLDER
from edgekit_runtime.control.outcome import Outcome

log = logging.getLogger(__name__)

FILE = "audit.jsonl"
OLD_FILE = "audit.1.jsonl"
MAX_BYTES = 256 << 10


class Line(Strict, frozen=True, kw_only=True):
    """One thing that was asked, begun or answered.

    Attributes:
        at: this board's clock, milliseconds since 1970 UTC.
        key: id of the key that signed it; empty where no trusted one did.
        by: who asked, as the coordinator says.
        state: `running` when it was begun, else what it came to.
    """

    at: int
    boot: str
    id: str
    state: str
    key: str = ""
    by: str = ""
    kind: str = ""
    args: dict[str, Value] = {}
    counter: int = 0
    reason: str | None = None
    detail: str = ""


class Audit:
    """The log, for one thread.

    Args:
        state: the state folder.
        boot: of this start.
        clock: for time stamps.
        max_bytes: of one file, of which there are two.
    """

    def __init__(self, state: Path, *, boot: str, clock: Clock, max_bytes: int = MAX_BYTES) -> None:
        self._folder = state / FOLDER
        self._boot = boot
        self._clock = clock
        self._max_bytes = max_bytes

    def add(
        self, number: str, outcome: Outcome, *, command: Command | None = None, key: str = ""
    ) -> None:
        """Write a line, on disk when this returns; a disk that takes none costs the line.

        Whether a command that changes something may go on then is not decided here: the journal
        lies on the same disk.

        Args:
            number: the id in the topic.
            outcome: what came of it, `running` where it is about to begin.
            command: what was asked, where a trusted key signed it.
            key: that key's id.
        """
        asked: dict[str, Any] = {}
        if command is not None:
            asked = {name: getattr(command, name) for name in ("by", "kind", "args", "counter")}
        line = Line(
            at=self._clock.now_ms(),
            boot=self._boot,
            id=number,
            state=outcome.state,
            key=key,
            reason=outcome.reason,
            detail=outcome.detail,
            **asked,
        )
        raw = msgspec.json.encode(line) + b"\n"
        try:
            storage.make_folder(self._folder)
            self._append(raw)
        except (OSError, StorageError) as e:
            log.error("audit line lost", extra={"error": str(e), "line": raw.decode()})

    def _append(self, raw: bytes) -> None:
        path = self._folder / FILE
        if path.exists() and path.stat().st_size + len(raw) > self._max_bytes:
            path.replace(self._folder / OLD_FILE)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, raw)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            storage.sync_folder(self._folder)


class Allowance:
    """How often something may be done: `burst` at once, then one more each `every_s`.

    Source: the token bucket, RFC 2697 in its simplest form.
    """

    def __init__(self, *, burst: int, every_s: float, clock: Clock) -> None:
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        self._left = float(burst)
        self._since_s = clock.monotonic()

    def take(self) -> bool:
        """Whether it may be done once more now."""
        now_s = self._clock.monotonic()
        gained = (now_s - self._since_s) / self._every_s
        self._left, self._since_s = min(float(self._burst), self._left + gained), now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
