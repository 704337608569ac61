"""Runner: a command's work, with a limit on how long it may take and on how much may hang.

Work that waits asks `wait`, and ends well when told. Work that hangs is left alone (`bounded`), and
a few of such are borne before nothing more is begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from edgekit.clock import Clock
from edgekit.errors import EdgekitError, Overloaded
from edgekit_runtime import bounded
from edgekit_runtime.control.hands import Wait

T = TypeVar("T")

MOST_HUNG = 2
# What was told to end has this long to do so.
GRACE_S = 1.0


class TimeLimit(EdgekitError):
    """Work took longer than it may."""


class Runner:
    """Runs one piece of work at a time, for one thread.

    Args:
        clock: its monotonic time alone counts.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._closing = threading.Event()
        self._hung: dict[str, threading.Event] = {}

    def close(self) -> None:
        """Tell what is running to end; from any thread."""
        self._closing.set()

    def run(self, work: Callable[[Wait], T], *, limit_s: float, name: str) -> T:
        """What `work` gives, or what it raises.

        Args:
            work: takes a way to wait, which says when to end.
            limit_s: how long it may take.
            name: of its thread.

        Raises:
            TimeLimit: it took longer.
            Overloaded: too much that took longer still has not ended.
        """
        self._hung = {hung: ended for hung, ended in self._hung.items() if not ended.is_set()}
        if len(self._hung) >= MOST_HUNG:
            raise Overloaded(f"what still hangs: {', '.join(self._hung)}", retry_after_s=limit_s)
        until_s = self._clock.monotonic() + limit_s
        ended = threading.Event()

        def wait(seconds: float) -> bool:
            left_s = until_s - self._clock.monotonic()
            return self._closing.wait(max(0.0, min(seconds, left_s))) or left_s <= seconds

        def do() -> T:
            try:
                return work(wait)
            finally:
                ended.set()

        def over() -> TimeLimit:
            self._hung[name] = ended
            return TimeLimit(f"it took longer than {limit_s:g} s, and still runs")

        return bounded.run(do, name=name, limit_s=limit_s + GRACE_S, over=over)
