"""Retirement: a model version takes nothing more, finishes what it can, and gives everything back.

What waits for a variant that is open is still run; what waits for another is left to the version
that took its place, or refused. When nothing waits, every variant is closed. All of it happens on
the event loop, but for `wait_closed`, and `end` where no loop runs any more.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, Unavailable
from edgekit_runtime.serving.delivery import Delivery
from edgekit_runtime.serving.job import RETRY_S, Job
from edgekit_runtime.serving.queue import Queue
from edgekit_runtime.serving.rungs import Rungs

if TYPE_CHECKING:
    from edgekit_runtime.serving.scheduler import Scheduler


class Retired(Exception):
    """This scheduler takes no more; another one may serve the model by now."""


class Retirement:
    """How one model's scheduler ends.

    Attributes:
        successor: takes what waits for a variant that is not open; `None` to refuse it.

    Args:
        queue: what waits.
        rungs: the variants to close.
        delivery: answers what is refused.
        model: its name, for messages.
    """

    def __init__(self, queue: Queue, rungs: Rungs, delivery: Delivery, *, model: str) -> None:
        self.successor: Scheduler | None = None
        self._queue = queue
        self._rungs = rungs
        self._delivery = delivery
        self._model = model
        self._closed = threading.Event()

    def proceed(self, *, is_held: bool) -> None:
        """Keep what can still be run, while nothing is under way; end where that is nothing.

        Args:
            is_held: whether nothing may be run now.
        """
        # Nothing is opened here any more: what waits for that is left to the successor.
        for job in self._queue.clear():
            if not is_held and self._rungs.can_run(job):
                self._queue.push(job)
            elif not job.settled:
                self._hand_on(job)
        if not len(self._queue):
            self.end()

    def end(self) -> None:
        """Refuse what waits and close every variant; later calls do nothing."""
        if self._closed.is_set():
            return
        for job in self._queue.clear():
            self._delivery.refuse(job, self._closed_error())
        for rung in self._rungs:
            if rung.state == "ready":
                rung.state = "closed"
                rung.opened.runner.close()
        self._closed.set()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until no engine of this model holds anything; whether that is so."""
        if timeout_s is None:
            self._closed.wait()
            return all(r.opened.runner.wait_closed() for r in self._rungs if r.was_open)
        until = time.monotonic() + timeout_s
        if not self._closed.wait(timeout_s):
            return False
        return all(
            rung.opened.runner.wait_closed(max(0.0, until - time.monotonic()))
            for rung in self._rungs
            if rung.was_open
        )

    def _hand_on(self, job: Job) -> None:
        if self.successor is None:
            self._delivery.refuse(job, self._closed_error())
            return
        try:
            job.moved(self.successor.owner)
            self.successor.submit(job)
        except EdgekitError as e:
            self._delivery.refuse(job, e)
        except Retired:
            self._delivery.refuse(job, self._closed_error())

    def _closed_error(self) -> Unavailable:
        return Unavailable(f"{self._model} is closed", retry_after_s=RETRY_S)
