"""What telemetry costs a device's link in a day, at the default interval: every MQTT byte counted.

    python -m benchmarks.device.telemetry_bytes [--batches 2] [--rate 2] [--bundle F --trust P]
        [--json FILE]

A real daemon serves EfficientNet-Lite0 to requests at random times, through a relay that counts, to
a real broker and a real coordinator that acknowledges. It runs in real time, from one batch of
telemetry to the last of `--batches`, five minutes each; the day is that stretch, repeated. What
comes once an hour is not in the stretch: it is added from the sizes of a real message with all its
parts, and of drift sketches made of random counts for this bundle's features, which no window of
real inputs has filled here (estimated).

Without --bundle the model is built first, which takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.device.meter import Meter
from benchmarks.process import tell
from edgekit import batches, messages, signing, topics
from edgekit.bundle import Bundle
from edgekit.drift import reference, sketch
from edgekit.fleet.address import Address
from edgekit.fleet.broker import Broker
from edgekit.messages import Desired, Reported, Telemetry
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from tests.fleet.processes import Process
from tests.system.chaos.mixed import Listener
from tests.system.daemons import SITE, EdgeDaemon, Repository, wait_for

DAY_S = 86_400
HOURS = 24
# IPv4 and TCP with timestamps, without Ethernet.
SEGMENT_BYTES = 52
BUILD = "from edgekit.cli import main; main()"


class Requests:
    """Asks for inferences at random times, `rate` a second in the mean, until it is stopped."""

    def __init__(self, port: int, model: str, shape: tuple[int, ...], *, rate: float) -> None:
        self._url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
        self._shape, self._rate = shape, rate
        with urllib.request.urlopen(self._url.removesuffix("/infer"), timeout=5) as answer:
            self._name = json.load(answer)["inputs"][0]["name"]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        spread = random.Random(1)
        images = np.random.default_rng(1).random((8, *self._shape), np.float32)
        while not self._ends.wait(spread.expovariate(self._rate)):
            data = spread.choice(images).tobytes()
            size = {"binary_data_size": len(data)}
            tensor = {"name": self._name, "shape": self._shape, "datatype": "FP32"}
            head = json.dumps({"inputs": [{**tensor, "parameters": size}]}).encode()
            length = {"Inference-Header-Content-Length": str(len(head))}
            request = urllib.request.Request(self._url, data=head + data, headers=length)
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()


def build(folder: Path) -> tuple[Path, Path]:
    """A bundle of EfficientNet-Lite0 with a drift reference, and the key to trust."""
    write_lite0(folder / "lite0.onnx")
    write_photos(folder, crops=10)
    _, public = signing.new_pair(folder / "keys")
    subprocess.run(
        [
            *(sys.executable, "-c", BUILD, "build", str(folder / "lite0.onnx")),
            *("--profile", "generic-x86_64", "--data", str(folder / "photos.npz")),
            *("--out", str(folder), "--key", str(folder / "keys" / signing.KEY_FILE)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(folder.glob("*.edge")), public


def measure(folder: Path, bundle: Path, trust: Path, *, count: int, rate: float) -> dict[str, Any]:
    """Bytes between the first batch of telemetry and `count` batches later, and the day's sum."""
    broker = Broker(listen=Address("127.0.0.1", 0), state=folder / "broker")
    meter, repository = Meter(broker.listen.port), Repository()
    coordinator = Process(
        "coordinator",
        *("--listen", "127.0.0.1:0", "--broker", broker.url, "--site", SITE),
        *("--state", str(folder / "coordinator"), "--trust", str(trust)),
        log=folder / "coordinator.log",
    )
    daemon = EdgeDaemon(
        folder / "board",
        trust=trust,
        broker_port=meter.port,
        repository=repository.url,
        interval_s=60.0,
    )
    listener = Listener(broker.listen)
    try:
        wanted = repository.put(bundle)
        daemon.start()
        desired = messages.encode(Desired(serial=1, models={"lite0": wanted}))
        listener.tell(topics.device(SITE, daemon.device, topics.DESIRED), desired)
        wait_for(lambda: daemon.versions("lite0"), "a model that serves", timeout_s=120)
        requests = Requests(daemon.port, "lite0", (1, 3, 224, 224), rate=rate)
        _await_batch(meter, 0)
        stretch = _stretch(daemon, meter, count=count)
        requests.stop()
        return stretch | _hourly(folder, bundle)
    finally:
        daemon.stop()
        listener.close()
        coordinator.stop()
        meter.close()
        broker.close()
        repository.close()


def _stretch(daemon: EdgeDaemon, meter: Meter, *, count: int) -> dict[str, Any]:
    assert daemon.process is not None
    began, (before, packets), segments = time.monotonic(), meter.counts(), meter.segments()
    written = write_bytes(daemon.process.pid)
    for _ in range(count):
        _await_batch(meter, meter.counts()[1]["up PUBLISH telemetry"])
    seconds = time.monotonic() - began
    sent, seen = meter.counts()[0] - before, meter.counts()[1] - packets
    a_day = DAY_S / seconds
    return {
        "stretch_s": round(seconds),
        "stretch_bytes": dict(sorted(sent.items())),
        "stretch_packets": dict(sorted(seen.items())),
        "stretch_written_bytes": write_bytes(daemon.process.pid) - written,
        "mqtt_bytes_a_day": round(sum(sent.values()) * a_day),
        "tcp_ip_headers_a_day": round((meter.segments() - segments) * SEGMENT_BYTES * a_day),
    }


def _await_batch(meter: Meter, seen: int) -> None:
    """Until one more batch of telemetry was sent, and its acknowledgement has had its time."""
    wait_for(lambda: meter.counts()[1]["up PUBLISH telemetry"] > seen, "telemetry", timeout_s=900)
    time.sleep(5)


def _hourly(folder: Path, bundle: Path) -> dict[str, Any]:
    """Bytes a day for parts that are told every hour, as they make a batch longer."""
    with sqlite3.connect(folder / "coordinator" / "fleet.sqlite") as db:
        query = "SELECT payload FROM messages WHERE leaf = 'telemetry' ORDER BY seq"
        texts = [row[0] for row in db.execute(query)]
    db.close()
    first = msgspec.json.decode(texts[0], type=Telemetry)
    features = _drift_features(bundle)
    counts = np.random.default_rng(1).multinomial(
        7200, [1 / reference.BINS] * reference.BINS, features
    )
    packed = sketch.pack(counts, reference="0123456789abcdef" * 4, rows=7200)
    drift = tuple(msgspec.structs.replace(one, sketch=packed) for one in first.drift)
    whole = msgspec.structs.replace(first, drift=drift)
    bare = msgspec.structs.replace(first, about=None, slots=None, drift=())
    rest = texts[-4:]
    more = len(batches.pack([messages.encode(whole), *rest])) - len(
        batches.pack([messages.encode(bare), *rest])
    )
    # The reported state is said again with the slots: its packet, topic included, and its PUBACK.
    said = messages.encode(
        Reported(boot=first.boot, at=first.at, serial=1, models=first.slots or {})
    )
    topic = topics.device(SITE, "board-1", topics.REPORTED)
    more += len(said) + len(topic) + 2 + 2 + 3 + 4
    return {"drift_features": features, "hourly_bytes_a_day_estimated": HOURS * more}


def _drift_features(path: Path) -> int:
    with Bundle.open(path) as opened:
        found = reference.decode(opened.read(reference.ENTRY))
    return sum(len(part.features) for part in (found.inputs, *found.variants.values()))


def write_bytes(pid: int) -> int:
    """What a process has caused to be written to disks so far."""
    for line in Path(f"/proc/{pid}/io").read_text("ascii").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/{pid}/io does not tell write_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, trust = (
            (given.bundle, given.trust) if given.bundle and given.trust else build(folder)
        )
        figures = measure(folder, bundle, trust, count=given.batches, rate=given.rate)
    both = figures["mqtt_bytes_a_day"] + figures["hourly_bytes_a_day_estimated"]
    tell(figures | {"total_bytes_a_day": both}, file=given.json)


if __name__ == "__main__":
    main()
