"""Settings: how sure a board must be before a new version takes the place of the one that serves.

Each measure has two limits. At `good` and better a version must not be rolled back, at `bad` and
worse it must not be promoted; each of the two errors has its rate. Between them either is right.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgekit.structs import Strict

Rate = Annotated[float, msgspec.Meta(ge=1e-6, le=0.5)]
Inside = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Drop = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1000)]
OnTimeout = Literal["roll_back", "supervise"]


class CanarySection(Strict, frozen=True, kw_only=True):
    """`[canary]`: a new version answers live inputs beside the old one before it serves.

    Attributes:
        enabled: whether there is a canary at all; without one a version that was probed serves at
            once, under supervision.
        false_promotion: largest chance that a version is promoted that is bad in some measure.
        false_rollback: largest chance that a version is rolled back that is good in all measures.
        agreement_good: share of samples with the old version's answer.
        agreement_bad: the same.
        confidence_drop_good: by how much the mean probability of the first class falls.
        confidence_drop_bad: the same.
        latency_ratio_good: median time within the engine, in units of the old version's.
        latency_ratio_bad: the same.
        error_rate_good: share of samples that the new engine fails on, and the old one does not.
        error_rate_bad: the same.
        tolerance: for models that give no scores of classes, an output agrees whose root mean
            square difference is at most this share of the old output's root mean square.
        min_s: no verdict before that, but where the new engine crashes: what follows each other
            within a scene says little of the next one, and a scene takes time.
        min_samples: no verdict before that many, with the same exception.
        spacing_s: least time between two samples; what is nearer is too much alike to count.
        cpu_share: of one core, that the canary may take.
        queue_bytes: most bytes of inputs that wait to be compared; what comes then is not.
        limit_s: after that the canary ends without a verdict.
        idle_s: without any live input for that long at its start it ends, and the version goes on
            under supervision; a board that nobody asks would else wait for ever.
        on_timeout: what follows from `limit_s`: back to the old version, or on under supervision.
    """

    enabled: bool = True
    false_promotion: Rate = 0.05
    false_rollback: Rate = 0.01
    agreement_good: Inside = 0.9
    agreement_bad: Inside = 0.8
    confidence_drop_good: Drop = 0.05
    confidence_drop_bad: Drop = 0.15
    latency_ratio_good: Ratio = 1.2
    latency_ratio_bad: Ratio = 1.5
    error_rate_good: Inside = 0.005
    error_rate_bad: Inside = 0.1
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.1
    min_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 120.0
    min_samples: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 32
    spacing_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.5
    cpu_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
    queue_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)] = 8 << 20
    limit_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 14_400.0
    idle_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 60.0
    on_timeout: OnTimeout = "roll_back"

    def __post_init__(self) -> None:
        if not self.agreement_bad < self.agreement_good:
            raise ValueError("agreement_bad must be below agreement_good")
        for measure in ("confidence_drop", "latency_ratio", "error_rate"):
            if not getattr(self, f"{measure}_good") < getattr(self, f"{measure}_bad"):
                raise ValueError(f"{measure}_good must be below {measure}_bad")
        if not self.min_s < self.limit_s:
            raise ValueError("min_s must be below limit_s")
