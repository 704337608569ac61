"""Plan: how many streams of a given rate a bundle can carry here, each at its own steady beat."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_runtime.capacity import arrivals
from edgekit_runtime.capacity.limits import RUN_SHARE, last
from edgekit_runtime.capacity.prepare import Prepared
from edgekit_runtime.capacity.resources import RanOut, ran_out
from edgekit_runtime.capacity.runs import Run, Runs
from edgekit_runtime.capacity.search import Rule
from edgekit_runtime.capacity.slo import Objective

_RESOLUTION = 0.02


class Plan(Strict, frozen=True, kw_only=True):
    """How many streams fit.

    Attributes:
        streams: that were asked for, of `rate_per_s` each; `fits` says whether they meet the SLO.
        most: the most streams that met it; `above` the fewest that did not.
        confirmed: whether both were run often enough to be believed.
        at: the last run with `most`; `beyond` the last one with `above`.
        ran_out: what `beyond` used up.
        void: why `most` is a lower bound only: the generator ended first.
    """

    streams: int
    rate_per_s: float
    fits: bool
    most: int
    above: int | None
    confirmed: bool
    at: Run | None
    beyond: Run | None
    ran_out: RanOut | None
    void: tuple[str, ...]
    runs: tuple[Run, ...]


def measure(
    prepared: Prepared,
    objectives: tuple[Objective, ...],
    *,
    streams: int,
    rate_per_s: float,
    aligned: bool,
    seconds: float,
    random: np.random.Generator,
    told: Callable[[Run], None],
) -> Plan:
    """Run `streams`, then look for the most that fit.

    Args:
        prepared: a served bundle and its generators.
        objectives: the SLO.
        streams: to begin with.
        rate_per_s: of one stream.
        aligned: all in phase; else each run draws their phases.
        seconds: for all of it.
        random: draws the phases.
        told: is given each run as it ends.
    """
    # A stream shorter than a few beats says nothing about its beat.
    run_s = max(seconds * RUN_SHARE, min(5 / rate_per_s, seconds / 4))
    began_s = time.monotonic()
    runs = Runs(
        prepared.target,
        prepared.generators,
        prepared.singles,
        objectives=objectives,
        run_s=run_s,
    )
    runs.saturate(prepared.singles, connections=1, duration_s=min(run_s, 1.0) / 2)

    def due(load: float) -> NDArray[np.int64]:
        return arrivals.periodic(round(load), rate_per_s, run_s, random=random, aligned=aligned)

    rule = Rule(start=streams, step=1.0, resolution=_RESOLUTION)
    answer, taken = runs.search(
        rule, due, seconds=seconds - (time.monotonic() - began_s), told=told
    )
    most, above = round(answer.load), None if answer.above is None else round(answer.above)
    at = last(taken, answer.load, met=True)
    beyond = None if answer.above is None else last(taken, answer.above, met=False)
    return Plan(
        streams=streams,
        rate_per_s=rate_per_s,
        fits=most >= streams,
        most=most,
        above=above,
        confirmed=answer.confirmed,
        at=at,
        beyond=beyond,
        ran_out=None if beyond is None else ran_out(beyond.usage, throttled=runs.throttled()),
        void=() if beyond is None else beyond.void,
        runs=tuple(taken),
    )
