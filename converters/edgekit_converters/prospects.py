"""Prospects: from a scheme's figures on the selection samples, whether the report will prove it.

What is chosen on one part of the data is judged on another, and what the gate cannot prove there
does not become the default variant. So a search looks ahead: each loss counts with the doubt that
will be left on the report's samples, which are other samples, and usually more. Where those are
too few to prove even an artefact that answers like the float model, losses count as they are.
Pure functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from edgekit.recipe import Budget
from edgekit_converters import gate
from edgekit_converters.data import MIN_EVALUATION
from edgekit_converters.gate import Figures
from edgekit_converters.statistics import gap_later, share_high

LEAST_GROUPS = 10
_LEAST = 1e-3


class Outlook(NamedTuple):
    """What can be expected of a scheme on the report's samples.

    Attributes:
        reasons: why it is not taken; empty where it is.
        headroom: of `headroom`, below 0 exactly where accuracy is a reason.
        doubt: of `doubt`.
    """

    reasons: tuple[str, ...]
    headroom: float | None
    doubt: float


def outlook(figures: Figures, budget: Budget, *, groups: int, later: int) -> Outlook:
    """What the report can be expected to show, on `later` samples; 0 where it will have none.

    Losses count as they are where nobody can say more: where no artefact could be proven on that
    many samples, or where the samples at hand come from fewer than `LEAST_GROUPS` groups, which do
    not show how much groups differ.

    Args:
        groups: of the samples that the figures come from.
    """
    open_ = doubt(figures, budget)
    if not provable(budget, later=later) or groups < LEAST_GROUPS:
        verdict = gate.judge(figures, budget)
        return Outlook(verdict.reasons, headroom(figures, budget, bounds=False), open_)
    ahead = foreseen(figures, later=later)
    verdict = gate.judge(ahead, budget)
    doubts = tuple(f"the report could not prove it: {why}" for why in verdict.unproven)
    return Outlook((*verdict.reasons, *doubts), headroom(ahead, budget, bounds=True), open_)


def provable(budget: Budget, *, later: int) -> bool:
    """Whether `later` samples could prove an artefact that never differs from the float model."""
    allowed = min(1.0 - budget.min_agreement, budget.accuracy_drop)
    return later >= MIN_EVALUATION and share_high(later) <= allowed


def foreseen(figures: Figures, *, later: int) -> Figures:
    """The figures with the bounds that they would have on `later` samples."""
    known = figures.samples
    low, high = figures.agreement_low, figures.drop_high
    if figures.agreement is not None and low is not None:
        low = figures.agreement - gap_later(figures.agreement - low, known=known, later=later)
    if figures.drop is not None and high is not None:
        high = figures.drop + gap_later(high - figures.drop, known=known, later=later)
    return msgspec.structs.replace(figures, samples=later, agreement_low=low, drop_high=high)


def headroom(figures: Figures, budget: Budget, *, bounds: bool) -> float | None:
    """How much of the budget is left: 1 where nothing was lost, 0 where all of it is used.

    Args:
        bounds: count each loss at its bound, not as it is.

    Returns:
        None where accuracy was not judged.
    """
    if figures.agreement is None and figures.drop is None:
        return None
    if not figures.finite:
        return -math.inf
    rooms = []
    if figures.agreement is not None:
        low = figures.agreement_low if bounds else None
        lost = 1.0 - (figures.agreement if low is None else low)
        rooms.append(_room(lost, 1.0 - budget.min_agreement))
    if figures.drop is not None:
        high = figures.drop_high if bounds else None
        rooms.append(_room(figures.drop if high is None else high, budget.accuracy_drop))
    return min(rooms)


def doubt(figures: Figures, budget: Budget) -> float:
    """How much less of the budget may be left than was seen, at one-sided 95 % confidence.

    0 where accuracy was not judged, or the samples give no bound.
    """
    seen, sure = (headroom(figures, budget, bounds=bounds) for bounds in (False, True))
    if seen is None or sure is None or not figures.finite:
        return 0.0
    return max(seen - sure, 0.0)


def _room(loss: float, allowed: float) -> float:
    """Below 0 exactly where more is lost than allowed, also where next to nothing is."""
    spare = allowed if loss > allowed else max(allowed, _LEAST)
    return (spare - loss) / max(allowed, _LEAST)
