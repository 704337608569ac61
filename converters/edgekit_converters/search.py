"""Search: which scheme to try next, and when to stop. Pure rules over what was measured.

A ladder of schemes is walked from the top. The first one that the gate accepts with an agreement
above the goal ends the search; otherwise every rung is tried and the accepted one that agrees most
with the source wins. Speed decides whether a scheme may ship, never which of two is taken: two
builds on a noisy machine must end in the same bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.structs import Strict
from edgekit_converters.passes import Scheme

GOAL_AGREEMENT = 0.98
"""Agreement, or one minus the drop of the metric, at which a further trial gains too little."""


class Trial(Strict, frozen=True, kw_only=True):
    """One scheme that was made and measured.

    Attributes:
        closeness: agreement with the source, or one minus the drop of the metric for a model
            without classes; None where nothing was evaluated.
        reasons: why the gate refuses it; empty where it may ship.
    """

    scheme: Scheme
    closeness: float | None
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.reasons


class Done(Strict, frozen=True, kw_only=True):
    """The end of a search; `chosen` is a position in the history, None where nothing may ship."""

    chosen: int | None


def next_trial(
    history: Sequence[Trial], ladder: Sequence[Scheme], *, goal: float = GOAL_AGREEMENT
) -> Scheme | Done:
    """The next scheme of the ladder to try, or the end with what to ship."""
    if history and history[-1].accepted and (history[-1].closeness or 0.0) >= goal:
        return Done(chosen=len(history) - 1)
    if len(history) < len(ladder):
        return ladder[len(history)]
    accepted = [i for i, trial in enumerate(history) if trial.accepted]
    if not accepted:
        return Done(chosen=None)
    # Of equals the earliest: schemes further down keep more of the model in float.
    return Done(chosen=max(accepted, key=lambda i: (history[i].closeness or 0.0, -i)))


def run(
    ladder: Sequence[Scheme], attempt: Callable[[Scheme], Trial], *, goal: float = GOAL_AGREEMENT
) -> tuple[list[Trial], Done]:
    """Walk the ladder with `attempt`, which makes and measures one scheme."""
    history: list[Trial] = []
    while not isinstance(step := next_trial(history, ladder, goal=goal), Done):
        history.append(attempt(step))
    return history, step
