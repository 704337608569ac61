"""Keeper: variants that were asked for, lost or evicted come back, in a thread of its own.

One variant is opened at a time. What keeps failing is left alone for longer and longer
(`breaker`); what needs memory that others hold idly gets it (`budget`).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import TypeVar

from edgekit.bundle import Bundle
from edgekit.errors import (
    EdgekitError,
    EngineError,
    GoldenMismatch,
    IntegrityError,
    Overloaded,
)
from edgekit_runtime.engines import Session
from edgekit_runtime.serving import budget
from edgekit_runtime.serving.budget import Holding
from edgekit_runtime.serving.opener import Opener, StillCompiling
from edgekit_runtime.serving.rung import Opened, Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.turns import Turns

log = logging.getLogger(__name__)

T = TypeVar("T")
DRAIN_LIMIT_S = 60.0
_CLOSE_LIMIT_S = 10.0
_LOOK_S = 0.005


class Keeper:
    """Opens variants, now or in the background.

    Args:
        opener: opens one.
        budget_bytes: of all open variants together; 0 is no limit.
        held: every model that may hold memory.
    """

    def __init__(
        self, opener: Opener, *, budget_bytes: int, held: Callable[[], Iterable[Served]]
    ) -> None:
        self._opener = opener
        self._budget_bytes = budget_bytes
        self._held = held
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._turns = Turns()
        self._numbers = count()
        self._due: list[tuple[float, int, Served, Rung]] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        # Memory that no model's figures show: of canaries, and of what is being opened.
        self._unseen: dict[object, int] = {}

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """From now on models answer on this loop."""
        self._loop = loop

    def greet(self, served: Served) -> None:
        """Tell a new model the loop that it is going to answer on."""
        loop = self._loop
        if loop is not None and loop.is_running():
            self.on_loop(lambda: served.scheduler.attach(loop))

    def open(
        self,
        served_name: str,
        bundle: Bundle,
        rung: Rung,
        on: Sequence[Served],
        *,
        proven: bool = False,
    ) -> Opened:
        """Open a variant now, making room for it first.

        Args:
            served_name: of the model, for messages.
            bundle: unpacked and open.
            rung: of the variant.
            on: holds the model that it belongs to, once there is one.
            proven: it kept to the limits of its manifest here before.

        Raises:
            EngineError: it cannot run here.
            Overloaded: the memory budget has no room for it.
        """
        with self._turns.take():
            self._make_room(rung, what=f"{served_name} {rung.name}")
            with self._holding(rung.variant.needs.memory_mb << 20):
                return self._opener.open(
                    bundle,
                    rung.variant,
                    stats=rung.stats,
                    compiled=lambda: self._again(on, rung),
                    lost=lambda error: self._died(on, rung, error.message),
                    proven=proven or rung.was_open,
                )

    def pass_over(self, thread: threading.Thread) -> None:
        """Open others beside what this thread opens, which may hang; its memory counts as taken."""
        self._turns.pass_over(thread)

    @contextmanager
    def beside(self, served: Served) -> Iterator[Session]:
        """A second session of a model's default variant, as long as the block lasts.

        It is nobody's but the caller's thread's, and takes only memory that nothing holds.

        Raises:
            Overloaded: there is no room for it.
            EngineError: it cannot be opened twice.
            IntegrityError: another bundle lies in its folder by now.
        """
        rung = served.default
        size_bytes = rung.variant.needs.memory_mb << 20
        with ExitStack() as held:
            with self._turns.take():
                what = f"a second {served.name} {rung.name}"
                if self._room(size_bytes, what=what)[0]:
                    raise Overloaded(
                        f"{what} finds no memory that is free", retry_after_s=budget.RETRY_S
                    )
                held.enter_context(self._holding(size_bytes))
                with _reopened(served) as bundle:
                    session = self._opener.second(bundle, rung.variant)
                held.callback(session.close)
            yield session

    def drain(self, served: Served) -> None:
        """Let a model finish its batch and give back its memory; what comes waits meanwhile."""
        until = time.monotonic() + DRAIN_LIMIT_S
        while not self.on_loop(served.scheduler.hold):
            if time.monotonic() > until:
                self.on_loop(served.scheduler.resume)
                raise EngineError(f"{served.name} did not finish within {DRAIN_LIMIT_S:g} s")
            time.sleep(_LOOK_S)
        for rung in served.rungs:
            if self.on_loop(lambda r=rung: served.scheduler.evict(r, held=True)):  # type: ignore[misc]
                rung.opened.runner.wait_closed(_CLOSE_LIMIT_S)

    def want(self, served: Served, rung: Rung) -> bool:
        """Open a variant in the background, on the loop; whether that will be tried now."""
        now = time.monotonic()
        if rung.barred or rung.breaker.is_open(now):
            return False
        rung.state = "opening"
        self._schedule(now, served, rung)
        return True

    def lost(self, served: Served, rung: Rung, reason: str) -> None:
        """A variant's runner was lost, on the loop: bring it back."""
        now = time.monotonic()
        rung.breaker = rung.breaker.after_failure(now)
        rung.opened.runner.close()
        pause_s = rung.breaker.retry_at - now
        log.error(
            "worker lost",
            extra={
                "model": served.name,
                "variant": rung.name,
                "reason": reason,
                "retry_in_s": round(pause_s, 1),
            },
        )
        rung.asked = pause_s <= 0
        self._schedule(rung.breaker.retry_at, served, rung)

    def close(self) -> None:
        """Open nothing more and end the thread."""
        with self._changed:
            self._closing = True
            self._due = []
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_LIMIT_S)

    def on_loop(self, call: Callable[[], T]) -> T:
        """Call on the loop that answers requests and wait for what it gives."""
        loop = self._loop
        if loop is None or not loop.is_running() or _is_here(loop):
            return call()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as e:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(e)

        loop.call_soon_threadsafe(run)
        return future.result(_CLOSE_LIMIT_S)

    @contextmanager
    def _holding(self, size_bytes: int) -> Iterator[None]:
        holding = object()
        self._unseen[holding] = size_bytes
        try:
            yield
        finally:
            del self._unseen[holding]

    def _again(self, on: Sequence[Served], rung: Rung) -> None:
        """A compilation has ended, for better or worse."""
        for served in on:
            self._schedule(time.monotonic(), served, rung)

    def _died(self, on: Sequence[Served], rung: Rung, reason: str) -> None:
        """A worker died, on the loop."""
        for served in on:
            if rung.state == "ready":
                served.scheduler.note_loss(rung, reason)

    def _schedule(self, at: float, served: Served, rung: Rung) -> None:
        with self._changed:
            if self._closing:
                return
            heapq.heappush(self._due, (at, next(self._numbers), served, rung))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="models", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while (item := self._take()) is not None:
            served, rung = item
            try:
                self._bring(served, rung)
            except Exception:  # the thread goes on; the log has the traceback
                log.exception("opening failed", extra={"model": served.name, "variant": rung.name})

    def _take(self) -> tuple[Served, Rung] | None:
        with self._changed:
            while not self._closing:
                if self._due:
                    wait_s = self._due[0][0] - time.monotonic()
                    if wait_s <= 0:
                        _, _, served, rung = heapq.heappop(self._due)
                        return served, rung
                    self._changed.wait(wait_s)
                else:
                    self._changed.wait()
        return None

    def _bring(self, served: Served, rung: Rung) -> None:
        if served.scheduler.is_retired or rung.state == "ready":
            return
        opened: Opened | None = None
        failure: EdgekitError | None = None
        try:
            with _reopened(served) as bundle:
                opened = self.open(served.name, bundle, rung, [served])
        except EdgekitError as e:
            failure = e
        except Exception as e:  # what waits for it must hear of it; the log has the traceback
            log.exception("opening failed", extra={"model": served.name, "variant": rung.name})
            failure = EngineError(f"{type(e).__name__}: {e}", hint="see the log")
        self.on_loop(lambda: _settle(served, rung, opened, failure))
        if failure is not None and rung.state == "lost":
            self._schedule(rung.breaker.retry_at, served, rung)

    def _room(
        self, needed_bytes: int, *, what: str
    ) -> tuple[list[tuple[int, str]], dict[tuple[int, str], tuple[Served, Rung]]]:
        """What must be closed for that much more, in order, and where each of it is."""
        if not self._budget_bytes:
            return [], {}
        rungs = {(id(s), r.name): (s, r) for s in self._held() for r in s.rungs}
        holdings = [
            Holding(
                key,
                r.opened.runner.memory_bytes or r.opened.size_bytes,
                r.used_at,
                r is s.default,
                s.scheduler.is_busy,
            )
            for key, (s, r) in rungs.items()
            if r.state == "ready"
        ]
        # What no model shows is not closed for others, and counts as if it were needed, too.
        needed = needed_bytes + sum(list(self._unseen.values()))
        return budget.make_room(
            holdings, needed_bytes=needed, budget_bytes=self._budget_bytes, what=what
        ), rungs

    def _make_room(self, rung: Rung, *, what: str) -> None:
        closing, rungs = self._room(rung.variant.needs.memory_mb << 20, what=what)
        for key in closing:
            served, evicted = rungs[key]
            log.info("variant evicted", extra={"model": served.name, "variant": evicted.name})
            if self.on_loop(lambda s=served, r=evicted: s.scheduler.evict(r)):  # type: ignore[misc]
                evicted.opened.runner.wait_closed(_CLOSE_LIMIT_S)


@contextmanager
def _reopened(served: Served) -> Iterator[Bundle]:
    """The bundle of a model, raising `IntegrityError` where another lies in its place."""
    with Bundle.open(served.folder) as bundle:
        if bundle.digest != served.digest:
            raise IntegrityError(f"{served.folder} holds another bundle by now")
        yield bundle


def _settle(
    served: Served, rung: Rung, opened: Opened | None, failure: EdgekitError | None
) -> None:
    """Tell a model what became of a variant, on the loop."""
    rung.asked = False
    if served.scheduler.is_retired:
        if opened is not None:
            # Told of the loop first, it closes without waiting here for its process to end.
            opened.runner.attach(asyncio.get_running_loop())
            opened.runner.close()
        return
    facts = {"model": served.name, "variant": rung.name}
    if opened is not None:
        rung.put(opened)
        served.promote(rung)
        log.info("variant open", extra=facts)
    elif isinstance(failure, StillCompiling):
        rung.state, rung.reason = "compiling", failure.message
    elif isinstance(failure, Overloaded):
        # It is not its fault: who asks next may find room.
        rung.state, rung.reason = "closed", failure.message
    else:
        assert failure is not None
        rung.reason = failure.message
        rung.barred = isinstance(failure, GoldenMismatch | IntegrityError)
        rung.state = "closed" if rung.barred or not rung.was_open else "lost"
        rung.breaker = rung.breaker.after_failure(time.monotonic())
        log.error("variant cannot be opened", extra={**facts, "reason": failure.with_hint})
    served.scheduler.opened(rung)


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
