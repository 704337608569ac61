"""Breaker: how long to leave alone what keeps failing (a circuit breaker: Nygard, Release It!).

The first losses are followed by a new start at once. More of them within `WINDOW_S` open the
circuit: nothing is tried for a time that doubles with each further loss; then one trial decides.
Who stays whole for `WINDOW_S` after that has a clean record again.
"""

from __future__ import annotations

from edgekit.structs import Strict

WINDOW_S = 60.0
TOLERATED = 2
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0


class Breaker(Strict, frozen=True, kw_only=True):
    """What is remembered of failures; all times by one monotonic clock, in seconds.

    Attributes:
        failures: when the last ones happened.
        pauses: how often in a row the circuit was opened.
        retry_at: before this nothing is tried.
    """

    failures: tuple[float, ...] = ()
    pauses: int = 0
    retry_at: float = 0.0

    def is_open(self, now: float) -> bool:
        """Whether it failed too often to be tried now."""
        return now < self.retry_at

    def after_failure(self, now: float) -> Breaker:
        """One more loss."""
        pauses = self.pauses if now - self.retry_at < WINDOW_S else 0
        recent = (*(at for at in self.failures if now - at < WINDOW_S), now)[-TOLERATED - 1 :]
        if len(recent) <= TOLERATED and not pauses:
            return Breaker(failures=recent, retry_at=now)
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**pauses)
        return Breaker(failures=recent, pauses=min(pauses + 1, 16), retry_at=now + pause_s)
