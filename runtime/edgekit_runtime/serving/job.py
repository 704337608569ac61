"""Job: one request on its way through a scheduler, whichever protocol it came by.

A job that was taken is answered exactly once: with its outputs, with an error, or by its deadline;
whichever comes first settles it. Everything of a job happens on the server's event loop.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgekit.errors import DeadlineMissed, Unavailable
from edgekit_runtime.engines import Session, Tensors

if TYPE_CHECKING:
    from edgekit_runtime.serving.rung import Rung
    from edgekit_runtime.serving.served import Served

Outputs = dict[str, NDArray[Any]]

# Triton's: 0 is the model's default, 1 the most urgent.
DEFAULT_PRIORITY = 0
LOWEST_PRIORITY = 9
_MIDDLE = 5
RETRY_S = 1.0


class Job(ABC):
    """One request.

    Attributes:
        inputs: checked against the model.
        rows: samples on axis 0 of every input; 0 where the model's inputs are not counted so.
        key: jobs with equal keys may run together.
        rank: of its priority; lower runs first.
        deadline_ns: when its answer is worth nothing any more, by `time.perf_counter_ns`.
        variant: the one that must answer; `None` leaves the choice to the scheduler.
        cascade: a confidence below which a small variant's answer is asked again of a better one.
        arrived_ns: by `time.perf_counter_ns`.
        is_plain: it has neither deadline nor wish for a variant.
        settled: the answer is no longer wanted: it was given, or nobody is there to take it.
        cache_key: under which its answer may be kept.
        fallback: what the small variant of a cascade answered, and which one that was.
    """

    rank = _MIDDLE
    deadline_ns: int | None = None
    variant: str | None = None
    cascade: float | None = None
    is_plain = True
    settled = False
    cache_key: tuple[Any, ...] | None = None
    fallback: tuple[Outputs, Rung] | None = None
    timer: asyncio.TimerHandle | None = None

    inputs: Tensors
    rows: int
    key: Hashable
    arrived_ns: int

    def __init__(
        self,
        inputs: Tensors,
        *,
        rows: int,
        key: Hashable,
        deadline_ns: int | None = None,
        priority: int = DEFAULT_PRIORITY,
        variant: str | None = None,
        cascade: float | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.key = key if variant is None else (key, variant)
        self.rank = priority or _MIDDLE
        self.deadline_ns = deadline_ns
        self.variant = variant
        self.cascade = cascade
        self.is_plain = deadline_ns is None and variant is None and cascade is None
        self.arrived_ns = time.perf_counter_ns()

    # Whether its inputs stay as they are and its outputs may be kept beyond `done`.
    may_keep = True

    def run(self, session: Session) -> Outputs:
        """Run this job alone, by whoever owns the session."""
        return session.run(self.inputs)

    @abstractmethod
    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        """Take the outcome; called once at most.

        Args:
            outcome: every output, or why there is none.
            rung: the variant that gave it; `None` where none ran.
        """

    def moved(self, served: Served) -> None:
        """Another version of the model is going to answer; raises `Unavailable` where it cannot."""
        raise Unavailable(
            f"{served.name} {served.version} took its place meanwhile", retry_after_s=RETRY_S
        )

    def settle(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        """Answer, if nobody did before."""
        if self.settled:
            return
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()
        self.done(outcome, rung)

    def abandon(self) -> None:
        """The client is gone: a job that still waits is not run."""
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()

    def limit(self, loop: asyncio.AbstractEventLoop, late: Callable[[Job], None]) -> None:
        """Let the job expire at its deadline; `late` is told where nothing at all was answered.

        Who takes a job over from another scheduler sets it again, and is told instead.
        """
        if self.timer is not None:
            self.timer.cancel()
        if self.deadline_ns is not None and not self.settled:
            left_s = (self.deadline_ns - time.perf_counter_ns()) / 1e9
            self.timer = loop.call_later(max(0.0, left_s), self._expire, late)

    def _expire(self, late: Callable[[Job], None]) -> None:
        if self.fallback is not None:
            self.settle(*self.fallback)
            return
        late(self)
        assert self.deadline_ns is not None
        allowed_us = (self.deadline_ns - self.arrived_ns) // 1000
        self.settle(DeadlineMissed(f"not answered within its timeout of {allowed_us} us"), None)
