"""Telemetry through a real broker into a real store: nothing lost, nothing twice."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgekit import batches, messages, topics
from edgekit.fleet import ingest as ingest_
from edgekit.fleet import inventory, parts, store, telemetry
from edgekit.fleet.ingest import Ingest
from edgekit.fleet.parts import PartsView
from edgekit.fleet.store import Store
from edgekit.fleet.telemetry import Sums
from edgekit.messages import About, Ack, ModelState
from tests.clock import ManualClock
from tests.fleet.device_simulator import DeviceSimulator
from tests.fleet.processes import Fleet, until


def rows(fleet: Fleet, query: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(Path(fleet.coordinator.said["state"]) / "fleet.sqlite")
    found = connection.execute(query, values).fetchall()
    connection.close()
    return found


def stored(fleet: Fleet, device: DeviceSimulator) -> list[int]:
    query = "SELECT seq FROM messages WHERE device = ? ORDER BY seq"
    return [seq for (seq,) in rows(fleet, query, f"default/{device.device}")]


def test_messages_that_come_twice_and_out_of_order_are_stored_once(fleet: Fleet) -> None:
    order = [*range(1, 101), *range(20, 60)]
    random.Random(4).shuffle(order)
    with DeviceSimulator(fleet.mqtt, "shuffled") as device:
        device.deliver(order)

        assert stored(fleet, device) == list(range(1, 101))


def test_an_acknowledgement_waits_for_the_message_that_is_missing(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "gap") as device:
        for seq in (1, 2, 4, 5):
            device.publish(topics.TELEMETRY, device.telemetry(seq))
        until(lambda: stored(fleet, device) == [1, 2, 4, 5])
        until(lambda: device.acked.get(device.boot) == 2)

        device.publish(topics.EVENT, device.event(3, "found again"))

        until(lambda: device.acked.get(device.boot) == 5)


def test_what_the_device_dropped_is_not_waited_for(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "dropped") as device:
        device.publish(topics.TELEMETRY, device.telemetry(8, floor=8))

        until(lambda: device.acked.get(device.boot) == 8)


def test_a_message_resent_after_its_acknowledgement_was_lost_is_acknowledged_again(
    fleet: Fleet,
) -> None:
    with DeviceSimulator(fleet.mqtt, "resent") as device:
        device.publish(topics.TELEMETRY, device.telemetry(1))
        until(lambda: device.acked.pop(device.boot, None) == 1)

        device.publish(topics.TELEMETRY, device.telemetry(1))

        until(lambda: device.acked.get(device.boot) == 1)
        assert stored(fleet, device) == [1]


def test_a_killed_coordinator_loses_nothing_that_it_acknowledged(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "killed") as device:
        for sent in (150, 300):
            for seq in range(sent - 149, sent + 1):
                device.publish(topics.TELEMETRY, device.telemetry(seq))
            # Some are acknowledged by now, some not.
            acknowledged = device.acked.get(device.boot, 0)
            fleet.restart(kill=True)
            assert set(range(1, acknowledged + 1)) <= set(stored(fleet, device))
            device.deliver(range(acknowledged + 1, sent + 1))

        assert stored(fleet, device) == list(range(1, 301))


def test_malformed_payloads_are_dropped_and_the_next_message_is_stored(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "odd") as device:
        for leaf in (topics.TELEMETRY, topics.EVENT, topics.STATUS, topics.REPORTED):
            for payload in (b"", b"{", b"\xff\xfe", b"[]", b'{"boot":1}', b"9" * 300_000):
                device.send(device.topic(leaf), payload)
        device.publish(topics.TELEMETRY, device.telemetry(1))

        until(lambda: device.acked.get(device.boot) == 1)

    assert "message not understood" in fleet.log()


def test_a_body_of_another_version_does_not_stop_the_outbox(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "newer") as device:
        newer = b'{"v":1,"boot":"%s","seq":1,"floor":1,"at":1,"shape":"unknown"}'
        device.send(device.topic(topics.TELEMETRY), newer % device.boot.encode())
        device.publish(topics.TELEMETRY, device.telemetry(2))

        until(lambda: device.acked.get(device.boot) == 2)


def test_the_last_will_takes_a_device_offline(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "leaving"):
        until(lambda: fleet.devices().get("leaving", {}).get("online") is True)

    until(lambda: fleet.devices()["leaving"]["online"] is False)
    assert fleet.devices()["leaving"]["profile"] == "generic-x86_64"


def test_figures_of_all_devices_add_up(fleet: Fleet) -> None:
    query = "SELECT sum(requests) FROM figures WHERE model = 'tiny'"
    before = rows(fleet, query)[0][0] or 0
    with (
        DeviceSimulator(fleet.mqtt, "sum-1") as first,
        DeviceSimulator(fleet.mqtt, "sum-2") as second,
    ):
        for seq in range(1, 6):
            first.publish(topics.TELEMETRY, first.telemetry(seq, requests=7))
            second.publish(topics.TELEMETRY, second.telemetry(seq, requests=5))
        until(lambda: first.acked.get(first.boot) == second.acked.get(second.boot) == 5)

    assert rows(fleet, query)[0][0] - before == 60
    shown = fleet.devices()["sum-1"]["models"]["tiny"]
    assert shown["requests_per_s"] == 0.7
    assert shown["p50_ms"] < shown["p99_ms"]


def test_figures_too_large_to_add_up_do_not_end_the_coordinator(tmp_path: Path) -> None:
    opened, most = Store.in_folder(tmp_path), 1 << 53
    sums = Sums()
    device = DeviceSimulator("mqtt://127.0.0.1:9", "d")
    for seq in range(1, 1500):
        sums.add(device.telemetry(seq, requests=most), at_ms=0)
    for _ in range(2):
        with opened.write() as connection:
            sums.write(connection)

    with opened.read() as connection:
        (total,) = telemetry.since(connection, from_ms=0)
    assert total.requests == (1 << 63) - 1
    opened.close()


def test_a_batch_is_stored_as_the_messages_in_it(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "batched") as device:
        texts = [messages.encode(device.telemetry(seq)) for seq in range(1, 301)]
        device.send(device.topic(topics.TELEMETRY), batches.pack(texts[:200]))
        device.send(device.topic(topics.TELEMETRY), batches.pack(texts[150:]))
        device.send(device.topic(topics.EVENT), messages.encode(device.event(301, "alone")))
        until(lambda: device.acked.get(device.boot) == 301)

        assert stored(fleet, device) == list(range(1, 302))


def test_a_device_can_be_asked_what_it_runs_on(fleet: Fleet) -> None:
    about = About(edgekit="0.1.0", python="3.11.2", machine="aarch64", system="Linux 6.1")
    with DeviceSimulator(fleet.mqtt, "asked") as device:
        told = {"told": {"about": 1}, "about": about}
        telling = msgspec.structs.replace(device.telemetry(1), **told)
        device.publish(topics.TELEMETRY, telling)
        until(lambda: device.acked.get(device.boot) == 1)

        found = fleet.client.get("/api/devices/default/asked/parts", PartsView)
    assert found == PartsView(about=about)


def test_a_bad_batch_stops_nothing(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "bad-batch") as device:
        topic = device.topic(topics.TELEMETRY)
        texts = [messages.encode(device.telemetry(seq)) for seq in (1, 2)]
        whole = batches.pack(texts)
        for payload in (whole[:-3], whole + b"x", bytes((batches.MAGIC, 99)) + whole[2:]):
            device.send(topic, payload)
        newer = b'{"v":1,"boot":"%s","seq":2,"floor":1,"at":1,"period_s":"long"}'
        device.send(topic, batches.pack([b"{", texts[0], newer % device.boot.encode()]))

        until(lambda: device.acked.get(device.boot) == 2)
        assert stored(fleet, device) == [1, 2]


def take_in(opened: Store, *texts: bytes, clock: ManualClock | None = None) -> None:
    """Give payloads of the device `d` to an ingest of its own, until it has stored them."""
    ingest = Ingest(
        store=opened,
        clock=clock or ManualClock(),
        publish=lambda *_: True,
        on_change=lambda: None,
    )
    ingest.start()
    for text in texts:
        ingest.receive(topics.device("default", "d", topics.TELEMETRY), text)
    until(lambda: ingest.counts.stored == len(texts))
    ingest.close()


def test_a_message_that_comes_late_does_not_pass_for_the_present(tmp_path: Path) -> None:
    opened = Store.in_folder(tmp_path)
    device = DeviceSimulator("mqtt://127.0.0.1:9", "d")
    take_in(opened, *[messages.encode(device.telemetry(seq)) for seq in (1, 3)])
    take_in(opened, messages.encode(device.telemetry(2)))

    with opened.read() as connection:
        found = inventory.find(connection, "d").telemetry
    assert found is not None
    assert found.seq == 3
    opened.close()


def test_figures_count_for_the_minute_in_which_they_were_made(tmp_path: Path) -> None:
    opened, clock = Store.in_folder(tmp_path), ManualClock(now_ms=1_800_000_000_000)
    device = DeviceSimulator("mqtt://127.0.0.1:9", "d")
    waited_ms = 3 * 3_600_000
    # The device's wall clock is in 1970.
    late = msgspec.structs.replace(device.telemetry(1), up=5000, sent=5000 + waited_ms)
    take_in(opened, messages.encode(late), clock=clock)

    with opened.read() as connection:
        (row,) = connection.execute(store.figures.select()).mappings()
    made_ms = clock.now_ms() - waited_ms
    assert row["minute_ms"] == made_ms - made_ms % 60_000
    opened.close()


@given(
    at=st.integers(0, 1 << 50),
    up=st.integers(0, 1 << 40),
    waited_ms=st.integers(0, 1 << 40),
    is_over=st.booleans(),
)
def test_the_time_of_a_message_is_never_in_the_future(
    at: int, up: int, waited_ms: int, is_over: bool
) -> None:
    sent = 0 if is_over else up + waited_ms
    message = messages.Counted(boot="0" * 16, seq=1, floor=1, at=at, up=up, sent=sent)
    now_ms = 1_800_000_000_000

    found = telemetry.observed_ms(message, received_ms=now_ms)

    assert 0 <= found <= now_ms
    if up and not is_over:
        assert found == max(0, now_ms - waited_ms)
    elif at > now_ms or at < now_ms - telemetry.LONGEST_WAIT_MS:
        assert found == now_ms


def test_parts_are_known_only_from_the_message_that_telemetry_names(tmp_path: Path) -> None:
    opened = Store.in_folder(tmp_path)
    device = DeviceSimulator("mqtt://127.0.0.1:9", "d")
    about = About(edgekit="0.1.0", python="3.11.2", machine="aarch64", system="Linux 6.1")

    def telling(seq: int, *, about_in: int, slots_in: int) -> bytes:
        slots = {"lite0": ModelState(version=f"1.{seq}.0", state="confirmed")}
        return messages.encode(
            msgspec.structs.replace(
                device.telemetry(seq),
                told={"about": about_in, "slots": slots_in},
                about=about if about_in == seq else None,
                slots=slots if slots_in == seq else None,
            )
        )

    def known() -> PartsView:
        with opened.read() as connection:
            latest = inventory.find(connection, "d").telemetry
            return parts.of(connection, "default/d", latest)

    take_in(opened, telling(1, about_in=1, slots_in=1))
    assert known().about == about
    # Number 2 told new slots, and is missing.
    take_in(opened, telling(3, about_in=1, slots_in=2))
    assert known() == PartsView(about=about)
    take_in(opened, telling(4, about_in=1, slots_in=4), telling(2, about_in=1, slots_in=2))
    slots = known().slots
    assert slots is not None
    assert slots["lite0"].version == "1.4.0"
    opened.close()


def test_old_messages_go_and_are_still_known(tmp_path: Path) -> None:
    opened, clock = Store.in_folder(tmp_path), ManualClock()
    acks: list[Ack] = []

    def publish(topic: str, payload: bytes) -> bool:
        acks.append(messages.decode(payload, Ack, topic=topic))
        return True

    ingest = Ingest(store=opened, clock=clock, publish=publish, on_change=lambda: None)
    ingest.start()
    device = DeviceSimulator("mqtt://127.0.0.1:9", "d")
    topic = device.topic(topics.TELEMETRY)
    for seq in (1, 2, 4):
        ingest.receive(topic, messages.encode(device.telemetry(seq)))
    until(lambda: ingest.counts.stored == 3)
    clock.advance(100)
    with opened.write() as connection:
        assert ingest_.prune(connection, before_ms=clock.now_ms()) == 2
    ingest.receive(topic, messages.encode(device.telemetry(2)))
    until(lambda: ingest.counts.duplicates == 1)
    ingest.close()

    assert acks[-1].seq == 2
    with opened.read() as connection:
        assert connection.execute(store.messages.select()).mappings().one()["seq"] == 4
        assert [d.device for d in inventory.every(connection)] == ["default/d"]
    opened.close()
