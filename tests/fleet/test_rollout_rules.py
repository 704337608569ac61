"""The rules of rollouts, over thousands of fleets that behave as they like."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import FleetError, UsageError
from edgekit.fleet import rollout
from edgekit.fleet.rollout import Done, Halt, Outcome, Plan, Step, Verdict, Wait, Wave
from edgekit.messages import ModelState

GOOD, BAD = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ANSWERS: list[Outcome] = ["moved", "failed", "late"]
fleets = st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=40)
wave_lists = st.lists(
    st.integers(1, 100).map(lambda share: f"{share}%"), min_size=1, max_size=4
).map(lambda waves: sorted(waves, key=lambda wave: int(wave[:-1])))


def plan(devices: int, waves: Sequence[str], *, max_failures: int = 0) -> Plan:
    return Plan(
        model="m",
        version="1.0.0",
        waves=tuple(waves),
        ends=rollout.ends_of(waves, devices=devices),
        max_failures=max_failures,
    )


def play(given_plan: Plan, answers: Sequence[Outcome]) -> tuple[Step, list[Outcome]]:
    """Let every asked device answer as given, until the rollout stops or waits for ever."""
    outcomes: list[Outcome] = ["waiting"] * len(answers)
    for _ in range(len(answers) + 2):
        step = rollout.next_step(given_plan, outcomes)
        if not isinstance(step, Wave):
            return step, outcomes
        assert outcomes[step.first : step.end] == ["waiting"] * (step.end - step.first)
        outcomes[step.first : step.end] = ["moving"] * (step.end - step.first)
        assert isinstance(rollout.next_step(given_plan, outcomes), Wait)
        outcomes[step.first : step.end] = list(answers[step.first : step.end])
    raise AssertionError("the rollout asks for ever")


@given(fleets, wave_lists, st.integers(0, 5))
def test_a_rollout_ends_and_never_moves_on_with_too_many_failures(
    answers: list[Outcome], waves: list[str], max_failures: int
) -> None:
    step, outcomes = play(plan(len(answers), waves, max_failures=max_failures), answers)

    failed = outcomes.count("failed")
    assert isinstance(step, (Done, Halt, Wait))
    if failed > max_failures:
        assert isinstance(step, Halt)
    if isinstance(step, Done):
        assert outcomes.count("moved") > 0
        assert failed <= max_failures


@given(fleets, wave_lists, st.data())
def test_no_wave_grows_and_none_is_skipped_when_devices_are_revoked(
    answers: list[Outcome], waves: list[str], data: st.DataObject
) -> None:
    """Who is revoked before it answered leaves; each wave still rests on one that moved."""
    given_plan = plan(len(answers), waves, max_failures=len(answers))
    sizes = [end - first for first, end in pairwise((0, *given_plan.ends))]
    outcomes: list[Outcome] = ["waiting"] * len(answers)
    for _ in range(2 * len(answers) + 2):
        step = rollout.next_step(given_plan, outcomes)
        if not isinstance(step, Wave):
            break
        assert 0 < step.end - step.first <= sizes[step.number - 1]
        assert step.number == 1 or "moved" in outcomes[: step.first]
        assert step.number == rollout.wave_of(given_plan, step.first)
        outcomes[step.first : step.end] = answers[step.first : step.end]
        left = data.draw(st.lists(st.booleans(), min_size=len(outcomes), max_size=len(outcomes)))
        outcomes = [
            outcome
            for outcome, leaves in zip(outcomes, left, strict=True)
            if not (leaves and rollout.leaves(outcome))
        ]
    else:
        raise AssertionError("the rollout asks for ever")
    if isinstance(step, Done):
        assert "moved" in outcomes
    if not outcomes:
        assert isinstance(step, Halt)


def test_the_next_device_takes_the_place_of_a_canary_that_was_revoked() -> None:
    given_plan = plan(4, ("1", "100%"))

    assert rollout.next_step(given_plan, ["waiting"] * 3) == Wave(1, 0, 1)
    assert rollout.next_step(given_plan, ["moved", "moved", "moved"]) == Done()
    assert rollout.next_step(given_plan, []) == Halt("no device is left: every one was revoked")


def test_what_a_device_answered_before_it_was_revoked_stands() -> None:
    assert [outcome for outcome in ANSWERS if not rollout.leaves(outcome)] == ["moved", "failed"]
    assert rollout.leaves("waiting")
    assert rollout.leaves("moving")


def test_no_device_waits_or_moves_in_a_rollout_that_was_ended() -> None:
    for given_back in (True, False):
        left = {
            outcome: rollout.at_end(outcome, "why", given_back=given_back)
            for outcome in get_args(Outcome)
        }
        assert left["waiting"].outcome == "unasked"
        assert left["moving"].outcome == "stopped"
        assert left["moved"].outcome == "moved"
        assert ("given back" in left["moving"].reason) is given_back
        assert left["failed"] == Verdict("failed", "why")
        assert {verdict.outcome for verdict in left.values()}.isdisjoint({"waiting", "moving"})


@given(fleets, wave_lists)
def test_at_most_one_wave_sees_a_bundle_that_fails_everywhere(
    answers: list[Outcome], waves: list[str]
) -> None:
    given_plan = plan(len(answers), waves, max_failures=len(answers))

    step, outcomes = play(given_plan, ["failed"] * len(answers))

    assert isinstance(step, Halt)
    assert outcomes.count("failed") == given_plan.ends[0]


@given(st.integers(1, 5000), wave_lists)
def test_waves_grow_and_stay_within_the_fleet(devices: int, waves: list[str]) -> None:
    ends = rollout.ends_of(waves, devices=devices)

    assert list(ends) == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] <= devices
    assert ends[-1] * 100 >= int(waves[-1][:-1]) * devices


def test_the_usual_waves_are_one_half_all() -> None:
    assert rollout.ends_of(("1", "50%", "100%"), devices=9) == (1, 5, 9)
    assert rollout.ends_of(("1", "50%", "100%"), devices=1) == (1,)


@pytest.mark.parametrize("wave", ["0", "101%", "-1", "half", "1.5", "", "50 %"])
def test_what_is_not_a_wave_is_refused(wave: str) -> None:
    with pytest.raises(UsageError, match="not a wave"):
        rollout.ends_of((wave,), devices=10)


def test_waves_that_shrink_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than the wave before"):
        rollout.ends_of(("50%", "1"), devices=10)


def test_no_wave_rests_on_devices_that_were_never_reached() -> None:
    given_plan = plan(4, ("1", "100%"))

    asked_nobody_else: list[Outcome] = ["waiting"] * 3

    assert isinstance(rollout.next_step(given_plan, ["late", *asked_nobody_else]), Wait)
    assert rollout.next_step(given_plan, ["moved", *asked_nobody_else]) == Wave(2, 1, 4)
    assert rollout.next_step(given_plan, ["moved", "late", "late", "late"]) == Done()


def judge(
    state: ModelState, *, taken: bool = True, online: bool = True, waited_s: float = 1.0,
    failed_before: bool = False,
) -> str:  # fmt: skip
    return rollout.judge(
        state,
        digest=GOOD,
        taken=taken,
        online=online,
        waited_s=waited_s,
        timeout_s=60.0,
        failed_before=failed_before,
    ).outcome


def test_a_device_has_moved_when_it_serves_the_bundle_confirmed() -> None:
    assert judge(ModelState(digest=GOOD, state="confirmed")) == "moved"
    assert judge(ModelState(digest=GOOD, target_digest=GOOD, state="active")) == "moving"
    assert judge(ModelState(digest=BAD, state="confirmed")) == "moving"


def test_a_device_that_rolled_back_has_failed() -> None:
    state = ModelState(digest=BAD, target_digest=GOOD, state="rolled_back", reason="asked")

    assert judge(state) == "failed"
    assert judge(state, taken=False) == "moving"


def test_a_failure_of_long_ago_is_not_held_against_a_new_try() -> None:
    state = ModelState(digest=BAD, target_digest=GOOD, state="failed", reason="disk_full")

    assert judge(state, failed_before=True, waited_s=1.0) == "moving"
    assert judge(state, failed_before=True, waited_s=30.0) == "failed"


def test_a_device_that_compares_on_live_inputs_has_a_time_limit_of_its_own() -> None:
    trying = ModelState(digest=BAD, target_digest=GOOD, state="canary")

    assert judge(trying, waited_s=10_000) == "moving"
    assert judge(trying, waited_s=10_000, online=False) == "failed"


def test_a_timeout_says_what_the_device_did() -> None:
    def reason(state: ModelState, *, taken: bool = True, online: bool = True) -> str:
        return rollout.judge(
            state, digest=GOOD, taken=taken, online=online, waited_s=15, timeout_s=15
        ).reason

    active = ModelState(digest=GOOD, target_digest=GOOD, state="active")
    assert reason(active) == "timeout: not confirmed within 15 s (was active)"
    assert reason(active, online=False).endswith("(was active, now offline)")
    assert reason(active, taken=False).endswith("(the request was not taken)")


@given(st.lists(st.floats(0, 50_000), max_size=40), st.floats(1, 5000))
def test_after_a_canary_of_any_length_a_device_has_nearly_all_of_its_time(
    looks: list[float], timeout_s: float
) -> None:
    """Whenever the coordinator looks: the last look in the canary is where the time begins."""
    began_s = 0.0
    trying = ModelState(digest=BAD, target_digest=GOOD, state="canary")
    for now_s in sorted(looks):
        waited_s = now_s - began_s
        verdict = rollout.judge(
            trying, digest=GOOD, taken=True, online=True, waited_s=waited_s, timeout_s=timeout_s
        )
        assert verdict == Verdict("moving", in_canary=True)
        if rollout.begins_anew(waited_s=waited_s, timeout_s=timeout_s):
            began_s = now_s

    assert max(looks, default=0.0) - began_s <= timeout_s / 10


def test_silence_is_late_only_where_the_device_was_never_reached() -> None:
    nothing = ModelState()

    assert judge(nothing, taken=False, online=False, waited_s=61) == "late"
    assert judge(nothing, taken=False, online=True, waited_s=61) == "failed"
    assert judge(nothing, taken=True, online=False, waited_s=61) == "failed"


def test_a_rollout_that_has_ended_stays_ended() -> None:
    with pytest.raises(FleetError, match="is done and cannot become running"):
        rollout.check_move("done", "running", rollout=4)
