"""Samples: what was seen of both versions on the same inputs, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.update.reasons import Reason

NOTHING = math.nan
_FIRST_ROWS = 64


class Sample(NamedTuple):
    """One input, answered by both.

    Attributes:
        agreement: 1 where the answers are the same, 0 where they are not; a share for answers of
            many parts.
        drop: of the probability of the first class, -1 to 1; NaN where there is none.
        ratio: time within the new engine in units of the old one's; NaN where it failed.
        failed: whether the new engine failed.
        signal: a number of the old answer, that tells alike inputs from others.
    """

    agreement: float
    drop: float
    ratio: float
    failed: bool
    signal: float


Numbers = NDArray[np.float64]


class Measure(NamedTuple):
    """One of the things that are compared, as a mean of numbers from 0 to 1: more is better.

    Attributes:
        field: of a sample, that it looks at.
        reason: why a version is rolled back that is worse in it.
        promoting: from the field, numbers whose mean is at most `bad` where the version is bad.
        bad: see `promoting`.
        resisting: from the field, numbers whose mean is at least `good` where it is good.
        good: see `resisting`.
    """

    field: str
    reason: Reason
    promoting: Callable[[Numbers], Numbers]
    bad: float
    resisting: Callable[[Numbers], Numbers]
    good: float


class Samples:
    """All samples of a canary, in the order in which they were seen; 40 bytes each.

    One thread adds; others may read what is there.
    """

    def __init__(self) -> None:
        self._rows = np.empty((_FIRST_ROWS, len(Sample._fields)))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, sample: Sample) -> None:
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = sample
        self._count += 1

    def column(self, field: str) -> Numbers:
        """A field of all samples, [n]."""
        count = self._count
        return self._rows[:count, Sample._fields.index(field)]


def measures(settings: CanarySection) -> tuple[Measure, ...]:
    """What is compared, and what of it is good and bad."""
    return (
        _mean(
            "failed",
            Reason.CANARY_ERRORS,
            lambda failed: 1 - failed,
            bad=settings.error_rate_bad,
            good=settings.error_rate_good,
        ),
        _mean(
            "agreement",
            Reason.CANARY_AGREEMENT,
            lambda agreement: agreement,
            bad=settings.agreement_bad,
            good=settings.agreement_good,
        ),
        _mean(
            "drop",
            Reason.CANARY_CONFIDENCE,
            lambda drop: (1 - drop) / 2,
            bad=settings.confidence_drop_bad,
            good=settings.confidence_drop_good,
        ),
        _median(
            "ratio",
            Reason.CANARY_LATENCY,
            bad=settings.latency_ratio_bad,
            good=settings.latency_ratio_good,
        ),
    )


def _mean(
    field: str, reason: Reason, value: Callable[[Any], Any], *, bad: float, good: float
) -> Measure:
    """A measure whose mean is held; `value` makes a number from 0 to 1 of a field or a limit."""
    return Measure(field, reason, value, value(bad), value, value(good))


def _median(field: str, reason: Reason, *, bad: float, good: float) -> Measure:
    """A measure whose median is held, which a few disturbed values do not move; less is better.

    Where the median is at least `bad`, at most half of the values are below; where it is at most
    `good`, at least half are not above.
    """
    return Measure(
        field,
        reason,
        lambda values: _where(values, values < bad),
        0.5,
        lambda values: _where(values, values <= good),
        0.5,
    )


def _where(values: Numbers, holds: NDArray[np.bool_]) -> Numbers:
    """1 and 0, and NaN where there was no value."""
    return np.where(np.isnan(values), np.nan, holds.astype(np.float64))
