"""Runs: one load after another against a target, each with what came of it and what it used."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_runtime.board import conditions
from edgekit_runtime.board.conditions import Reading
from edgekit_runtime.capacity import resources, slo
from edgekit_runtime.capacity.generators import Generators, Load
from edgekit_runtime.capacity.resources import Moment, Usage
from edgekit_runtime.capacity.search import Answer, Rule, Trial, Try
from edgekit_runtime.capacity.slo import Found, Objective
from edgekit_runtime.capacity.target import Counters, Target

# A generator that works this share of its time, or sends this share of an objective's limit late
# at its percentile, measures itself.
BUSY_SHARE = 0.9
LATE_SHARE = 0.5
_MIN_PATIENCE_S = 0.5
_MAX_PATIENCE_S = 2.0
# Between two runs, for the server to drop what nobody waits for any more.
_PAUSE_S = 0.05

Due = Callable[[float], NDArray[np.int64]]


class Run(Strict, frozen=True, kw_only=True):
    """One run.

    Attributes:
        load: requests per second, or streams.
        rate_per_s: requests that were due, per second.
        failed: requests without an answer of 200; `statuses` of those that got another one.
        latency_ms: of answered requests, by percentile.
        found: what came of each objective.
        late_ms: how much later than it could the generator sent, at p50 and p99.
        void: why the generator, not the server, was measured; empty where it was not.
        cached_share: of the requests, answered from the server's cache.
    """

    load: float
    rate_per_s: float
    requests: int
    failed: int
    statuses: dict[int, int]
    latency_ms: dict[str, float | None]
    found: tuple[Found, ...]
    late_ms: dict[str, float | None]
    generator_busy_share: float
    void: tuple[str, ...]
    cached_share: float
    usage: Usage

    @property
    def met(self) -> bool:
        return all(found.met for found in self.found)

    @property
    def is_enough(self) -> bool:
        return all(found.is_enough for found in self.found)


class Runs:
    """Drives one target.

    Args:
        target: what is driven.
        generators: that drive it.
        messages: requests, as the generators name them.
        objectives: the SLO.
        run_s: how long one run sends.
    """

    def __init__(
        self,
        target: Target,
        generators: Generators,
        messages: tuple[str, ...],
        *,
        objectives: Sequence[Objective],
        run_s: float,
    ) -> None:
        self._target = target
        self._generators = generators
        self._messages = messages
        self._objectives = tuple(objectives)
        self.run_s = run_s
        limit_s = max(objective.limit_ns for objective in objectives) / 1e9
        self._patience_s = min(max(2 * limit_s, _MIN_PATIENCE_S), _MAX_PATIENCE_S)
        self.readings: list[Reading] = [conditions.read(at_s=0.0, tools=True)]
        self._began_s = time.monotonic()

    def saturate(self, messages: tuple[str, ...], *, connections: int, duration_s: float) -> Load:
        """What the server takes from callers who wait for their answers."""
        return self._generators.closed_loop(
            messages, connections=connections, duration_s=duration_s
        )

    def run(self, load: float, due_ns: NDArray[np.int64]) -> Run:
        """Send requests when they are due and say what came of it."""
        before, counted = self._moments(), self._target.counters()
        seen = self._generators.open_loop(self._messages, due_ns, patience_s=self._patience_s)
        after, counts = self._moments(), self._target.counters()
        self._note()
        usage = self._usage(before, after, counted, counts, seen)
        found = tuple(
            slo.judge(objective, seen.latencies_ns, failed=seen.failed)
            for objective in self._objectives
        )
        late = slo.percentiles_ms(seen.late_ns)
        time.sleep(_PAUSE_S)
        return Run(
            load=load,
            rate_per_s=len(due_ns) / self.run_s,
            requests=seen.requests,
            failed=seen.failed,
            statuses=seen.statuses,
            latency_ms=slo.percentiles_ms(seen.latencies_ns),
            found=found,
            late_ms={"p50": late["p50"], "p99": late["p99"]},
            generator_busy_share=seen.busy_share,
            void=reasons_void(seen, self._objectives),
            cached_share=(counts.cache_hits - counted.cache_hits) / max(1, seen.requests),
            usage=usage,
        )

    def search(
        self, rule: Rule, due: Due, *, seconds: float, told: Callable[[Run], None]
    ) -> tuple[Answer, list[Run]]:
        """Run what the rule asks for until it has its answer or the time is over.

        Args:
            rule: decides what is run next.
            due: arrivals of a load.
            seconds: after which no run is begun.
            told: is given each run.
        """
        until = time.monotonic() + seconds
        runs: list[Run] = []
        while True:
            trials = trials_of(runs)
            step = rule.next(trials)
            if not isinstance(step, Try):
                return step, runs
            if runs and time.monotonic() + self.run_s > until:
                return rule.best(trials), runs
            runs.append(self.run(step.load, due(step.load)))
            told(runs[-1])

    def throttled(self) -> tuple[str, ...]:
        """Why the board was slowed down since the start; empty where it was not."""
        found = conditions.around(self.readings[0], self.readings[1:-1], self.readings[-1])
        return conditions.reasons_void(found, max_clock_drop=0.1)

    def _note(self) -> None:
        at_s = time.monotonic() - self._began_s
        self.readings.append(conditions.read(at_s=at_s, tools=False))

    def _moments(self) -> tuple[Moment, Moment]:
        server = [] if self._target.pid is None else [self._target.pid]
        return resources.read(server), resources.read(self._generators.pids)

    def _usage(
        self,
        before: tuple[Moment, Moment],
        after: tuple[Moment, Moment],
        counted: Counters,
        counts: Counters,
        seen: Load,
    ) -> Usage:
        (server, generator), (server_end, generator_end) = before, after
        # Not between the moments: connecting before, and waiting for what is lost, is no load.
        wall_s = seen.wall_s
        pid = self._target.pid
        server_s = resources.cpu_s(server, server_end)
        generator_s = resources.cpu_s(generator, generator_end)
        stolen_s = server_end.stolen_s - server.stolen_s
        all_s = server_end.machine_s - server.machine_s + stolen_s
        main = (pid or 0, pid or 0)
        shares = {
            key: (spent - server.threads_s.get(key, 0.0)) / wall_s
            for key, spent in server_end.threads_s.items()
        }
        others = [share for key, share in shares.items() if key != main]
        return Usage(
            cores=os.cpu_count() or 1,
            cores_allowed=resources.cores_allowed(pid),
            server_cores=None if pid is None else server_s / wall_s,
            loop_cores=None if pid is None else shares.get(main, 0.0),
            worker_cores=None if pid is None else max(others, default=0.0),
            engine_share=(counts.engine_ns - counted.engine_ns) / 1e9 / wall_s,
            generator_cores=generator_s / wall_s,
            other_cores=max(0.0, all_s - server_s - generator_s) / wall_s,
            memory_bytes=None if pid is None else server_end.memory_bytes,
            free_share=server_end.free_bytes / max(1, server_end.total_bytes),
            bytes_per_s=seen.sent_bytes / seen.wall_s,
            rejected=counts.rejected - counted.rejected,
        )


def trials_of(runs: Sequence[Run]) -> list[Trial]:
    """What the search may know of these runs.

    A run that its generator spoilt is run again; spoilt twice, the load is more than can be told.
    """
    spoilt: set[float] = set()
    trials = []
    for run in runs:
        if run.met or not run.void or run.load in spoilt:
            trials.append(Trial(run.load, run.met))
        else:
            spoilt.add(run.load)
    return trials


def reasons_void(seen: Load, objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Why a run tells about its load generator instead of the server; empty where it does not."""
    reasons = []
    if seen.busy_share > BUSY_SHARE:
        reasons.append(f"a load generator worked {seen.busy_share:.0%} of its time")
    for objective in objectives:
        late_ns = float(np.quantile(seen.late_ns, objective.quantile)) if len(seen.late_ns) else 0
        if late_ns > LATE_SHARE * objective.limit_ns:
            reasons.append(
                f"the load generator itself sent {late_ns / 1e6:.3g} ms late at {objective.name},"
                f" of the {objective.limit_ns / 1e6:g} ms that are allowed"
            )
    return tuple(reasons)
