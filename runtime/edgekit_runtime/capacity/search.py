"""Search: which load to try next, and when the highest one that is met is found.

A pure rule over the trials so far. One run may be spoilt by whatever else the machine does, so both
ends of the last interval are run again, and where two runs disagree a third one decides. Loads are
multiples of a step: streams are whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.structs import Strict

# The first load to try, of what the server took when it was saturated.
FIRST_SHARE = 0.7
# How much further up or down to go while nothing bounds the answer on that side.
GROWTH = 1.5
SHRINK = 2.0


class Trial(Strict, frozen=True):
    """One run: a load, and whether the SLO was met under it."""

    load: float
    met: bool


class Try(Strict, frozen=True):
    """Run this load next."""

    load: float


class Answer(Strict, frozen=True, kw_only=True):
    """The search has ended.

    Attributes:
        load: the highest that is met; 0 where the smallest one is not.
        above: the lowest that is not met, above it; None where none was run.
        confirmed: whether each of the two was run often enough to be believed.
    """

    load: float
    above: float | None
    confirmed: bool


class Rule(Strict, frozen=True, kw_only=True):
    """How to search.

    Attributes:
        start: the load to try first.
        step: loads are multiples of it; the smallest load is one step.
        resolution: the search ends where the two ends differ by at most this share, or one step.
    """

    start: float
    step: float
    resolution: float = 0.05

    def next(self, trials: Sequence[Trial]) -> Try | Answer:
        """What to do after these trials."""
        if not trials:
            return Try(self._multiple(self.start))
        met, missed = _ends(trials)
        if missed is None:
            return Try(max(self._multiple(met * GROWTH), met + self.step))
        if met == 0 and missed > self.step * 1.5:
            return Try(max(self._multiple(missed / SHRINK), self.step))
        gap = missed - met
        if met > 0 and gap > max(self.step * 1.5, self.resolution * met):
            return Try(self._multiple((met + missed) / 2))
        for load in (met, missed):
            if load and not _is_settled(trials, load):
                return Try(load)
        return Answer(load=met, above=missed, confirmed=True)

    def best(self, trials: Sequence[Trial]) -> Answer:
        """The answer if no more may be run: unconfirmed, unless the rule is done."""
        following = self.next(trials)
        if isinstance(following, Answer):
            return following
        met, missed = _ends(trials)
        return Answer(load=met, above=missed, confirmed=False)

    def _multiple(self, load: float) -> float:
        return max(1, math.floor(load / self.step + 0.5)) * self.step


def _ends(trials: Sequence[Trial]) -> tuple[float, float | None]:
    """The lowest load that is not met, and the highest met one below it.

    A load met above one that was not met proves nothing: more load is never easier, so that was
    luck.
    """
    judged = {trial.load: _majority(trials, trial.load) for trial in trials}
    missed = min((load for load, met in judged.items() if not met), default=None)
    below = [load for load, met in judged.items() if met and (missed is None or load < missed)]
    return max(below, default=0.0), missed


def _majority(trials: Sequence[Trial], load: float) -> bool:
    """What most runs of a load say; of two that disagree the worse one stands until a third."""
    runs = [trial.met for trial in trials if trial.load == load]
    return 2 * sum(runs) > len(runs)


def _is_settled(trials: Sequence[Trial], load: float) -> bool:
    runs = [trial.met for trial in trials if trial.load == load]
    return max(runs.count(True), runs.count(False)) >= 2
