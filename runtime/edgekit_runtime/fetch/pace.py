"""Pace: how fast bytes may come, and how slow they may not; values in, seconds out.

Promise: over any stretch of time no more than `rate * seconds + burst` bytes are let through.
"""

from __future__ import annotations


class Bucket:
    """A token bucket that may be overdrawn: what was taken is paid for by waiting.

    A reader learns only after a read how much it was, so a balance below zero is allowed and the
    wait brings it back to zero. (Token bucket as in RFC 2697, with one rate.)

    Args:
        bytes_s: tokens that come in each second.
        burst_bytes: most tokens that gather while nothing is taken.
        now_s: of the clock that `take` is told.
    """

    def __init__(self, bytes_s: float, *, burst_bytes: float, now_s: float) -> None:
        self._bytes_s = bytes_s
        self._burst_bytes = burst_bytes
        self._balance = burst_bytes
        self._at_s = now_s

    def take(self, size_bytes: int, *, now_s: float) -> float:
        """Take tokens, and say how many seconds to wait for them."""
        earned = max(0.0, now_s - self._at_s) * self._bytes_s
        self._at_s = now_s
        self._balance = min(self._burst_bytes, self._balance + earned) - size_bytes
        return max(0.0, -self._balance / self._bytes_s)


class Pulse:
    """Tells a connection that drips from one that flows.

    Time that the reader itself spent waiting is not the connection's fault: it is left out.

    Args:
        bytes_s: slowest rate that counts as flowing.
        window_s: seconds over which it is judged.
        now_s: of the clock that `beat` is told.
    """

    def __init__(self, bytes_s: float, *, window_s: float, now_s: float) -> None:
        self._bytes_s = bytes_s
        self._window_s = window_s
        self._begun_s = now_s
        self._size_bytes = 0

    def paused(self, seconds: float) -> None:
        """The reader waited on purpose."""
        self._begun_s += seconds

    def beat(self, size_bytes: int, *, now_s: float) -> float | None:
        """Count what came; the rate in bytes per second where it is too slow, else `None`."""
        self._size_bytes += size_bytes
        passed_s = now_s - self._begun_s
        if passed_s < self._window_s:
            return None
        rate, self._begun_s, self._size_bytes = self._size_bytes / passed_s, now_s, 0
        return rate if rate < self._bytes_s else None
