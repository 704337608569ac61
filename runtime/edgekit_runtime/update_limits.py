"""Deadlines: the time limits of an update's states, for work that may hang.

Promise: the update thread waits for no engine and no disk longer than the state's limit; the daemon
that ends and a word of cancellation end the wait at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from edgekit.clock import Clock
from edgekit_runtime import bounded, update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.fetch import Interrupted
from edgekit_runtime.requests import Requests
from edgekit_runtime.update import State, UpdateFailed

T = TypeVar("T")


class Deadlines:
    """Runs work within the limit of a state. Used by the update thread.

    Args:
        limits: seconds that a state may take.
        requests: who wants an update to end.
        is_stopping: whether the daemon ends.
        left: is told of a thread that nobody waits for any more.
        clock: measures.
    """

    def __init__(
        self,
        limits: UpdateSection,
        requests: Requests,
        *,
        is_stopping: Callable[[], bool],
        left: Callable[[threading.Thread], None],
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._requests = requests
        self._is_stopping = is_stopping
        self._left = left
        self._clock = clock
        self._deadlines: dict[object, float] = {}

    @property
    def is_overdue(self) -> bool:
        """Whether work goes on that nobody waits for any more; from any thread."""
        now_s = self._clock.monotonic()
        return any(now_s > deadline_s for deadline_s in list(self._deadlines.values()))

    def run(
        self,
        model: str,
        state: State,
        work: Callable[[], T],
        *,
        late: Callable[[T], None],
        can_cancel: bool = True,
    ) -> T:
        """What `work` gives; `late` takes it where that comes after the end of the wait.

        Raises:
            UpdateFailed: it took longer than the state may.
            Interrupted: the daemon ends, or somebody cancels the update.
        """
        limit_s, timeout = update.limit(state, self._limits)
        token = object()
        self._deadlines[token] = self._clock.monotonic() + limit_s

        def tracked() -> T:
            try:
                return work()
            finally:
                del self._deadlines[token]

        def check_asked() -> None:
            if self._is_stopping():
                raise Interrupted(f"{model}: the daemon ends")
            if can_cancel and model in self._requests.asked("cancel"):
                raise Interrupted(f"{model}: {state.value} was asked to end")

        return bounded.run(
            tracked,
            name=f"update-{state.value}",
            limit_s=limit_s,
            over=lambda: UpdateFailed(timeout, f"{state.value} took longer than {limit_s:g} s"),
            late=late,
            left=self._left,
            check=check_asked,
        )
