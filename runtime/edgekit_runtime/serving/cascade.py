"""Cascade: a small variant answers first, and where it is not sure a better one is asked again.

The first answer is kept until the second is there, so that a cascade never answers later than its
deadline because it wanted to know better. Used on the event loop.
"""

from __future__ import annotations

from edgekit_runtime.serving import ladder
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.queue import Queue
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.rungs import Rungs, is_too_late, left_us


class Cascade:
    """Sends the jobs of one model up its rungs.

    Args:
        queue: where a job waits for its second answer.
        rungs: the variants of the model.
    """

    def __init__(self, queue: Queue, rungs: Rungs) -> None:
        self._queue = queue
        self._rungs = rungs

    def climb(self, job: Job, result: Outputs, rung: Rung) -> bool:
        """Whether a better variant is asked the same again, because the first is not sure.

        Args:
            job: one that asked for it, just run; nothing is under way.
            result: what it gave.
            rung: the variant that gave it.
        """
        best = self._rungs.best()
        if best is None or best is rung or job.fallback is not None:
            return False
        assert job.cascade is not None
        if ladder.confidence(result) >= job.cascade:
            return False
        if job.deadline_ns is not None:
            has_us = left_us(job.deadline_ns)
            wait_us = self._rungs.work_us(self._queue.before(job))
            if is_too_late(wait_us + best.safe_us(job.rows or 1), left_us=has_us):
                return False
        job.fallback = (result, rung)
        job.variant = best.name
        job.key = (job.key, best.name)
        self._queue.push(job)
        return True
