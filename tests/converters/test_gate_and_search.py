"""What ships is decided by rules over figures; a busy machine cannot flip them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.recipe import Budget
from edgekit_converters import gate, search
from edgekit_converters.gate import Figures
from edgekit_converters.passes import Scheme
from edgekit_converters.search import Done, Trial

SHARES = st.floats(0, 1)
LADDER = tuple(
    Scheme(name=name, precision="int8-qdq-u8s8", options={})
    for name in ("minmax", "mse", "percentile", "mixed")
)
TRIALS = st.lists(
    st.builds(
        lambda closeness, accepted: (closeness, () if accepted else ("refused",)),
        st.none() | SHARES,
        st.booleans(),
    ),
    min_size=len(LADDER),
    max_size=len(LADDER),
)


def figures(**known: float | bool) -> Figures:
    return Figures(size_bytes=1_000_000, **known)  # type: ignore[arg-type]


# The gate.


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (figures(agreement=0.84), "agreement 0.840 below 0.85"),
        (figures(drop=0.06), "accuracy drop 0.060 above 0.05"),
        (figures(speedup=0.41), "slower than float: 0.41x"),
        (figures(finite=False), "answers that are not numbers"),
    ],
)
def test_each_broken_limit_is_named(found: Figures, reason: str) -> None:
    assert gate.judge(found, Budget()) == (reason,)


@pytest.mark.parametrize(
    ("budget", "found", "reason"),
    [
        (Budget(max_size_mb=0.5), figures(), "1.0 MB, at most 0.5 MB"),
        (Budget(max_latency_ms=5), figures(latency_ms=9.0), "9.0 ms, at most 5 ms"),
        (Budget(max_memory_mb=8), figures(memory_mb=40), "40.0 MB of memory, at most 8 MB"),
        (Budget(min_speedup=1.5), figures(speedup=1.2), "speed-up 1.20x below 1.5x"),
    ],
)
def test_limits_of_the_recipe_are_kept(budget: Budget, found: Figures, reason: str) -> None:
    (said,) = gate.judge(found, budget)

    assert said.startswith(reason)


@given(
    agreement=st.none() | SHARES,
    drop=st.none() | st.floats(-1, 1),
    speedup=st.none() | st.floats(0.1, 4),
)
def test_what_ships_keeps_every_limit_that_could_be_judged(
    agreement: float | None, drop: float | None, speedup: float | None
) -> None:
    budget = Budget()
    found = Figures(size_bytes=1, agreement=agreement, drop=drop, speedup=speedup)

    ships = not gate.judge(found, budget)

    kept = (
        (agreement is None or agreement >= budget.min_agreement)
        and (drop is None or drop <= budget.accuracy_drop)
        and (speedup is None or speedup >= 1)
    )
    assert ships == kept


def test_float_is_never_refused_for_its_accuracy_or_speed() -> None:
    assert gate.judge(figures(agreement=0.1, drop=0.9, speedup=0.2), Budget(), is_float=True) == ()


def test_when_all_else_is_rejected_float_ships() -> None:
    outcome = gate.conclude(float_reasons=(), accepted=0, tried=3, enough_data=True)

    assert outcome.outcome == "passed"
    assert "every other scheme was rejected" in outcome.reasons[0]


def test_when_float_breaks_a_limit_too_nothing_ships() -> None:
    outcome = gate.conclude(float_reasons=("9 MB",), accepted=0, tried=3, enough_data=True)

    assert (outcome.outcome, outcome.reasons) == ("refused", ("float: 9 MB",))


def test_when_only_float_breaks_a_limit_the_other_ships_alone() -> None:
    outcome = gate.conclude(float_reasons=("9 MB",), accepted=1, tried=1, enough_data=True)

    assert outcome.outcome == "passed"
    assert outcome.reasons == ("float is left out: 9 MB",)


def test_without_enough_data_nothing_is_proven() -> None:
    outcome = gate.conclude(float_reasons=(), accepted=1, tried=1, enough_data=False)

    assert outcome.outcome == "not_enough_data"


# The search.


def walk(results: list[tuple[float | None, tuple[str, ...]]]) -> tuple[list[Trial], Done]:
    left = iter(results)

    def attempt(scheme: Scheme) -> Trial:
        closeness, reasons = next(left)
        return Trial(scheme=scheme, closeness=closeness, reasons=reasons)

    return search.run(LADDER, attempt)


@given(TRIALS)
def test_a_search_ends_within_the_ladder_and_takes_what_may_ship(
    results: list[tuple[float | None, tuple[str, ...]]],
) -> None:
    history, done = walk(results)

    assert len(history) <= len(LADDER)
    accepted = [trial for trial in history if trial.accepted]
    if done.chosen is None:
        assert not accepted
        return
    chosen = history[done.chosen]
    assert chosen.accepted
    assert all((chosen.closeness or 0) >= (trial.closeness or 0) for trial in accepted)


def test_a_scheme_that_is_good_enough_ends_the_search() -> None:
    history, done = walk([(0.99, ()), (1.0, ()), (1.0, ()), (1.0, ())])

    assert (len(history), done.chosen) == (1, 0)


def test_a_good_scheme_that_is_too_slow_does_not_end_the_search() -> None:
    history, done = walk([(0.99, ("slower",)), (0.9, ()), (0.95, ()), (0.95, ())])

    assert (len(history), done.chosen) == (4, 2)


def test_a_pass_that_offers_nothing_ends_at_once() -> None:
    assert search.next_trial([], ()) == Done(chosen=None)
