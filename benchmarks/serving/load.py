"""A load generator in a process of its own: keeps a number of binary requests in flight.

It speaks raw HTTP/1.1 and checks status and length of each answer, so that it costs little beside
the server that is measured. `python -m benchmarks.serving.load --help`.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time
from collections.abc import Sequence

END_OF_HEAD = b"\r\n\r\n"


def request(model: str, shape: Sequence[int]) -> bytes:
    """A binary v2 inference request for input `x`, asking for all outputs in binary."""
    size = 4
    for axis in shape:
        size *= axis
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(shape),
        "parameters": {"binary_data_size": size},
    }
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(body)}\r\n"
        f"Content-Length: {len(body) + size}\r\n\r\n"
    )
    values = bytes(range(64)) * (size // 64 + 1)
    return head.encode() + body + values[:size]


class Client:
    """One connection with one request in flight."""

    def __init__(self, address: tuple[str, int], message: bytes) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.message = message
        self.received = b""
        self.sent_at = 0.0

    def send(self) -> None:
        self.received = b""
        self.sent_at = time.perf_counter()
        self.sock.sendall(self.message)

    def receive(self) -> bool:
        """Read what there is; whether the answer is whole."""
        chunk = self.sock.recv(1 << 20)
        self.received += chunk
        end = self.received.find(END_OF_HEAD)
        if not chunk or not self.received.startswith(b"HTTP/1.1 200"[: len(self.received)]):
            raise SystemExit(f"bad answer: {self.received[:300]!r}")
        if end < 0:
            return False
        head = self.received[:end].lower()
        length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        return len(self.received) >= end + len(END_OF_HEAD) + length


def drive(
    address: tuple[str, int], message: bytes, *, connections: int, requests: int
) -> list[float]:
    """Send `requests` over `connections`; the latency of each in seconds."""
    clients = [Client(address, message) for _ in range(connections)]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.sock, selectors.EVENT_READ, client)
        client.send()
    latencies: list[float] = []
    sent = connections
    while len(latencies) < requests:
        for key, _ in selector.select():
            client = key.data
            if client.receive():
                latencies.append(time.perf_counter() - client.sent_at)
                if sent < requests:
                    sent += 1
                    client.send()
    for client in clients:
        client.sock.close()
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    message = request(options.model, options.shape)
    latencies = drive(
        ("127.0.0.1", options.port),
        message,
        connections=options.connections,
        requests=options.requests,
    )
    print(json.dumps(sorted(latencies)))


if __name__ == "__main__":
    main()
