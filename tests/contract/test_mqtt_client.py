"""A link to a broker that does not keep to what brokers do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from edgekit.link import Broker, MqttLink

ACCEPTED = bytes([0x20, 2, 0, 0])
PUBLISH = 0x30
KNOWN = b"edgekit/v1/site/device/state/desired"
LIMIT = 1 << 20


def remaining(length: int) -> bytes:
    """A length as MQTT 3.1.1 (2.2.3) writes it."""
    raw = bytearray()
    while True:
        length, low = divmod(length, 128)
        raw.append(low | (128 if length else 0))
        if not length:
            return bytes(raw)


def publish(payload_bytes: int, *, qos: int) -> bytes:
    """The beginning of a message; its payload has yet to follow."""
    number = b"\0\1" if qos else b""
    body = len(KNOWN).to_bytes(2, "big") + KNOWN + number
    return bytes([PUBLISH | qos << 1]) + remaining(len(body) + payload_bytes) + body


class HostileBroker(threading.Thread):
    """Takes every client, then sends each a message as long as it is told."""

    def __init__(self, payload_bytes: int, *, qos: int = 0) -> None:
        super().__init__(daemon=True)
        self.payload_bytes = payload_bytes
        self.qos = qos
        self.sent: list[int] = []
        self.ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.sent.append(self._serve(connection))
                self.ended.set()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.join()

    def _serve(self, connection: socket.socket) -> int:
        sent = 0
        with suppress(OSError):
            connection.recv(4096)
            connection.sendall(ACCEPTED + publish(self.payload_bytes, qos=self.qos))
            while sent < self.payload_bytes:
                sent += connection.send(bytes(min(1 << 16, self.payload_bytes - sent)))
            while connection.recv(4096):
                pass
        return sent


@pytest.fixture
def heard() -> list[int]:
    return []


def link_to(broker: HostileBroker, heard: list[int], arrived: threading.Event) -> MqttLink:
    def take(_topic: str, payload: bytes) -> None:
        heard.append(len(payload))
        arrived.set()

    return MqttLink(
        Broker("127.0.0.1", broker.port, tls=False),
        client_id="device",
        filters=[],
        on_message=take,
        on_connect=lambda: None,
        max_payload_bytes=LIMIT,
    )


@pytest.mark.parametrize(("qos", "is_taken"), [(0, True), (1, True), (2, False)])
def test_a_message_at_qos_2_ends_the_connection_and_is_not_kept(
    qos: int, is_taken: bool, heard: list[int]
) -> None:
    arrived, broker = threading.Event(), HostileBroker(1000, qos=qos)
    broker.start()
    link = link_to(broker, heard, arrived)
    link.start()
    if is_taken:
        assert arrived.wait(10)
    else:
        assert broker.ended.wait(10)
    link.close()
    broker.close()

    assert bool(heard) == is_taken
    assert not link._client._in_messages


@pytest.fixture(params=[LIMIT, 200 << 20])
def broker(request: pytest.FixtureRequest) -> Iterator[HostileBroker]:
    broker = HostileBroker(request.param)
    broker.start()
    yield broker
    broker.close()


def test_a_packet_beyond_the_limit_ends_the_connection_before_it_is_read(
    broker: HostileBroker, heard: list[int]
) -> None:
    arrived = threading.Event()
    link = link_to(broker, heard, arrived)
    link.start()
    if broker.payload_bytes <= LIMIT:
        assert arrived.wait(10)
        assert heard == [broker.payload_bytes]
    else:
        assert broker.ended.wait(10)
        # What the kernels of both ends hold between them.
        assert broker.sent[0] < 32 << 20
        assert heard == []
    link.close()
