"""Plan: how a variant is run, decided from what it was measured to cost on this machine.

A model fast enough runs on the event loop itself, where no thread needs to be woken; requests are
put together in a batch only where that was measured to pay.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Literal

import numpy as np

from edgekit.structs import Strict
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.engines.batches import can_batch

Place = Literal["loop", "thread", "process"]
Workers = Literal["auto", "loop", "thread", "process"]

LOOP_LIMIT_US = 150.0
BATCHES = (4, 8, 16, 32)
MAX_BATCH_BYTES = 16 << 20
# A batch must beat the next smaller one by this much: less is noise, and costs memory.
MIN_GAIN = 0.1
_MAX_RUNS = 30
_BUDGET_NS = 10_000_000


class Plan(Strict, frozen=True, kw_only=True):
    """How a variant is run.

    Attributes:
        place: on the event loop, on a thread or in a process of its own.
        max_batch: most samples in one run; 1 where requests are never put together.
        sizes: numbers of samples that were measured, rising, beginning with 1.
        costs_us: what a run with each of them takes within the engine.
    """

    place: Place
    max_batch: int
    sizes: tuple[int, ...] = (1,)
    costs_us: tuple[float, ...]

    @property
    def cost_us(self) -> float:
        """One sample within the engine."""
        return self.costs_us[0]

    def run_us(self, rows: int) -> float:
        """What one run with `rows` samples takes: measured, interpolated, or in proportion."""
        sizes, costs = self.sizes, self.costs_us
        if rows <= 1:
            return costs[0]
        at = bisect_left(sizes, rows)
        if at == len(sizes):
            return costs[-1] * rows / sizes[-1]
        share = (rows - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return costs[at - 1] + share * (costs[at] - costs[at - 1])

    def row_us(self) -> float:
        """What one sample takes in the largest batch."""
        return self.run_us(self.max_batch) / self.max_batch


def decide(cost_us: Callable[[int], float], *, batches: bool, workers: Workers = "auto") -> Plan:
    """Choose from costs: `cost_us(n)` is what a run with n samples takes.

    Larger batches are asked for only while they pay, and on the event loop no run is longer than
    `LOOP_LIMIT_US`, unless `workers` puts the variant there.
    """
    single = cost_us(1)
    place: Place = workers if workers != "auto" else "thread"
    on_loop = workers == "auto" and single <= LOOP_LIMIT_US
    if on_loop:
        place = "loop"
    sizes, costs = [1], [single]
    for size in BATCHES if batches else ():
        whole = cost_us(size)
        gains = whole / size <= costs[-1] / sizes[-1] * (1 - MIN_GAIN)
        if not gains or (on_loop and whole > LOOP_LIMIT_US):
            break
        sizes.append(size)
        costs.append(whole)
    return Plan(place=place, max_batch=sizes[-1], sizes=tuple(sizes), costs_us=tuple(costs))


def measure(
    session: Session, sample: Tensors, *, may_batch: bool, workers: Workers = "auto"
) -> Plan:
    """Measure a session on one sample and decide.

    Args:
        session: an open model.
        sample: its inputs for one sample.
        may_batch: whether samples run together were seen to give what they give alone.
        workers: where it must run; "auto" leaves that to what was measured.
    """
    row_bytes = sum(array.nbytes for array in sample.values())
    most = MAX_BATCH_BYTES // max(1, row_bytes)
    batches = may_batch and can_batch(session) and most >= BATCHES[0]

    def cost_us(size: int) -> float:
        if size > most:
            return float("inf")
        return _fastest_us(session, sample if size == 1 else _repeated(sample, size))

    return decide(cost_us, batches=batches, workers=workers)


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
