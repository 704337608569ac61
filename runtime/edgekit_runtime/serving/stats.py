"""Stats: what one variant, or one served model, did, in counts and nanoseconds that only grow.

Statistics, metrics and telemetry all read these, so that they can never disagree. Every figure is
exact. Latencies of answered requests are kept as they come and put into their histogram a thousand
at a time, which costs a request a third of what sorting it in at once does.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Literal, TypeVar

import msgspec
import numpy as np

from edgekit.messages import LATENCY_EDGES_US, ModelFigures

ErrorKind = Literal["request", "deadline", "engine", "lost", "unavailable", "internal"]
RefusalKind = Literal["full", "deadline", "memory"]

K = TypeVar("K", bound=str)

_EDGES_NS = np.array(LATENCY_EDGES_US, np.int64) * 1000
_BUCKETS = len(LATENCY_EDGES_US) + 1
_FOLD_AT = 1024
# Every batch size up to here is counted for itself, larger ones with the next power of two: a
# client chooses how many rows it sends, and must not choose how much is kept of it.
_EXACT_ROWS = 128


class Stages(msgspec.Struct, frozen=True):
    """Where one batch's time went, nanoseconds: putting inputs together, engine, taking apart."""

    stack: int
    run: int
    split: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The counters at one moment.

    Attributes:
        succeeded: requests answered with outputs, `succeeded_ns` from their last byte received to
            their answer written.
        rejected: requests that were refused before they waited, the sum of `refusals`.
        cancelled: requests whose client left before the answer.
        inferences: samples run; `executions` counts calls of the engine.
        last_ms: when the last one ended, milliseconds since 1970 UTC; 0 for never.
        latency: answered requests by bucket of `LATENCY_EDGES_US`, the last one above all edges.
        batches: by samples in a batch (above 128: up to a power of two): executions, and the
            nanoseconds of their stages.
    """

    succeeded: int
    succeeded_ns: int
    failed: int
    failed_ns: int
    rejected: int
    refusals: dict[RefusalKind, int]
    cancelled: int
    errors: dict[ErrorKind, int]
    queue_ns: int
    inferences: int
    executions: int
    stack_ns: int
    run_ns: int
    split_ns: int
    last_ms: int
    latency: tuple[int, ...]
    batches: dict[int, tuple[int, int, int, int]]


class Stats:
    """Counters of one variant, or of what no variant of a model did.

    `batch` is called by the one runner of a variant, `answered` by the event loop; everything else
    may be called from any thread. Neither of the two takes a lock, so that a snapshot from a thread
    may find the batch that ends at that moment counted in part; the next one has all of it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._took: list[int] = []
        self._latency = np.zeros(_BUCKETS, np.int64)
        self._succeeded_ns = self._running_ns = 0
        self._failed_ns = self._cancelled = 0
        self._errors: dict[ErrorKind, int] = {}
        self._refusals: dict[RefusalKind, int] = {}
        self._inferences = self._last_ms = 0
        self._batches: dict[int, tuple[int, int, int, int]] = {}

    def batch(self, rows: int, stages: Stages) -> None:
        """One call of the engine ended well."""
        size = rows if rows <= _EXACT_ROWS else 1 << (rows - 1).bit_length()
        count, stack, run, split = self._batches.get(size, (0, 0, 0, 0))
        self._batches[size] = (
            count + 1,
            stack + stages.stack,
            run + stages.run,
            split + stages.split,
        )
        self._inferences += rows

    def answered(
        self, arrived_ns: Sequence[int], *, taken_ns: int, done_ns: int, now_ms: int
    ) -> None:
        """Requests that came at these times were taken from the queue together and answered."""
        took = self._took
        for arrived in arrived_ns:
            took.append(done_ns - arrived)
        self._running_ns += (done_ns - taken_ns) * len(arrived_ns)
        self._last_ms = now_ms
        if len(took) >= _FOLD_AT:
            with self._lock:
                self._fold()

    def failed(self, kind: ErrorKind, *, took_ns: int = 0) -> None:
        """A request was answered with an error."""
        with self._lock:
            self._errors[kind] = self._errors.get(kind, 0) + 1
            self._failed_ns += took_ns

    def rejected(self, reason: RefusalKind = "full") -> None:
        """A request was refused before it waited: the queue is full, its deadline cannot be met, or
        there is no memory for it."""
        with self._lock:
            self._refusals[reason] = self._refusals.get(reason, 0) + 1

    def cancelled(self) -> None:
        """The client left before its answer."""
        with self._lock:
            self._cancelled += 1

    def snapshot(self) -> Snapshot:
        with self._lock:
            self._fold()
            # One copy each: their writers hold no lock.
            batches = dict(self._batches)
            succeeded = int(self._latency.sum())
            return Snapshot(
                succeeded=succeeded,
                succeeded_ns=self._succeeded_ns,
                failed=sum(self._errors.values()),
                failed_ns=self._failed_ns,
                rejected=sum(self._refusals.values()),
                refusals=dict(self._refusals),
                cancelled=self._cancelled,
                errors=dict(self._errors),
                queue_ns=max(0, self._succeeded_ns - self._running_ns),
                inferences=self._inferences,
                executions=sum(batch[0] for batch in batches.values()),
                stack_ns=sum(batch[1] for batch in batches.values()),
                run_ns=sum(batch[2] for batch in batches.values()),
                split_ns=sum(batch[3] for batch in batches.values()),
                last_ms=self._last_ms,
                latency=tuple(self._latency.tolist()),
                batches=batches,
            )

    def _fold(self) -> None:
        """Sort waiting latencies into the histogram. Those that come meanwhile stay behind."""
        count = len(self._took)
        if count == 0:
            return
        took = np.array(self._took[:count], np.int64)
        del self._took[:count]
        self._latency += np.bincount(_EDGES_NS.searchsorted(took), minlength=_BUCKETS)
        self._succeeded_ns += int(took.sum())


EMPTY = Stats().snapshot()


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """What several variants did together: the sums, and the latest `last_ms`."""
    if not snapshots:
        return EMPTY
    batches: dict[int, tuple[int, int, int, int]] = {}
    for one in snapshots:
        for rows, added in one.batches.items():
            a, b = batches.get(rows, (0, 0, 0, 0)), added
            batches[rows] = (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
    return Snapshot(
        succeeded=sum(one.succeeded for one in snapshots),
        succeeded_ns=sum(one.succeeded_ns for one in snapshots),
        failed=sum(one.failed for one in snapshots),
        failed_ns=sum(one.failed_ns for one in snapshots),
        rejected=sum(one.rejected for one in snapshots),
        refusals=_added([one.refusals for one in snapshots]),
        cancelled=sum(one.cancelled for one in snapshots),
        errors=_added([one.errors for one in snapshots]),
        queue_ns=sum(one.queue_ns for one in snapshots),
        inferences=sum(one.inferences for one in snapshots),
        executions=sum(one.executions for one in snapshots),
        stack_ns=sum(one.stack_ns for one in snapshots),
        run_ns=sum(one.run_ns for one in snapshots),
        split_ns=sum(one.split_ns for one in snapshots),
        last_ms=max(one.last_ms for one in snapshots),
        latency=tuple(map(sum, zip(*(one.latency for one in snapshots), strict=True))),
        batches=batches,
    )


def figures(now: Snapshot, before: Snapshot, *, labels: Sequence[str]) -> ModelFigures:
    """What happened between two snapshots; `labels` are model, version and variant."""
    model, version, variant = labels
    deltas = (a - b for a, b in zip(now.latency, before.latency, strict=True))
    failed = now.failed - before.failed
    return ModelFigures(
        model=model,
        version=version,
        variant=variant,
        requests=now.succeeded - before.succeeded + failed,
        errors=failed,
        rejected=now.rejected - before.rejected,
        cancelled=now.cancelled - before.cancelled,
        engine_us=(now.run_ns - before.run_ns) // 1000,
        latency_us={bucket: count for bucket, count in enumerate(deltas) if count},
    )


def _added(tables: Sequence[dict[K, int]]) -> dict[K, int]:
    total: dict[K, int] = {}
    for table in tables:
        for name, count in table.items():
            total[name] = total.get(name, 0) + count
    return total
