"""Rules: whether what was seen so far is enough to promote a version, or to roll it back.

Promote: every measure is shown not to be bad, each at the whole rate of false promotions. A bad
version is bad in one measure at least, so that its chance to pass is at most that measure's
(Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 1982).
Roll back: some measure is shown not to be good. Any of them may err, so that each has its share of
the rate of false rollbacks (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from edgekit.structs import Strict
from edgekit_runtime.canary import blocks
from edgekit_runtime.canary.betting import evidence, interval
from edgekit_runtime.canary.samples import Measure, Numbers, Samples, measures
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.verdict import Decision, Verdict
from edgekit_runtime.update.reasons import Reason

_LEVEL = 0.05


class Finding(Strict, frozen=True, kw_only=True):
    """What samples say so far.

    Attributes:
        decision: `undecided` for not yet.
        reason: of a rollback.
        block: samples that count as one; 0 while that cannot be told.
        progress: towards the nearer of the two decisions, 0 to 1.
    """

    decision: Decision
    reason: Reason | None = None
    block: int = 0
    progress: float = 0.0


def judge(samples: Samples, settings: CanarySection) -> Finding:
    """Decide from all samples so far."""
    length = blocks.long_enough(samples.column("signal"))
    if length is None or len(samples) < settings.min_samples:
        return Finding(decision="undecided", block=length or 0)
    told = [
        (measure, *_shown(measure, values, length))
        for measure, values in _measured(samples, settings)
    ]
    enough = -math.log(settings.false_promotion)
    too_much = -math.log(settings.false_rollback / len(told))
    worst, _, against = max(told, key=lambda one: one[2])
    least = min(promoting for _, promoting, _ in told)
    if against >= too_much:
        return Finding(decision="roll_back", reason=worst.reason, block=length, progress=1.0)
    if least >= enough:
        return Finding(decision="promote", block=length, progress=1.0)
    progress = max(against / too_much, least / enough)
    return Finding(decision="undecided", block=length, progress=progress)


def conclude(samples: Samples, found: Finding) -> Verdict:
    """The verdict with its figures, once there is a decision."""
    numbers = figures(samples, block=found.block)
    if found.decision == "promote":
        detail = f"as good as the version before on {len(samples)} live inputs"
    else:
        detail = f"{_words(found.reason, numbers)}, on {len(samples)} live inputs"
    return Verdict(decision=found.decision, reason=found.reason, figures=numbers, detail=detail)


def figures(samples: Samples, *, block: int) -> dict[str, float | int]:
    """Means with the bounds that hold them with 95 % confidence whenever they are looked at."""
    count = len(samples)
    told: dict[str, float | int] = {"samples": count, "block": block}
    if count == 0:
        return told
    failed = samples.column("failed")
    told["errors"] = int(failed.sum())
    length = max(1, block)
    for field, name, scale in (("agreement", "agreement", 1.0), ("drop", "confidence_drop", 2.0)):
        values = samples.column(field)
        if np.isnan(values).all():
            continue
        # Betting is on numbers from 0 to 1; a drop is from -1 to 1.
        found = blocks.means((values + scale - 1) / scale, length)
        low, high = (bound * scale - scale + 1 for bound in interval(found, level=_LEVEL))
        told[name] = _rounded(float(np.nanmean(values)))
        told[f"{name}_low"], told[f"{name}_high"] = _rounded(low), _rounded(high)
    ratios = samples.column("ratio")
    if not np.isnan(ratios).all():
        told["latency_ratio"] = _rounded(float(np.nanmedian(ratios)))
    return told


def _measured(samples: Samples, settings: CanarySection) -> Iterator[tuple[Measure, Numbers]]:
    """What can be compared of these versions: not all have a confidence."""
    for measure in measures(settings):
        values = samples.column(measure.field)
        if not np.isnan(values).all():
            yield measure, values


def _shown(measure: Measure, values: Numbers, length: int) -> tuple[float, float]:
    """Evidence that a version is not bad, and that it is not good."""
    promoting = blocks.means(measure.promoting(values), length)
    resisting = blocks.means(measure.resisting(values), length)
    return (
        evidence(promoting, mean=measure.bad, hoped=measure.good),
        evidence(1 - resisting, mean=1 - measure.good, hoped=1 - measure.bad),
    )


def _words(reason: Reason | None, numbers: dict[str, float | int]) -> str:
    if reason is Reason.CANARY_ERRORS:
        return f"the new version failed {numbers['errors']} times"
    if reason is Reason.CANARY_LATENCY:
        return f"the new version takes {numbers['latency_ratio']:g} times as long"
    if reason is Reason.CANARY_CONFIDENCE:
        return f"the first class is less sure by {numbers['confidence_drop']:g}"
    return f"the versions agree on {numbers['agreement']:g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
