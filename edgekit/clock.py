"""Time as a value that is passed in, so that rules about time can be tested with plain numbers."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that never step back; for durations, deadlines and time limits."""
        ...

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC; for people. A board's wall clock may step."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, *, monotonic_s: float = 0.0, now_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_s = monotonic_s
        self._now_ms = now_ms

    def monotonic(self) -> float:
        return self._monotonic_s

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._monotonic_s += seconds
        self._now_ms += round(seconds * 1000)
