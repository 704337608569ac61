"""Window: the hours of the day in which a device may download, as a rule over seconds of the day.

The board's local time counts, so that "at night" is night where the board stands. Where its clock
is wrong, so is the window; nothing but the hour of a download depends on it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

DAY_S = 86_400


class Window(NamedTuple):
    """From `opens_s` to `closes_s`, in seconds since midnight; across midnight where it must.

    One that opens when it closes is open all day.
    """

    opens_s: int
    closes_s: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `HH:MM-HH:MM`, raising `ValueError` for anything else."""
        opens, _, closes = text.partition("-")
        return cls(_seconds(opens), _seconds(closes))

    def opens_in_s(self, second: float) -> float:
        """Seconds until downloads may go on; 0 while they may."""
        length_s = (self.closes_s - self.opens_s) % DAY_S or DAY_S
        if (second - self.opens_s) % DAY_S < length_s:
            return 0.0
        return (self.opens_s - second) % DAY_S


def second_of_day(now_ms: int) -> float:
    """Seconds since midnight, local time."""
    local = time.localtime(now_ms / 1000)
    return local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now_ms % 1000 / 1000


def _seconds(text: str) -> int:
    hours, colon, minutes = text.partition(":")
    is_plain = len(hours) == len(minutes) == 2 and (hours + minutes).isdecimal()
    if not (colon and is_plain and int(hours) < 24 and int(minutes) < 60):
        raise ValueError(f"{text!r} is not a time of day like 02:30")
    return int(hours) * 3600 + int(minutes) * 60
