"""Delivery: what came of a job reaches whoever still wants it, and is counted once.

The answers of a batch are independent: one that cannot be written keeps none of the others back.
Used on the event loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgekit.errors import EdgekitError
from edgekit_runtime.serving.failures import kind_of
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.runners import Batch
from edgekit_runtime.serving.stats import Stats

log = logging.getLogger(__name__)


class Delivery:
    """Hands out the outcomes of one model's jobs.

    Args:
        model: its name, for the log.
        stats: counts what no variant answered.
        climb: whether a job of a cascade goes on to a better variant with what it got.
        watch: told of each batch after its answers were handed out, with who ran it and for how
            many nanoseconds.
    """

    def __init__(
        self,
        *,
        model: str,
        stats: Stats,
        climb: Callable[[Job, Outputs, Rung], bool],
        watch: Callable[[Batch, Rung, int], None],
    ) -> None:
        self._model = model
        self._stats = stats
        self._climb = climb
        self._watch = watch

    def deliver(self, batch: Batch, rung: Rung, started_ns: int) -> None:
        """Hand results to the jobs that still want them.

        Args:
            batch: what was run.
            rung: the variant that ran it.
            started_ns: when, by `time.perf_counter_ns`.
        """
        arrived: list[int] = []
        run_ns = time.perf_counter_ns() - started_ns
        for job, result in zip(batch.jobs, batch.results, strict=True):
            if job.settled:
                continue
            if isinstance(result, Exception):
                if job.fallback is not None:
                    job.settle(*job.fallback)
                    continue
                self._count(job, result)
            elif job.cascade is not None and self._climb(job, result, rung):
                continue
            else:
                arrived.append(job.arrived_ns)
            try:
                job.settle(result, rung)
            except Exception:  # the other jobs of the batch must get their answers
                log.exception("answer failed", extra={"model": self._model})
        done_ns = time.perf_counter_ns()
        now_ms = time.time_ns() // 1_000_000
        rung.stats.answered(arrived, taken_ns=batch.taken_ns, done_ns=done_ns, now_ms=now_ms)
        try:
            self._watch(batch, rung, run_ns)
        except Exception:  # what waits must be run
            log.exception("watching failed", extra={"model": self._model})

    def refuse(self, job: Job, error: EdgekitError) -> None:
        """Answer a job that waits in vain; the first answer of a cascade is better than none."""
        if job.fallback is not None:
            job.settle(*job.fallback)
        elif not job.settled:
            self._count(job, error)
            job.settle(error, None)

    def late(self, job: Job) -> None:
        """Count a job whose deadline passed before there was any answer."""
        self._stats.failed("deadline", took_ns=time.perf_counter_ns() - job.arrived_ns)

    def _count(self, job: Job, error: Exception) -> None:
        self._stats.failed(kind_of(error), took_ns=time.perf_counter_ns() - job.arrived_ns)
