"""Limits: what a variant costs on this board, held against what its manifest allows.

A board is busy now and then, and a busy moment is not the model's: time is measured in several
rounds and the best of them counts, memory by what opening the model added. Where the manifest sets
no limit nothing is measured.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from statistics import median
from typing import Protocol, runtime_checkable

from edgekit.errors import LatencyExceeded, MemoryExceeded
from edgekit.manifest import Limits, Variant
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import SampleArrays, iter_batches
from edgekit_runtime.serving.process.memory import give_back, own_bytes, pss_bytes

_ROUNDS = 3
_RUNS = 50
_ROUND_NS = 1_000_000_000
_LEAST_RUNS = 3
_MEGABYTE = 1e6


@runtime_checkable
class Apart(Protocol):
    """A session in a process of its own."""

    @property
    def pid(self) -> int: ...


@dataclass(frozen=True)
class Footprint:
    """Memory of this process before a model is opened; `None` where there is no limit to hold."""

    before_bytes: int | None

    @classmethod
    def begin(cls, variant: Variant, limits: Limits, *, apart: bool) -> Footprint:
        """Look now, before the model is opened.

        Args:
            apart: it is opened in a process of its own, which is looked at when it is there.
        """
        if limits.max_memory_mb is None or apart:
            return cls(None)
        # The library stays for the next model: it is imported before, and not counted.
        ENGINES.get(variant.engine).version()
        return cls(_held_bytes())

    def grown_bytes(self, session: Session) -> int | None:
        """What the open model holds; `None` where nobody looked before.

        A process of its own holds its interpreter and engine, too, and all of it ends with it:
        what counts is its memory that no other process shares.
        """
        if isinstance(session, Apart):
            return own_bytes(session.pid)
        if self.before_bytes is None:
            return None
        return max(0, _held_bytes() - self.before_bytes)


def check_latency(
    variant: Variant, session: Session, samples: SampleArrays, limits: Limits
) -> float | None:
    """The median milliseconds of one sample in the best round; `None` without a limit.

    Raises `LatencyExceeded` where every round is over the limit.
    """
    limit_ms = limits.max_latency_ms
    if limit_ms is None:
        return None
    best_ms = float("inf")
    for _ in range(_ROUNDS):
        best_ms = min(best_ms, _median_ms(session, samples))
        if best_ms <= limit_ms:
            return best_ms
    raise LatencyExceeded(
        f"variant {variant.name}: a sample takes {best_ms:.3g} ms on this board, the manifest"
        f" allows {limit_ms:g} ms (median, best of {_ROUNDS} rounds)",
        hint="look at the board's clocks and heat (edgekit device doctor), or build with a larger"
        " budget.max_latency_ms",
    )


def check_memory(
    variant: Variant, session: Session, limits: Limits, footprint: Footprint
) -> float | None:
    """Megabytes that the open model holds; `None` without a limit.

    Raises `MemoryExceeded` where that is over the limit.
    """
    if limits.max_memory_mb is None:
        return None
    grown_bytes = footprint.grown_bytes(session)
    if grown_bytes is None:
        return None
    held_mb = grown_bytes / _MEGABYTE
    if held_mb > limits.max_memory_mb:
        raise MemoryExceeded(
            f"variant {variant.name}: the open model holds {held_mb:.1f} MB on this board, the"
            f" manifest allows {limits.max_memory_mb:g} MB",
            hint="build with a larger budget.max_memory_mb, or a smaller model",
        )
    return held_mb


def _median_ms(session: Session, samples: SampleArrays) -> float:
    """One round: every golden sample in turn, so often that a median says something."""
    times: list[int] = []
    spent_ns = 0
    while len(times) < _LEAST_RUNS or (len(times) < _RUNS and spent_ns < _ROUND_NS):
        for sample in iter_batches(session.inputs, samples, size=1):
            start = time.perf_counter_ns()
            session.run(sample)
            times.append(time.perf_counter_ns() - start)
            spent_ns += times[-1]
    return median(times) / 1e6


def _held_bytes() -> int:
    give_back()
    return pss_bytes(os.getpid()) or 0
