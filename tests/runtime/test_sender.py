"""The sender: everything in the outbox arrives, in order, whatever the link does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import batches
from edgekit.messages import Event, Telemetry
from edgekit_runtime.outbox import Kind, Outbox, Pending
from edgekit_runtime.sender import ALONE_AFTER, IDLE_S, Sender, frames, without_gap
from tests.clock import ManualClock
from tests.runtime.outboxes import BOOT, OTHER, event, make, telemetry


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = make(tmp_path / "outbox.db")
    yield made
    made.close()


class Line:
    """The other end of a link: what was sent, and a coordinator that acknowledges without gaps."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[tuple[str, int]] = []
        self.stored: set[tuple[str, int]] = set()
        self.reached: dict[str, int] = {}
        self.payloads: list[bytes] = []
        self.reads_batches = True

    def publish(self, kind: Kind, payload: bytes) -> bool:
        if self.up:
            self.payloads.append(payload)
            if self.reads_batches or payload[0] != batches.MAGIC:
                for text in batches.unpack(payload, topic=kind):
                    self._take(kind, text)
        return self.up

    def _take(self, kind: Kind, text: bytes) -> None:
        message = msgspec.json.decode(text, type=Event if kind == "event" else Telemetry)
        self.sent.append((message.boot, message.seq))
        self.stored.add((message.boot, message.seq))
        reached = max(self.reached.get(message.boot, 0), message.floor - 1)
        while (message.boot, reached + 1) in self.stored:
            reached += 1
        self.reached[message.boot] = reached

    def acknowledge(self, sender: Sender) -> None:
        for boot, seq in self.reached.items():
            sender.acknowledged(boot, seq)


def test_no_more_than_a_window_is_on_its_way(outbox: Outbox) -> None:
    line = Line()
    sender = Sender(outbox, line.publish, clock=ManualClock(), rng=Random(1), window=4)
    for _ in range(10):
        outbox.append("event", event)

    sender.step()
    sender.step()
    assert [seq for _, seq in line.sent] == [1, 2, 3, 4]
    sender.acknowledged(BOOT, 2)
    sender.step()
    assert [seq for _, seq in line.sent] == [1, 2, 3, 4, 5, 6]


def test_what_is_not_acknowledged_is_sent_again_and_more_rarely_each_time(outbox: Outbox) -> None:
    line, clock = Line(), ManualClock()
    sender = Sender(outbox, line.publish, clock=clock, rng=Random(1), ack_timeout_s=10)
    outbox.append("event", event)
    waits = []
    for _ in range(4):
        waits.append(sender.step())
        clock.advance(waits[-1])

    assert len(line.sent) == 4
    assert all(later > 1.2 * sooner for sooner, later in pairwise(waits))
    sender.acknowledged(BOOT, 1)
    assert sender.step() == IDLE_S


def test_a_new_connection_begins_with_the_oldest(outbox: Outbox) -> None:
    line = Line()
    sender = Sender(outbox, line.publish, clock=ManualClock(), rng=Random(1))
    outbox.append("event", event)
    outbox.append("event", event)
    sender.step()

    sender.connected()
    sender.step()

    assert [seq for _, seq in line.sent] == [1, 2, 1, 2]


def test_telemetry_waits_for_company_and_travels_together(outbox: Outbox) -> None:
    line, clock = Line(), ManualClock()
    sender = Sender(outbox, line.publish, clock=clock, rng=Random(1))
    sender.step()
    sender.linger_s = 270
    for _ in range(5):
        outbox.append("telemetry", telemetry)
        assert sender.step() <= 270
        assert line.payloads == []
        clock.advance(60)
    sender.step()

    assert [seq for _, seq in line.sent] == [1, 2, 3, 4, 5]
    assert len(line.payloads) == 1
    assert len(line.payloads[0]) < 300


def test_an_event_waits_for_nobody_and_can_be_read_by_whoever_watches(outbox: Outbox) -> None:
    line, clock = Line(), ManualClock()
    sender = Sender(outbox, line.publish, clock=clock, rng=Random(1))
    sender.step()
    sender.linger_s = 270
    outbox.append("telemetry", telemetry)
    sender.step()
    outbox.append("event", event)
    sender.step()

    assert [seq for _, seq in line.sent] == [1, 2]
    assert msgspec.json.decode(line.payloads[1])["kind"] == "tested"


def test_a_coordinator_that_reads_no_batches_gets_messages_alone(outbox: Outbox) -> None:
    line, clock = Line(), ManualClock()
    line.reads_batches = False
    sender = Sender(outbox, line.publish, clock=clock, rng=Random(1))
    for _ in range(5):
        outbox.append("telemetry", telemetry)
    for _ in range(ALONE_AFTER):
        clock.advance(sender.step())
        assert line.sent == []
    sender.step()
    line.acknowledge(sender)

    assert outbox.count() == 0


messages = st.lists(
    st.tuples(st.sampled_from(["event", "telemetry"]), st.integers(1, 60_000)), max_size=40
)


@given(messages, st.booleans())
def test_payloads_carry_every_message_once_and_in_order(
    drawn: list[tuple[Kind, int]], alone: bool
) -> None:
    pending = [
        Pending(position, BOOT, position, kind, b"%06d" % position + b"x" * size)
        for position, (kind, size) in enumerate(drawn, start=1)
    ]

    made = list(frames(pending, alone=alone))

    assert [message for _, sent in made for message in sent] == pending
    for frame, sent in made:
        assert batches.unpack(frame, topic="t") == [message.payload for message in sent]
        assert len({message.kind for message in sent}) == 1
        assert len(sent) == 1 or not alone


@given(st.lists(st.tuples(st.sampled_from([BOOT, OTHER]), st.integers(1, 6)), max_size=12))
def test_a_message_behind_a_gap_waits(found: list[tuple[str, int]]) -> None:
    pending = [
        Pending(position, boot, seq, "event", b"")
        for position, (boot, seq) in enumerate(found, start=1)
    ]

    sent = without_gap(pending, last={})

    assert list(sent) == pending[: len(sent)]
    for boot in (BOOT, OTHER):
        seqs = [message.seq for message in sent if message.boot == boot]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True


STEPS = st.sampled_from(["event", "telemetry", "step", "ack", "down", "up", "later", "restart"])


@settings(max_examples=30)
@given(steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_to_the_link_every_message_arrives_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("outbox") / "outbox.db"
    line, clock, boot = Line(), ManualClock(), 1
    outbox = make(path, boot=f"{boot:016x}", max_rows=10, clock=clock)
    sender = Sender(outbox, line.publish, clock=clock, rng=Random(1), window=3)
    appended: set[tuple[str, int]] = set()
    dropped = 0
    for step in [*steps, "up", *["step", "ack", "later"] * 40]:
        name = f"{boot:016x}"
        if step == "event":
            seq = outbox._seq + 1
            if outbox.append("event", lambda seq, name=name: event(seq, boot=name)):  # type: ignore[misc]
                appended.add((name, seq))
        elif step == "telemetry":
            seq = outbox._seq + 1
            make_it = lambda seq, name=name: msgspec.structs.replace(telemetry(seq), boot=name)  # noqa: E731
            if outbox.append("telemetry", make_it):
                appended.add((name, seq))
        elif step == "step":
            sender.step()
        elif step == "ack":
            line.acknowledge(sender)
        elif step == "later":
            clock.advance(400)
        elif step == "restart":
            dropped += outbox.dropped
            outbox.close()
            boot += 1
            outbox = make(path, boot=f"{boot:016x}", max_rows=10, clock=clock)
            sender = Sender(outbox, line.publish, clock=clock, rng=Random(1), window=3)
        else:
            line.up = step == "up"
            if line.up:
                sender.connected()
    dropped += outbox.dropped

    assert outbox.count() == 0
    assert len(appended - line.stored) <= dropped
    outbox.close()
