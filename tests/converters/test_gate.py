"""What ships is decided by rules over figures, and what the data cannot show is never green."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.recipe import Budget
from edgekit_converters import gate
from edgekit_converters.gate import Figures, Verdict
from edgekit_converters.metrics.changes import ClassChange
from edgekit_converters.statistics import share_high

BUDGET = Budget(min_agreement=0.95)

SHARES = st.floats(0, 1)
GOOD = Verdict()
BAD = Verdict(reasons=("slower than float: 0.41x",))
UNPROVEN = Verdict(unproven=("too few",))
VERDICTS = st.dictionaries(st.text("abc", min_size=1), st.sampled_from([GOOD, BAD, UNPROVEN]))


def figures(**known: float | bool | None) -> Figures:
    """Figures that are proven, but for what is given."""
    proven = {"samples": 400, "agreement": 1.0, "agreement_low": 0.99, "drop": 0, "drop_high": 0.01}
    return Figures(size_bytes=1_000_000, **{**proven, **known})  # type: ignore[arg-type]


def change(label: int, drop: float, low: float | None) -> ClassChange:
    return ClassChange(
        label=label,
        samples=40,
        groups=40,
        float_right=0.9,
        right=0.9 - drop,
        drop_ci95=None if low is None else (low, drop + 0.1),
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (figures(agreement=0.84), "agreement 0.840 below 0.95"),
        (figures(drop=0.06), "accuracy drop 0.060 above 0.05"),
        (figures(speedup=0.41), "slower than float: 0.41x"),
        (figures(finite=False), "answers that are not numbers"),
    ],
)
def test_each_broken_limit_is_named(found: Figures, reason: str) -> None:
    assert gate.judge(found, BUDGET) == Verdict(reasons=(reason,))


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
    (said,) = gate.judge(found, budget).reasons

    assert said.startswith(reason)


@given(
    agreement=st.none() | SHARES,
    low=SHARES,
    drop=st.none() | st.floats(-1, 1),
    high=st.floats(-1, 1),
    samples=st.integers(0, 1000),
    speedup=st.none() | st.floats(0.1, 4),
)
def test_what_is_proven_keeps_every_limit_at_its_bound(
    agreement: float | None,
    low: float,
    drop: float | None,
    high: float,
    samples: int,
    speedup: float | None,
) -> None:
    budget = BUDGET
    found = Figures(
        size_bytes=1,
        samples=samples,
        agreement=agreement,
        agreement_low=None if agreement is None else min(low, agreement),
        drop=drop,
        drop_high=None if drop is None else max(high, drop),
        speedup=speedup,
    )

    verdict = gate.judge(found, budget)

    within = (
        (agreement is None or agreement >= budget.min_agreement)
        and (drop is None or drop <= budget.accuracy_drop)
        and (speedup is None or speedup >= 1)
    )
    shown = (
        samples >= 20
        and (agreement is not None or drop is not None)
        and (agreement is None or min(low, agreement) >= budget.min_agreement)
        and (drop is None or max(high, drop) <= budget.accuracy_drop)
    )
    assert verdict.refused == (not within)
    assert verdict.proven == (within and shown)
    assert not (verdict.reasons and verdict.unproven)


def test_float_is_never_refused_for_its_accuracy_or_speed_and_has_nothing_to_prove() -> None:
    slow_and_wrong = figures(samples=0, agreement=0.1, drop=0.9, speedup=0.2)

    assert gate.judge(slow_and_wrong, BUDGET, is_float=True) == GOOD


def test_40_samples_that_all_agree_say_how_many_would_show_it() -> None:
    low = 1 - share_high(40)

    (said,) = gate.judge(figures(samples=40, agreement_low=low), BUDGET).unproven

    assert said == (
        "agreement 1.000 on 40 samples cannot show 0.95 with 95 % confidence:"
        " about 59 evaluation samples would"
    )


def test_a_drop_within_the_budget_but_not_with_confidence_is_unproven() -> None:
    (said,) = gate.judge(figures(drop=0.03, drop_high=0.055), BUDGET).unproven

    assert said.startswith("accuracy drop 0.030 on 400 samples cannot show at most 0.05")
    assert "about 607 evaluation samples would" in said


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (figures(samples=0, agreement=None, drop=None), "accuracy is unknown"),
        (figures(samples=400, agreement=None, drop=None), "accuracy is unknown"),
        (figures(samples=19), "at least 20 are needed"),
        (figures(agreement_low=None), "all belong to one group"),
        (figures(agreement=0.95, agreement_low=0.93), "no number of samples would"),
    ],
)
def test_without_what_it_takes_nothing_is_proven(found: Figures, what: str) -> None:
    verdict = gate.judge(found, BUDGET)

    assert not verdict.refused
    assert not verdict.proven
    assert what in verdict.unproven[0]


def test_a_class_that_collapses_is_a_warning_and_no_refusal() -> None:
    lost = figures(classes=(change(3, 0.5, 0.3), change(4, 0.5, 0.01), change(5, 0.9, None)))  # type: ignore[arg-type]

    verdict = gate.judge(lost, BUDGET)

    assert verdict.proven
    (said,) = verdict.warnings
    assert said.startswith("class 3 drops by 0.500 on 40 samples")


@given(floats=VERDICTS.filter(bool), others=VERDICTS)
def test_only_what_is_proven_or_float_alone_passes(
    floats: dict[str, Verdict], others: dict[str, Verdict]
) -> None:
    outcome = gate.conclude(floats=floats, others=others).outcome

    proven = any(v.proven for v in others.values())
    float_ships = not all(v.refused for v in floats.values())
    waiting = any(not v.refused and not v.proven for v in others.values())
    if proven:
        assert outcome == "passed"
    elif not float_ships:
        assert outcome == "refused"
    else:
        assert outcome == ("not_enough_data" if waiting else "passed")


def test_when_all_else_is_rejected_float_ships() -> None:
    outcome = gate.conclude(floats={"float": GOOD}, others={"int8": BAD})

    assert (outcome.outcome, outcome.reasons) == (
        "passed",
        ("float only: every other scheme was rejected",),
    )


def test_when_nothing_else_is_asked_for_float_ships() -> None:
    outcome = gate.conclude(floats={"float": GOOD}, others={})

    assert outcome.reasons == ("float only: nothing else was asked for",)


def test_when_float_breaks_a_limit_too_nothing_ships() -> None:
    big = Verdict(reasons=("9 MB",))

    outcome = gate.conclude(floats={"float": big}, others={"int8": BAD})

    assert (outcome.outcome, outcome.reasons) == ("refused", ("float: 9 MB",))


def test_what_is_unproven_never_ships_alone() -> None:
    big = Verdict(reasons=("9 MB",))

    outcome = gate.conclude(floats={"float": big}, others={"int8": UNPROVEN})

    assert (outcome.outcome, outcome.reasons) == ("refused", ("float: 9 MB", "int8: too few"))


def test_when_only_float_breaks_a_limit_the_other_ships_alone() -> None:
    outcome = gate.conclude(floats={"float": Verdict(reasons=("9 MB",))}, others={"int8": GOOD})

    assert (outcome.outcome, outcome.reasons) == ("passed", ("left out: float: 9 MB",))


def test_without_enough_data_the_reasons_say_what_is_missing() -> None:
    others = {"int8": UNPROVEN, "fp16": BAD, **{f"mixed-{i}": UNPROVEN for i in range(9)}}

    outcome = gate.conclude(floats={"float": GOOD}, others=others)

    assert outcome.outcome == "not_enough_data"
    assert outcome.reasons == (
        "int8: too few",
        "mixed-0: too few",
        "mixed-1: too few",
        "and 7 more",
    )
