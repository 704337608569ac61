"""Patience: how long a download may take, and who may end it."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.clock import Clock
from edgekit.errors import LinkError
from edgekit_runtime.fetch.window import Window, second_of_day
from edgekit_runtime.update import Reason, UpdateFailed

# Clocks step and summer begins: no longer is a wait for the window planned ahead.
LOOK_S = 60.0

Wait = Callable[[float], bool]


class Interrupted(LinkError):
    """Somebody asked the download to end; the part stays."""


class Patience:
    """The time that all attempts together have; hours outside the window do not count.

    Args:
        what: names the download in messages.
        limit_s: the time, in seconds.
        window: when it may go on; `None` is always.
        clock: measures.
        wait: waits for a number of seconds, and says whether the download shall end.

    Attributes:
        trouble: what went wrong last.
    """

    def __init__(
        self, what: str, *, limit_s: float, window: Window | None, clock: Clock, wait: Wait
    ) -> None:
        self.trouble = "nothing came"
        self._what = what
        self._limit_s = limit_s
        self._window = window
        self._clock = clock
        self._wait = wait
        self._deadline_s = clock.monotonic() + limit_s

    def left_s(self) -> float:
        """Seconds that the download still has."""
        return max(0.0, self._deadline_s - self._clock.monotonic())

    def now_s(self) -> float:
        """Seconds of the clock that deadlines are measured with."""
        return self._clock.monotonic()

    def now_ms(self) -> int:
        """The wall clock."""
        return self._clock.now_ms()

    def pause(self, seconds: float) -> None:
        """Wait; raises `UpdateFailed` where the time is over, `Interrupted` when asked to end."""
        if self._clock.monotonic() + seconds >= self._deadline_s:
            raise UpdateFailed(
                Reason.FETCH_TIMEOUT,
                f"{self._what}: not here in {self._limit_s:g} s; last: {self.trouble}",
            )
        self._sleep(seconds)

    def is_open(self) -> bool:
        """Whether the window is."""
        return self._opens_in_s() == 0.0

    def wait_for_window(self) -> None:
        """Wait until the window is open; raises `Interrupted` when asked to end."""
        while (opens_in_s := self._opens_in_s()) > 0:
            begun_s = self._clock.monotonic()
            self._sleep(min(opens_in_s, LOOK_S))
            self._deadline_s += self._clock.monotonic() - begun_s

    def _opens_in_s(self) -> float:
        if self._window is None:
            return 0.0
        return self._window.opens_in_s(second_of_day(self._clock.now_ms()))

    def _sleep(self, seconds: float) -> None:
        if self._wait(seconds):
            raise Interrupted(f"{self._what}: the download was asked to end")
