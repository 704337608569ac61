"""Log ring: the daemon's own latest log lines, in memory, so that an operator can ask for them.

Bounded in lines and in the length of each, which a fact of a strange size cannot exceed. Secrets
are taken out when a line comes in (`redact`).
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from edgekit.logs import JsonFormatter
from edgekit_runtime.control import redact

MAX_LINE_CHARS = 4000


class Held(NamedTuple):
    """A line, and how much it matters (`logging`'s number)."""

    level: int
    line: str


class LogRing(logging.Handler):
    """Keeps the latest lines, as the JSON lines of a board's log.

    Args:
        lines: most that are kept.
    """

    def __init__(self, *, lines: int) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._held: deque[Held] = deque(maxlen=lines)

    def attach(self) -> None:
        """Hear every logger from now on."""
        logging.getLogger().addHandler(self)

    def detach(self) -> None:
        """Hear nothing more."""
        logging.getLogger().removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = _plain(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does: a bad record ends no caller
            self.handleError(record)
            return
        self._held.append(Held(record.levelno, line))

    def tail(self, count: int, *, level: int, max_bytes: int) -> Sequence[str]:
        """The latest lines of at least a level, the oldest first.

        Args:
            count: most of them.
            level: `logging`'s number.
            max_bytes: of all of them as JSON texts.
        """
        taken: list[str] = []
        room = max_bytes
        for held in reversed(self._copy()):
            if held.level < level:
                continue
            room -= len(json.dumps(held.line).encode()) + 1
            if len(taken) == count or room < 0:
                break
            taken.append(held.line)
        return taken[::-1]

    def _copy(self) -> list[Held]:
        self.acquire()
        try:
            return list(self._held)
        finally:
            self.release()


def _plain(line: str) -> str:
    """A JSON line without secrets, and not too long."""
    line = json.dumps(redact.tree(json.loads(line)), ensure_ascii=False)
    if len(line) > MAX_LINE_CHARS:
        line = f"{line[:MAX_LINE_CHARS]}… ({len(line)} characters)"
    return line
