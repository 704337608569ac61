"""Plan: how a model is run, decided from what it was measured to cost on this machine.

A model fast enough runs on the event loop itself, where no thread needs to be woken; requests are
put together in a batch only where that was measured to pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgekit.structs import Strict
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.engines.batches import can_batch

INLINE_LIMIT_US = 150.0
BATCHES = (4, 8, 16, 32)
MAX_BATCH_BYTES = 16 << 20
# A batch must beat the next smaller one by this much: less is noise, and costs memory.
MIN_GAIN = 0.1
_MAX_RUNS = 30
_BUDGET_NS = 10_000_000


class Plan(Strict, frozen=True, kw_only=True):
    """How a model is run.

    Attributes:
        inline: on the event loop, instead of on a thread of its own.
        max_batch: most samples in one run; 1 where requests are never put together.
        cost_us: one sample within the engine.
    """

    inline: bool
    max_batch: int
    cost_us: float


def decide(cost_us: Callable[[int], float], *, batches: bool) -> Plan:
    """Choose from costs: `cost_us(n)` is what a run with n samples takes.

    Larger batches are asked for only while they pay, and on the event loop no run is longer than
    `INLINE_LIMIT_US`.
    """
    single = cost_us(1)
    inline = single <= INLINE_LIMIT_US
    best, best_cost = 1, single
    for size in BATCHES if batches else ():
        whole = cost_us(size)
        if whole / size > best_cost * (1 - MIN_GAIN) or (inline and whole > INLINE_LIMIT_US):
            break
        best, best_cost = size, whole / size
    return Plan(inline=inline, max_batch=best, cost_us=single)


def measure(session: Session, sample: Tensors, *, may_batch: bool) -> Plan:
    """Measure a session on one sample and decide.

    Args:
        session: an open model.
        sample: its inputs for one sample.
        may_batch: whether samples run together were seen to give what they give alone.
    """
    row_bytes = sum(array.nbytes for array in sample.values())
    most = MAX_BATCH_BYTES // max(1, row_bytes)
    batches = may_batch and can_batch(session) and most >= BATCHES[0]

    def cost_us(size: int) -> float:
        if size > most:
            return float("inf")
        return _fastest_us(session, sample if size == 1 else _repeated(sample, size))

    return decide(cost_us, batches=batches)


def _repeated(sample: Tensors, size: int) -> Tensors:
    return {name: np.repeat(array, size, axis=0) for name, array in sample.items()}


def _fastest_us(session: Session, inputs: Tensors) -> float:
    """The fastest of several runs: on a busy machine the only one that says what a run costs."""
    session.run(inputs)
    fastest, spent, runs = float("inf"), 0, 0
    while runs < _MAX_RUNS and spent < _BUDGET_NS:
        start = time.perf_counter_ns()
        session.run(inputs)
        took = time.perf_counter_ns() - start
        fastest, spent, runs = min(fastest, took), spent + took, runs + 1
    return fastest / 1000
