"""The outbox and its sender: nothing acknowledged is sent again, nothing appended is lost."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.messages import Event, Resources, Telemetry
from edgekit_runtime.outbox import Kind, Outbox, Pending
from edgekit_runtime.sender import IDLE_S, Sender, without_gap
from tests.clock import ManualClock

BOOT = "0123456789abcdef"
OTHER = "fedcba9876543210"


def event(seq: int, *, boot: str = BOOT, message: str = "") -> Event:
    return Event(boot=boot, seq=seq, floor=seq, at=1, kind="tested", message=message)


def telemetry(seq: int) -> Telemetry:
    resources = Resources(cpu_s=0.0, rss_bytes=0)
    return Telemetry(boot=BOOT, seq=seq, floor=seq, at=1, period_s=1.0, resources=resources)


def numbers(outbox: Outbox) -> list[int]:
    return [message.seq for message in outbox.pending(1000)]


def make(path: Path, *, boot: str = BOOT, max_rows: int = 1000, max_bytes: int = 1 << 20) -> Outbox:
    return Outbox(path, boot=boot, max_rows=max_rows, max_bytes=max_bytes)


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


def test_telemetry_never_makes_an_event_go_and_leaves_no_gap(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_rows=2)
    outbox.append("event", event)
    outbox.append("event", event)

    assert not outbox.append("telemetry", telemetry)

    outbox.ack(BOOT, 1)
    assert outbox.append("telemetry", telemetry)
    assert numbers(outbox) == [2, 3]
    assert outbox.dropped == 1
    outbox.close()


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


def test_a_full_disk_costs_messages_and_not_the_outbox(outbox: Outbox) -> None:
    outbox.append("event", event)
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")

    stored = [outbox.append("event", lambda seq: event(seq, message="x" * 1900)) for _ in range(10)]

    assert not all(stored)
    assert outbox.dropped == stored.count(False)
    assert numbers(outbox) == list(range(1, 2 + stored.count(True)))
    outbox._db.execute("PRAGMA max_page_count = 100000")
    assert outbox.append("event", event)
    assert not outbox.take_damage()


def test_a_disk_that_takes_nothing_leaves_an_outbox_in_memory(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()

    outbox = make(tmp_path / "outbox.db")

    assert outbox.append("event", event)
    assert numbers(outbox) == [1]
    assert not Path(":memory:").exists()
    outbox.close()


@pytest.mark.parametrize("where", [0, 100, 4096])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, where: int) -> None:
    path = tmp_path / "outbox.db"
    first = make(path)
    for _ in range(100):
        first.append("event", event)
    first.close()
    raw = bytearray(path.read_bytes())
    raw[where : where + 3000] = b"\xff" * 3000
    path.write_bytes(raw)

    outbox = make(path)

    assert outbox.take_damage()
    assert not outbox.take_damage()
    assert outbox.append("event", event)
    assert numbers(outbox) == [1]
    assert path.with_suffix(".damaged").exists()
    outbox.close()


def test_damage_that_shows_while_it_runs_costs_only_what_was_inside(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = make(path)
    for _ in range(200):
        outbox.append("event", lambda seq: event(seq, message="x" * 500))
    outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    outbox._db.execute("PRAGMA cache_size = 1")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 60_000)

    outbox.pending(1000)

    assert outbox.take_damage()
    assert outbox.append("event", event)
    assert numbers(outbox) == [201]
    outbox.close()


def test_a_row_that_is_no_message_counts_as_damage(outbox: Outbox) -> None:
    outbox.append("event", event)
    outbox._db.execute("UPDATE messages SET payload = x'ff00'")
    outbox._db.commit()

    assert outbox.pending(10) == []

    assert outbox.take_damage()
    outbox.append("event", event)
    assert numbers(outbox) == [2]


KILLED = """
import sys
from pathlib import Path
from edgekit.messages import Event
from edgekit_runtime.outbox import Outbox
boot, path = sys.argv[1], Path(sys.argv[2])
outbox = Outbox(path, boot=boot, max_rows=100000, max_bytes=1 << 30)
while True:
    make = lambda seq: Event(boot=boot, seq=seq, floor=seq, at=1, kind="tested")
    assert outbox.append("event", make)
    print(boot, outbox.pending(1, after=0)[0].seq, outbox._seq, flush=True)
"""


def test_a_kill_loses_nothing_that_was_appended_and_repeats_no_number(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    appended: set[tuple[str, int]] = set()
    random = Random(5)
    for turn in range(6):
        boot = f"{turn:016x}"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, boot, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(random.randrange(1, 60)):
            _, _, seq = process.stdout.readline().split()
            appended.add((boot, int(seq)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

    outbox = make(path)
    found = [(message.boot, message.seq) for message in outbox.pending(100_000)]
    outbox.close()

    assert appended <= set(found)
    assert len(found) == len(set(found))
    for boot in {boot for boot, _ in found}:
        seqs = [seq for b, seq in found if b == boot]
        assert seqs == list(range(1, len(seqs) + 1))


class Line:
    """The other end of a link: what was sent, and a coordinator that acknowledges without gaps."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[tuple[str, int]] = []
        self.stored: set[tuple[str, int]] = set()
        self.reached: dict[str, int] = {}

    def publish(self, kind: Kind, payload: bytes) -> bool:
        if self.up:
            message = msgspec.json.decode(payload, type=Event if kind == "event" else Telemetry)
            self.sent.append((message.boot, message.seq))
            self.stored.add((message.boot, message.seq))
            reached = max(self.reached.get(message.boot, 0), message.floor - 1)
            while (message.boot, reached + 1) in self.stored:
                reached += 1
            self.reached[message.boot] = reached
        return self.up

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


@settings(max_examples=60)
@given(steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_to_the_link_every_message_arrives_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("outbox") / "outbox.db"
    line, clock, boot = Line(), ManualClock(), 1
    outbox = Outbox(path, boot=f"{boot:016x}", max_rows=10, max_bytes=1 << 20)
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
            outbox = Outbox(path, boot=f"{boot:016x}", max_rows=10, max_bytes=1 << 20)
            sender = Sender(outbox, line.publish, clock=clock, rng=Random(1), window=3)
        else:
            line.up = step == "up"
            if line.up:
                sender.connected()
    dropped += outbox.dropped

    assert outbox.count() == 0
    assert len(appended - line.stored) <= dropped
    outbox.close()


def test_the_file_is_a_plain_database_that_anybody_can_read(outbox: Outbox, tmp_path: Path) -> None:
    outbox.append("event", event)
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        row = db.execute("SELECT boot, seq, kind FROM messages").fetchone()
    db.close()

    assert row == (BOOT, 1, "event")
