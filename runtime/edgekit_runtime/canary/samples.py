"""Samples: what was seen of both versions on the same inputs, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.update.reasons import Reason

NOTHING = math.nan


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


class Measure(NamedTuple):
    """One of the things that are compared, as a mean of numbers from 0 to 1: more is better.

    Attributes:
        name: in figures.
        reason: why a version is rolled back that is worse in it.
        promoting: of samples, numbers whose mean is at most `bad` where the version is bad.
        bad: see `promoting`.
        resisting: of samples, numbers whose mean is at least `good` where it is good.
        good: see `resisting`.
    """

    name: str
    reason: Reason
    promoting: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    bad: float
    resisting: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    good: float


class Samples:
    """All samples of a canary, in the order in which they were seen."""

    def __init__(self) -> None:
        self._rows: list[Sample] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sample: Sample) -> None:
        self._rows.append(sample)

    def column(self, name: str) -> NDArray[np.float64]:
        """A field of all samples, [n]."""
        at = Sample._fields.index(name)
        return np.array([row[at] for row in self._rows], np.float64)


def measures(settings: CanarySection) -> dict[str, Measure]:
    """What is compared, by the field of a sample that it looks at.

    Latency is held by its median, which a few disturbed runs do not move: where the median ratio is
    at least r, at most half of all ratios are below r.
    """
    slow, fast = settings.latency_ratio_bad, settings.latency_ratio_good
    return {
        "failed": Measure(
            "errors",
            Reason.CANARY_ERRORS,
            lambda failed: 1 - failed,
            1 - settings.error_rate_bad,
            lambda failed: 1 - failed,
            1 - settings.error_rate_good,
        ),
        "agreement": Measure(
            "agreement",
            Reason.CANARY_AGREEMENT,
            lambda agreement: agreement,
            settings.agreement_bad,
            lambda agreement: agreement,
            settings.agreement_good,
        ),
        "drop": Measure(
            "confidence",
            Reason.CANARY_CONFIDENCE,
            lambda drop: (1 - drop) / 2,
            (1 - settings.confidence_drop_bad) / 2,
            lambda drop: (1 - drop) / 2,
            (1 - settings.confidence_drop_good) / 2,
        ),
        "ratio": Measure(
            "latency",
            Reason.CANARY_LATENCY,
            lambda ratio: _where(ratio, ratio < slow),
            0.5,
            lambda ratio: _where(ratio, ratio <= fast),
            0.5,
        ),
    }


def _where(values: NDArray[np.float64], holds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 and 0, and NaN where there was no value."""
    return np.where(np.isnan(values), np.nan, holds.astype(np.float64))
