"""Retry: when to ask again, so that a fleet whose server went away does not come back as one.

Full jitter: the wait is drawn evenly between nothing and a bound that doubles ("Exponential
Backoff And Jitter", AWS Architecture Blog, 2015). What a server asks for in `Retry-After`
(RFC 9110, 10.2.3) is kept, up to an hour, and the jitter comes on top.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from random import Random

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 120.0
LONGEST_RETRY_AFTER_S = 3600.0


def backoff(attempt: int, *, rng: Random, longest_s: float = LONGEST_WAIT_S) -> float:
    """Seconds to wait after so many failures in a row, drawn from a bound that doubles."""
    return rng.random() * min(longest_s, FIRST_WAIT_S * 2.0 ** min(attempt, 16))


def retry_after(text: str, *, now_ms: int) -> float:
    """Seconds that a server asked to wait: a number or a date; 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        # Longer numbers are beyond the bound too, and `int` takes its time with them.
        seconds = float(int(text[:9]))
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_ms / 1000
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)
