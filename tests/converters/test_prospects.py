"""What the search expects of the report, from figures on the selection samples."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from edgekit.recipe import Budget
from edgekit_converters.gate import Figures
from edgekit_converters.prospects import doubt, headroom, outlook, provable

BUDGET = Budget(min_agreement=0.95)

shares = st.floats(0, 1)


def figures(
    *,
    agreement: float | None = 1.0,
    low: float | None = None,
    drop: float | None = 0.0,
    high: float | None = None,
) -> Figures:
    return Figures(
        size_bytes=1000,
        samples=100,
        agreement=agreement,
        agreement_low=low,
        drop=drop,
        drop_high=high,
    )


def test_more_samples_than_were_searched_on_leave_less_doubt() -> None:
    found = figures(agreement=0.98, low=0.94, drop=0.01, high=0.03)

    few, many = (outlook(found, BUDGET, groups=40, later=later) for later in (100, 10_000))

    assert few.reasons
    assert many.reasons == ()
    assert few.headroom is not None
    assert many.headroom is not None
    assert few.headroom < 0 < many.headroom


def test_few_groups_say_little_about_others_and_count_as_they_are() -> None:
    one_group = figures(agreement=0.97, low=None, drop=0.0, high=None)
    few_groups = figures(agreement=0.97, low=0.8, drop=0.0, high=0.2)

    assert outlook(one_group, BUDGET, groups=1, later=1000).reasons == ()
    assert outlook(few_groups, BUDGET, groups=4, later=1000).reasons == ()


def test_where_nothing_could_be_proven_losses_count_as_they_are() -> None:
    found = figures(agreement=0.97, low=0.90, drop=0.0, high=0.02)

    assert outlook(found, BUDGET, groups=40, later=30).reasons == ()
    assert outlook(found, BUDGET, groups=40, later=0).reasons == ()


def test_a_generous_budget_is_not_provable_on_fewer_samples_than_the_gate_takes() -> None:
    generous = Budget(min_agreement=0.5, accuracy_drop=0.5)

    assert not provable(generous, later=19)
    assert provable(generous, later=20)


def test_without_samples_there_is_no_headroom_and_no_reason() -> None:
    unknown = figures(agreement=None, drop=None)

    assert outlook(unknown, BUDGET, groups=0, later=0) == ((), None, 0.0)


@given(agreement=shares, drop=st.floats(-1, 1), least=shares, most=shares)
def test_headroom_is_below_0_exactly_where_accuracy_is_refused(
    agreement: float, drop: float, least: float, most: float
) -> None:
    assume(abs(agreement - least) > 1e-9)
    found = figures(agreement=agreement, drop=drop)
    budget = Budget(min_agreement=least, accuracy_drop=most)

    room = headroom(found, budget, bounds=False)

    assert room is not None
    assert (room < 0) is (agreement < least or drop > most)


@given(agreement=shares, agreement_low=shares, drop=shares, drop_high=shares)
def test_a_doubt_is_what_lies_between_what_was_seen_and_its_bound(
    agreement: float, agreement_low: float, drop: float, drop_high: float
) -> None:
    assume(agreement_low <= agreement)
    assume(drop <= drop_high)
    open_ = figures(agreement=agreement, low=agreement_low, drop=drop, high=drop_high)
    sure = figures(agreement=agreement, low=agreement, drop=drop, high=drop)

    assert doubt(open_, BUDGET) >= 0
    assert doubt(sure, BUDGET) == 0
    assert outlook(open_, BUDGET, groups=40, later=1000).doubt == doubt(open_, BUDGET)


def test_without_a_bound_there_is_no_doubt_to_trade_with() -> None:
    assert doubt(figures(agreement=0.97, drop=0.01), BUDGET) == 0
    assert doubt(figures(agreement=None, drop=None), BUDGET) == 0
