"""Bounded: a piece of work that may take so long, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

_LOOK_S = 0.2


def run(
    work: Callable[[], T],
    *,
    name: str,
    limit_s: float,
    over: Callable[[], Exception],
    late: Callable[[T], None] | None = None,
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
        check: called now and then while it runs; what it raises ends the wait.
    """
    outcome: Future[T] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as e:  # noqa: BLE001 - raised again where it is waited for
            outcome.set_exception(e)

    threading.Thread(target=do, name=name, daemon=True).start()
    try:
        waited_s = 0.0
        while not wait([outcome], min(_LOOK_S, limit_s - waited_s)).done:
            waited_s += _LOOK_S
            if waited_s >= limit_s:
                raise over()
            if check is not None:
                check()
    except BaseException:
        if late is not None:
            outcome.add_done_callback(lambda done: done.exception() or late(done.result()))
        raise
    return outcome.result()
