"""Wire: inference requests as bytes, sent over sockets that never block, and answers counted.

Only what a load generator needs of HTTP/1.1: the status, and where an answer ends.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgekit.errors import ServingError
from edgekit_runtime.engines.tensors import DATATYPES
from edgekit_runtime.serving import data

END_OF_HEAD = b"\r\n\r\n"
_SCRATCH_BYTES = 1 << 18
_CONNECT_TIMEOUT_S = 10.0


def request(
    model: str,
    inputs: Mapping[str, NDArray[Any]],
    *,
    version: str | None = None,
    timeout_us: int | None = None,
) -> bytes:
    """A binary v2 request that asks for all outputs in binary.

    Args:
        model: its name.
        inputs: as the model takes them.
        version: of the model; its highest by default.
        timeout_us: the deadline that the server is told; none by default.
    """
    chunks = [bytes(data.to_binary(array)) for array in inputs.values()]
    tensors = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": array.shape,
            "parameters": {"binary_data_size": len(chunk)},
        }
        for (name, array), chunk in zip(inputs.items(), chunks, strict=True)
    ]
    parameters: dict[str, Any] = {"binary_data_output": True}
    if timeout_us is not None:
        parameters["timeout"] = timeout_us
    body = msgspec.json.encode({"inputs": tensors, "parameters": parameters})
    length = len(body) + sum(map(len, chunks))
    path = f"/v2/models/{model}" + ("" if version is None else f"/versions/{version}")
    head = (
        f"POST {path}/infer HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(body)}\r\nContent-Length: {length}\r\n\r\n"
    )
    return b"".join((head.encode(), body, *chunks))


def connect(address: str) -> socket.socket:
    """A connection to `http://HOST:PORT` or `unix:PATH`, raising `ServingError`."""
    kind, _, rest = address.partition(":")
    try:
        if kind == "unix":
            return _connect_unix(rest)
        if kind != "http":
            raise ValueError("only http: and unix: are spoken")
        host, _, port = rest.removeprefix("//").rstrip("/").rpartition(":")
        where = (host.strip("[]"), int(port))
        sock = socket.create_connection(where, timeout=_CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as e:
        raise ServingError(
            f"cannot connect to {address}: {e}",
            hint="name a running server as http://HOST:PORT or unix:PATH",
        ) from e
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(_CONNECT_TIMEOUT_S)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class Connection:
    """One connection with one request in flight, or none.

    Attributes:
        due_ns: when the request in flight was due, by the caller's clock.
        status: of the last whole answer; 0 where the server closed instead.
    """

    __slots__ = ("_address", "_begun", "_left", "_scratch", "_unsent", "due_ns", "sock", "status")

    def __init__(self, address: str) -> None:
        self._address = address
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._begun = b""
        self._left = 0
        self._unsent = memoryview(b"")
        self.due_ns = 0
        self.status = 0
        self.sock = _unblocked(address)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: bytes) -> bool:
        """Send a request; whether all of it could be sent."""
        try:
            count = self.sock.send(message)
        except (BlockingIOError, ConnectionError):
            # A connection that is gone says so again when its answer is read.
            count = 0
        if count == len(message):
            return True
        self._unsent = memoryview(message)[count:]
        return False

    def send_rest(self) -> bool:
        """Go on sending; whether all is sent, or never can be."""
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return not self._unsent

    def receive(self) -> bool:
        """Read what there is; whether the answer is whole, or the connection gone."""
        try:
            count = self.sock.recv_into(self._scratch)
        except BlockingIOError:
            return False
        except ConnectionError:
            count = 0
        if count == 0:
            self.status = 0
            return True
        if self._left:
            self._left -= count
            return self._left == 0
        start = self._begun + self._scratch[:count] if self._begun else self._scratch
        total = len(self._begun) + count
        end = start.find(END_OF_HEAD, 0, total)
        if end < 0:
            self._begun = bytes(start[:total])
            return False
        self._begun = b""
        head = bytes(start[:end]).lower()
        self.status = int(head[9:12])
        _, named, rest = head.partition(b"\r\ncontent-length:")
        length = int(rest.split(b"\r\n", 1)[0]) if named else 0
        self._left = end + len(END_OF_HEAD) + length - total
        return self._left == 0

    def reopen(self) -> None:
        """Connect again after the server closed."""
        self.sock.close()
        self._begun = b""
        self._left = 0
        self.sock = _unblocked(self._address)

    def close(self) -> None:
        self.sock.close()


def _unblocked(address: str) -> socket.socket:
    sock = connect(address)
    sock.setblocking(False)
    return sock
