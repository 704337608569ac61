"""Admission: which requests are taken to wait for a model, and which are told at once that they are
not.

The queue is bounded; a full one refuses, and so does one in which a request would certainly miss
its deadline. What has waited is looked at again before it is run. Used on the event loop.
"""

from __future__ import annotations

import math

from edgekit.errors import DeadlineMissed, Overloaded
from edgekit_runtime.serving.delivery import Delivery
from edgekit_runtime.serving.job import Job
from edgekit_runtime.serving.queue import Queue
from edgekit_runtime.serving.rungs import Rungs, is_too_late, left_us


class Admission:
    """Decides who waits in one model's queue.

    Args:
        queue: what waits.
        rungs: the variants that work on it.
        delivery: counts what became too late.
        model: its name, for messages.
        limit: jobs that may wait.
    """

    def __init__(
        self, queue: Queue, rungs: Rungs, delivery: Delivery, *, model: str, limit: int
    ) -> None:
        self._queue = queue
        self._rungs = rungs
        self._delivery = delivery
        self._model = model
        self._limit = limit

    def check(self, job: Job, *, is_held: bool, under_way_us: float | None) -> None:
        """Raise where a job is not to be taken; else its variants are asked for.

        Args:
            job: not in the queue yet.
            is_held: whether jobs may wait for variants that nobody opens now.
            under_way_us: what the batch under way still takes; `None` where there is none.

        Raises:
            Overloaded: the queue is full.
            DeadlineMissed: with what waits before it, the job's deadline cannot be met.
            NotServed: the variant that it wants is none of this model.
            Unavailable: no variant can run, and none is on its way.
        """
        self._rungs.check_named(job)
        if not is_held:
            self._rungs.call_up(job)
            if self._rungs.is_helpless(job):
                raise self._rungs.unavailable(job)
        self._check_room(under_way_us or 0.0)
        if job.deadline_ns is not None and under_way_us is not None:
            self._check_deadline(job, job.deadline_ns, under_way_us)

    def first(self) -> Job | None:
        """The waiting job that is run next; those before it that are too late are refused."""
        queue = self._queue
        queue.prune()
        job = queue.head(self._rungs.can_run)
        while job is not None and self._is_hopeless(job):
            self._delivery.late(job)
            job.settle(DeadlineMissed("refused: too late to be run in time"), None)
            queue.prune()
            job = queue.head(self._rungs.can_run)
        return job

    def _check_room(self, under_way_us: float) -> None:
        queue = self._queue
        if len(queue) < self._limit:
            return
        queue.prune()
        if len(queue) >= self._limit:
            wait_us = under_way_us + self._rungs.work_us(queue)
            raise Overloaded(
                f"{self._limit} requests wait for {self._model} already",
                retry_after_s=max(1, math.ceil(wait_us / 1e6)),
                hint="ask again later, or with fewer requests at a time",
            )

    def _check_deadline(self, job: Job, deadline_ns: int, under_way_us: float) -> None:
        has_us = left_us(deadline_ns)
        wait_us = under_way_us + self._rungs.work_us(self._queue.before(job))
        if is_too_late(wait_us + self._rungs.least_us(job), left_us=has_us):
            raise DeadlineMissed(
                f"refused: {wait_us / 1000:.1f} ms of work wait before it, its timeout is in"
                f" {has_us / 1000:.1f} ms",
                hint="ask again later, or allow more time",
            )

    def _is_hopeless(self, job: Job) -> bool:
        """Whether running it would only make those behind it late, too."""
        if job.deadline_ns is None or len(self._queue) < 2:
            return False
        has_us = left_us(job.deadline_ns)
        return is_too_late(self._rungs.least_us(job), left_us=has_us)
