"""The whole fleet over another broker than the embedded one, watched by another client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edgekit import batches, messages, topics
from edgekit.messages import Ack, Desired, Event, Message, Reported, Status, Telemetry
from edgekit.signing import SigningKey, new_pair
from edgekit_converters.demo.processes import free_port
from tests import bundles
from tests.fleet.processes import Process, edgekit
from tests.system.daemons import SITE, EdgeDaemon, wait_for

DEVICE = "board-1"
PAYLOADS: dict[str, type[Message]] = {
    topics.STATUS: Status,
    topics.TELEMETRY: Telemetry,
    topics.EVENT: Event,
    topics.REPORTED: Reported,
    topics.DESIRED: Desired,
    topics.ACK: Ack,
}

pytestmark = pytest.mark.system


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    """Debian's mosquitto on loopback; yields its port."""
    if shutil.which("mosquitto") is None or shutil.which("mosquitto_sub") is None:
        pytest.skip("needs mosquitto and its clients: `make system-deps` installs them")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\n"
        "max_inflight_messages 1000\npersistence false\n"
    )
    process = subprocess.Popen(["mosquitto", "-c", config], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def heard(mosquitto: int, tmp_path: Path) -> Iterator[Path]:
    """What `mosquitto_sub` prints of all below `edgekit/v1`: topic, space, payload in hex."""
    output = tmp_path / "heard.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [
                *("mosquitto_sub", "-p", str(mosquitto), "-F", "%t %x"),
                *("-q", "1", "-t", f"{topics.ROOT}/#"),
            ],
            stdout=file,
        )
        try:
            yield output
        finally:
            # Asked to end, it says goodbye to the broker first, and may wait for that for ever.
            process.kill()
            process.wait()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return new_pair(tmp_path / "keys")


@pytest.fixture
def coordinator(mosquitto: int, keys: tuple[Path, Path], tmp_path: Path) -> Iterator[Process]:
    process = Process(
        *("coordinator", "--listen", "127.0.0.1:0", "--broker", f"mqtt://127.0.0.1:{mosquitto}"),
        *("--site", SITE, "--state", str(tmp_path / "coordinator"), "--trust", str(keys[1])),
        log=tmp_path / "coordinator.log",
    )
    yield process
    process.stop()


@pytest.fixture
def daemon(
    mosquitto: int, coordinator: Process, keys: tuple[Path, Path], tmp_path: Path
) -> Iterator[EdgeDaemon]:
    folder = tmp_path / "device"
    folder.mkdir()
    running = EdgeDaemon(
        folder,
        trust=keys[1],
        device=DEVICE,
        broker_port=mosquitto,
        repository=coordinator.said["repository"],
    )
    running.start()
    yield running
    running.kill()


def payloads(heard: Path, leaf: str) -> list[bytes]:
    topic = topics.device(SITE, DEVICE, leaf).encode() + b" "
    lines = heard.read_bytes().splitlines()
    found = [line.removeprefix(topic) for line in lines if line.startswith(topic)]
    return [bytes.fromhex(line.decode()) for line in found]


def test_a_rollout_works_and_every_documented_topic_is_seen(
    coordinator: Process,
    daemon: EdgeDaemon,
    heard: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    at = ("--coordinator", coordinator.said["url"])
    bundle = bundles.write(tmp_path, key=SigningKey.read(keys[0]))
    wait_for(lambda: payloads(heard, topics.STATUS), "the device's status")

    assert edgekit("publish", str(bundle), *at).returncode == 0
    rolled = edgekit("rollout", "create", "--model", "tiny", "--version", "1.0.0", "--watch", *at)

    assert rolled.returncode == 0, rolled.stderr
    assert daemon.versions("tiny") == ["1.0.0"]
    for leaf, kind in PAYLOADS.items():
        wait_for(partial(payloads, heard, leaf), leaf)
        for payload in payloads(heard, leaf):
            for text in batches.unpack(payload, topic=leaf):
                messages.decode(text, kind, topic=leaf)


def test_the_broker_says_that_a_killed_device_is_offline(daemon: EdgeDaemon, heard: Path) -> None:
    wait_for(lambda: payloads(heard, topics.STATUS), "the device's status")
    assert json.loads(payloads(heard, topics.STATUS)[-1])["online"] is True

    daemon.kill()

    wait_for(lambda: len(payloads(heard, topics.STATUS)) > 1, "the last will")
    assert json.loads(payloads(heard, topics.STATUS)[-1])["online"] is False


def test_payloads_that_make_no_sense_are_dropped_and_everybody_stays_up(
    mosquitto: int, coordinator: Process, daemon: EdgeDaemon, heard: Path
) -> None:
    wait_for(lambda: payloads(heard, topics.STATUS), "the device's status")

    for leaf in PAYLOADS:
        topic = topics.device(SITE, DEVICE, leaf)
        for nonsense in ("{", "[]", '{"v": 2}', "x" * 100_000):
            subprocess.run(
                ["mosquitto_pub", "-p", str(mosquitto), "-q", "1", "-t", topic, "-s"],
                input=nonsense.encode(),
                check=True,
            )

    before = len(payloads(heard, topics.TELEMETRY))
    wait_for(lambda: len(payloads(heard, topics.TELEMETRY)) > before, "more telemetry")
    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert edgekit("fleet", "devices", "--coordinator", coordinator.said["url"]).returncode == 0
