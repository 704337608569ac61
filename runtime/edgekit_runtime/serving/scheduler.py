"""Scheduler: what waits for a model, and which of its variants runs it next.

A request is never made to wait for company: whatever is there when the model becomes free is run
together, up to the plan's batch. One batch is under way at a time. `admission` decides who may
wait, `rungs` which variant serves, `delivery` hands out what came of it, `retirement` ends it.
Everything happens on the event loop; `retire` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit_runtime.serving.admission import Admission
from edgekit_runtime.serving.cascade import Cascade
from edgekit_runtime.serving.delivery import Delivery
from edgekit_runtime.serving.job import Job
from edgekit_runtime.serving.queue import Queue
from edgekit_runtime.serving.retirement import Retired, Retirement
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.rungs import Rungs
from edgekit_runtime.serving.runners import Batch
from edgekit_runtime.serving.stats import Stats

if TYPE_CHECKING:
    from edgekit_runtime.serving.served import Served


class Scheduler:
    """Runs the jobs of one served model.

    Attributes:
        owner: the model that this runs.
        is_held: whether it starts nothing until it is told to go on.
        is_retired: whether it takes nothing more.

    Args:
        rungs: the variants, the most accurate first; at least one.
        default: the one that answers where no deadline says otherwise.
        stats: counts what no variant did.
        queue_limit: jobs that may wait.
        want: asks for a variant that is not open, from the loop; whether it is on its way. It comes
            by `opened`.
        lost: told of a variant whose runner was lost, on the loop.
        climbs: whether deadlines choose the variant.
        watch: told of each batch after its answers were handed out, with who ran it and for how
            many nanoseconds.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        *,
        default: Rung,
        owner: Served,
        stats: Stats,
        queue_limit: int,
        want: Callable[[Rung], bool],
        lost: Callable[[Rung, str], None],
        climbs: bool,
        watch: Callable[[Batch, Rung, int], None],
    ) -> None:
        name = owner.name
        self.owner = owner
        self._limit = queue_limit
        self._lost = lost
        self._queue = Queue()
        self._rungs = Rungs(
            rungs,
            default=default,
            model=name,
            preference=[variant.name for variant in owner.manifest.variants],
            want=want,
            climbs=climbs,
        )
        climb = Cascade(self._queue, self._rungs).climb
        self._delivery = Delivery(model=name, stats=stats, climb=climb, watch=watch)
        self._admission = Admission(
            self._queue, self._rungs, self._delivery, model=name, limit=queue_limit
        )
        self._retirement = Retirement(self._queue, self._rungs, self._delivery, model=name)
        self._running: Rung | None = None
        self._started_ns = 0
        self._expected_us = 0.0
        self._flushing = self._in_turn = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_held = self.is_retired = False

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def waiting(self) -> list[Job]:
        """The jobs that wait, in the order in which they are served."""
        return list(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way or a job waits."""
        return self._running is not None or len(self._queue) > 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Learn the loop, on it."""
        if self._loop is None:
            self._loop = loop
            for rung in self._rungs:
                if rung.state == "ready":
                    rung.opened.runner.attach(loop)

    def submit(self, job: Job, *, alone: bool = False) -> None:
        """Take a job.

        Args:
            job: what to run.
            alone: whether no other request can be on its way, so that waiting for company is vain.

        Raises:
            Retired: look the model up again.
            Overloaded: the queue is full.
            DeadlineMissed: with what waits before it, the job's deadline cannot be met.
            NotServed: the variant that it wants is none of this model.
            Unavailable: no variant can run, and none is on its way.
        """
        if self.is_retired:
            raise Retired
        if self._loop is None:
            self.attach(asyncio.get_running_loop())
            assert self._loop is not None
        default, queue = self._rungs.default, self._queue
        if not (job.is_plain and default.state == "ready" and len(queue) < self._limit):
            self._admission.check(job, is_held=self.is_held, under_way_us=self._under_way_us())
        queue.push(job)
        if job.deadline_ns is not None:
            job.limit(self._loop, self._delivery.late)
        if self._running is not None or self._flushing or self.is_held:
            return
        if alone or default.state != "ready" or default.opened.plan.max_batch == 1:
            self._next()
        else:
            # The loop has more sockets to read in this turn; their requests join this batch.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def at_once(self, *, is_timed: bool) -> Rung | None:
        """The default variant, if it would run a request this very moment.

        Whoever asks may run one, before anything else happens on the loop: by `run_now`, or, where
        the variant runs on the loop, by himself, counting it himself. To make a job of a request,
        to queue it and to hand it out takes longer than a run of microseconds.

        Args:
            is_timed: whether the request has a deadline, which may choose another variant.
        """
        rung = self._rungs.default
        if is_timed and self._rungs.climbs:
            return None
        if self._running is not None or self._flushing or self.is_held or self.is_retired:
            return None
        if rung.state != "ready" or len(self._queue):
            return None
        return rung

    def run_now(self, job: Job, rung: Rung) -> None:
        """Run a job without a deadline on the variant that `at_once` has just given."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._start(rung, [job])

    def evict(self, rung: Rung, *, held: bool = False) -> bool:
        """Close a variant that nobody uses now, on the loop; whether that was so.

        Args:
            rung: of the variant.
            held: whether requests may wait for it.
        """
        if rung.state != "ready" or (self.is_busy and not held) or self._running is not None:
            return False
        rung.state = "closed"
        rung.reason = "closed to make room for others"
        rung.opened.runner.close()
        return True

    def note_loss(self, rung: Rung, reason: str) -> None:
        """A variant's runner can run nothing more, on the loop."""
        rung.state = "lost"
        rung.losses += 1
        rung.asked = False
        rung.reason = reason
        self._lost(rung, reason)
        self._give_up()

    def promote(self, rung: Rung) -> None:
        """Let another variant be the default, on the loop."""
        self._rungs.default = rung

    def opened(self, rung: Rung) -> None:
        """A variant that was asked for is there, or cannot be; call it on the loop."""
        if rung.state == "ready" and self._loop is not None:
            rung.opened.runner.attach(self._loop)
        if rung.state != "ready":
            self._give_up()
        if self._running is None:
            self._next()

    def hold(self) -> bool:
        """Start no more batches, on the loop; what comes waits. Whether none is under way."""
        self.is_held = True
        return self._running is None

    def resume(self) -> None:
        """Go on after `hold`, on the loop."""
        self.is_held = False
        self._rungs.ask(self._rungs.default)
        for job in self._queue:
            self._rungs.call_up(job)
        self.opened(self._rungs.default)

    def retire(self, successor: Scheduler | None = None) -> None:
        """Take nothing more, finish what waits, then close every variant. Returns at once.

        Args:
            successor: takes what waits for a variant that is not open.
        """
        self._retirement.successor = successor
        self.is_retired = True
        loop = self._loop
        # On a loop that has ended nothing is called any more.
        if loop is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self._end_if_idle)
            except RuntimeError:  # it was closed just now
                self._retirement.end()
        else:
            self._retirement.end()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until no engine of this model holds anything; whether that is so."""
        return self._retirement.wait_closed(timeout_s)

    # Running.

    def _flush(self) -> None:
        """Run what came in this turn of the loop; what comes with the answers has its own turn."""
        self._flushing = False
        self._next(most=len(self._queue))

    def _next(self, *, most: int | None = None) -> None:
        """Start batches until one is under way elsewhere, or `most` jobs were taken."""
        # An answer may bring its client's next request, which is left to the turn that gave it:
        # many clients that send ahead would else answer each other ever deeper in the stack.
        if self._in_turn:
            return
        self._in_turn = True
        try:
            self._take_turn(most)
        finally:
            self._in_turn = False
        if self.is_retired:
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._running is None:
            self._retirement.proceed(is_held=self.is_held)

    def _take_turn(self, most: int | None) -> None:
        taken = 0
        while self._running is None and len(self._queue) and not self.is_held:
            if most is not None and taken >= most:
                if not self._flushing:
                    self._flushing = True
                    assert self._loop is not None
                    self._loop.call_soon(self._flush)
                return
            picked = self._pick()
            if picked is None:
                return
            rung, jobs = picked
            taken += len(jobs)
            self._start(rung, jobs)

    def _start(self, rung: Rung, jobs: list[Job]) -> None:
        rows = sum(job.rows or 1 for job in jobs)
        self._running = rung
        self._started_ns = time.perf_counter_ns()
        self._expected_us = rung.run_us(rows)
        rung.opened.runner.start(jobs, self._done)

    def _pick(self) -> tuple[Rung, list[Job]] | None:
        """The next batch, and the variant that runs it."""
        queue = self._queue
        default = self._rungs.default
        if queue.is_plain and default.state == "ready":
            jobs = queue.take_next(max_rows=default.opened.plan.max_batch)
            return (default, jobs) if jobs else None
        first = self._admission.first()
        if first is None:
            return None
        rung = self._rungs.choose(first, queue)
        return rung, queue.take(first, max_rows=rung.opened.plan.max_batch)

    def _under_way_us(self) -> float | None:
        """What the batch under way still takes; `None` where there is none."""
        if self._running is None:
            return None
        ran_us = (time.perf_counter_ns() - self._started_ns) / 1000
        return max(0.0, self._expected_us - ran_us)

    def _done(self, batch: Batch) -> None:
        rung = self._running
        assert rung is not None
        now_ns = time.perf_counter_ns()
        if rung.opened.runner.is_lost:
            error = next((r for r in batch.results if isinstance(r, Exception)), None)
            if rung.state == "ready":
                reason = error.message if isinstance(error, EdgekitError) else str(error)
                self.note_loss(rung, reason)
        else:
            rows = sum(job.rows or 1 for job in batch.jobs)
            rung.learn(rows=rows, took_us=(now_ns - self._started_ns) / 1000)
        self._running = None
        self._delivery.deliver(batch, rung, self._started_ns)
        plan = rung.opened.plan
        if plan.place == "loop":
            return
        if plan.max_batch == 1:
            self._next()
        elif not self._flushing:
            # Who was answered just now may ask again: in the next turn of the loop the answers are
            # sent, in the one after that what came meanwhile was read.
            self._flushing = True
            assert self._loop is not None
            self._loop.call_soon(self._loop.call_soon, self._flush)

    def _give_up(self) -> None:
        """Refuse what waits and no variant can run, nor is on its way."""
        if self.is_held:
            return
        for job in [job for job in self._queue if self._rungs.is_helpless(job)]:
            self._delivery.refuse(job, self._rungs.unavailable(job))
        self._queue.prune()
