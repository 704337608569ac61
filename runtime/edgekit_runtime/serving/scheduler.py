"""Scheduler: what waits for a model, which of its variants runs it next, and who is turned away.

A request is never made to wait for company: whatever is there when the model becomes free is run
together, up to the plan's batch. The queue is bounded; a full one answers at once, and so does one
in which a request would certainly miss its deadline. One batch is under way at a time. Everything
happens on the event loop; `retire` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import DeadlineMissed, EdgekitError, NotServed, Overloaded, Unavailable
from edgekit_runtime.serving import ladder
from edgekit_runtime.serving.failures import kind_of
from edgekit_runtime.serving.job import RETRY_S, Job, Outputs
from edgekit_runtime.serving.queue import Queue
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.runners import Batch
from edgekit_runtime.serving.stats import Stats

if TYPE_CHECKING:
    from edgekit_runtime.serving.served import Served

log = logging.getLogger(__name__)

# Of the time that is left, what the estimate may fill: runs vary, and under load a request has
# waited in its socket before anybody saw it. Work for an answer that comes late is lost twice.
_SAFELY = 0.75


class Retired(Exception):
    """This scheduler takes no more; another one may serve the model by now."""


class Scheduler:
    """Runs the jobs of one served model.

    Args:
        rungs: the variants, the most accurate first; at least one.
        default: the one that answers where no deadline says otherwise.
        owner: the model that this runs.
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
        self._rungs = tuple(rungs)
        self.default = default
        self._by_name = {rung.name: rung for rung in rungs}
        self.owner = owner
        self._name = owner.name
        self._stats = stats
        self._limit = queue_limit
        self._want = want
        self._lost = lost
        self._watch = watch
        self._climbs = climbs and len(self._rungs) > 1
        self._queue = Queue()
        self._running: Rung | None = None
        self._started_ns = 0
        self._expected_us = 0.0
        self._flushing = self._in_turn = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = self._retired = False
        self._successor: Scheduler | None = None
        self._closed = threading.Event()

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
        if self._retired:
            raise Retired
        if self._loop is None:
            self.attach(asyncio.get_running_loop())
            assert self._loop is not None
        default, queue = self.default, self._queue
        if not (job.is_plain and default.state == "ready" and len(queue) < self._limit):
            self._admit(job)
        queue.push(job)
        if job.deadline_ns is not None:
            job.limit(self._loop, self._late)
        if self._running is not None or self._flushing or self._held:
            return
        if alone or default.state != "ready" or default.opened.plan.place != "loop":
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
        rung = self.default
        if is_timed and self._climbs:
            return None
        if self._running is not None or self._flushing or self._held or self._retired:
            return None
        if rung.state != "ready" or len(self._queue):
            return None
        return rung

    def run_now(self, job: Job, rung: Rung) -> None:
        """Run a job without a deadline on the variant that `at_once` has just given."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._start(rung, [job])

    @property
    def is_retired(self) -> bool:
        """Whether it takes nothing more."""
        return self._retired

    @property
    def is_held(self) -> bool:
        """Whether it starts nothing until it is told to go on."""
        return self._held

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
        self._held = True
        return self._running is None

    def resume(self) -> None:
        """Go on after `hold`, on the loop."""
        self._held = False
        self._ask(self.default)
        for job in self._queue:
            self._call_up(job)
        self.opened(self.default)

    def retire(self, successor: Scheduler | None = None) -> None:
        """Take nothing more, finish what waits, then close every variant. Returns at once.

        Args:
            successor: takes what waits for a variant that is not open.
        """
        self._successor = successor
        self._retired = True
        loop = self._loop
        # On a loop that has ended nothing is called any more.
        if loop is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self._end_if_idle)
            except RuntimeError:  # it was closed just now
                self._end()
        else:
            self._end()

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

    # Admission.

    def _admit(self, job: Job) -> None:
        if job.variant is not None and job.variant not in self._by_name:
            raise NotServed(
                f"{self._name} has no variant {job.variant!r}",
                hint=f"it has {', '.join(self._by_name)}",
            )
        if not self._held:
            self._call_up(job)
            if self._helpless(job):
                raise self._unavailable(job)
        queue = self._queue
        if len(queue) >= self._limit:
            queue.prune()
            if len(queue) >= self._limit:
                raise Overloaded(
                    f"{self._limit} requests wait for {self._name} already",
                    retry_after_s=max(1, math.ceil(self._backlog_us(queue) / 1e6)),
                    hint="ask again later, or with fewer requests at a time",
                )
        if job.deadline_ns is not None and self._running is not None:
            left_us = (job.deadline_ns - time.perf_counter_ns()) / 1000
            wait_us = self._backlog_us(queue.before(job))
            if wait_us + self._least_us(job) > left_us * _SAFELY:
                raise DeadlineMissed(
                    f"refused: {wait_us / 1000:.1f} ms of work wait before it, its timeout is in"
                    f" {left_us / 1000:.1f} ms",
                    hint="ask again later, or allow more time",
                )

    def _call_up(self, job: Job) -> None:
        """Ask for the variants that this job could use and that are not open."""
        if job.variant is not None:
            self._ask(self._by_name[job.variant])
            return
        climbs = self._climbs and (job.deadline_ns is not None or job.cascade is not None)
        if climbs or self.default.state == "lost":
            for rung in self._rungs:
                self._ask(rung)
        else:
            self._ask(self.default)

    def _ask(self, rung: Rung) -> None:
        if rung.state in ("closed", "lost") and not rung.asked:
            rung.asked = self._want(rung)

    def _helpless(self, job: Job) -> bool:
        """Whether no variant that may answer this job can run or is on its way."""
        rungs = self._rungs if job.variant is None else (self._by_name[job.variant],)
        return not any(rung.asked or rung.state in ("ready", "opening") for rung in rungs)

    def _unavailable(self, job: Job) -> Unavailable:
        rungs = self._rungs if job.variant is None else (self._by_name[job.variant],)
        reasons = "; ".join(f"{rung.name}: {rung.reason or rung.state}" for rung in rungs)
        wait_s = min(rung.breaker.retry_at for rung in rungs) - time.monotonic()
        return Unavailable(
            f"{self._name} cannot answer now: {reasons}", retry_after_s=max(RETRY_S, wait_s)
        )

    def _ladder(self) -> list[Rung]:
        """The variants that can run now, from the most accurate to the fastest.

        What is less accurate than another and no faster is left out.
        """
        ready = [rung for rung in self._rungs if rung.state == "ready"]
        if len(ready) < 2:
            return ready
        costs = [rung.opened.plan.row_us() for rung in ready]
        return [ready[position] for position in ladder.worthwhile(costs)]

    def _fastest(self) -> Rung | None:
        rungs = self._ladder()
        return rungs[-1] if rungs else None

    def _backlog_us(self, jobs: Iterable[Job]) -> float:
        """How long it takes at least until these jobs, and the batch under way, are done."""
        spent_us = 0.0
        if self._running is not None:
            ran_us = (time.perf_counter_ns() - self._started_ns) / 1000
            spent_us = max(0.0, self._expected_us - ran_us)
        fastest = self._fastest()
        if fastest is None:
            return spent_us
        rows = 0
        for job in jobs:
            if job.settled:
                continue
            if job.variant is None or (pinned := self._by_name[job.variant]).state != "ready":
                rows += job.rows or 1
            else:
                spent_us += pinned.run_us(job.rows or 1)
        return spent_us + rows * fastest.opened.plan.row_us() * fastest.pace

    def _least_us(self, job: Job) -> float:
        fastest = self._by_name[job.variant] if job.variant is not None else self._fastest()
        if fastest is None or fastest.state != "ready":
            return 0.0
        return fastest.run_us(job.rows or 1)

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
        if self._retired:
            self._end_if_idle()

    def _take_turn(self, most: int | None) -> None:
        taken = 0
        while self._running is None and len(self._queue) and not self._held:
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
        if queue.is_plain and self.default.state == "ready":
            default = self.default
            jobs = queue.take_next(max_rows=default.opened.plan.max_batch)
            return (default, jobs) if jobs else None
        queue.prune()
        first = queue.head(self._runnable)
        while first is not None and self._is_hopeless(first):
            self._late(first)
            first.settle(DeadlineMissed("refused: too late to be run in time"), None)
            queue.prune()
            first = queue.head(self._runnable)
        if first is None:
            return None
        rung = self._rung_for(first)
        return rung, queue.take(first, max_rows=rung.opened.plan.max_batch)

    def _runnable(self, job: Job) -> bool:
        if job.variant is not None:
            return self._by_name[job.variant].state == "ready"
        return self.default.state == "ready" or self._fastest() is not None

    def _late(self, job: Job) -> None:
        self._stats.failed("deadline", took_ns=time.perf_counter_ns() - job.arrived_ns)

    def _is_hopeless(self, job: Job) -> bool:
        """Whether running it would only make those behind it late, too."""
        if job.deadline_ns is None or len(self._queue) < 2:
            return False
        left_us = (job.deadline_ns - time.perf_counter_ns()) / 1000
        return self._least_us(job) > left_us * _SAFELY

    def _rung_for(self, job: Job) -> Rung:
        if job.variant is not None:
            return self._by_name[job.variant]
        ready = self._ladder()
        if job.cascade is not None:
            return ready[-1]
        if job.deadline_ns is None or not self._climbs:
            return self.default if self.default.state == "ready" else self._stand_in()
        now_ns = time.perf_counter_ns()
        waiting: list[ladder.Due] = []
        pinned_us = 0.0
        for other in self._queue:
            if other.variant is not None:
                pinned = self._by_name[other.variant]
                if pinned.state == "ready":
                    pinned_us += pinned.run_us(other.rows or 1)
            elif other.deadline_ns is None:
                waiting.append(ladder.Due(other.rows, math.inf))
            else:
                left_us = (other.deadline_ns - now_ns) / 1000
                waiting.append(ladder.Due(other.rows, left_us * _SAFELY - pinned_us))
        steps = [ladder.Step(rung.safe_us, rung.opened.plan.max_batch) for rung in ready]
        return ready[ladder.choose(steps, waiting)]

    def _stand_in(self) -> Rung:
        """Who answers instead of the default: the next in the manifest that can."""
        order = {v.name: place for place, v in enumerate(self.owner.manifest.variants)}
        ready = (rung for rung in self._rungs if rung.state == "ready")
        return min(ready, key=lambda rung: order[rung.name])

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
        self._deliver(rung, batch)
        if rung.opened.plan.place != "loop":
            self._next()

    def _deliver(self, rung: Rung, batch: Batch) -> None:
        """Hand results to the jobs that still want them."""
        arrived: list[int] = []
        run_ns = time.perf_counter_ns() - self._started_ns
        for job, result in zip(batch.jobs, batch.results, strict=True):
            if job.settled:
                continue
            if isinstance(result, Exception):
                if job.fallback is not None:
                    job.settle(*job.fallback)
                    continue
                took_ns = time.perf_counter_ns() - job.arrived_ns
                self._stats.failed(kind_of(result), took_ns=took_ns)
            elif job.cascade is not None and self._climb(job, result, rung):
                continue
            else:
                arrived.append(job.arrived_ns)
            try:
                job.settle(result, rung)
            except Exception:  # the other jobs of the batch must get their answers
                log.exception("answer failed", extra={"model": self._name})
        done_ns = time.perf_counter_ns()
        now_ms = time.time_ns() // 1_000_000
        rung.stats.answered(arrived, taken_ns=batch.taken_ns, done_ns=done_ns, now_ms=now_ms)
        try:
            self._watch(batch, rung, run_ns)
        except Exception:  # what waits must be run
            log.exception("watching failed", extra={"model": self._name})

    def _climb(self, job: Job, result: Outputs, rung: Rung) -> bool:
        """Whether a better variant is asked the same again, because this one is not sure."""
        best = next(iter(self._ladder()), rung)
        if best is rung or job.fallback is not None:
            return False
        assert job.cascade is not None
        if ladder.confidence(result) >= job.cascade:
            return False
        if job.deadline_ns is not None:
            left_us = (job.deadline_ns - time.perf_counter_ns()) / 1000
            wait_us = self._backlog_us(self._queue.before(job))
            if wait_us + best.safe_us(job.rows or 1) > left_us * _SAFELY:
                return False
        job.fallback = (result, rung)
        job.variant = best.name
        job.key = (job.key, best.name)
        self._queue.push(job)
        return True

    # Ending.

    def _give_up(self) -> None:
        """Refuse what waits and no variant can run, nor is on its way."""
        if self._held:
            return
        for job in [job for job in self._queue if self._helpless(job)]:
            self._refuse(job, self._unavailable(job))
        self._queue.prune()

    def _refuse(self, job: Job, error: EdgekitError) -> None:
        """Answer a job that waits in vain; the first answer of a cascade is better than none."""
        if job.fallback is not None:
            job.settle(*job.fallback)
        elif not job.settled:
            took_ns = time.perf_counter_ns() - job.arrived_ns
            self._stats.failed(kind_of(error), took_ns=took_ns)
            job.settle(error, None)

    def _end_if_idle(self) -> None:
        if not self._retired or self._running is not None:
            return
        # Nothing is opened here any more: what waits for that is left to the successor.
        for job in self._queue.clear():
            if not self._held and self._runnable(job):
                self._queue.push(job)
            elif not job.settled:
                self._hand_on(job)
        if not len(self._queue):
            self._end()

    def _hand_on(self, job: Job) -> None:
        if self._successor is None:
            self._refuse(job, self._closed_error())
            return
        try:
            job.moved(self._successor.owner)
            self._successor.submit(job)
        except EdgekitError as e:
            self._refuse(job, e)
        except Retired:
            self._refuse(job, self._closed_error())

    def _closed_error(self) -> Unavailable:
        return Unavailable(f"{self._name} is closed", retry_after_s=RETRY_S)

    def _end(self) -> None:
        if self._closed.is_set():
            return
        for job in self._queue.clear():
            self._refuse(job, self._closed_error())
        for rung in self._rungs:
            if rung.state == "ready":
                rung.state = "closed"
                rung.opened.runner.close()
        self._closed.set()
