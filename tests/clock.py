"""A clock that tests move by hand."""

from __future__ import annotations


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
