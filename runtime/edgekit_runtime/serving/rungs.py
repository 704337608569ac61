"""Rungs: the variants of one model, which of them can run now, who serves a job, and what it costs.

A variant that is not open is asked for by the first job that could use it. `ladder` has the rule
that chooses among those that are open; here it meets the jobs that wait. Used on the event loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from edgekit.errors import NotServed, Unavailable
from edgekit_runtime.serving import ladder
from edgekit_runtime.serving.job import RETRY_S, Job
from edgekit_runtime.serving.rung import Rung

# Of the time that is left, what the estimate may fill: runs vary, and under load a request has
# waited in its socket before anybody saw it. Work for an answer that comes late is lost twice.
_SAFELY = 0.75


class Rungs:
    """The variants of one model, the most accurate first.

    Attributes:
        default: the one that answers where no deadline says otherwise.
        climbs: whether deadlines choose the variant.

    Args:
        rungs: at least one.
        model: its name, for messages.
        preference: names of all variants, in the order in which they stand in for the default.
        want: asks for a variant that is not open; whether it is on its way.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        *,
        default: Rung,
        model: str,
        preference: Sequence[str],
        want: Callable[[Rung], bool],
        climbs: bool,
    ) -> None:
        self.default = default
        self.climbs = climbs and len(rungs) > 1
        self._rungs = tuple(rungs)
        self._by_name = {rung.name: rung for rung in rungs}
        self._model = model
        self._places = {name: place for place, name in enumerate(preference)}
        self._want = want

    def __iter__(self) -> Iterator[Rung]:
        return iter(self._rungs)

    # Who can answer.

    def check_named(self, job: Job) -> None:
        """Raise `NotServed` where a job wants a variant that the model does not have."""
        if job.variant is not None and job.variant not in self._by_name:
            raise NotServed(
                f"{self._model} has no variant {job.variant!r}",
                hint=f"it has {', '.join(self._by_name)}",
            )

    def call_up(self, job: Job) -> None:
        """Ask for the variants that this job could use and that are not open."""
        if job.variant is not None:
            self.ask(self._by_name[job.variant])
            return
        climbs = self.climbs and (job.deadline_ns is not None or job.cascade is not None)
        if climbs or self.default.state == "lost":
            for rung in self._rungs:
                self.ask(rung)
        else:
            self.ask(self.default)

    def ask(self, rung: Rung) -> None:
        """Ask for a variant, where it is not open and nobody asked before."""
        if rung.state in ("closed", "lost") and not rung.asked:
            rung.asked = self._want(rung)

    def can_run(self, job: Job) -> bool:
        """Whether some variant could run this job now."""
        if job.variant is not None:
            return self._by_name[job.variant].state == "ready"
        return any(rung.state == "ready" for rung in self._rungs)

    def is_helpless(self, job: Job) -> bool:
        """Whether no variant that may answer this job can run or is on its way."""
        allowed = self._allowed(job)
        return not any(rung.asked or rung.state in ("ready", "opening") for rung in allowed)

    def unavailable(self, job: Job) -> Unavailable:
        """Why no variant answers this job, and when to ask again."""
        allowed = self._allowed(job)
        reasons = "; ".join(f"{rung.name}: {rung.reason or rung.state}" for rung in allowed)
        wait_s = min(rung.breaker.retry_at for rung in allowed) - time.monotonic()
        return Unavailable(
            f"{self._model} cannot answer now: {reasons}", retry_after_s=max(RETRY_S, wait_s)
        )

    def _allowed(self, job: Job) -> tuple[Rung, ...]:
        return self._rungs if job.variant is None else (self._by_name[job.variant],)

    # Who answers.

    def choose(self, job: Job, waiting: Iterable[Job]) -> Rung:
        """The variant that serves a job, which `can_run`, and the batch that it begins.

        Args:
            job: the next one.
            waiting: all that wait, `job` among them, in the order in which they are served.
        """
        if job.variant is not None:
            return self._by_name[job.variant]
        ready = self._ladder()
        if job.cascade is not None:
            return ready[-1]
        if job.deadline_ns is None or not self.climbs:
            return self.default if self.default.state == "ready" else self._stand_in()
        steps = [ladder.Step(rung.safe_us, rung.opened.plan.max_batch) for rung in ready]
        return ready[ladder.choose(steps, self._dues(waiting))]

    def best(self) -> Rung | None:
        """The most accurate variant that can run now."""
        return next((rung for rung in self._rungs if rung.state == "ready"), None)

    def _dues(self, waiting: Iterable[Job]) -> list[ladder.Due]:
        """What waits, as the rule sees it: pinned work only takes time away from the rest."""
        now_ns = time.perf_counter_ns()
        dues: list[ladder.Due] = []
        pinned_us = 0.0
        for job in waiting:
            if job.variant is not None:
                pinned = self._by_name[job.variant]
                if pinned.state == "ready":
                    pinned_us += pinned.run_us(job.rows or 1)
            elif job.deadline_ns is None:
                dues.append(ladder.Due(job.rows, math.inf))
            else:
                left_us = (job.deadline_ns - now_ns) / 1000
                dues.append(ladder.Due(job.rows, left_us * _SAFELY - pinned_us))
        return dues

    def _ladder(self) -> list[Rung]:
        """The variants that can run now, from the most accurate to the fastest.

        What is less accurate than another and no faster is left out.
        """
        ready = [rung for rung in self._rungs if rung.state == "ready"]
        if len(ready) < 2:
            return ready
        costs = [rung.opened.plan.row_us() for rung in ready]
        return [ready[position] for position in ladder.worthwhile(costs)]

    def _stand_in(self) -> Rung:
        """Who answers instead of the default: the next in the manifest that can."""
        ready = (rung for rung in self._rungs if rung.state == "ready")
        return min(ready, key=lambda rung: self._places[rung.name])

    # What it costs.

    def work_us(self, jobs: Iterable[Job]) -> float:
        """How long it takes at least until these jobs are done, once nothing else is under way."""
        fastest = self._fastest()
        if fastest is None:
            return 0.0
        spent_us, rows = 0.0, 0
        for job in jobs:
            if job.settled:
                continue
            if job.variant is None or (pinned := self._by_name[job.variant]).state != "ready":
                rows += job.rows or 1
            else:
                spent_us += pinned.run_us(job.rows or 1)
        return spent_us + rows * fastest.opened.plan.row_us() * fastest.pace

    def least_us(self, job: Job) -> float:
        """How long this job takes at least; 0 where nothing can run it now."""
        fastest = self._by_name[job.variant] if job.variant is not None else self._fastest()
        if fastest is None or fastest.state != "ready":
            return 0.0
        return fastest.run_us(job.rows or 1)

    def _fastest(self) -> Rung | None:
        rungs = self._ladder()
        return rungs[-1] if rungs else None


def left_us(deadline_ns: int) -> float:
    """Microseconds from now until a deadline by `time.perf_counter_ns`."""
    return (deadline_ns - time.perf_counter_ns()) / 1000


def is_too_late(needed_us: float, *, left_us: float) -> bool:
    """Whether work should not be begun: it would hardly be done in the time that is left."""
    return needed_us > left_us * _SAFELY
