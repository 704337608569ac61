"""Ten thousand connections, silent ones, few descriptors: the server and its clients live on."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import tritonclient.grpc as triton

from edgekit_converters.demo.processes import free_port
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.listen import GRPC_CONNECTIONS, RESERVED_DESCRIPTORS
from tests import bundles
from tests.runtime.authority import Authority
from tests.system.daemons import wait_for

pytestmark = pytest.mark.system

HOST = "127.0.0.1"
ASK = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Process:
    """`edgekit run`, as another process sees it."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._folder = Path("/proc") / str(process.pid)
        self.port = urlsplit(address).port or 0

    @property
    def descriptors(self) -> int:
        return len(os.listdir(self._folder / "fd"))

    @property
    def memory_bytes(self) -> int:
        """Memory that is its own and present."""
        pages = (self._folder / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize()

    def answers(self, tls: ssl.SSLContext | None = None) -> bool:
        """Whether a new client is answered."""
        try:
            with client(self.port, tls) as end:
                return asks(end)
        except OSError:
            return False


@contextmanager
def running(folder: Path, *words: str, descriptors: int | None = None) -> Iterator[Process]:
    """Serve a bundle, with a limit of descriptors, until the block ends."""
    bundle = bundles.write(folder)
    command = [sys.executable, "-m", "edgekit", "run", "--json", "--insecure", str(bundle)]
    command += ["--listen", f"{HOST}:0", *words]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Process(process, json.loads(process.stdout.readline())["addresses"][0])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def client(port: int, tls: ssl.SSLContext | None = None) -> socket.socket:
    end = socket.create_connection((HOST, port), timeout=10)
    return end if tls is None else tls.wrap_socket(end, server_hostname="localhost")


def asks(end: socket.socket) -> bool:
    end.sendall(ASK)
    return end.recv(4096).startswith(b"HTTP/1.1 200")


@contextmanager
def silent(count: int, port: int, between: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Connections that say nothing; `between` is called now and then while they are opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"needs {count + 500} descriptors, `ulimit -Hn` allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as held:
            for number in range(count):
                held.enter_context(client(port))
                if number % 500 == 0:
                    between()
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_connections_cost_the_others_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        before, memory = server.descriptors, server.memory_bytes
        with client(server.port) as regular:
            assert asks(regular)

            def is_answered() -> None:
                assert asks(regular)

            with silent(10_000, server.port, is_answered):
                assert asks(regular)
                wait_for(server.answers, "a place for a new client")
                assert server.descriptors <= Limits().connections + RESERVED_DESCRIPTORS
                assert server.memory_bytes - memory < 40 << 20
            assert asks(regular)
        wait_for(lambda: server.descriptors <= before, "the descriptors of those that left")


def test_with_few_descriptors_silent_tls_clients_make_way(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.tls()
    words = ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    known = authority.client()
    with running(tmp_path, *words, descriptors=96) as server, client(server.port, known) as regular:
        assert asks(regular)
        with silent(500, server.port):
            assert asks(regular)
            wait_for(lambda: server.answers(known), "a place for a new client")
        wait_for(lambda: server.answers(known), "the places of those that left")


def test_silent_grpc_connections_are_bounded(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, "--grpc", f"{HOST}:{port}") as server:
        before = server.descriptors
        with triton.InferenceServerClient(f"{HOST}:{port}") as regular:
            assert regular.is_server_live()
            with silent(1000, port):
                assert server.descriptors <= before + 2 * GRPC_CONNECTIONS
                assert server.answers()
                assert regular.is_server_live()
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
