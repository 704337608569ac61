"""Limits: the highest rate at which a bundle meets its SLO here, and what ran out above it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgekit.errors import ServingError
from edgekit.structs import Strict
from edgekit_runtime.capacity import arrivals
from edgekit_runtime.capacity.prepare import Prepared
from edgekit_runtime.capacity.resources import RanOut, ran_out
from edgekit_runtime.capacity.runs import Run, Runs
from edgekit_runtime.capacity.search import FIRST_SHARE, Answer, Rule
from edgekit_runtime.capacity.slo import Objective

# Of the time given: one run, and what saturates the server first.
RUN_SHARE = 1 / 14
# Callers who wait for their answers, and samples in a request, that are tried for throughput.
CALLERS = 16
BATCHES = (8, 32)
BATCH_CALLERS = 4
# The smallest rate that is looked for, of what saturates the server.
_SMALLEST_SHARE = 1 / 200


class Throughput(Strict, frozen=True, kw_only=True):
    """What the server takes from callers who wait for their answers.

    Attributes:
        batch: samples in a request.
        predictions_per_s: samples answered.
        failed: requests without an answer of 200.
        generator_busy_share: near 1, the generator was measured.
    """

    batch: int
    callers: int
    predictions_per_s: float
    failed: int
    generator_busy_share: float


class Limits(Strict, frozen=True, kw_only=True):
    """What a bundle can carry here.

    Attributes:
        rate_per_s: the highest that met the SLO; 0 where none did.
        above_per_s: the lowest that did not; None where none was run.
        confirmed: whether both were run often enough to be believed.
        at: the last run at `rate_per_s`; `above` the last one at `above_per_s`.
        ran_out: what `above` used up.
        void: why the answer is a lower bound only: the generator ended first.
        throughput: by samples in a request.
    """

    rate_per_s: float
    above_per_s: float | None
    confirmed: bool
    at: Run | None
    above: Run | None
    ran_out: RanOut | None
    void: tuple[str, ...]
    throughput: tuple[Throughput, ...]
    runs: tuple[Run, ...]

    @property
    def predictions_per_s(self) -> float:
        return max(one.predictions_per_s for one in self.throughput)


def measure(
    prepared: Prepared,
    objectives: tuple[Objective, ...],
    *,
    seconds: float,
    random: np.random.Generator,
    told: Callable[[Run], None],
) -> Limits:
    """Find the limits of what is prepared.

    Args:
        prepared: a served bundle and its generators.
        objectives: the SLO.
        seconds: for all of it.
        random: draws the arrivals.
        told: is given each run as it ends.

    Raises:
        ServingError: the server answers no request.
    """
    run_s = seconds * RUN_SHARE
    began_s = time.monotonic()
    runs = Runs(
        prepared.target,
        prepared.generators,
        prepared.singles,
        objectives=objectives,
        run_s=run_s,
    )
    runs.saturate(prepared.singles, connections=1, duration_s=run_s / 4)
    throughput = _throughput(prepared, runs, duration_s=run_s / 2)
    top = throughput[0].predictions_per_s
    if top == 0:
        raise ServingError(
            f"{prepared.target.model} answers no request of its golden inputs",
            hint="see what the server says, and try one: edgekit verify",
        )
    rule = Rule(start=top * FIRST_SHARE, step=top * _SMALLEST_SHARE)
    answer, taken = runs.search(
        rule,
        lambda rate: arrivals.poisson(rate, run_s, random=random),
        seconds=seconds - (time.monotonic() - began_s),
        told=told,
    )
    return _limits(answer, taken, throughput, throttled=runs.throttled())


def _throughput(prepared: Prepared, runs: Runs, *, duration_s: float) -> tuple[Throughput, ...]:
    sizes = {1: prepared.singles, **{size: prepared.batch(size) for size in BATCHES}}
    found = []
    for size, messages in sizes.items():
        if messages is None:
            continue
        callers = CALLERS if size == 1 else BATCH_CALLERS
        seen = runs.saturate(messages, connections=callers, duration_s=duration_s)
        found.append(
            Throughput(
                batch=size,
                callers=callers,
                predictions_per_s=size * seen.answered_per_s,
                failed=seen.failed,
                generator_busy_share=seen.busy_share,
            )
        )
    return tuple(found)


def _limits(
    answer: Answer,
    runs: list[Run],
    throughput: tuple[Throughput, ...],
    *,
    throttled: tuple[str, ...],
) -> Limits:
    at = last(runs, answer.load, met=True)
    above = None if answer.above is None else last(runs, answer.above, met=False)
    return Limits(
        rate_per_s=answer.load,
        above_per_s=answer.above,
        confirmed=answer.confirmed,
        at=at,
        above=above,
        ran_out=None if above is None else ran_out(above.usage, throttled=throttled),
        void=() if above is None else above.void,
        throughput=throughput,
        runs=tuple(runs),
    )


def last(runs: list[Run], load: float, *, met: bool) -> Run | None:
    """The last run of a load that ended so."""
    return next((run for run in reversed(runs) if run.load == load and run.met == met), None)
