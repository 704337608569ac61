"""A real bell on a thread of its own, and a program that sends exactly what it is told to."""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgekit_runtime.doorbell import ANSWER, MAP, REFUSED, RING
from edgekit_runtime.serving.bell import Bell, BellLimits
from edgekit_runtime.serving.infer import Inference
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import new_event_loop

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Hung(NamedTuple):
    """A bell that hangs."""

    bell: Bell
    path: Path
    loop: asyncio.AbstractEventLoop


@contextmanager
def ringing(models: Models, path: Path, *, limits: BellLimits | None = None) -> Iterator[Hung]:
    """Hang up a bell until the block ends; then nothing of it may be left."""
    loop = new_event_loop()
    inference = Inference(models, loop=loop, alone=lambda: False)
    bell = Bell(path, models=models, inference=inference, others=lambda: 0, limits=limits)

    async def start() -> None:
        models.attach(loop)
        bell.start()

    async def close() -> None:
        bell.close()
        inference.close()
        models.attach(None)

    thread = threading.Thread(target=loop.run_forever, name="bell")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield Hung(bell, path, loop)
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        models.close()


def memory_file(size_bytes: int, *, seals: int = SEALS) -> int:
    """A memory file of this size, sealed."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Packets:
    """A program's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(str(path))

    def __enter__(self) -> Packets:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def hello(self, **fields: Any) -> dict[str, Any]:
        """Say hello; the layout, or the refusal."""
        self.socket.send(json.dumps({"doorbell": 1, "model": "tiny", **fields}).encode())
        return self.said()

    def share(self, *descriptors: int, packet: bytes = MAP) -> bytes:
        """Send memory files, and close them; what the server says then."""
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self.socket.sendmsg([packet], passed if descriptors else [])
        finally:
            for fd in descriptors:
                os.close(fd)
        return self.socket.recv(1 << 16)

    def open(self) -> None:
        """Say hello and share memory as it should be."""
        layout = self.hello()
        assert self.share(memory_file(layout["slot_bytes"])) == b"ready"

    def ring(self, slot: int = 0, priority: int = 0, timeout_us: int = 0) -> bytes:
        """Ring; the answer's packet."""
        self.socket.send(RING.pack(slot, priority, timeout_us))
        return self.socket.recv(1 << 16)

    def flood(self, packet: bytes) -> None:
        """Send a packet again and again, and read nothing."""
        for _ in range(100_000):
            self.socket.send(packet)

    def said(self) -> dict[str, Any]:
        """The JSON of the next packet, whether it is refused or not."""
        return refused_or_not(self.socket.recv(1 << 16))

    def is_closed(self) -> bool:
        """Whether the server sends no more."""
        try:
            return self.socket.recv(1 << 16) == b""
        except ConnectionResetError:
            return True


def refused_or_not(packet: bytes) -> dict[str, Any]:
    """The JSON of a packet."""
    is_refused = packet[2:4] == ANSWER.pack(0, REFUSED)[2:4]
    found: dict[str, Any] = json.loads(packet[ANSWER.size :] if is_refused else packet)
    return found
