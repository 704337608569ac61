"""Ladder: which variant answers. Pure rules over what waits and what each variant costs.

The rungs stand from the most accurate to the fastest. A request without a deadline gets the
bundle's default variant. For requests with deadlines the rule is: the most accurate rung with which
this batch is in time, and after which all that waits can still be in time on the fastest rung. A
request that even the fastest cannot serve in time has no say. So, of what waits now, no deadline is
missed that the fastest rung alone would have met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Step(NamedTuple):
    """A rung as the rule sees it.

    Attributes:
        run_us: what one run with so many samples takes at present.
        max_batch: most samples in one run.
    """

    run_us: Callable[[int], float]
    max_batch: int


class Due(NamedTuple):
    """A waiting request: its samples, and microseconds from now until its deadline."""

    rows: int
    left_us: float


def worthwhile(costs: Sequence[float]) -> list[int]:
    """Positions of the rungs that are worth standing on.

    Args:
        costs: what a sample costs on each rung, the most accurate first.
    """
    kept: list[int] = []
    for position, cost in enumerate(costs):
        if not kept or cost < costs[kept[-1]]:
            kept.append(position)
    return kept


def choose(steps: Sequence[Step], waiting: Sequence[Due]) -> int:
    """The position in `steps`, most accurate first, of the rung that serves the next batch.

    Args:
        steps: at least one; the last is the fastest.
        waiting: at least one, in the order in which they are served; without a deadline
            `left_us` is infinite.
    """
    fastest = steps[-1]
    at_best = _ends_us(waiting, fastest, then=fastest)
    for position, step in enumerate(steps[:-1]):
        count, _ = _batch(waiting, step.max_batch)
        if all(waiting[i].left_us < at_best[i] for i in range(count)):
            # All of them are lost on any rung: the cheapest way to say so.
            break
        ends = _ends_us(waiting, step, then=fastest)
        if all(
            end <= due.left_us or best > due.left_us
            for end, best, due in zip(ends, at_best, waiting, strict=True)
        ):
            return position
    return len(steps) - 1


def _ends_us(waiting: Sequence[Due], first: Step, *, then: Step) -> list[float]:
    """When each request is answered, from now, with the first batch on one rung and the rest on
    another.
    """
    ends: list[float] = []
    spent_us, step = 0.0, first
    while len(ends) < len(waiting):
        count, rows = _batch(waiting[len(ends) :], step.max_batch)
        spent_us += step.run_us(rows)
        ends += [spent_us] * count
        step = then
    return ends


def _batch(waiting: Sequence[Due], max_rows: int) -> tuple[int, int]:
    rows = waiting[0].rows or 1
    for count, due in enumerate(waiting[1:], 1):
        if rows + (due.rows or 1) > max_rows:
            return count, rows
        rows += due.rows or 1
    return len(waiting), rows


def confidence(outputs: Mapping[str, NDArray[Any]]) -> float:
    """How sure a classifier is: the least, over samples, of its largest probability, 0 to 1.

    The first float output [n, classes] counts; where its rows are no probabilities, their softmax.
    An answer of another form counts as sure.
    """
    for scores in outputs.values():
        if scores.ndim == 2 and scores.dtype.kind == "f" and scores.shape[1] > 1 and len(scores):
            rows = scores.astype(np.float32)
            if rows.min() < 0 or not np.allclose(rows.sum(axis=1), 1, atol=1e-2):
                powers = np.exp(rows - rows.max(axis=1, keepdims=True))
                rows = powers / powers.sum(axis=1, keepdims=True)
            return float(rows.max(axis=1).min())
    return 1.0
