"""Bounds say what the data can show: no more, and not much less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit_converters import statistics
from edgekit_converters.metrics.scoring import Mean
from edgekit_converters.statistics import Extent, Resampling

SHARES = st.floats(0, 1)
GROUPED = st.lists(st.tuples(st.integers(0, 5), SHARES), min_size=2, max_size=40)

# Quantiles from scipy 1.17, `beta.ppf(level, a, b)` and `t.ppf(level, freedom)`.
BETAS = [
    (0.05, 57, 4, 0.8758128),
    (0.05, 59, 1, 0.9504924),
    (0.5, 0.5, 0.5, 0.5),
    (0.95, 3, 400, 0.0155777),
]
STUDENTS = [
    (0.95, 1, 6.3137515),
    (0.975, 2, 4.3026527),
    (0.975, 9, 2.2621572),
    (0.95, 999, 1.6463803),
]


def right(count: int, *, wrong: int = 0) -> NDArray[np.float64]:
    scores = np.ones(count)
    scores[:wrong] = 0
    return scores


def agreement_low(scores: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> float:
    resampling = Resampling(np.arange(len(scores)) if groups is None else groups)
    (draws,) = resampling.draw([Mean(scores)])
    low = statistics.low_bound(draws, resampling.extent, worst=0.0)
    assert low is not None
    return low


@pytest.mark.parametrize(("level", "a", "b", "expected"), BETAS)
def test_quantiles_of_beta_are_those_of_tables(
    level: float, a: float, b: float, expected: float
) -> None:
    assert statistics.beta_quantile(level, a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("level", "freedom", "expected"), STUDENTS)
def test_quantiles_of_student_are_those_of_tables(
    level: float, freedom: int, expected: float
) -> None:
    assert statistics.student_quantile(level, freedom) == pytest.approx(expected, rel=1e-6)


# Of shares that are sums of powers of two, 1 - x is exact.
EXACT_SHARES = st.integers(0, 1 << 20).map(lambda steps: steps / (1 << 20))


@given(x=EXACT_SHARES, y=EXACT_SHARES, a=st.floats(0.5, 300), b=st.floats(0.5, 300))
def test_the_beta_distribution_rises_from_0_to_1_and_mirrors(
    x: float, y: float, a: float, b: float
) -> None:
    low, high = sorted((x, y))

    assert (
        0 <= statistics.beta_cdf(low, a, b) <= statistics.beta_cdf(high, a, b) + 1e-12 <= 1 + 1e-9
    )
    assert statistics.beta_cdf(x, a, b) == pytest.approx(
        1 - statistics.beta_cdf(1 - x, b, a), abs=1e-9
    )


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (1, 9, 22 / 1024)]
)
def test_mcnemar_is_the_tail_of_a_fair_coin(lost: int, won: int, p: float) -> None:
    assert statistics.mcnemar(lost, won) == pytest.approx(p)


@given(lost=st.integers(0, 400), won=st.integers(0, 400))
def test_mcnemar_does_not_care_which_model_comes_first(lost: int, won: int) -> None:
    p = statistics.mcnemar(lost, won)

    assert 0 < p <= 1
    assert p == statistics.mcnemar(won, lost)


@pytest.mark.parametrize("count", [20, 59, 400])
def test_where_nothing_differs_the_bound_is_exact(count: int) -> None:
    assert agreement_low(right(count)) == pytest.approx(0.05 ** (1 / count), abs=2e-4)


@pytest.mark.parametrize(
    ("count", "wrong", "exact"),
    [(60, 1, 0.9234), (60, 5, 0.8327), (400, 4, 0.9773), (400, 17, 0.9369), (1000, 40, 0.9482)],
)
def test_where_few_samples_differ_the_bound_is_near_clopper_and_pearsons(
    count: int, wrong: int, exact: float
) -> None:
    assert agreement_low(right(count, wrong=wrong)) == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize(("count", "share"), [(60, 0.95), (100, 0.97), (400, 0.95)])
def test_a_lower_bound_lies_below_the_truth_in_19_of_20_experiments(
    count: int, share: float
) -> None:
    rng = np.random.default_rng(1)
    wrong = rng.binomial(count, 1 - share, size=500)
    bounds = {k: agreement_low(right(count, wrong=k)) for k in set(wrong.tolist())}

    covered = np.mean([bounds[k] <= share for k in wrong.tolist()])

    assert 0.93 <= covered <= 0.995


def test_a_bound_by_groups_holds_where_one_by_samples_does_not() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(12), 10)
    by_group = by_sample = 0
    for _ in range(150):
        easy = rng.beta(2, 0.5, 12)
        scores = (rng.random(120) < np.repeat(easy, 10)).astype(np.float64)
        by_group += agreement_low(scores, groups) <= 0.8
        by_sample += agreement_low(scores) <= 0.8

    assert by_group / 150 >= 0.9 > 0.85 > by_sample / 150


def test_paired_draws_know_what_both_models_find_hard() -> None:
    before, after = right(400, wrong=100), right(400, wrong=108)
    resampling = Resampling(np.arange(400))
    own, found = resampling.draw([Mean(before), Mean(after)])
    strangers = Resampling(np.arange(400)[::-1]).draw([Mean(after[::-1])])[0]

    paired = statistics.high_bound(own - found, resampling.extent, worst=1.0)
    apart = statistics.high_bound(own - strangers[::-1], resampling.extent, worst=1.0)

    assert paired is not None
    assert apart is not None
    assert 0.02 < paired < 0.05 < apart


@given(GROUPED)
def test_an_interval_stays_within_the_range_of_its_figure(
    drawn: list[tuple[int, float]],
) -> None:
    groups = np.array([group for group, _ in drawn])
    scores = np.array([score for _, score in drawn])
    resampling = Resampling(groups)
    (draws,) = resampling.draw([Mean(scores)], most=300)

    found = statistics.interval(draws, resampling.extent, low=0.0, high=1.0)

    if len(set(groups.tolist())) == 1:
        assert found is None
        return
    assert found is not None
    assert 0 <= found[0] <= found[1] <= 1


@given(GROUPED)
def test_the_same_groups_under_other_numbers_give_the_same_draws(
    drawn: list[tuple[int, float]],
) -> None:
    scores = np.array([score for _, score in drawn])
    groups = np.array([group for group, _ in drawn])
    resamplings = [Resampling(groups), Resampling(groups * 7 + 3)]

    one, other = (r.draw([Mean(scores)], most=50)[0] for r in resamplings)

    np.testing.assert_array_equal(one, other)


@settings(max_examples=25)
@given(count=st.integers(20, 200), wrong=st.integers(0, 10))
def test_one_more_wrong_answer_never_raises_the_bound(count: int, wrong: int) -> None:
    assert agreement_low(right(count, wrong=wrong + 1)) < agreement_low(right(count, wrong=wrong))


def test_samples_of_one_group_widen_the_interval() -> None:
    scores = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0], 20)

    assert agreement_low(scores, np.repeat(np.arange(5), 20)) < agreement_low(scores) - 0.1


def test_one_group_alone_bounds_nothing() -> None:
    assert statistics.high_bound(np.zeros(10), Extent(30, 1), worst=1.0) is None


def test_59_samples_show_95_percent_where_nothing_differs() -> None:
    assert statistics.share_high(59) <= 0.05 < statistics.share_high(58)
    assert statistics.samples_needed(40, gap=statistics.share_high(40), room=0.05) == 59


@given(samples=st.integers(20, 1000), gap=st.floats(0.001, 0.5), room=st.floats(0.001, 0.5))
def test_what_is_asked_for_is_enough_and_not_one_too_many(
    samples: int, gap: float, room: float
) -> None:
    needed = statistics.samples_needed(samples, gap=gap, room=room)

    if needed is not None and needed > 1:
        assert statistics.gap_later(gap, known=samples, later=needed) <= room
        assert statistics.gap_later(gap, known=samples, later=needed - 1) > room


@pytest.mark.parametrize("room", [0.0, -0.1, 1e-9])
def test_a_figure_at_its_limit_needs_more_samples_than_there_are(room: float) -> None:
    assert statistics.samples_needed(100, gap=0.05, room=room) is None
