"""Bench: both versions on one input, one after the other, each in a session of its own.

Which of them begins is drawn anew for each input. Each runs twice and the faster run counts, so
that whoever comes first after a pause does not pay for cold caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgekit.errors import EdgekitError, EngineError, Overloaded, WorkerLost
from edgekit_runtime.canary.answers import Surface, compare, is_broken
from edgekit_runtime.canary.samples import NOTHING, Sample
from edgekit_runtime.engines import Session, Tensors

_RUNS = 2
_OLD, _NEW = 0, 1


class Skipped(EdgekitError):
    """This input says nothing of the new version."""


class OldFailed(Skipped):
    """The version that serves cannot run it, so that there is nothing to compare with."""


class OldLost(EdgekitError):
    """The process of the version that serves died beside the canary."""


class TooLarge(Skipped):
    """It does not fit into the memory that is shared with a worker process."""


class Bench:
    """Two sessions on one bench. Used by one thread.

    Args:
        old: of the version that serves.
        new: of the other.
        surfaces: of both, in that order.
        tolerance: see `answers.compare`.
        rng: draws which begins.
        clock_ns: for times within the engine.

    Attributes:
        runs_new: whether the new version runs at this moment, or ran last.
    """

    def __init__(
        self,
        old: Session,
        new: Session,
        *,
        surfaces: tuple[Surface, Surface],
        tolerance: float,
        rng: np.random.Generator,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._sessions = old, new
        self._surfaces = surfaces
        self._tolerance = tolerance
        self._rng = rng
        self._clock_ns = clock_ns
        self.runs_new = False

    def try_both(self, inputs: Tensors) -> Sample:
        """Run both and compare.

        Raises:
            OldFailed: the old version failed.
            OldLost: its process died.
            WorkerLost: the process of the new version died.
            TooLarge: the input does not fit into the memory that is shared with a process.
        """
        answers: dict[int, Tensors] = {}
        times_ns: dict[int, list[int]] = {_OLD: [], _NEW: []}
        has_failed = False
        order = (_OLD, _NEW) if self._rng.random() < 0.5 else (_NEW, _OLD)
        for which in order * _RUNS:
            if (given := self._attempt(which, inputs)) is None:
                has_failed = True
            else:
                answers[which] = given[0]
                times_ns[which].append(given[1])
        old, new = self._surfaces
        before = answers[_OLD]
        after = answers.get(_NEW)
        if has_failed or after is None or is_broken(before, after):
            # What failed agrees with nothing, and says nothing of confidence or time.
            signal = compare(old, old, before, before, inputs, tolerance=self._tolerance).signal
            return Sample(0.0, NOTHING, NOTHING, True, signal)
        found = compare(old, new, before, after, inputs, tolerance=self._tolerance)
        ratio = min(times_ns[_NEW]) / min(times_ns[_OLD])
        return Sample(found.agreement, found.drop, ratio, False, found.signal)

    def _attempt(self, which: int, inputs: Tensors) -> tuple[Tensors, int] | None:
        """Outputs and nanoseconds of one run; `None` where the new version failed."""
        self.runs_new = which == _NEW
        start_ns = self._clock_ns()
        try:
            outputs = self._sessions[which].run(inputs)
        except WorkerLost as e:
            if which == _OLD:
                raise OldLost(e.message) from e
            raise
        except EngineError as e:
            if which == _OLD:
                raise OldFailed(e.message) from e
            return None
        except Overloaded as e:
            raise TooLarge(e.message) from e
        return outputs, max(1, self._clock_ns() - start_ns)
