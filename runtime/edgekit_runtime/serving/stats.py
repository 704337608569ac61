"""Stats: what one served model did, in counts and nanoseconds that only grow.

Statistics, metrics and telemetry all read these, so that they can never disagree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Literal

import msgspec

from edgekit.messages import LATENCY_EDGES_US, ModelFigures

ErrorKind = Literal["request", "deadline", "engine", "internal"]
_EDGES_NS = [edge * 1000 for edge in LATENCY_EDGES_US]


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
        inferences: samples run; `executions` counts calls of the engine.
        last_ms: when the last one ended, milliseconds since 1970 UTC; 0 for never.
        batches: by samples in a batch: executions and where their time went.
    """

    succeeded: int
    succeeded_ns: int
    failed: int
    failed_ns: int
    rejected: int
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
    """Counters of one served model. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._latency = [0] * (len(_EDGES_NS) + 1)
        self._succeeded = self._succeeded_ns = self._queue_ns = 0
        self._failed_ns = self._rejected = 0
        self._errors: dict[ErrorKind, int] = {}
        self._inferences = self._last_ms = 0
        self._batches: dict[int, tuple[int, int, int, int]] = {}

    def batch(self, rows: int, stages: Stages) -> None:
        """One call of the engine ended well."""
        with self._lock:
            count, stack, run, split = self._batches.get(rows, (0, 0, 0, 0))
            self._batches[rows] = (
                count + 1,
                stack + stages.stack,
                run + stages.run,
                split + stages.split,
            )
            self._inferences += rows

    def answered(
        self, arrived_ns: Iterable[int], *, taken_ns: int, done_ns: int, now_ms: int
    ) -> None:
        """Requests that came at these times were taken from the queue together and answered."""
        with self._lock:
            for arrived in arrived_ns:
                took = done_ns - arrived
                self._latency[bisect_left(_EDGES_NS, took)] += 1
                self._succeeded += 1
                self._succeeded_ns += took
                self._queue_ns += taken_ns - arrived
            self._last_ms = now_ms

    def failed(self, kind: ErrorKind, *, took_ns: int = 0) -> None:
        """A request was answered with an error."""
        with self._lock:
            self._errors[kind] = self._errors.get(kind, 0) + 1
            self._failed_ns += took_ns

    def rejected(self) -> None:
        """A request was turned away, because the queue was full."""
        with self._lock:
            self._rejected += 1

    def snapshot(self) -> Snapshot:
        with self._lock:
            batches = list(self._batches.values())
            return Snapshot(
                succeeded=self._succeeded,
                succeeded_ns=self._succeeded_ns,
                failed=sum(self._errors.values()),
                failed_ns=self._failed_ns,
                rejected=self._rejected,
                errors=dict(self._errors),
                queue_ns=self._queue_ns,
                inferences=self._inferences,
                executions=sum(batch[0] for batch in batches),
                stack_ns=sum(batch[1] for batch in batches),
                run_ns=sum(batch[2] for batch in batches),
                split_ns=sum(batch[3] for batch in batches),
                last_ms=self._last_ms,
                latency=tuple(self._latency),
                batches=dict(self._batches),
            )


EMPTY = Stats().snapshot()


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
        engine_us=(now.run_ns - before.run_ns) // 1000,
        latency_us={bucket: count for bucket, count in enumerate(deltas) if count},
    )
