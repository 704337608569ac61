"""Meter: a TCP relay between a device and its broker that counts MQTT bytes by what they are for.

It knows packets and topics, and how many TCP segments the device's connections took (TCP_INFO of
Linux), so that what the link below MQTT costs can be stated beside it.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from contextlib import suppress

_NAMES = {
    1: "CONNECT", 2: "CONNACK", 3: "PUBLISH", 4: "PUBACK", 8: "SUBSCRIBE", 9: "SUBACK",
    12: "PINGREQ", 13: "PINGRESP", 14: "DISCONNECT",
}  # fmt: skip
# Offsets of tcpi_segs_out and tcpi_segs_in in struct tcp_info, linux/tcp.h since 4.2.
_SEGMENTS = struct.Struct("=136xII")


class Meter:
    """Relays to a broker on this machine; `bytes` by direction and packet grows as it runs."""

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()
        self._packets: Counter[str] = Counter()
        self._ended_segments = 0
        self._devices: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Bytes and packets so far, by `up` or `down`, packet, and leaf of the topic."""
        with self._lock:
            return Counter(self._bytes), Counter(self._packets)

    def segments(self) -> int:
        """TCP segments of the device's connections so far, both ways."""
        with self._lock:
            return self._ended_segments + sum(map(_segments, self._devices))

    def close(self) -> None:
        self._server.close()
        with self._lock:
            for device in self._devices:
                with suppress(OSError):
                    device.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._server.accept()
            except OSError:
                return  # closed
            broker = socket.create_connection(("127.0.0.1", self._broker_port))
            for end in (device, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._devices.append(device)
            for source, sink, way in ((device, broker, "up"), (broker, device, "down")):
                threading.Thread(target=self._relay, args=(source, sink, way), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        buffer = b""
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                buffer = self._count(buffer + data, way)
        if way == "up":
            with self._lock:
                self._devices.remove(source)
                self._ended_segments += _segments(source)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, buffer: bytes, way: str) -> bytes:
        """Count the whole packets in a buffer; returns what is left of it."""
        while (size := _packet_bytes(buffer)) is not None and len(buffer) >= size:
            name = f"{way} {_name(buffer[:size])}"
            with self._lock:
                self._bytes[name] += size
                self._packets[name] += 1
            buffer = buffer[size:]
        return buffer


def _packet_bytes(buffer: bytes) -> int | None:
    """Length of the packet that a buffer begins with (MQTT 3.1.1, 2.2.3); `None`: not known yet."""
    length = 0
    for position, byte in enumerate(buffer[1:5]):
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return 2 + position + length
    return None


def _name(packet: bytes) -> str:
    kind = packet[0] >> 4
    if kind != 3:
        return _NAMES.get(kind, str(kind))
    at = next(index for index in range(1, 5) if packet[index] < 0x80) + 1
    topic = packet[at + 2 : at + 2 + int.from_bytes(packet[at : at + 2], "big")]
    return f"PUBLISH {'/'.join(topic.decode().split('/')[4:])}"


def _segments(connection: socket.socket) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS.size)
    except OSError:
        return 0
    return sum(_SEGMENTS.unpack(info))
