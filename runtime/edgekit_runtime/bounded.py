"""Bounded: a piece of work that may take so long, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_LOOK_S = 0.2
_left: WeakSet[threading.Thread] = WeakSet()


class Work(Generic[T]):
    """Something that is done in a thread of its own, from now on.

    Attributes:
        thread: it; left alone where nobody waits any more.

    Args:
        do: what to do.
        name: of the thread.
    """

    def __init__(self, do: Callable[[], T], *, name: str) -> None:
        self._outcome: Future[T] = Future()

        def run() -> None:
            try:
                self._outcome.set_result(do())
            except BaseException as e:  # noqa: BLE001 - raised again where it is waited for
                self._outcome.set_exception(e)

        self.thread = threading.Thread(target=run, name=name, daemon=True)
        self.thread.start()

    def has_ended(self, *, wait_s: float = 0.0) -> bool:
        """Whether it has, for better or worse, within so many seconds."""
        return bool(wait([self._outcome], wait_s).done)

    def result(self) -> T:
        """What came of it, or the error that it raised; waits for its end."""
        return self._outcome.result()

    def leave(self, late: Callable[[T], None] | None = None) -> None:
        """Wait no more: `late` takes what comes of it, should it end after all."""

        def take(done: Future[T]) -> None:
            if late is not None and done.exception() is None:
                late(done.result())

        _left.add(self.thread)
        self._outcome.add_done_callback(take)


def is_any_left() -> bool:
    """Whether this process does something that nobody waits for any more."""
    return any(thread.is_alive() for thread in list(_left))


def run(
    work: Callable[[], T],
    *,
    name: str,
    limit_s: float,
    over: Callable[[], Exception],
    late: Callable[[T], None] | None = None,
    left: Callable[[threading.Thread], None] | None = None,
    check: Callable[[], None] | None = None,
) -> T:
    """Run `work` in a thread of its own and wait no longer than its limit.

    An engine that hangs cannot be stopped from outside: its thread is left alone, and the version
    that serves goes on.

    Args:
        work: what to do.
        name: of its thread.
        limit_s: how long it may take, in seconds.
        over: the error that says that the limit is over.
        late: takes what comes of it, should it end after all when nobody waits any more.
        left: is told of the thread that nobody waits for any more.
        check: called now and then while it runs; what it raises ends the wait.
    """
    begun = Work(work, name=name)
    try:
        waited_s = 0.0
        while not begun.has_ended(wait_s=min(_LOOK_S, limit_s - waited_s)):
            waited_s += _LOOK_S
            if waited_s >= limit_s:
                raise over()
            if check is not None:
                check()
    except BaseException:
        if left is not None:
            left(begun.thread)
        begun.leave(late)
        raise
    return begun.result()
