"""Validity: what a device may think of a certificate at a time; pure rules.

Its own clock may be wrong, and says so itself where it shows a time before this program or before
the certificate was made. A clock that is ahead cannot be told from a certificate that has expired.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# 2025-01-01: no board has the right time before.
EARLIEST_MS = 1_735_689_600_000
_DUE_AT = 2 / 3
# Devices of one day do not all renew at once: by so much of the lifetime around `_DUE_AT`.
_SPREAD = 0.1

Standing = Literal["clock_wrong", "certificate_expired", "valid"]


class Validity(NamedTuple):
    """A certificate's time; both ends in milliseconds since 1970 UTC."""

    starts_at_ms: int
    expires_at_ms: int


def standing(validity: Validity, *, now_ms: int) -> Standing:
    """What a clock that shows `now_ms` says of a certificate."""
    if now_ms < max(EARLIEST_MS, validity.starts_at_ms):
        return "clock_wrong"
    return "certificate_expired" if now_ms > validity.expires_at_ms else "valid"


def due_at_ms(validity: Validity, *, spread: float) -> int:
    """When to renew: two thirds into the lifetime, give or take.

    Args:
        spread: in [0, 1); where in the spread this device is.
    """
    lifetime_ms = validity.expires_at_ms - validity.starts_at_ms
    return validity.starts_at_ms + round(lifetime_ms * (_DUE_AT + _SPREAD * (spread - 0.5)))


def next_turn_s(validity: Validity, *, now_ms: int, spread: float, failed: bool) -> float:
    """Seconds until there may be something to do again, one minute to one hour.

    After a failure a twentieth of what is left of the lifetime, so that there are many attempts
    before the end however short the lifetime is.
    """
    ahead_ms = due_at_ms(validity, spread=spread) - now_ms
    if failed:
        ahead_ms = (validity.expires_at_ms - now_ms) // 20
    return min(3600.0, max(60.0, ahead_ms / 1000))
