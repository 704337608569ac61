"""Patience: how long a download may take, and who may end it."""

from __future__ import annotations

from edgekit.clock import Clock
from edgekit.errors import LinkError
from edgekit_runtime.fetch.hours import Hours, Wait
from edgekit_runtime.fetch.window import Window
from edgekit_runtime.update import Reason, UpdateFailed


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
        self._clock = clock
        self._hours = Hours(window, clock=clock, wait=wait)
        self._begun_s = clock.monotonic()

    def left_s(self) -> float:
        """Seconds that the download still has."""
        return max(0.0, self._deadline_s() - self._clock.monotonic())

    def now_s(self) -> float:
        """Seconds of the clock that deadlines are measured with."""
        return self._clock.monotonic()

    def now_ms(self) -> int:
        """The wall clock."""
        return self._clock.now_ms()

    def pause(self, seconds: float) -> None:
        """Wait; raises `UpdateFailed` where the time is over, `Interrupted` when asked to end."""
        if self._clock.monotonic() + seconds >= self._deadline_s():
            raise UpdateFailed(
                Reason.FETCH_TIMEOUT,
                f"{self._what}: not here in {self._limit_s:g} s; last: {self.trouble}",
            )
        if self._hours.wait(seconds):
            raise self._interrupted()

    def check(self) -> None:
        """Raise `Interrupted` where the download was asked to end; from any thread."""
        if self._hours.wait(0.0):
            raise self._interrupted()

    def is_open(self) -> bool:
        """Whether the window is."""
        return self._hours.is_open()

    def wait_for_window(self) -> None:
        """Wait until the window is open; raises `Interrupted` when asked to end."""
        if self._hours.wait_open():
            raise self._interrupted()

    def _deadline_s(self) -> float:
        return self._begun_s + self._limit_s + self._hours.closed_s

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"{self._what}: the download was asked to end")
