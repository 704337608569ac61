"""Allowance: how often the outbox may write to flash at once.

Rule: a token bucket (source: RFC 2697, section 3, with one rate). What finds no token waits in
memory until the next commit that is due anyway, so that no storm of events wears the flash out.
"""

from __future__ import annotations


class Allowance:
    """Tokens that come back with time.

    Args:
        burst: tokens at the start, and at most.
        every_s: time in which one comes back.
        now_s: on the clock that `take` is given.
    """

    def __init__(self, *, burst: int, every_s: float, now_s: float) -> None:
        self._burst = burst
        self._every_s = every_s
        self._tokens = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Use a token up, if there is one."""
        back = max(0.0, now_s - self._at_s) / self._every_s
        self._tokens = min(float(self._burst), self._tokens + back)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
