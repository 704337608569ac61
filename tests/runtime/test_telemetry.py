"""Telemetry and sensors: every interval is told, and what the board does not tell is `None`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import messages
from edgekit.messages import (
    DriftFigures,
    DriftSketch,
    Event,
    ModelFigures,
    ModelState,
    Resources,
    Telemetry,
)
from edgekit_runtime import sensors
from edgekit_runtime.outbox import Kind, Outbox
from edgekit_runtime.sender import Sender
from edgekit_runtime.telemetry import Reporter, linger_s
from tests.clock import ManualClock
from tests.runtime.outboxes import make

BOOT = "0123456789abcdef"
FIGURES = ModelFigures(model="tiny", version="1.0.0", variant="float", requests=3, errors=1)


class Device:
    """A reporter over a real outbox, with a link that is down."""

    def __init__(self, path: Path, *, max_rows: int = 100) -> None:
        self.clock = ManualClock()
        self.slots: dict[str, ModelState] = {}
        self.slots_told: list[float] = []
        self.outbox = Outbox(
            path / "outbox.db",
            boot=BOOT,
            max_rows=max_rows,
            max_bytes=1 << 20,
            max_age_s=1e6,
            clock=self.clock,
        )
        self.sent: list[Kind] = []
        self.up = False
        sender = Sender(self.outbox, self._publish, clock=self.clock, rng=Random(1))
        self.reporter = Reporter(
            self.outbox,
            sender,
            boot=BOOT,
            interval_s=60,
            figures=lambda: [FIGURES],
            resources=lambda: sensors.read(path),
            slots=lambda: self.slots,
            on_slots=lambda: self.slots_told.append(self.clock.monotonic()),
            clock=self.clock,
        )

    def _publish(self, kind: Kind, payload: bytes) -> bool:
        self.sent.append(kind)
        return self.up

    def telemetry(self) -> list[Telemetry]:
        found = [m for m in self.outbox.pending(100) if m.kind == "telemetry"]
        return [msgspec.json.decode(m.payload, type=Telemetry) for m in found]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.outbox.close()


def test_an_interval_is_told_once(device: Device) -> None:
    device.reporter._turn()
    device.clock.advance(61)
    device.reporter._turn()
    device.reporter._turn()

    (message,) = device.telemetry()
    assert message.models == (FIGURES,)
    assert message.period_s == 61
    assert message.resources.rss_bytes > 0


def test_whoever_says_the_slots_too_hears_when_a_message_carries_them(device: Device) -> None:
    begun = device.clock.monotonic()
    for number in range(70):
        if number == 5:
            device.slots["tiny"] = ModelState(version="1.0.0")
        device.clock.advance(60)
        device.reporter._turn()

    assert [(at - begun) / 60 for at in device.slots_told] == [1, 6, 66]


def test_intervals_without_a_link_wait_in_the_outbox(device: Device) -> None:
    for _ in range(3):
        device.clock.advance(60)
        device.reporter._turn()

    assert [message.seq for message in device.telemetry()] == [1, 2, 3]


def test_telemetry_tells_of_drift_and_leaves_out_sketches_that_a_payload_cannot_hold(
    tmp_path: Path,
) -> None:
    sketch = DriftSketch(reference="0" * 64, rows=4000, counts="A" * 8192)
    drifts = [
        DriftFigures(model=f"m{i}", version="1.0.0", rows=4000, windows=1, p=0.5, sketch=sketch)
        for i in range(20)
    ]
    outbox = make(tmp_path / "outbox.db")
    sender = Sender(outbox, lambda *_: False, clock=ManualClock(), rng=Random(1))
    reporter = Reporter(
        outbox,
        sender,
        boot=BOOT,
        interval_s=60,
        figures=list,
        resources=lambda: sensors.read(tmp_path),
        drifts=lambda: drifts,
        clock=ManualClock(),
    )
    reporter.observe()

    (message,) = outbox.pending(10)
    told = messages.decode(message.payload, Telemetry, topic="telemetry").drift
    outbox.close()
    assert [drift.model for drift in told] == [f"m{i}" for i in range(20)]
    assert sum(drift.sketch is not None for drift in told) == 16


def test_the_last_interval_is_told_at_the_end(device: Device) -> None:
    device.up = True
    device.reporter.start()
    device.clock.advance(7)
    device.reporter.close()

    assert device.telemetry()[-1].period_s == 7
    assert device.sent.count("telemetry") == 1


def test_an_event_carries_its_facts(device: Device, tmp_path: Path) -> None:
    device.reporter.event("tested", "so", level="warning", path=tmp_path, count=3)

    (message,) = device.outbox.pending(10)
    event = msgspec.json.decode(message.payload, type=Event)
    assert (event.kind, event.level, event.message) == ("tested", "warning", "so")
    assert event.facts == {"path": str(tmp_path), "count": 3}


def test_what_was_dropped_is_counted_in_what_follows(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for _ in range(150):
        device.reporter.observe()

    last = device.telemetry()[-1].outbox
    assert last.dropped == {"telemetry": device.outbox.dropped}
    assert last.dropped_bytes > 100 * last.dropped["telemetry"]
    assert last.waiting + device.outbox.dropped == 149
    device.outbox.close()


def test_what_does_not_change_is_told_once_and_named_after_that(device: Device) -> None:
    for _ in range(3):
        device.clock.advance(60)
        device.reporter.observe()
    device.slots["tiny"] = ModelState(version="1.0.0", state="confirmed", progress=0.5)
    device.reporter.observe()

    told = device.telemetry()
    assert [message.told for message in told] == [
        *[{"about": 1, "slots": 1, "drift": 1}] * 3,
        {"about": 1, "slots": 4, "drift": 1},
    ]
    assert [message.about is not None for message in told] == [True, False, False, False]
    assert told[0].slots == {}
    assert told[3].slots == {"tiny": ModelState(version="1.0.0", state="confirmed")}
    assert told[0].about is not None
    assert "onnxruntime" in told[0].about.engines


def test_a_part_that_was_given_up_is_told_again(tmp_path: Path) -> None:
    device = Device(tmp_path, max_rows=1)
    device.reporter.event("tested", "so", level="error")
    device.reporter.observe()
    device.outbox.ack(BOOT, 1)
    device.reporter.observe()

    (message,) = device.telemetry()
    assert message.about is not None
    assert message.told == dict.fromkeys(("about", "slots", "drift"), message.seq)
    device.outbox.close()


def test_losses_are_an_event_when_they_begin_and_then_once_an_hour(tmp_path: Path) -> None:
    device = Device(tmp_path, max_rows=20)
    for _ in range(100):
        device.clock.advance(61)
        device.reporter._turn()

    events = [
        msgspec.json.decode(m.payload, type=Event)
        for m in device.outbox.pending(100)
        if m.kind == "event"
    ]
    assert [event.kind for event in events] == ["outbox_dropped"] * 2
    assert events[0].level == "warning"
    assert 0 < events[0].facts["telemetry"] < events[1].facts["telemetry"]  # type: ignore[operator]
    assert events[1].facts["dropped_bytes"] > 1000  # type: ignore[operator]
    device.outbox.close()


def test_an_interval_can_be_changed_while_it_runs(device: Device) -> None:
    device.clock.advance(10)
    device.reporter._turn()
    assert device.telemetry() == []

    device.reporter.set_interval(5)
    device.reporter._turn()

    assert [message.period_s for message in device.telemetry()] == [10]
    assert device.reporter.interval_s == 5


@pytest.mark.parametrize(
    ("interval_s", "messages"), [(5, 1), (59, 1), (60, 5), (100, 3), (250, 1), (3600, 1)]
)
def test_a_batch_holds_five_minutes_and_who_watches_waits_for_none(
    interval_s: float, messages: int
) -> None:
    wait_s = linger_s(interval_s)

    assert wait_s < 300
    assert int(wait_s // interval_s) + 1 == messages


def test_a_damaged_outbox_is_an_event(device: Device) -> None:
    device.outbox._file.was_damaged = True

    device.reporter._turn()

    kinds = [msgspec.json.decode(m.payload, type=Event).kind for m in device.outbox.pending(10)]
    assert kinds == ["outbox_reset"]


def test_sensors_read_this_machine(tmp_path: Path) -> None:
    found = sensors.read(tmp_path)

    assert found.cpu_s > 0
    assert found.rss_bytes > 1 << 20
    assert found.memory_free_bytes is not None
    assert found.disk_free_bytes is not None


def test_what_a_board_does_not_tell_is_none(tmp_path: Path) -> None:
    found = sensors.read(tmp_path / "gone", root=tmp_path)

    assert found.rss_bytes == 0
    assert found.memory_free_bytes is None
    assert found.disk_free_bytes is None
    assert found.temperature_c is None


def test_the_hottest_zone_counts_and_odd_ones_are_left_out(tmp_path: Path) -> None:
    for number, text in enumerate(["41000\n", "-5000", "many", "63500"]):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    gone = tmp_path / "sys/class/thermal/thermal_zone9"
    gone.mkdir()
    os.symlink(tmp_path / "nowhere", gone / "temp")

    assert sensors.read(tmp_path, root=tmp_path).temperature_c == 63.5


@given(st.integers(0, 1 << 53), st.none() | st.floats(-50, 5000))
def test_what_travels_is_right_to_half_a_percent(number: int, value: float | None) -> None:
    told = sensors.rounded(
        Resources(cpu_s=1.26, rss_bytes=number, memory_free_bytes=None, temperature_c=value)
    )

    assert abs(told.rss_bytes - number) <= 0.005 * number
    assert told.memory_free_bytes is None
    assert told.cpu_s == 1.3
    assert (told.temperature_c is None) == (value is None)
