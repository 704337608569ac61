"""The outbox: nothing acknowledged is held, what is dropped is counted, a kill costs little."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.messages import Event, Resources, Telemetry
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

BOOT = "0123456789abcdef"
OTHER = "fedcba9876543210"


def event(seq: int, *, boot: str = BOOT, message: str = "", level: Any = "info") -> Event:
    return Event(
        boot=boot, seq=seq, floor=seq, at=1, up=1, kind="tested", level=level, message=message
    )


def error(seq: int) -> Event:
    return event(seq, level="error")


def telemetry(seq: int) -> Telemetry:
    resources = Resources(cpu_s=0.0, rss_bytes=0)
    return Telemetry(boot=BOOT, seq=seq, floor=seq, at=1, period_s=1.0, resources=resources)


def numbers(outbox: Outbox) -> list[int]:
    return [message.seq for message in outbox.pending(1000)]


def on_disk(path: Path) -> list[int]:
    """Numbers of the rows that another process would find."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        found = [seq for (seq,) in db.execute("SELECT seq FROM messages ORDER BY position")]
    db.close()
    return found


def make(
    path: Path,
    *,
    boot: str = BOOT,
    max_rows: int = 1000,
    max_bytes: int = 1 << 20,
    max_age_s: float = 1e6,
    clock: ManualClock | None = None,
) -> Outbox:
    return Outbox(
        path,
        boot=boot,
        max_rows=max_rows,
        max_bytes=max_bytes,
        max_age_s=max_age_s,
        clock=clock or ManualClock(),
    )


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
