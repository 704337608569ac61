"""Turns: one thread at a time, but for those that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet


class Turns:
    """A lock that does not stay with a thread that hangs: others go on beside it.

    Safe to use from several threads. Who has the turn must not take it again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: threading.Thread | None = None
        self._passed: WeakSet[threading.Thread] = WeakSet()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the turn, and have it until the block ends or this thread is passed over."""
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            if me not in self._passed:
                self._holder = me
        try:
            yield
        finally:
            self._let_go(me)

    def pass_over(self, thread: threading.Thread) -> None:
        """Let nobody wait for this thread from now on, whether it has the turn or comes to it."""
        with self._changed:
            self._passed.add(thread)
        self._let_go(thread)

    def _let_go(self, thread: threading.Thread) -> None:
        with self._changed:
            if self._holder is thread:
                self._holder = None
                self._changed.notify_all()
