"""A real server on a thread of its own, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.serving.address import Address, Tcp
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import Measure
from edgekit_runtime.serving.plan import Place, Plan, Workers
from edgekit_runtime.serving.repository import Repository
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.server import Server, new_event_loop
from tests import bundles

HOST = "127.0.0.1"
# A machine that is busy with other things may take its time; only a failure waits for the end.
PATIENCE_S = 60.0


def planned(place: Place, cost_us: float) -> Measure:
    """Plans that do not depend on how busy the machine is."""

    def measure(_session: Session, _sample: Tensors, *, may_batch: bool, workers: Workers) -> Plan:
        sizes = (1, 8) if may_batch else (1,)
        costs = tuple(cost_us * (1 + size / 8) for size in sizes)
        where = workers if workers != "auto" else place
        return Plan(place=where, max_batch=sizes[-1], sizes=sizes, costs_us=costs)

    return measure


inline = planned("loop", 10)
worker = planned("thread", 1000)


def load(models: Models, folder: Path, **options: Any) -> Served:
    """Write a bundle and serve it."""
    served = models.load(bundles.unpacked(folder, **options), verified_by="a key")
    models.activate(served)
    return served


@contextmanager
def serving(
    models: Models,
    *,
    listen: Sequence[Address] = (Tcp(HOST, 0),),
    limits: Limits | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    insecure: bool = False,
    repository: Repository | None = None,
    bell: Path | None = None,
    **options: Any,
) -> Iterator[Server]:
    """Run a server until the block ends; then nothing of it may be left."""
    loop = loop or new_event_loop()
    server = Server(
        models,
        listen=listen,
        limits=limits,
        insecure=insecure,
        repository=repository,
        bell=bell,
        **options,
    )
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE_S)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(timeout_s=2), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        models.close()


def until(happened: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {PATIENCE_S:g} seconds"
        time.sleep(0.001)


def port(server: Server) -> int:
    address = server.addresses[0]
    assert isinstance(address, Tcp)
    return address.port


class Answer:
    """One answer, taken apart."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body[: int(length)] if length else self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])

    @property
    def binary(self) -> bytes:
        return self.body[int(self.headers["inference-header-content-length"]) :]


class Listens(Protocol):
    """A server, in this process or in another."""

    @property
    def addresses(self) -> list[Address]: ...


class Wire:
    """A client that sends exactly the bytes it is told to."""

    def __init__(self, server: Listens, *, tls: ssl.SSLContext | None = None) -> None:
        address = server.addresses[0]
        if isinstance(address, Tcp):
            self.socket = socket.create_connection((HOST, address.port), timeout=PATIENCE_S)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            self.socket.connect(str(address.path))
        self._received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        self._received = rest
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return Answer(int(status.split()[1]), headers, body)

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer()

    def is_closed(self) -> bool:
        """Whether the server sends no more, having sent nothing unexpected."""
        try:
            return self._received == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        chunk = self.socket.recv(1 << 16)
        if not chunk:
            raise ConnectionError(f"closed after {self._received!r}")
        self._received += chunk


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *headers, method="POST") + body


def infer(
    array: NDArray[np.float32],
    *,
    model: str = "tiny",
    parameters: dict[str, Any] | None = None,
    tensor: dict[str, Any] | None = None,
    headers: Sequence[str] = (),
    **fields: Any,
) -> bytes:
    """A binary inference request for input `x`; `tensor` and `fields` change its JSON."""
    data = array.tobytes()
    described = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(array.shape),
        "parameters": {"binary_data_size": len(data)},
        **(tensor or {}),
    }
    body = {
        "inputs": [described],
        "parameters": {"binary_data_output": True, **(parameters or {})},
        **fields,
    }
    raw = json.dumps(body).encode()
    length = f"Inference-Header-Content-Length: {len(raw)}"
    return post(f"/v2/models/{model}/infer", raw + data, length, *headers)


def output(answer: Answer, columns: int = bundles.CLASSES) -> NDArray[np.float32]:
    """The binary output of an answer to `infer`."""
    assert answer.status == 200, answer.body
    return np.frombuffer(answer.binary, dtype=np.float32).reshape(-1, columns)
