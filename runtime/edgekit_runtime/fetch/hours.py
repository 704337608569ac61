"""Hours: waits that know when downloads may go on, so that a closed window costs no time limit."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.clock import Clock
from edgekit_runtime.fetch.window import Window, second_of_day

# Clocks step and summer begins: no longer is a wait for the window planned ahead.
LOOK_S = 60.0

Wait = Callable[[float], bool]


class Hours:
    """Waits, and counts the seconds of it in which no download may go on.

    Args:
        window: when downloads may; `None` is always.
        clock: measures; its wall clock decides about the window.
        wait: waits for a number of seconds, and says whether the download shall end.

    Attributes:
        closed_s: seconds that were waited outside the window.
    """

    def __init__(self, window: Window | None, *, clock: Clock, wait: Wait) -> None:
        self.closed_s = 0.0
        self._window = window
        self._clock = clock
        self._wait = wait

    def is_open(self) -> bool:
        """Whether the window is."""
        return self._opens_in_s() == 0.0

    def wait(self, seconds: float) -> bool:
        """Wait, and say whether the download shall end; without a wait, from any thread."""
        if not seconds:
            return self._wait(0.0)
        is_open, begun_s = self.is_open(), self._clock.monotonic()
        ends = self._wait(seconds)
        if not is_open:
            self.closed_s += self._clock.monotonic() - begun_s
        return ends

    def sleep(self, seconds: float) -> bool:
        """Wait for long, whatever wakes meanwhile; whether the download shall end before that."""
        until_s = self._clock.monotonic() + seconds
        while (left_s := until_s - self._clock.monotonic()) > 0:
            # Each look counts as open or closed by itself.
            if self.wait(min(left_s, LOOK_S)):
                return True
        return False

    def wait_open(self) -> bool:
        """Wait until the window is open; whether the download shall end before that."""
        while (opens_in_s := self._opens_in_s()) > 0:
            if self.wait(min(opens_in_s, LOOK_S)):
                return True
        return False

    def _opens_in_s(self) -> float:
        if self._window is None:
            return 0.0
        return self._window.opens_in_s(second_of_day(self._clock.now_ms()))
