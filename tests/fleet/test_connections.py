"""Connections: strangers who say nothing, or take nothing, keep nobody out."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edgekit.fleet import connections
from edgekit.fleet.connections import Gate, Patience, Places, Wait, ends_at, places
from edgekit_converters.demo.processes import free_port
from tests.fleet.processes import Process, edgekit, until

HOST = "127.0.0.1"
HALF_HEAD = b"GET /ok HTTP/1.1\r\nHost:"
HALF_BODY = b"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
LARGE_BYTES = 64 << 20

# The rules.


@given(st.integers(1, 1 << 20))
def test_the_places_and_what_else_is_opened_fit_the_descriptors(descriptors: int) -> None:
    found = places(descriptors)

    assert found.devices >= 1
    assert found.operators >= 1
    if descriptors >= 1024:
        assert 2 * sum(found) + 512 <= descriptors
        assert found.devices >= 128
    assert found <= Places(connections.DEVICES, connections.OPERATORS)


@given(st.floats(0, 1e9), st.sampled_from(["head", "body", "answer"]), st.integers(0, 1 << 40))
def test_who_brings_more_has_longer(since_s: float, turn: Any, size: int) -> None:
    patience = Patience()
    first = ends_at(Wait(since_s, turn), patience)

    assert first > since_s
    assert ends_at(Wait(since_s, turn, size), patience) >= first


# One socket.


class Server:
    """A uvicorn with one gate, and an application that can be held up."""

    def __init__(self, *, most: int, patience: Patience | None = None) -> None:
        self.go_on = threading.Event()
        self.held = 0
        self.gate = Gate(most=most, name="test", patience=patience)
        self._bound = socket.create_server((HOST, 0))
        self.port = self._bound.getsockname()[1]
        app = Starlette(
            routes=[
                Route("/ok", self._ok),
                Route("/size", self._size, methods=["POST"]),
                Route("/held", self._held),
                Route("/large", self._large),
            ]
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=connections.protocol(lambda _: self.gate),
                ws="none",
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._bound]}, daemon=True
        )
        self._thread.start()
        until(lambda: self._server.started)

    def client(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=20)

    def asks(self, path: str = "/ok") -> int:
        """The status that a new client gets."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def is_answered(self) -> bool:
        """Whether a new client is let in."""
        try:
            return self.asks() == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        self.go_on.set()
        self._server.should_exit = True
        self._thread.join(20)
        self._bound.close()

    async def _ok(self, _: Request) -> Response:
        return Response("ok")

    async def _size(self, request: Request) -> Response:
        return Response(str(len(await request.body())))

    async def _held(self, _: Request) -> Response:
        self.held += 1
        await run_in_threadpool(self.go_on.wait)
        return Response("held")

    async def _large(self, _: Request) -> Response:
        return StreamingResponse(bytes(1 << 20) for _ in range(LARGE_BYTES >> 20))


@contextmanager
def serving(*, most: int = 64, patience: Patience | None = None) -> Iterator[Server]:
    server = Server(most=most, patience=patience)
    try:
        yield server
    finally:
        server.close()


def is_ended(client: socket.socket) -> bool:
    """Whether the server ends a connection without a word."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", HALF_HEAD, HALF_BODY])
def test_who_sends_half_a_request_has_so_long(said: bytes) -> None:
    with serving(patience=Patience(ask_s=0.2)) as server, server.client() as client:
        client.sendall(said)

        assert is_ended(client)
        assert server.asks() == 200


def test_a_drop_now_and_then_is_not_enough() -> None:
    with serving(patience=Patience(ask_s=0.5, rate=1000)) as server, server.client() as client:
        client.sendall(b"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        with suppress(OSError):
            for _ in range(200):
                client.sendall(b"x")
                time.sleep(0.1)
            pytest.fail("the drops were taken without end")


def test_the_rest_of_a_body_that_was_answered_already_is_not_taken_without_end() -> None:
    patience = Patience(ask_s=0.5, rate=1)
    with serving(patience=patience) as server, server.client() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 404"
        with suppress(OSError):
            for _ in range(200):
                client.sendall(b"x" * 100)
                time.sleep(0.1)
            pytest.fail("the rest was taken without end")


def test_a_body_that_keeps_the_rate_has_the_time_it_needs() -> None:
    pieces, size = 12, 1000
    with serving(patience=Patience(ask_s=1.0, rate=500)) as server, server.client() as client:
        head = f"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: {pieces * size}\r\n\r\n"
        client.sendall(head.encode())
        for _ in range(pieces):
            client.sendall(bytes(size))
            time.sleep(0.25)

        assert client.recv(12) == b"HTTP/1.1 200"


def test_who_waits_for_us_has_all_the_time_that_we_take() -> None:
    with serving(patience=Patience(ask_s=1.0, take_s=0.1)) as server, server.client() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(2.5)
        server.go_on.set()

        assert client.recv(12) == b"HTTP/1.1 200"


def test_who_takes_nothing_of_an_answer_is_let_go() -> None:
    with serving(patience=Patience(take_s=0.5)) as server, server.client() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(3)
        taken = 0
        with suppress(ConnectionResetError):
            while piece := client.recv(1 << 20):
                taken += len(piece)

        assert taken < LARGE_BYTES


def test_who_waits_longest_makes_way() -> None:
    with serving(most=3) as server, ExitStack() as held:
        clients = []
        for said in (HALF_BODY, b"", HALF_HEAD):
            clients.append(held.enter_context(server.client()))
            clients[-1].sendall(said)
            time.sleep(0.1)

        assert server.asks() == 200
        assert is_ended(clients[0])
        clients[2].sendall(b" a\r\n\r\n")
        assert clients[2].recv(12) == b"HTTP/1.1 200"


def test_nobody_makes_way_who_waits_for_us() -> None:
    with serving(most=2) as server, ExitStack() as held:
        clients = [held.enter_context(server.client()) for _ in range(2)]
        for client in clients:
            client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: server.held == 2)

        with server.client() as late:
            assert is_ended(late)
        server.go_on.set()
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * 2


def test_who_takes_nothing_of_an_answer_makes_way_after_a_while() -> None:
    with serving(most=1, patience=Patience(yield_s=1.0)) as server, server.client() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"

        with server.client() as early:
            assert is_ended(early)
        until(server.is_answered)


# The coordinator.


@pytest.mark.system
def test_half_open_requests_of_strangers_stop_neither_devices_nor_operators(
    tmp_path: Path,
) -> None:
    """The review's attack: as many half-sent enrolments as there are descriptors, and more."""
    mqtt, count, limit = free_port(), 1200, 1024
    with descriptors(count + 300):
        made = edgekit(
            *("fleet", "init", str(tmp_path / "fleet"), "--site", "berlin"),
            *("--broker", f"mqtts://{HOST}:{mqtt}", "--repository", "http://127.0.0.1:1/r/"),
            *("--coordinator", f"http://{HOST}:1"),
        )
        assert made.returncode == 0, made.stderr
        broker = Process(
            *("broker", "--fleet", str(tmp_path / "fleet"), "--listen", f"{HOST}:{mqtt}"),
            *("--state", str(tmp_path / "broker")),
            log=tmp_path / "broker.log",
        )
        try:
            with coordinator(tmp_path, limit=limit) as (process, api, devices):
                assert status(api, "/api/devices") == 200
                with ExitStack() as held:
                    for _ in range(count):
                        held.enter_context(half_open(devices))
                    assert status(api, "/api/devices") == 200
                    assert status(devices, "/repository/metadata/timestamp.json") == 200
                    assert len(os.listdir(f"/proc/{process.pid}/fd")) < limit // 2
                    assert status(api, "/api/devices") == 200
        finally:
            broker.stop()


@contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """Have so many descriptors in this process, or skip."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, `ulimit -Hn` allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def coordinator(folder: Path, *, limit: int) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A coordinator that can have no more than so many descriptors; its two ports."""
    command = [sys.executable, "-m", "edgekit", "coordinator", "--fleet", str(folder / "fleet")]
    command += ["--listen", f"{HOST}:0", "--devices", f"{HOST}:0", "--json"]
    command += ["--state", str(folder / "coordinator")]
    words = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            api, devices = (int(ready[name].rsplit(":", 1)[1]) for name in ("url", "devices"))
            yield process, api, devices
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def half_open(port: int) -> socket.socket:
    client = socket.create_connection((HOST, port), timeout=20)
    client.sendall(b"POST /api/enroll HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
    return client


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
