"""Gate: what may ship, as pure rules over figures and a budget; every outcome says its reasons.

An artefact that is slower than its float parent on the machine it is for, or worse than the budget
allows, never ships. One that is within the budget, but on too little data to show it with 95 %
confidence, is unproven: it may lie in a bundle beside float, and is never called passed. Where
nothing but float is left, float ships; where float itself breaks a limit that the recipe sets on
size, latency or memory, it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from edgekit.recipe import Budget
from edgekit.structs import Strict
from edgekit_converters.data import MIN_EVALUATION
from edgekit_converters.metrics.changes import ClassChange
from edgekit_converters.statistics import samples_needed

Outcome = Literal["passed", "refused", "not_enough_data"]

_LISTED = 3


class Figures(Strict, frozen=True, kw_only=True):
    """What the gate knows of an artefact; None where it was not obtained.

    Attributes:
        samples: how many evaluated it; 0 where accuracy was not judged.
        agreement: share of samples with the float source's answer; None for a model whose answer
            is no class.
        agreement_low: one-sided 95 % lower bound of `agreement`; None where the samples cannot
            give one, as all of them belong to one group.
        drop: fall of the metric against the float source, as a share.
        drop_high: one-sided 95 % upper bound of `drop`; None as for `agreement_low`.
        classes: what each class lost.
        speedup: against the float artefact, only where it ran on the machine it is for.
        finite: whether all answers are numbers.
    """

    size_bytes: int
    finite: bool = True
    samples: int = 0
    agreement: float | None = None
    agreement_low: float | None = None
    drop: float | None = None
    drop_high: float | None = None
    classes: tuple[ClassChange, ...] = ()
    speedup: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None


class Verdict(Strict, frozen=True, kw_only=True):
    """What the gate says of one artefact.

    Attributes:
        reasons: why it must not ship.
        unproven: what the data is too small to show, and how much would do.
        warnings: what a reader should know, though the budget does not forbid it.
    """

    reasons: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        return bool(self.reasons)

    @property
    def proven(self) -> bool:
        """Whether it may ship as what the bundle stands for."""
        return not self.reasons and not self.unproven


class Gate(Strict, frozen=True, kw_only=True):
    """The outcome of a build and why."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


def judge(figures: Figures, budget: Budget, *, is_float: bool = False) -> Verdict:
    """What the budget says of an artefact.

    Args:
        is_float: the artefact is the float parent itself, which only limits on size, latency and
            memory can refuse; there is nothing to prove of it.
    """
    reasons = list(_limits(figures, budget))
    if not figures.finite:
        reasons.append("answers that are not numbers")
    if is_float:
        return Verdict(reasons=tuple(reasons))
    if figures.agreement is not None and figures.agreement < budget.min_agreement:
        reasons.append(f"agreement {figures.agreement:.3f} below {budget.min_agreement:g}")
    if figures.drop is not None and figures.drop > budget.accuracy_drop:
        reasons.append(f"accuracy drop {figures.drop:.3f} above {budget.accuracy_drop:g}")
    if figures.speedup is not None and figures.speedup < budget.min_speedup:
        reasons.append(
            f"slower than float: {figures.speedup:.2f}x"
            if figures.speedup < 1
            else f"speed-up {figures.speedup:.2f}x below {budget.min_speedup:g}x"
        )
    return Verdict(
        reasons=tuple(reasons),
        unproven=() if reasons else tuple(_unproven(figures, budget)),
        warnings=tuple(_warnings(figures, budget)),
    )


def conclude(
    *, floats: Mapping[str, Verdict], others: Mapping[str, Verdict], asked: bool = False
) -> Gate:
    """The outcome of a build for one profile.

    - `passed`: an artefact is proven, or nothing but float was asked for or could be tried, or all
      else was refused and float ships.
    - `not_enough_data`: others would be proven, had there been the data; float ships before them
      where an engine computes in float.
    - `refused`: float breaks a limit, or no engine computes in it, and nothing else may ship.

    Args:
        floats: verdict on the float artefact of each engine that computes in float, by name.
        others: verdicts on everything else that was made or tried, by name, best first. What
            could not be made at all counts with the reason for that.
        asked: something other than float was asked for.
    """
    no_float = all(verdict.refused for verdict in floats.values())
    refusals = [f"{name}: {text}" for name, v in floats.items() for text in v.reasons]
    if any(verdict.proven for verdict in others.values()):
        left_out = [f"left out: {refusal}" for refusal in refusals] if no_float else []
        return Gate(outcome="passed", reasons=_first(left_out))
    unproven = {name: verdict for name, verdict in others.items() if not verdict.refused}
    missing = [f"{name}: {text}" for name, v in unproven.items() for text in v.unproven]
    if not floats and not unproven:
        whys = [f"{name}: {text}" for name, v in others.items() for text in v.reasons]
        return Gate(outcome="refused", reasons=_first(whys))
    if floats and no_float:
        return Gate(outcome="refused", reasons=(*_first(refusals), *_first(missing)))
    if unproven:
        return Gate(outcome="not_enough_data", reasons=_first(missing))
    idle = "no pass finds anything to do on this model" if asked else "nothing else was asked for"
    why = "every other scheme was rejected" if others else idle
    return Gate(outcome="passed", reasons=(f"float only: {why}",))


def _limits(figures: Figures, budget: Budget) -> list[str]:
    reasons = []
    size_mb = figures.size_bytes / 1e6
    if budget.max_size_mb is not None and size_mb > budget.max_size_mb:
        reasons.append(f"{_shown(size_mb)} MB, at most {budget.max_size_mb:g} MB")
    for limit, value, unit in (
        (budget.max_latency_ms, figures.latency_ms, "ms"),
        (budget.max_memory_mb, figures.memory_mb, "MB of memory"),
    ):
        if limit is not None and value is not None and value > limit:
            reasons.append(f"{_shown(value)} {unit}, at most {limit:g} {unit}")
    return reasons


def _shown(value: float) -> str:
    """A figure with one decimal, or with two digits that say something where it is small."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _unproven(figures: Figures, budget: Budget) -> list[str]:
    """Why an artefact within the budget is not shown to be; empty where it is."""
    n = figures.samples
    if n == 0 or (figures.agreement is None and figures.drop is None):
        return ["accuracy is unknown without evaluation samples that the metric can use"]
    missing = []
    if figures.agreement is not None:
        limit = budget.min_agreement
        low = figures.agreement_low
        if low is None or low < limit:
            what = f"agreement {figures.agreement:.3f} on {n} samples cannot show {limit:g}"
            gap = None if low is None else figures.agreement - low
            missing.append(_wanted(what, n, gap, room=figures.agreement - limit))
    if figures.drop is not None:
        limit = budget.accuracy_drop
        high = figures.drop_high
        if high is None or high > limit:
            drop = round(figures.drop, 3) + 0.0  # never -0.000
            what = f"accuracy drop {drop:.3f} on {n} samples cannot show at most {limit:g}"
            gap = None if high is None else high - figures.drop
            missing.append(_wanted(what, n, gap, room=limit - figures.drop))
    if n < MIN_EVALUATION and not missing:
        missing.append(f"{n} evaluation samples are too few: at least {MIN_EVALUATION} are needed")
    return missing


def _wanted(what: str, samples: int, gap: float | None, *, room: float) -> str:
    """`what` with the number of samples that would show it."""
    text = f"{what} with 95 % confidence"
    if gap is None:
        return f"{text}: all belong to one group, and none says how much groups differ"
    needed = samples_needed(samples, gap=gap, room=room)
    if needed is None:
        return f"{text}: it lies at the limit, where no number of samples would"
    return f"{text}: about {max(needed, MIN_EVALUATION)} evaluation samples would"


def _warnings(figures: Figures, budget: Budget) -> list[str]:
    fallen = [
        (change.drop, change.label, change.samples, change.drop_ci95)
        for change in figures.classes
        if change.drop_ci95 is not None and change.drop_ci95[0] > budget.accuracy_drop
    ]
    fallen.sort(key=lambda fall: (-fall[0], fall[1]))
    warnings = [
        f"class {label} drops by {drop:.3f} on {samples} samples, 95 % interval {ends[0]:.3f} to"
        f" {ends[1]:.3f}"
        for drop, label, samples, ends in fallen[:_LISTED]
    ]
    if len(fallen) > _LISTED:
        warnings.append(f"{len(fallen) - _LISTED} more classes drop by more than the budget")
    return warnings


def _first(texts: Sequence[str]) -> tuple[str, ...]:
    """The first of these, and how many more there are."""
    more = len(texts) - _LISTED
    return (*texts[:_LISTED], *((f"and {more} more",) if more > 0 else ()))
