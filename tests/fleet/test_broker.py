"""The embedded broker: real MQTT, durable, and gone with whoever started it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit import link
from edgekit.errors import LinkError
from edgekit.fleet.address import Address
from edgekit.fleet.broker import Broker, answers_mqtt
from edgekit.fleet.broker_config import NATS_USERS
from edgekit.link import MqttLink
from tests.fleet.identities import Made
from tests.fleet.processes import Process, edgekit, until

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts brokers on the folder of the test; all have ended after it."""
    started: list[Process] = []

    def run(listen: str = "127.0.0.1:0") -> Process:
        state = str(tmp_path / "state")
        started.append(
            Process("broker", "--listen", listen, "--state", state, log=tmp_path / "log")
        )
        return started[-1]

    yield run
    for one in started:
        one.stop()


def received(url: str, topic: str) -> bytes:
    """The retained message of a topic."""
    came, found = threading.Event(), list[bytes]()

    def note(_topic: str, payload: bytes) -> None:
        found.append(payload)
        came.set()

    # NATS loses a retained message to a subscription that comes while it stores it, so that one
    # reader may wait for ever for what the next one gets.
    for _ in range(12):
        reader = MqttLink(
            link.Broker.parse(url),
            client_id="reader",
            filters=[topic],
            on_message=note,
            on_connect=lambda: None,
        )
        reader.start()
        came.wait(5)
        reader.close()
        if found:
            return found[0]
    raise AssertionError(f"nothing is retained at {topic}")


def retain(url: str, topic: str, payload: bytes) -> None:
    up = threading.Event()
    writer = MqttLink(
        link.Broker.parse(url),
        client_id="writer",
        filters=[],
        on_message=lambda *_: None,
        on_connect=up.set,
    )
    writer.start()
    assert up.wait(60)
    assert writer.publish(topic, payload, retain=True)
    assert received(url, topic) == payload
    writer.close()


def test_retained_messages_survive_a_kill_of_the_broker(start: Start, tmp_path: Path) -> None:
    broker = start()
    retain(broker.said["url"], "a/b", b"kept")
    os.kill(broker.said["pid"], signal.SIGKILL)
    assert broker.wait() == 7
    assert "ended by itself" in (tmp_path / "log").read_text()

    again = start()

    assert received(again.said["url"], "a/b") == b"kept"
    assert again.stop() == 0


def test_a_frame_of_megabytes_travels_and_stays(start: Start) -> None:
    broker = start()
    retain(broker.said["url"], "large", os.urandom(12 << 20))
    broker.stop()


def test_the_broker_ends_with_its_command_even_if_that_is_killed(start: Start) -> None:
    broker = start()
    address = Address.parse(broker.said["url"].removeprefix("mqtt://"))
    assert answers_mqtt(address, timeout_s=1.0)

    broker.kill()

    until(lambda: not answers_mqtt(address, timeout_s=1.0))


def test_a_port_in_use_is_said_in_one_line(start: Start, tmp_path: Path) -> None:
    broker = start()
    listen = broker.said["url"].removeprefix("mqtt://")

    second = edgekit("broker", "--listen", listen, "--state", str(tmp_path / "other"))
    same_folder = edgekit("broker", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))

    assert second.returncode == 7
    assert "the port is in use" in second.stderr
    assert same_folder.returncode == 7
    assert "another broker uses the state folder" in same_folder.stderr
    assert broker.stop() == 0


def test_a_broker_that_fails_before_it_has_a_log_says_why(tmp_path: Path) -> None:
    made, state = Made(tmp_path), tmp_path / "state"
    (made.folder.broker / NATS_USERS).write_text("authorization {\n users: [\n")

    state.mkdir()
    # The log of a broker that ran here before has nothing to do with it.
    for older in ("", "an older line\n"):
        (state / "nats.log").write_text(older)
        with pytest.raises(LinkError, match=NATS_USERS) as caught:
            Broker(listen=Address("127.0.0.1", 0), state=state, fleet=made.folder)
        assert caught.value.hint is None


def test_a_network_address_needs_a_word(tmp_path: Path) -> None:
    done = edgekit("broker", "--listen", "0.0.0.0:0", "--state", str(tmp_path))

    assert done.returncode == 2
    assert "--insecure" in done.stderr
