"""Gate: what may ship. Pure rules over figures and a budget; every refusal says its reason.

An artefact that is slower than its float parent on the machine it is for, or worse than the budget
allows, never ships. Where nothing but float is left, float ships; where float itself breaks a limit
that the recipe sets on size, latency or memory, nothing does. Without enough data nothing is proven
and float comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgekit.recipe import Budget
from edgekit.structs import Strict

Outcome = Literal["passed", "refused", "not_enough_data"]


class Figures(Strict, frozen=True, kw_only=True):
    """What the gate knows of an artefact; None where it was not obtained.

    Attributes:
        drop: fall of the metric against the float source, as a share.
        speedup: against the float artefact, only where it ran on the machine it is for.
        finite: whether all answers are numbers.
    """

    size_bytes: int
    finite: bool = True
    agreement: float | None = None
    drop: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None


class Gate(Strict, frozen=True, kw_only=True):
    """The outcome of a build and why."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


def judge(figures: Figures, budget: Budget, *, is_float: bool = False) -> tuple[str, ...]:
    """Why an artefact must not ship; empty where it may.

    Args:
        is_float: the artefact is the float parent itself, which only limits on size, latency and
            memory can refuse.
    """
    reasons = list(_limits(figures, budget))
    if not figures.finite:
        reasons.append("answers that are not numbers")
    if is_float:
        return tuple(reasons)
    if figures.agreement is not None and figures.agreement < budget.min_agreement:
        reasons.append(f"agreement {figures.agreement:.3f} below {budget.min_agreement:g}")
    if figures.drop is not None and figures.drop > budget.accuracy_drop:
        reasons.append(f"accuracy drop {figures.drop:.3f} above {budget.accuracy_drop:g}")
    if figures.speedup is not None and figures.speedup < budget.min_speedup:
        slower = figures.speedup < 1
        reasons.append(
            f"slower than float: {figures.speedup:.2f}x"
            if slower
            else f"speed-up {figures.speedup:.2f}x below {budget.min_speedup:g}x"
        )
    return tuple(reasons)


def conclude(*, float_reasons: Sequence[str], accepted: int, tried: int, enough_data: bool) -> Gate:
    """The outcome of a build for one profile.

    Args:
        float_reasons: what `judge` says against the float artefact.
        accepted: how many other artefacts may ship.
        tried: how many others were made.
        enough_data: whether accuracy was judged at all.
    """
    if float_reasons and not accepted:
        return Gate(outcome="refused", reasons=tuple(f"float: {r}" for r in float_reasons))
    if not enough_data:
        return Gate(
            outcome="not_enough_data",
            reasons=("too few samples to judge accuracy: float is the default variant",),
        )
    if not tried:
        return Gate(outcome="passed", reasons=("float only: nothing else was asked for",))
    if not accepted:
        return Gate(outcome="passed", reasons=("float only: every other scheme was rejected",))
    reasons = tuple(f"float is left out: {r}" for r in float_reasons)
    return Gate(outcome="passed", reasons=reasons)


def _limits(figures: Figures, budget: Budget) -> list[str]:
    reasons = []
    size_mb = figures.size_bytes / 1e6
    if budget.max_size_mb is not None and size_mb > budget.max_size_mb:
        reasons.append(f"{size_mb:.1f} MB, at most {budget.max_size_mb:g} MB")
    for limit, value, unit in (
        (budget.max_latency_ms, figures.latency_ms, "ms"),
        (budget.max_memory_mb, figures.memory_mb, "MB of memory"),
    ):
        if limit is not None and value is not None and value > limit:
            reasons.append(f"{value:.1f} {unit}, at most {limit:g} {unit}")
    return reasons
