"""Telemetry into one coordinator process, through a real broker: rate, CPU, losses, duplicates.

Run: python -m benchmarks.fleet.ingest [--messages 20000] [--devices 200] [--json FILE]

Publishers in processes of their own keep the broker busy. Beside the coordinator's rate stands
what the broker alone hands to a subscriber that only counts. On a machine with few cores all of
them share the cores, so the CPU seconds per message of the coordinator are the robust figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import process
from edgekit import link, messages, signing, topics
from edgekit.fleet.address import Address
from edgekit.fleet.broker import Broker
from edgekit.link import MqttLink
from edgekit.messages import Ack, ModelFigures, Resources, Telemetry
from tests.fleet.processes import Process

SITE = "bench"
BOOT = "00000000000000bb"
PUBLISHERS = 2


def telemetry(seq: int) -> bytes:
    """A message as a device with one model sends it."""
    figures = ModelFigures(
        model="lite0",
        version="1.0.0",
        variant="int8",
        requests=120,
        errors=0,
        engine_us=480_000,
        latency_us={30: 4, 31: 60, 32: 40, 33: 10, 36: 5, 40: 1},
    )
    return messages.encode(
        Telemetry(
            boot=BOOT,
            seq=seq,
            floor=1,
            at=1_795_000_000_000 + seq,
            period_s=1.0,
            models=(figures,),
            resources=Resources(
                cpu_s=12.5,
                rss_bytes=81_000_000,
                memory_free_bytes=2_000_000_000,
                temperature_c=51.0,
            ),
        )
    )


def publish(url: str, publisher: int, devices: list[int], each: int) -> None:
    """Send `each` messages of every device, as fast as the broker takes them."""
    up = threading.Event()
    sender = MqttLink(
        link.Broker.parse(url),
        client_id=f"publisher-{publisher}",
        filters=[],
        on_message=lambda *_: None,
        on_connect=up.set,
    )
    sender.start()
    up.wait(10)
    for seq in range(1, each + 1):
        payload = telemetry(seq)
        for device in devices:
            topic = topics.device(SITE, f"d-{device}", topics.TELEMETRY)
            while not sender.publish(topic, payload):
                time.sleep(0.001)
    # What was handed over last is acknowledged by the broker before the process ends.
    time.sleep(1.0)
    sender.close()


def start_publishers(url: str, *, devices: int, each: int) -> list[Any]:
    started = []
    for publisher in range(PUBLISHERS):
        share = list(range(publisher, devices, PUBLISHERS))
        process = multiprocessing.Process(target=publish, args=(url, publisher, share, each))
        process.start()
        started.append(process)
    return started


def broker_alone(url: str, *, devices: int, each: int) -> float:
    """Messages a second that reach a subscriber which does nothing but count."""
    seen, done, up = [0], threading.Event(), threading.Event()

    def count(_topic: str, _payload: bytes) -> None:
        seen[0] += 1
        if seen[0] >= devices * each:
            done.set()

    subscriber = MqttLink(
        link.Broker.parse(url),
        client_id="counter",
        filters=[topics.every_device(SITE, topics.TELEMETRY)],
        on_message=count,
        on_connect=up.set,
    )
    subscriber.start()
    up.wait(10)
    time.sleep(0.5)
    began = time.monotonic()
    publishers = start_publishers(url, devices=devices, each=each)
    assert done.wait(300), f"{seen[0]} of {devices * each} came"
    took_s = time.monotonic() - began
    for publisher in publishers:
        publisher.join()
    subscriber.close()
    return devices * each / took_s


def into_coordinator(url: str, folder: Path, *, devices: int, each: int) -> dict[str, Any]:
    """Rate until everything is acknowledged, and what the store holds then."""
    signing.new_pair(folder / "keys")
    coordinator = Process(
        "coordinator",
        *("--listen", "127.0.0.1:0", "--broker", url, "--site", SITE),
        *("--state", str(folder / "coordinator")),
        *("--trust", str(folder / "keys" / signing.PUBLIC_FILE)),
        log=folder / "coordinator.log",
    )
    acked: dict[str, int] = {}
    done, up = threading.Event(), threading.Event()

    def note(topic: str, payload: bytes) -> None:
        acked[topic] = messages.decode(payload, Ack, topic=topic).seq
        if len(acked) == devices and min(acked.values()) == each:
            done.set()

    listener = MqttLink(
        link.Broker.parse(url),
        client_id="listener",
        filters=[topics.every_device(SITE, topics.ACK)],
        on_message=note,
        on_connect=up.set,
    )
    listener.start()
    up.wait(10)
    time.sleep(1.0)
    cpu_s, began = process.cpu_s(coordinator.pid), time.monotonic()
    publishers = start_publishers(url, devices=devices, each=each)
    assert done.wait(300), f"{sum(acked.values())} of {devices * each} were acknowledged"
    took_s, cpu_s = time.monotonic() - began, process.cpu_s(coordinator.pid) - cpu_s
    for publisher in publishers:
        publisher.join()
    peak_mb = process.peak_rss_mb(coordinator.pid)
    listener.close()
    coordinator.stop()
    rows, distinct = stored(folder / "coordinator" / "fleet.sqlite")
    sent = devices * each
    return {
        "messages": sent,
        "messages_per_s": round(sent / took_s),
        "cpu_us_per_message": round(cpu_s / sent * 1e6, 1),
        "messages_per_cpu_s": round(sent / cpu_s),
        "lost": sent - distinct,
        "stored_twice": rows - distinct,
        "peak_rss_mb": round(peak_mb, 1),
    }


def stored(database: Path) -> tuple[int, int]:
    """Rows of messages, and different ones."""
    connection = sqlite3.connect(database)
    (rows,) = connection.execute("SELECT count(*) FROM messages").fetchone()
    (distinct,) = connection.execute(
        "SELECT count(*) FROM (SELECT DISTINCT device, boot, seq FROM messages)"
    ).fetchone()
    connection.close()
    return rows, distinct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    each = given.messages // given.devices
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        broker = Broker(listen=Address("127.0.0.1", 0), state=folder / "broker")
        try:
            alone = broker_alone(broker.url, devices=given.devices, each=each)
            figures = into_coordinator(broker.url, folder, devices=given.devices, each=each)
        finally:
            broker.close()
    figures["broker_alone_per_s"] = round(alone)
    figures["share_of_broker"] = round(figures["messages_per_s"] / alone, 2)
    process.tell(figures, file=given.json)


if __name__ == "__main__":
    main()
