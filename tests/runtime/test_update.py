"""The life of an update: its table and its rules."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.messages import UpdateState, Wanted
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.update import MEANING, STEPS, Installed, Reason, Record, State, Update

DIGESTS = [f"sha256:{digit * 64}" for digit in "0123"]


def wanted(digest: str = DIGESTS[1], *, version: str = "1.1.0") -> Wanted:
    return Wanted(version=version, digest=digest, url="x", sha256="0" * 64, size_bytes=1)


def serving(digest: str = DIGESTS[0], **more: Any) -> Record:
    return Record(slots={"a": Installed(version="1.0.0", digest=digest)}, active="a", **more)


def path_to(state: State) -> Record:
    """A record in this state, reached by allowed moves, with version 1.0.0 in slot a."""
    begun = update.begin(serving(), serial=1, wanted=wanted())
    assert begun is not None
    made = {State.IDLE: serving(), State.FETCHING: begun}
    made[State.VERIFYING] = update.move(begun, State.VERIFYING)
    made[State.STAGED] = update.staged(made[State.VERIFYING])
    made[State.PROBING] = update.move(made[State.STAGED], State.PROBING)
    made[State.CANARY] = update.move(made[State.PROBING], State.CANARY)
    made[State.ACTIVE] = update.activated(made[State.PROBING])
    made[State.CONFIRMED] = update.move(made[State.ACTIVE], State.CONFIRMED)
    made[State.ROLLED_BACK] = update.rolled_back(made[State.ACTIVE], Reason.ASKED, "so")
    made[State.FAILED] = update.failed(made[State.PROBING], Reason.GOLDEN_MISMATCH, "so")
    return made[state]


def test_every_state_and_reason_is_in_its_table_and_known_to_the_fleet() -> None:
    assert set(STEPS) == set(State)
    assert set(MEANING) == set(Reason)
    assert {state.value for state in State} == set(get_args(UpdateState))
    limits = set(UpdateSection.__struct_fields__)
    assert all(step.limit is None or step.limit in limits for step in STEPS.values())


@given(st.sampled_from(State), st.sampled_from(State))
def test_a_move_that_the_table_does_not_allow_is_refused(before: State, after: State) -> None:
    record = path_to(before)
    if before is not State.IDLE and after in STEPS[before].then:
        assert update.move(record, after).state is after
    else:
        with pytest.raises(ValueError, match=r"cannot go|no update"):
            update.move(record, after)


@pytest.mark.parametrize("state", State)
def test_a_record_survives_its_file(state: State) -> None:
    record = path_to(state)

    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


@given(st.dictionaries(st.text(max_size=5), st.floats() | st.integers(-5, 5), max_size=4))
def test_whatever_a_canary_measures_can_be_read_back(figures: dict[str, float]) -> None:
    for record in (
        update.measured(path_to(State.CANARY), figures),
        update.judged_worse(
            path_to(State.CANARY), Reason.CANARY_LATENCY, "slower", figures=figures
        ),
    ):
        assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


@given(st.sampled_from(State), st.integers(0, 4))
def test_what_an_older_serial_asked_for_is_never_taken_for_news(state: State, serial: int) -> None:
    record = path_to(state)
    if record.update is None:
        return
    again = update.begin(record, serial=min(serial, 1), wanted=record.update.wanted)

    assert again is None


@pytest.mark.parametrize("state", [State.FETCHING, State.VERIFYING, State.STAGED, State.CANARY])
def test_going_back_to_what_is_wanted_ends_the_way_there(state: State) -> None:
    """The free slot holds it from before: an update to it is under way, or it is tried."""
    before = Installed(version="1.1.0", digest=DIGESTS[1])
    record = path_to(state)
    record = msgspec.structs.replace(record, slots={**record.slots, "b": before}, previous="b")
    back = update.rolled_back(record, Reason.ASKED, "so")

    assert (back.active, back.previous, back.state) == ("b", None, State.CONFIRMED)


@pytest.mark.parametrize("state", State)
def test_start_up_always_names_a_slot_that_holds_something(state: State) -> None:
    record = path_to(state)
    for _ in range(10):
        record = update.at_start(record)
        assert record.serving is not None
    expected = dict.fromkeys((State.VERIFYING, State.PROBING, State.CANARY), State.FAILED)
    expected[State.ACTIVE] = State.ROLLED_BACK
    assert record.state is expected.get(state, state)


def test_starts_during_a_probe_and_its_canary_count_together() -> None:
    record = path_to(State.PROBING)
    for _ in range(update.MAX_ATTEMPTS - 1):
        record = update.at_start(update.move(record, State.CANARY))
        assert record.state is State.PROBING
    record = update.at_start(update.move(record, State.CANARY))

    assert record.update is not None
    assert (record.state, record.update.reason) == (State.FAILED, Reason.CANARY_CRASHED)


@pytest.mark.parametrize("state", sorted(update.REPLACEABLE, key=str))
def test_a_cancelled_update_leaves_what_serves_and_gives_its_slot_up(state: State) -> None:
    record = update.cancelled(path_to(state), "so")

    assert record is not None
    assert record.update is not None
    assert (record.state, record.update.reason) == (State.FAILED, Reason.CANCELLED)
    assert list(record.slots) == [record.active] == ["a"]


def test_what_serves_cannot_be_cancelled() -> None:
    assert update.cancelled(path_to(State.ACTIVE), "so") is None
    assert update.cancelled(path_to(State.CONFIRMED), "so") is None


def test_a_lost_canary_keeps_its_figures_and_gives_its_slot_up() -> None:
    record = update.judged_worse(
        path_to(State.CANARY), Reason.CANARY_LATENCY, "so", figures={"latency_ratio": 2.0}
    )

    assert record.update is not None
    assert record.update.figures == {"latency_ratio": 2.0}
    assert record.state is State.ROLLED_BACK
    assert list(record.slots) == [record.active] == ["a"]


def test_a_version_that_never_gets_confirmed_is_given_up_after_three_starts() -> None:
    record = path_to(State.ACTIVE)
    versions = []
    for _ in range(update.MAX_ATTEMPTS):
        record = update.at_start(record)
        assert record.serving is not None
        versions.append(record.serving.version)

    assert versions == ["1.1.0", "1.1.0", "1.0.0"]
    assert record.update is not None
    assert record.update.reason is Reason.CRASH_LOOP


@pytest.mark.parametrize("state", [State.FAILED, State.ROLLED_BACK])
def test_what_failed_is_not_tried_again_until_another_serial(state: State) -> None:
    record = path_to(state)

    assert update.begin(record, serial=1, wanted=wanted()) is None
    again = update.begin(record, serial=2, wanted=wanted())
    assert again is not None
    assert again.state is State.FETCHING


def test_what_serves_already_is_confirmed_at_once() -> None:
    begun = update.begin(path_to(State.FAILED), serial=2, wanted=wanted(DIGESTS[0]))

    assert begun is not None
    assert begun.state is State.CONFIRMED
    # A newer wish for the same is taken note of, and nothing else.
    noted = update.begin(begun, serial=3, wanted=wanted(DIGESTS[0]))
    assert noted is not None
    assert noted.update is not None
    assert (noted.state, noted.update.serial) == (State.CONFIRMED, 3)
    assert update.begin(noted, serial=3, wanted=wanted(DIGESTS[0])) is None


@pytest.mark.parametrize("state", State)
def test_a_settled_record_serves_nothing_that_was_on_trial(state: State) -> None:
    record = path_to(state)
    kept = update.settled(record)

    assert kept.serving is not None
    assert kept.slots == record.slots
    assert update.settled(kept) == kept
    if state in update.UNDER_WAY:
        assert (kept.serving.version, kept.update) == ("1.0.0", None)
    else:
        assert kept == record


@pytest.mark.parametrize("state", sorted(update.REPLACEABLE, key=str))
def test_a_newer_wish_takes_the_place_of_one_under_way(state: State) -> None:
    begun = update.begin(path_to(state), serial=2, wanted=wanted(DIGESTS[2]))

    assert begun is not None
    assert begun.state is State.FETCHING
    assert begun.active == "a"


def test_an_activated_version_is_judged_before_the_next_one_begins() -> None:
    assert update.begin(path_to(State.ACTIVE), serial=2, wanted=wanted(DIGESTS[2])) is None


def test_the_slot_that_serves_is_never_emptied() -> None:
    with pytest.raises(ValueError, match="serves"):
        update.cleared(serving(), "a")


def test_a_damaged_slot_is_fetched_again_once() -> None:
    record = path_to(State.CONFIRMED)
    record = update.rolled_back(record, Reason.SLOT_DAMAGED, "so")

    again = update.begin(record, serial=1, wanted=wanted())

    assert again is not None
    assert again.state is State.FETCHING
    given_up = update.failed(again, Reason.SLOT_DAMAGED, "so")
    assert update.begin(given_up, serial=1, wanted=wanted()) is None


def test_going_back_leaves_an_update_to_something_else_alone() -> None:
    record = Record(
        slots={
            "a": Installed(version="1.0.0", digest=DIGESTS[0]),
            "b": Installed(version="1.1.0", digest=DIGESTS[1]),
        },
        active="b",
        previous="a",
        update=Update(serial=3, wanted=wanted(DIGESTS[2]), state=State.FETCHING),
    )

    back = update.rolled_back(record, Reason.ASKED, "so")

    assert back.active == "a"
    assert back.state is State.FETCHING


@given(failures=st.integers(0, 20), allowed=st.integers(0, 20), served_s=st.floats(0, 100))
def test_failures_of_the_engine_weigh_more_than_time(
    failures: int, allowed: int, served_s: float
) -> None:
    verdict = update.judge(
        engine_failures=failures,
        served_s=served_s,
        allowed_failures=allowed,
        confirm_after_s=30,
    )

    if failures > allowed:
        assert verdict is State.ROLLED_BACK
    else:
        assert verdict is (State.CONFIRMED if served_s >= 30 else None)
