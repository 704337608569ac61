"""Preparation: threads beside the event loop for work on pictures, few and bounded.

Decoding a picture takes milliseconds, in which the loop answers others. A full queue answers at
once, so that pictures cannot pile up in memory.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from edgekit.errors import Overloaded, ServingError

T = TypeVar("T")
_Task = tuple[Callable[[], Any], Callable[[Any], None]]

_LEAST_S = 0.1
# Of the mean time of work, what one more counts.
_WEIGHT = 0.1


class Preparation:
    """A pool of threads that do work and hand its outcome back on the loop.

    All methods are called on the loop.

    Args:
        loop: where outcomes are handed back.
        threads: that work at the same time; they start with the first work.
        limit: work that may wait or run; more is turned away.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, threads: int = 2, limit: int = 16
    ) -> None:
        self._loop = loop
        self._wanted = threads
        self._limit = limit
        self._pending = 0
        self._mean_s = 0.0
        self._closed = False
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def depth(self) -> int:
        """Work that waits or runs now."""
        return self._pending

    def submit(
        self,
        work: Callable[[], T],
        done: Callable[[T | Exception], None],
        *,
        admitted: bool = False,
    ) -> None:
        """Do work on a thread; `done` gets what it gave or raised, once, on the loop.

        Args:
            admitted: the engine has run for this already: it is taken however much waits, as there
                is never more of it than the schedulers let through.

        Raises:
            Overloaded: too much work waits already.
            ServingError: the pool is closed.
        """
        if self._closed:
            raise ServingError("pictures are not prepared any more: the server is closing")
        if self._pending >= self._limit and not admitted:
            raise Overloaded(
                f"{self._pending} requests with pictures wait already",
                retry_after_s=max(_LEAST_S, self._mean_s * self._pending / self._wanted),
            )
        self._pending += 1
        if len(self._threads) < min(self._wanted, self._pending):
            self._start()
        self._tasks.put((work, done))

    def close(self) -> None:
        """Take no more work, and wait for what is there; its outcomes follow on the loop."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        name = f"pictures {len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, done = task
            started = time.perf_counter()
            try:
                outcome = work()
            except Exception as e:  # noqa: BLE001 - whoever waits gets it
                outcome = e
            took_s = time.perf_counter() - started
            try:
                self._loop.call_soon_threadsafe(self._finished, done, outcome, took_s)
            except RuntimeError:
                # The loop is closed, and with it everybody who waited.
                return

    def _finished(self, done: Callable[[Any], None], outcome: Any, took_s: float) -> None:
        self._pending -= 1
        self._mean_s += (took_s - self._mean_s) * (_WEIGHT if self._mean_s else 1.0)
        done(outcome)
