"""The outbox: nothing acknowledged is held, what has no room goes by importance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.messages import Event
from edgekit_runtime.outbox import (
    Outbox,
)
from tests.clock import ManualClock
from tests.runtime.outboxes import BOOT, OTHER, error, event, make, numbers, telemetry


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = make(tmp_path / "outbox.db")
    yield made
    made.close()


def test_messages_come_out_in_the_order_in_which_they_went_in(outbox: Outbox) -> None:
    for _ in range(3):
        assert outbox.append("event", event)

    assert numbers(outbox) == [1, 2, 3]
    assert [message.position for message in outbox.pending(1, after=2)] == [3]


def test_an_acknowledgement_covers_everything_before_it_and_no_other_boot(tmp_path: Path) -> None:
    first = make(tmp_path / "outbox.db", boot=OTHER)
    first.append("event", lambda seq: event(seq, boot=OTHER))
    first.close()
    second = make(tmp_path / "outbox.db")
    for _ in range(3):
        second.append("event", event)

    assert second.ack(BOOT, 2) == 2

    assert [(m.boot, m.seq) for m in second.pending(10)] == [(OTHER, 1), (BOOT, 3)]
    assert second.count() == 2
    second.close()


def test_the_floor_is_the_lowest_number_that_is_still_there(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.append("event", event)
    outbox.ack(BOOT, 1)

    found = [msgspec.json.decode(m.payload, type=Event) for m in outbox.pending(10)]

    assert [(message.seq, message.floor) for message in found] == [(2, 2), (3, 2)]


def test_room_is_made_by_dropping_the_oldest_telemetry_first(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_rows=3)
    outbox.append("event", event)
    outbox.append("telemetry", telemetry)
    outbox.append("telemetry", telemetry)
    outbox.append("event", event)

    assert numbers(outbox) == [1, 3, 4]
    outbox.append("event", event)
    outbox.append("event", event)
    assert numbers(outbox) == [4, 5, 6]
    assert outbox.dropped == 3
    outbox.close()


def test_telemetry_never_makes_an_event_go(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_rows=2)
    outbox.append("event", event)
    outbox.append("event", event)

    assert not outbox.append("telemetry", telemetry)

    outbox.ack(BOOT, 1)
    assert outbox.append("telemetry", telemetry)
    assert numbers(outbox) == [2, 4]
    assert outbox.dropped == 1
    outbox.close()


def test_errors_are_the_last_to_go(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_rows=3)
    for message in (error, telemetry, event, error, event, error):
        outbox.append("telemetry" if message is telemetry else "event", message)

    assert numbers(outbox) == [1, 4, 6]
    figures = outbox.figures()
    assert figures.dropped == {"telemetry": 1, "event": 2}
    assert figures.dropped_bytes > 300
    assert figures.waiting == 3
    outbox.close()


KINDS = st.sampled_from([telemetry, event, error])


@settings(max_examples=30)
@given(kinds=st.lists(KINDS, max_size=30), max_rows=st.integers(1, 12))
def test_what_is_held_is_the_most_important_and_of_that_the_newest(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[Any], max_rows: int
) -> None:
    outbox = make(tmp_path_factory.mktemp("outbox") / "outbox.db", max_rows=max_rows)
    held: list[tuple[int, int]] = []
    for seq, message in enumerate(kinds, start=1):
        outbox.append("telemetry" if message is telemetry else "event", message)
        held = sorted([*held, ([telemetry, event, error].index(message), seq)])[-max_rows:]

    assert numbers(outbox) == sorted(seq for _, seq in held)
    assert outbox.dropped == len(kinds) - len(held)
    outbox.close()


def test_what_is_too_old_goes_however_the_wall_clock_steps(tmp_path: Path) -> None:
    clock = ManualClock()
    first = make(tmp_path / "outbox.db", max_age_s=1000, clock=clock)
    first.append("event", event)
    clock.advance(800)
    first.append("event", event)
    first.close()
    # The daemon starts again: another origin of its clock, and a wall clock a year back.
    clock = ManualClock(monotonic_s=5, now_ms=1)
    outbox = make(tmp_path / "outbox.db", boot=OTHER, max_age_s=1000, clock=clock)
    clock.advance(300)
    outbox.append("event", lambda seq: event(seq, boot=OTHER))

    assert [(m.boot, m.seq) for m in outbox.pending(10)] == [(BOOT, 2), (OTHER, 1)]
    assert outbox.figures().dropped == {"event": 1}
    outbox.close()


def test_what_is_sent_tells_how_long_it_waited_unless_its_boot_is_over(tmp_path: Path) -> None:
    clock = ManualClock(monotonic_s=100)
    outbox = make(tmp_path / "outbox.db", clock=clock)
    outbox.append("event", event)
    clock.advance(20)
    (found,) = outbox.pending(10)
    assert msgspec.json.decode(found.payload, type=Event).sent == 120_000
    outbox.close()

    again = make(tmp_path / "outbox.db", boot=OTHER, clock=clock)
    (found,) = again.pending(10)
    assert msgspec.json.decode(found.payload, type=Event).sent == 0
    again.close()


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_bytes=3000)
    for _ in range(5):
        outbox.append("event", lambda seq: event(seq, message="x" * 1000))

    assert sum(len(m.payload) for m in outbox.pending(10)) <= 3000
    assert numbers(outbox)[-1] == 5
    assert not make_too_large(outbox)
    outbox.close()


def make_too_large(outbox: Outbox) -> bool:
    facts: dict[str, str | int | float | bool | None] = {"text": "x" * 4000}
    return outbox.append("event", lambda seq: msgspec.structs.replace(event(seq), facts=facts))
