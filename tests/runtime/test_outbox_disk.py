"""The outbox and its disk: few writes, and no kill, full disk or damage costs more than must be."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.outbox import (
    COMMIT_S,
    RETRY_S,
    TAIL_ROWS,
    URGENT_BURST,
    URGENT_EVERY_S,
    Outbox,
)
from edgekit_runtime.outbox.allowance import Allowance
from tests.clock import ManualClock
from tests.runtime.outboxes import BOOT, OTHER, error, event, make, numbers, on_disk, telemetry


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = make(tmp_path / "outbox.db")
    yield made
    made.close()


def test_telemetry_is_written_every_five_minutes_and_not_at_all_where_it_was_acknowledged(
    tmp_path: Path,
) -> None:
    clock, path = ManualClock(), tmp_path / "outbox.db"
    outbox = make(path, clock=clock)
    outbox.append("telemetry", telemetry)
    clock.advance(COMMIT_S - 1)
    outbox.tick()
    assert on_disk(path) == []

    clock.advance(2)
    outbox.tick()
    outbox.append("telemetry", telemetry)
    outbox.ack(BOOT, 2)
    clock.advance(COMMIT_S)
    outbox.tick()

    assert on_disk(path) == []
    assert outbox.count() == 0
    outbox.close()


def test_an_event_is_on_disk_at_once_with_what_came_before_it(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db")
    outbox.append("telemetry", telemetry)
    outbox.append("event", event)

    assert on_disk(tmp_path / "outbox.db") == [1, 2]
    outbox.close()


def test_a_storm_of_events_is_written_in_pieces(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "outbox.db"
    outbox = make(path, max_rows=10_000, clock=clock)
    for _ in range(URGENT_BURST + TAIL_ROWS):
        outbox.append("event", event)
    assert len(on_disk(path)) == URGENT_BURST

    outbox.append("event", event)
    assert len(on_disk(path)) == URGENT_BURST + TAIL_ROWS + 1
    outbox.append("event", event)
    clock.advance(URGENT_EVERY_S)
    outbox.append("event", event)

    assert on_disk(path) == numbers(outbox) == list(range(1, URGENT_BURST + TAIL_ROWS + 4))
    outbox.close()


@given(gaps=st.lists(st.floats(0, 100), max_size=60), burst=st.integers(1, 5))
def test_no_stretch_of_time_sees_more_writes_than_are_allowed(
    gaps: list[float], burst: int
) -> None:
    allowance, now, taken = Allowance(burst=burst, every_s=10, now_s=0), 0.0, []
    for gap in gaps:
        now += gap
        if allowance.take(now):
            taken.append(now)

    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) / 10 + 1e-6


def fill(outbox: Outbox) -> None:
    """Let the file grow no more, as on a full disk."""
    pages = outbox._file._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._file._db.execute(f"PRAGMA max_page_count = {pages}")


def test_on_a_full_disk_old_telemetry_makes_room_for_events(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "outbox.db"
    outbox = make(path, clock=clock)
    for _ in range(40):
        outbox.append("telemetry", telemetry)
    outbox.append("event", event)
    fill(outbox)

    for _ in range(20):
        outbox.append("event", lambda seq: event(seq, message="x" * 400))

    kinds = [message.kind for message in outbox.pending(100)]
    assert kinds.count("event") == 21
    assert set(range(42, 62)) <= set(on_disk(path))
    assert outbox.figures().dropped == {"telemetry": 40 - kinds.count("telemetry")}
    assert not outbox.take_damage()
    outbox.close()


def test_a_disk_that_is_full_of_events_keeps_what_comes_in_memory_until_it_is_free(
    tmp_path: Path,
) -> None:
    clock, path = ManualClock(), tmp_path / "outbox.db"
    outbox = make(path, clock=clock)
    for _ in range(10):
        outbox.append("event", error)
    outbox._file._db.execute("PRAGMA query_only = ON")

    assert all(outbox.append("event", event) for _ in range(5))

    assert on_disk(path) == list(range(1, 11))
    assert numbers(outbox) == list(range(1, 16))
    outbox._file._db.execute("PRAGMA query_only = OFF")
    clock.advance(RETRY_S)
    assert outbox.append("event", event)
    assert on_disk(path) == list(range(1, 17))
    assert outbox.dropped == 0
    outbox.close()


def test_what_a_stuck_disk_keeps_in_memory_is_bounded(tmp_path: Path) -> None:
    outbox = make(tmp_path / "outbox.db", max_rows=20)
    outbox._file._db.execute("PRAGMA query_only = ON")
    for turn in range(60):
        outbox.append(*(("event", error) if turn % 10 == 0 else ("telemetry", telemetry)))

    assert len(numbers(outbox)) <= 20
    assert {1, 11, 21, 31, 41, 51} <= set(numbers(outbox))
    assert outbox.figures().dropped == {"telemetry": 60 - len(numbers(outbox))}
    outbox.close()


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
    outbox._file._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    outbox._file._db.execute("PRAGMA cache_size = 1")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 60_000)

    outbox.pending(1000)

    assert outbox.take_damage()
    assert outbox.append("event", event)
    assert numbers(outbox) == list(range(numbers(outbox)[0], 202))
    assert len(numbers(outbox)) <= TAIL_ROWS + 1
    outbox.close()


def test_a_row_that_is_no_message_counts_as_damage(outbox: Outbox) -> None:
    outbox.append("event", event)
    outbox._file._db.execute("UPDATE messages SET payload = x'ff00'")
    outbox._file._db.commit()

    assert outbox.pending(10) == []

    assert outbox.take_damage()
    outbox.append("event", event)
    assert numbers(outbox) == [2]


KILLED = """
import sys
from pathlib import Path
from edgekit.clock import SystemClock
from edgekit.messages import Event
from edgekit_runtime.outbox import Outbox
boot, path = sys.argv[1], Path(sys.argv[2])
limits = {"max_rows": 100_000, "max_bytes": 1 << 30, "max_age_s": 1e6}
outbox = Outbox(path, boot=boot, **limits, clock=SystemClock())
while True:
    make = lambda seq: Event(boot=boot, seq=seq, floor=seq, at=1, kind="tested")
    assert outbox.append("event", make)
    print(boot, outbox._seq, flush=True)
"""


def test_a_kill_loses_no_event_of_the_allowance_and_repeats_no_number(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    appended: set[tuple[str, int]] = set()
    random = Random(5)
    for turn in range(6):
        boot = f"{turn:016x}"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, boot, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(random.randrange(1, URGENT_BURST)):
            _, seq = process.stdout.readline().split()
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


def test_the_file_is_a_plain_database_that_anybody_can_read(outbox: Outbox, tmp_path: Path) -> None:
    outbox.append("event", event)
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        row = db.execute("SELECT boot, seq, kind FROM messages").fetchone()
    db.close()

    assert row == (BOOT, 1, "event")


def test_a_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE messages (position INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL,"
            " seq INTEGER NOT NULL, kind TEXT NOT NULL, payload BLOB NOT NULL, UNIQUE (boot, seq))"
        )
        text = msgspec.json.encode(event(7, boot=OTHER))
        db.execute("INSERT INTO messages VALUES (3, ?, 7, 'event', ?)", (OTHER, text))
    db.close()
    outbox = make(path)
    outbox.append("event", event)

    assert [(m.position, m.boot, m.seq) for m in outbox.pending(10)] == [
        (3, OTHER, 7),
        (4, BOOT, 1),
    ]
    outbox.close()
