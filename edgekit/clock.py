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
