"""Ten million requests, accelerated: does the server grow?

    python -m benchmarks.serving.soak --requests 10000000 --json out.json

Requests for the small MLP are pipelined, so that neither side waits for the other. Each answer must
be an answer of 200; what the server holds is taken after a tenth of them and at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving import holdings, subject
from benchmarks.serving.subject import Server
from edgekit_runtime.capacity.wire import END_OF_HEAD, connect

DEPTH = 64
CONNECTIONS = 2
READINGS = 10


class Pipe:
    """One connection with many requests in flight."""

    def __init__(self, address: str, message: bytes) -> None:
        self._sock = connect(address)
        self._message = message
        self._sock.sendall(message)
        first = self._sock.recv(1 << 16)
        head = first.partition(END_OF_HEAD)[0]
        length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
        # Equal requests have answers of equal length, of which only the data differ.
        self._size = len(head) + len(END_OF_HEAD) + length
        self._status = head[:12]
        while len(first) < self._size:
            first += self._sock.recv(1 << 16)

    def send(self, count: int) -> None:
        self._sock.sendall(self._message * count)

    def receive(self, count: int) -> None:
        """Take so many answers; each must begin as the first one did."""
        wanted = count * self._size
        received = bytearray()
        while len(received) < wanted:
            chunk = self._sock.recv(1 << 20)
            if not chunk:
                raise SystemExit("the server closed the connection")
            received += chunk
        begins = (received[at : at + len(self._status)] for at in range(0, wanted, self._size))
        if len(received) != wanted or any(begin != self._status for begin in begins):
            raise SystemExit(f"an answer is not {self._status!r}: {bytes(received[:300])!r}")

    def close(self) -> None:
        self._sock.close()


def pump(address: str, message: bytes, *, requests: int) -> None:
    """Send so many requests and take their answers, two connections in turn."""
    pipes = [Pipe(address, message) for _ in range(CONNECTIONS)]
    rounds = max(1, requests // (DEPTH * CONNECTIONS))
    for pipe in pipes:
        pipe.send(DEPTH)
    for number in range(rounds):
        for pipe in pipes:
            pipe.receive(DEPTH)
            if number < rounds - 1:
                pipe.send(DEPTH)
    for pipe in pipes:
        pipe.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    message = subject.request("mlp")
    readings = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folders = subject.write(Path(name), ["mlp"])
        with Server(folders, workers=given.workers) as server:
            for part in range(READINGS):
                pump(server.address, message, requests=given.requests // READINGS)
                readings.append(holdings.settled(server.pid))
                print(f"{(part + 1) / READINGS:4.0%}  {readings[-1]}", flush=True)
            cpu_us = server.cpu_s() / given.requests * 1e6
    found: dict[str, Any] = {
        "requests": given.requests,
        "seconds": time.monotonic() - began,
        "server_cpu_us_a_request": cpu_us,
        "first": readings[0],
        "last": readings[-1],
        "growth": holdings.growth(readings[0], readings[-1]),
        "readings": readings,
    }
    print(f"growth from the first tenth to the end: {found['growth']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
