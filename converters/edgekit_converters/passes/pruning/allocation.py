"""Allocation: how much each group gives, so that a wanted saving costs the least error in all.

Errors of groups are taken as adding up, which holds while they are small. The next step is always
the one with the least error for the time that it saves, looking some turns ahead: a turn that costs
much may be followed by cheap ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_AHEAD = 8


@dataclass(frozen=True)
class Curve:
    """What a group costs and saves, after 0, 1, 2 and so on turns of its elimination.

    Attributes:
        errors: never falling.
        saved: rising, in any unit of time.
    """

    errors: tuple[float, ...]
    saved: tuple[float, ...]


def allocate(curves: Sequence[Curve], wanted: float) -> tuple[int, ...]:
    """Turns of each group that save `wanted`, or all there are where that is not enough."""
    turns = [0] * len(curves)
    saved = 0.0
    while saved < wanted:
        steps = [
            (_rate(curve, turns[i], ahead), i, ahead)
            for i, curve in enumerate(curves)
            for ahead in range(1, min(_AHEAD, len(curve.errors) - 1 - turns[i]) + 1)
        ]
        if not steps:
            break
        _, i, ahead = min(steps)
        saved += curves[i].saved[turns[i] + ahead] - curves[i].saved[turns[i]]
        turns[i] += ahead
    return tuple(turns)


def _rate(curve: Curve, turn: int, ahead: int) -> float:
    gained = curve.saved[turn + ahead] - curve.saved[turn]
    if gained <= 0:
        return math.inf
    return (curve.errors[turn + ahead] - curve.errors[turn]) / gained
