"""Scheduler: what is waiting for a model, and who runs it.

A request is never made to wait for company: whatever is there when the model becomes free is run
together, up to the plan's batch. The queue is bounded and a full one answers at once. A retired
scheduler takes nothing new, finishes what it has and then closes its session.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, Overloaded
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.serving.plan import Plan
from edgekit_runtime.serving.stats import Stages, Stats

log = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]


class Retired(Exception):
    """This scheduler takes no more; another one may serve the model by now."""


class Job(ABC):
    """One request on its way through a scheduler.

    Attributes:
        inputs: checked against the model.
        rows: samples on axis 0 of every input; 0 where the model's inputs are not counted so.
        key: jobs with equal keys may run together.
        loop: where `done` is called.
        arrived_ns: by `time.perf_counter_ns`.
        settled: the answer is no longer wanted: it was given, or nobody is there to take it.
    """

    __slots__ = ("arrived_ns", "inputs", "key", "loop", "rows", "settled")

    def __init__(
        self, inputs: Tensors, rows: int, shapes: Hashable, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.key = (loop, shapes)
        self.loop = loop
        self.settled = False
        self.arrived_ns = time.perf_counter_ns()

    @abstractmethod
    def done(self, result: Outputs | Exception) -> None:
        """Take the outcome; called once at most, on the job's loop."""


class Scheduler(Protocol):
    """Runs the jobs of one session."""

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        ...

    def submit(self, job: Job, *, alone: bool) -> None:
        """Take a job.

        Args:
            job: what to run.
            alone: whether no other request can be on its way, so that waiting for company is vain.

        Raises:
            Retired: look the model up again.
            Overloaded: the queue is full.
        """
        ...

    def retire(self) -> None:
        """Take nothing more, finish what waits, then close the session. Returns at once."""
        ...

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until the session is closed; whether it is."""
        ...


def batch_length(jobs: Sequence[Job] | deque[Job], *, max_rows: int) -> int:
    """How many of the first jobs run together: like ones, in their order, within `max_rows`."""
    first = jobs[0]
    rows = first.rows
    if rows == 0 or rows >= max_rows:
        return 1
    for count, job in enumerate(jobs):
        if count == 0:
            continue
        rows += job.rows
        if job.key != first.key or job.rows == 0 or rows > max_rows:
            return count
    return len(jobs)


class Batch:
    """Jobs that were run together, and what came of each."""

    __slots__ = ("jobs", "results", "taken_ns")

    def __init__(self, jobs: Sequence[Job], results: Sequence[Outputs | Exception], taken_ns: int):
        self.jobs = jobs
        self.results = results
        self.taken_ns = taken_ns


def execute(session: Session, jobs: Sequence[Job], stats: Stats) -> Batch:
    """Run jobs together; should that fail, one by one, so that none fails for its neighbour."""
    taken = time.perf_counter_ns()
    results: Sequence[Outputs | Exception]
    try:
        results = _run(session, jobs, taken, stats)
    except EngineError as e:
        if len(jobs) == 1:
            results = [e]
        else:
            results = [execute(session, [job], stats).results[0] for job in jobs]
    except Exception as e:  # noqa: BLE001 - handed to the request, which logs it with its id
        results = [e] * len(jobs)
    return Batch(jobs, results, taken)


def deliver(batch: Batch, stats: Stats) -> None:
    """Hand results to the jobs that still want them, on their loop."""
    arrived: list[int] = []
    for job, result in zip(batch.jobs, batch.results, strict=True):
        if job.settled:
            continue
        job.settled = True
        if not isinstance(result, Exception):
            arrived.append(job.arrived_ns)
        job.done(result)
    done_ns = time.perf_counter_ns()
    now_ms = time.time_ns() // 1_000_000
    stats.answered(arrived, taken_ns=batch.taken_ns, done_ns=done_ns, now_ms=now_ms)


def _run(session: Session, jobs: Sequence[Job], taken: int, stats: Stats) -> list[Outputs]:
    if len(jobs) == 1:
        job = jobs[0]
        outputs = session.run(job.inputs)
        ran = time.perf_counter_ns()
        stats.batch(job.rows or 1, Stages(0, ran - taken, 0))
        return [outputs]
    names = jobs[0].inputs
    inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in names}
    stacked = time.perf_counter_ns()
    outputs = session.run(inputs)
    ran = time.perf_counter_ns()
    results: list[Outputs] = []
    start = 0
    for job in jobs:
        end = start + job.rows
        results.append({name: output[start:end] for name, output in outputs.items()})
        start = end
    for name, output in outputs.items():
        if output.shape[0] != start:
            raise EngineError(f"output {name!r} has {output.shape[0]} rows for {start} samples")
    split = time.perf_counter_ns()
    stats.batch(start, Stages(stacked - taken, ran - stacked, split - ran))
    return results


class Inline:
    """Runs jobs on the event loop, once in each of its turns, for models of some microseconds."""

    def __init__(self, session: Session, plan: Plan, *, stats: Stats) -> None:
        self._session = session
        self._max_rows = plan.max_batch
        self._stats = stats
        self._lock = threading.Lock()
        self._waiting: list[Job] = []
        self._retired = False
        self._closed = threading.Event()

    @property
    def depth(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job, *, alone: bool) -> None:
        with self._lock:
            if self._retired:
                raise Retired
            self._waiting.append(job)
            is_first = len(self._waiting) == 1
        if not is_first:
            return
        if alone:
            self._flush()
        else:
            # The loop has more sockets to read in this turn; their requests join this batch.
            job.loop.call_soon(self._flush)

    def retire(self) -> None:
        with self._lock:
            self._retired = True
            if not self._waiting:
                self._close()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        return self._closed.wait(timeout_s)

    def _flush(self) -> None:
        with self._lock:
            jobs = [job for job in self._waiting if not job.settled]
            self._waiting = []
            batches = []
            while jobs:
                length = batch_length(jobs, max_rows=self._max_rows)
                batches.append(execute(self._session, jobs[:length], self._stats))
                del jobs[:length]
            if self._retired:
                self._close()
        # Without the lock: an answered connection may submit its next request at once.
        for batch in batches:
            deliver(batch, self._stats)

    def _close(self) -> None:
        if not self._closed.is_set():
            self._session.close()
            self._closed.set()


class Worker:
    """A named thread that owns a session and runs what waits in a bounded queue.

    Args:
        session: becomes the thread's.
        plan: its largest batch.
        stats: where it counts.
        name: of the thread.
        queue_limit: jobs that may wait.
    """

    def __init__(
        self, session: Session, plan: Plan, *, stats: Stats, name: str, queue_limit: int
    ) -> None:
        self._session = session
        self._plan = plan
        self._stats = stats
        self._name = name
        self._limit = queue_limit
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._retired = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job, *, alone: bool) -> None:  # noqa: ARG002 - the thread never waits
        with self._changed:
            if self._retired:
                raise Retired
            if len(self._waiting) >= self._limit:
                wait_s = self._plan.cost_us * self._limit / 1e6
                raise Overloaded(
                    f"{self._limit} requests wait for {self._name} already",
                    retry_after_s=max(1, math.ceil(wait_s)),
                    hint="ask again later, or with fewer requests at a time",
                )
            self._waiting.append(job)
            self._changed.notify()

    def retire(self) -> None:
        with self._changed:
            self._retired = True
            self._changed.notify()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while jobs := self._take():
                batch = execute(self._session, jobs, self._stats)
                try:
                    jobs[0].loop.call_soon_threadsafe(deliver, batch, self._stats)
                except RuntimeError:
                    log.warning("answers dropped: the server is gone", extra={"jobs": len(jobs)})
        finally:
            self._session.close()

    def _take(self) -> list[Job]:
        """The next jobs to run together; none once retired and empty."""
        with self._changed:
            while True:
                if any(job.settled for job in self._waiting):
                    self._waiting = deque(job for job in self._waiting if not job.settled)
                if self._waiting:
                    length = batch_length(self._waiting, max_rows=self._plan.max_batch)
                    return [self._waiting.popleft() for _ in range(length)]
                if self._retired:
                    return []
                self._changed.wait()
