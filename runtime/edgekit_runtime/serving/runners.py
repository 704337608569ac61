"""Runners: where an open variant runs its batches: on the event loop, or on a thread of its own.

The third, a process of its own, is `serving.process`. A runner has one batch at a time and answers
for each job of it, whatever happens to the engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from edgekit.errors import EngineError, WorkerLost
from edgekit_runtime.engines import Session
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.plan import Place
from edgekit_runtime.serving.stats import Stages, Stats

log = logging.getLogger(__name__)

# A run that takes longer is given up.
RUN_LIMIT_S = 30.0


class Batch:
    """Jobs that were run together, and what came of each."""

    __slots__ = ("jobs", "results", "taken_ns")

    def __init__(
        self, jobs: Sequence[Job], results: Sequence[Outputs | Exception], taken_ns: int
    ) -> None:
        self.jobs = jobs
        self.results = results
        self.taken_ns = taken_ns


Done = Callable[[Batch], None]


class Runner(Protocol):
    """Runs the batches of one open variant."""

    @property
    def place(self) -> Place: ...

    @property
    def is_lost(self) -> bool:
        """Whether it can run nothing more."""
        ...

    @property
    def pid(self) -> int | None:
        """Of the process that it runs in; `None` for the server's own."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """What it holds beside the server's own memory; `None` where nobody can tell."""
        ...

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Learn the loop, on it, before the first batch: from here on a loss is noticed."""
        ...

    def start(self, jobs: Sequence[Job], done: Done) -> None:
        """Run a batch.

        Args:
            jobs: like ones; none other is under way.
            done: called on the loop exactly once, with a result for each job. A runner on the
                loop calls it before it returns.
        """
        ...

    def allocate(self, size_bytes: int) -> memoryview | None:
        """Memory that a request's body may be received into; `None` for any other."""
        ...

    def close(self) -> None:
        """Give back what the engine holds, after the batch under way. Returns at once."""
        ...

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until the engine holds nothing any more; whether that is so."""
        ...


class LoopRunner:
    """Runs on the event loop itself, for models of some microseconds."""

    place: Place = "loop"
    is_lost = False
    memory_bytes = None
    pid = None

    def __init__(self, session: Session, *, stats: Stats) -> None:
        self.session = session
        self._stats = stats
        self._closed = threading.Event()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing can be lost here."""

    def start(self, jobs: Sequence[Job], done: Done) -> None:
        done(execute(self.session, jobs, self._stats))

    def allocate(self, size_bytes: int) -> None:  # noqa: ARG002 - the interface's argument
        return None

    def close(self) -> None:
        self.session.close()
        self._closed.set()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        return self._closed.wait(timeout_s)


class ThreadRunner:
    """A named thread that owns a session.

    A thread cannot be ended from outside: one that is still in the engine after `run_limit_s` is
    left alone with it, its jobs are told so, and the runner counts as lost.
    """

    place: Place = "thread"
    memory_bytes = None
    pid = None

    def __init__(
        self, session: Session, *, stats: Stats, name: str, run_limit_s: float = RUN_LIMIT_S
    ) -> None:
        self._session = session
        self._stats = stats
        self._name = name
        self._limit_s = run_limit_s
        self._batches: SimpleQueue[tuple[Sequence[Job], Done, asyncio.AbstractEventLoop] | None]
        self._batches = SimpleQueue()
        # One timer for many batches: making one for each costs more than a hop to the thread.
        self._watch: asyncio.TimerHandle | None = None
        self._under_way: tuple[Sequence[Job], Done, float] | None = None
        self._closing = False
        self.is_lost = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing can be lost between two batches."""

    def start(self, jobs: Sequence[Job], done: Done) -> None:
        loop = asyncio.get_running_loop()
        self._under_way = jobs, done, loop.time()
        if self._watch is None:
            self._watch = loop.call_later(self._limit_s, self._look, loop)
        self._batches.put((jobs, done, loop))

    def allocate(self, size_bytes: int) -> None:  # noqa: ARG002 - the interface's argument
        return None

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._batches.put(None)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while (item := self._batches.get()) is not None:
                jobs, done, loop = item
                batch = execute(self._session, jobs, self._stats)
                try:
                    loop.call_soon_threadsafe(self._ended, batch, done)
                except RuntimeError:
                    log.warning("answers dropped: the server is gone", extra={"jobs": len(jobs)})
                # While it waits it holds nothing of what it ran: bodies, and memory of programs.
                del item, jobs, done, batch
        finally:
            self._session.close()

    def _ended(self, batch: Batch, done: Done) -> None:
        if self.is_lost:
            return
        self._under_way = None
        done(batch)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whether the batch under way takes too long; look again when it would."""
        self._watch = None
        if self._under_way is None:
            return
        jobs, done, since_s = self._under_way
        left_s = since_s + self._limit_s - loop.time()
        if left_s > 0:
            self._watch = loop.call_later(left_s, self._look, loop)
        else:
            self._overdue(jobs, done)

    def _overdue(self, jobs: Sequence[Job], done: Done) -> None:
        self.is_lost = True
        self.close()
        error = WorkerLost(
            f"{self._name} hung: no answer from the engine within {self._limit_s:g} s",
            hint='run it in a process of its own (workers = "process"), which can be ended',
        )
        done(Batch(jobs, [error] * len(jobs), time.perf_counter_ns()))


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


def split_rows(jobs: Sequence[Job], outputs: Outputs) -> list[Outputs]:
    """What each of several jobs gets of outputs that they were run for together.

    Raises `EngineError` where an output has another number of rows than went in.
    """
    total = sum(job.rows for job in jobs)
    for name, output in outputs.items():
        if output.shape[:1] != (total,):
            raise EngineError(f"output {name!r} has shape {list(output.shape)} for {total} samples")
    items = list(outputs.items())
    results: list[Outputs] = []
    start = 0
    for job in jobs:
        end = start + job.rows
        results.append({name: output[start:end] for name, output in items})
        start = end
    return results


def _run(session: Session, jobs: Sequence[Job], taken: int, stats: Stats) -> list[Outputs]:
    if len(jobs) == 1:
        job = jobs[0]
        outputs = job.run(session)
        ran = time.perf_counter_ns()
        stats.batch(job.rows or 1, Stages(0, ran - taken, 0))
        return [outputs]
    names = jobs[0].inputs
    inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in names}
    stacked = time.perf_counter_ns()
    outputs = session.run(inputs)
    ran = time.perf_counter_ns()
    results = split_rows(jobs, outputs)
    split = time.perf_counter_ns()
    rows = sum(job.rows for job in jobs)
    stats.batch(rows, Stages(stacked - taken, ran - stacked, split - ran))
    return results
