"""Arrivals: when requests are due, decided before the first one is sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def poisson(
    rate_per_s: float, duration_s: float, *, random: np.random.Generator
) -> NDArray[np.int64]:
    """Independent callers without a clock: nanoseconds from the start, rising.

    Given their number, the arrivals of a Poisson process are independent and uniform, so the
    number is drawn first.
    """
    count = int(random.poisson(rate_per_s * duration_s))
    due = np.sort(random.uniform(0, duration_s * 1e9, count))
    return due.astype(np.int64)


def periodic(
    streams: int,
    rate_per_s: float,
    duration_s: float,
    *,
    random: np.random.Generator,
    aligned: bool = False,
) -> NDArray[np.int64]:
    """Cameras: each sends at its own fixed beat; nanoseconds from the start, rising.

    Args:
        streams: how many.
        rate_per_s: of one stream.
        duration_s: how long they send.
        random: draws each stream's phase within one period.
        aligned: all streams in phase, as cameras are that share a trigger: the worst case.
    """
    period_ns = 1e9 / rate_per_s
    phases = np.zeros(streams) if aligned else random.uniform(0, period_ns, streams)
    beats = np.arange(int(np.ceil(duration_s * rate_per_s))) * period_ns
    due = np.sort((phases[:, np.newaxis] + beats).reshape(-1))
    return due[due < duration_s * 1e9].astype(np.int64)
