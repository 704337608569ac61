"""A canary errs no more often than it says, whatever it is shown and whenever it is looked at."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgekit_runtime.canary import blocks
from edgekit_runtime.canary.betting import evidence, interval
from edgekit_runtime.canary.rules import Finding, conclude, figures, judge
from edgekit_runtime.canary.samples import NOTHING, Sample, Samples
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.update.reasons import Reason

SETTINGS = CanarySection()
LIVES = 400
"""Sequences that a rate is counted over."""

shares = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


def seen(
    count: int,
    *,
    agreement: float = 1.0,
    drop: float = 0.0,
    ratio: float = 1.0,
    failing: float = 0.0,
    seed: int = 0,
) -> Samples:
    """What a canary sees of independent inputs."""
    rng = np.random.default_rng(seed)
    samples = Samples()
    for _ in range(count):
        signal = float(rng.random())
        if rng.random() < failing:
            samples.add(Sample(0.0, NOTHING, NOTHING, True, signal))
            continue
        noise = float(rng.lognormal(0, 0.2))
        fell = float(np.clip(drop + rng.normal(0, 0.1), -1, 1))
        samples.add(Sample(float(rng.random() < agreement), fell, ratio * noise, False, signal))
    return samples


def rate_within(hits: int, level: float, count: int = LIVES) -> bool:
    """Whether so many errors are no surprise at the rate that was promised: five sigma."""
    return hits <= level * count + 5 * math.sqrt(level * (1 - level) * count)


@pytest.mark.parametrize("mean", [0.05, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_mean_that_is_not_higher_is_hardly_ever_taken_for_one(mean: float, level: float) -> None:
    rng = np.random.default_rng(7)
    lives = (rng.random((LIVES, 300)) < mean).astype(float)

    hits = sum(
        evidence(life, mean=mean, hoped=(1 + mean) / 2) >= -math.log(level) for life in lives
    )

    assert rate_within(hits, level)


@pytest.mark.parametrize("higher", [0.85, 0.9, 0.95, 1.0])
def test_a_mean_that_is_higher_is_always_found(higher: float) -> None:
    rng = np.random.default_rng(8)
    lives = (rng.random((100, 1000)) < higher).astype(float)

    assert all(evidence(life, mean=0.75, hoped=0.9) >= -math.log(0.05) for life in lives)


@given(shares, st.floats(0.05, 0.9), st.floats(0.01, 0.09))
def test_a_higher_mean_is_never_refuted_more(
    values: NDArray[np.float64], mean: float, step: float
) -> None:
    assert evidence(values, mean=mean + step) <= evidence(values, mean=mean) + 1e-9


@given(shares, shares, st.floats(0.05, 0.95))
def test_evidence_is_never_lost(
    values: NDArray[np.float64], more: NDArray[np.float64], mean: float
) -> None:
    longer = np.concatenate([values, more])

    assert evidence(longer, mean=mean) >= evidence(values, mean=mean)


@given(shares)
def test_bounds_hold_the_mean_that_was_seen_last(values: NDArray[np.float64]) -> None:
    low, high = interval(values, level=0.05)

    assert 0 <= low <= 1
    assert 0 <= high <= 1
    # Bounds of all times together may only cross where a later part is unlike an earlier one.
    assert low <= float(values.max()) + 1e-9
    assert high >= float(values.min()) - 1e-9


def test_bounds_hold_the_true_mean_at_all_times() -> None:
    rng = np.random.default_rng(9)
    misses = 0
    for _ in range(100):
        low, high = interval((rng.random(200) < 0.9).astype(float), level=0.1)
        misses += not low <= 0.9 <= high

    assert rate_within(misses, 0.1, 100)


def test_independent_samples_count_one_by_one() -> None:
    signal = np.random.default_rng(1).random(500)

    assert blocks.long_enough(signal) == 1


def test_frames_of_a_scene_count_together() -> None:
    rng = np.random.default_rng(2)
    scenes = np.repeat(rng.random(40), 30) + rng.normal(0, 0.05, 1200)

    found = blocks.long_enough(scenes)

    assert found is not None
    assert 16 <= found <= 64


def test_few_scenes_tell_nothing_yet() -> None:
    rng = np.random.default_rng(3)
    scenes = np.repeat(rng.random(4), 30) + rng.normal(0, 0.05, 120)

    assert blocks.long_enough(scenes) is None


@given(shares, st.integers(1, 8))
def test_a_block_is_the_mean_of_what_is_known_in_it(
    values: NDArray[np.float64], length: int
) -> None:
    whole = blocks.means(values, length)

    assert len(whole) == len(values) // length
    cut = values[: len(whole) * length]
    assert whole.sum() * length == pytest.approx(cut.sum())


def test_a_block_of_which_nothing_is_known_does_not_count() -> None:
    values = np.array([1.0, np.nan, np.nan, np.nan, 0.0, 1.0])

    assert blocks.means(values, 2).tolist() == [1.0, 0.5]


def test_a_version_that_answers_alike_is_promoted() -> None:
    found = judge(seen(300), SETTINGS)

    assert found == Finding(decision="promote", block=1, progress=1.0)


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"agreement": 0.4}, Reason.CANARY_AGREEMENT),
        ({"drop": 0.4}, Reason.CANARY_CONFIDENCE),
        ({"ratio": 2.0}, Reason.CANARY_LATENCY),
        ({"failing": 0.3, "agreement": 1.0}, Reason.CANARY_ERRORS),
    ],
)
def test_a_version_that_is_worse_is_rolled_back_and_the_reason_given(
    worse: dict[str, Any], reason: Reason
) -> None:
    samples = seen(300, **worse)

    found = judge(samples, SETTINGS)
    verdict = conclude(samples, found)

    assert (verdict.decision, verdict.reason) == ("roll_back", reason)
    assert verdict.figures["samples"] == 300
    assert "300 live inputs" in verdict.detail


def test_little_evidence_decides_nothing() -> None:
    samples = seen(SETTINGS.min_samples - 1)

    assert judge(samples, SETTINGS).decision == "undecided"
    assert judge(Samples(), SETTINGS).progress == 0.0


def test_progress_grows_with_evidence() -> None:
    settings = msgspec.structs.replace(SETTINGS, agreement_bad=0.89, false_promotion=0.01)
    steps = [judge(seen(count), settings).progress for count in (32, 36, 40)]

    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] < 1


def test_a_model_without_classes_has_no_confidence_and_is_judged_by_the_rest() -> None:
    samples = Samples()
    for i in range(200):
        samples.add(Sample(1.0, NOTHING, 1.0, False, float(np.sin(i * 12.9898) * 43758.5453 % 1)))

    assert judge(samples, SETTINGS).decision == "promote"
    assert "confidence_drop" not in figures(samples, block=1)


def test_few_disturbed_runs_do_not_make_a_version_slow() -> None:
    samples = Samples()
    rng = np.random.default_rng(5)
    for _ in range(300):
        disturbed = rng.random() < 0.2
        samples.add(Sample(1.0, 0.0, 50.0 if disturbed else 1.0, False, float(rng.random())))

    assert judge(samples, SETTINGS).decision == "promote"


def test_figures_hold_what_was_seen() -> None:
    told = figures(seen(400, agreement=0.9, drop=0.1, ratio=1.3), block=1)

    assert told["samples"] == 400
    assert told["errors"] == 0
    assert told["agreement_low"] <= told["agreement"] <= told["agreement_high"]
    assert told["confidence_drop_low"] <= told["confidence_drop"] <= told["confidence_drop_high"]
    assert told["latency_ratio"] == pytest.approx(1.3, rel=0.1)


@pytest.mark.parametrize("limit", ["bad", "good"])
def test_a_version_at_a_limit_is_misjudged_no_more_often_than_promised(limit: str) -> None:
    settings = CanarySection(false_promotion=0.2, false_rollback=0.2)
    agreement = settings.agreement_bad if limit == "bad" else settings.agreement_good
    wrong = "promote" if limit == "bad" else "roll_back"

    lives = [seen(150, agreement=agreement, seed=seed) for seed in range(100)]
    misjudged = sum(judge(life, settings).decision == wrong for life in lives)

    assert rate_within(misjudged, 0.2, 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [("agreement_good", 0.7), ("latency_ratio_bad", 1.1), ("error_rate_bad", 0.004)],
)
def test_limits_that_contradict_each_other_are_refused(field: str, value: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="must be below"):
        msgspec.convert({field: value}, CanarySection)
