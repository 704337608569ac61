"""Finals: what the search chose, timed again and judged on samples that nothing was chosen by.

One quick timing does not rank schemes that are nearly as fast as each other, so what would ship is
timed once more, longer, side by side with the float model and its nearest rivals. What the gate
then refuses, or cannot prove, is taken out, and the next best takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from edgekit.errors import BuildError, EngineError
from edgekit_converters import search
from edgekit_converters.artefact import Made
from edgekit_converters.measure import Timing, speedup, speedup_quartiles
from edgekit_converters.passes import Scheme
from edgekit_converters.search import Trial

# Schemes within this of the fastest are timed again.
_RIVAL = 1.10
_MOST_RIVALS = 3


@dataclass(frozen=True)
class Placed:
    """How the finals ended.

    Attributes:
        history: the trials, those that were timed again with the cost found then, and those that
            fell out with the reason why.
        rungs: what may ship beside float, fastest first: all proven, or a single one that nothing
            speaks against but too little data.
    """

    history: tuple[Trial, ...]
    rungs: tuple[Made, ...]


def settle(
    history: Sequence[Trial],
    *,
    most: int,
    has_room: Callable[[], bool],
    retime: Callable[[Sequence[Scheme]], dict[str, tuple[Timing, Timing]]],
    judged: Callable[[Scheme], Made],
) -> Placed:
    """Time the best again and let the gate judge what would ship, until all of it is proven.

    Args:
        history: what the search made.
        most: rungs beside float.
        has_room: whether one that is not proven may ship, behind float where there is one; asked
            when everything was timed.
        retime: times schemes side by side with float, and gives by name of each scheme timed so
            far its own timing and float's beside it; nothing where this is not the machine they
            are for.
        judged: an artefact with the gate's verdict.
    """
    trials = list(history)
    unproven: list[tuple[int, Trial, Made]] = []
    again = [trials[i].scheme for i in rivals(trials, most=most)]
    while again:
        timings = retime(again)
        trials = [_retimed(trial, timings.get(trial.scheme.name)) for trial in trials]
        rungs = search.ladder(trials, most=most)
        # What moves up for something that was taken out has not been timed well yet.
        again = [trials[i].scheme for i in rungs if trials[i].scheme.name not in timings]
        if again and timings:
            continue
        made = {i: _judged(trials[i].scheme, judged) for i in rungs}
        proven = [one for one in made.values() if isinstance(one, Made) and one.verdict.proven]
        if len(proven) == len(rungs):
            if proven:
                return Placed(tuple(trials), tuple(proven))
            break
        for i, one in made.items():
            if isinstance(one, Made) and not one.verdict.refused and not one.verdict.proven:
                unproven.append((i, trials[i], one))
            trials[i] = _taken_out(trials[i], one)
        again = [trials[i].scheme for i in search.ladder(trials, most=most)]
    if not unproven or not has_room():
        return Placed(tuple(trials), ())
    position, trial, one = unproven[0]
    trials[position] = trial
    return Placed(tuple(trials), (one,))


def rivals(trials: Sequence[Trial], *, most: int) -> list[int]:
    """What is timed again: what would ship, and what is nearly as fast as the fastest."""
    rungs = search.ladder(trials, most=most)
    if not rungs:
        return []
    accepted = [(trial.cost or 0.0, i) for i, trial in enumerate(trials) if trial.accepted]
    fastest = min(cost for cost, _ in accepted)
    near = [i for cost, i in sorted(accepted) if cost <= fastest * _RIVAL][:_MOST_RIVALS]
    return sorted({*rungs, *near})


def _retimed(trial: Trial, timings: tuple[Timing, Timing] | None) -> Trial:
    if timings is None or trial.probe:
        return trial
    own, parent = timings
    low, high = speedup_quartiles(parent, own)
    reasons = trial.reasons
    if low < 1.0 and not reasons:
        reasons = (f"not clearly faster than float: {low:.2f}x to {high:.2f}x",)
    return msgspec.structs.replace(trial, cost=1 / speedup(parent, own), reasons=reasons)


def _judged(scheme: Scheme, judged: Callable[[Scheme], Made]) -> Made | EngineError | BuildError:
    """The verdict on an artefact, or why engine or simulator could not give answers to judge."""
    try:
        return judged(scheme)
    except (EngineError, BuildError) as e:
        return e


def _taken_out(trial: Trial, found: Made | EngineError | BuildError) -> Trial:
    if not isinstance(found, Made):
        whys: tuple[str, ...] = (found.message,)
    else:
        whys = (*found.verdict.reasons, *found.verdict.unproven)
    if not whys:
        return trial
    reasons = tuple(f"on the report's samples: {why}" for why in whys)
    return msgspec.structs.replace(trial, reasons=reasons)
