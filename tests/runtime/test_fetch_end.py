"""Who asks a download to end does not wait for a server, whatever that one does or does not do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import StorageError
from edgekit_runtime.fetch import Fetcher, Interrupted
from edgekit_runtime.fetch.watch import LOOK_S
from tests.faults import Conditions, LinkProxy
from tests.runtime.authority import Authority
from tests.runtime.fetching import get, make, tls_of, wanted
from tests.runtime.file_server import (
    DATA,
    Behaviour,
    FileServer,
    Handler,
    drips,
    drips_heads,
    silent,
)

# Nothing that a test waits for; a download that heeds nothing but this is found by it.
NEVER_S = 600.0
PATIENCE_S = 30.0


def outcome(fetcher: Fetcher, begun: threading.Event, **options: Any) -> BaseException | None:
    """What a download ends with that is asked to end when it has begun."""
    ask = threading.Event()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            get(fetcher, limit_s=NEVER_S, wait=ask.wait, **options)
        except BaseException as e:  # noqa: BLE001 - looked at by the test
            caught.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait(PATIENCE_S)
    # It has begun; two looks on it waits for the other end.
    ask.wait(2 * LOOK_S)
    ask.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it goes on waiting"
    return caught[0] if caught else None


@contextmanager
def takes_no_connection() -> Iterator[str]:
    """A server whose queue is full: whoever connects gets no answer at all."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/"


def test_while_it_connects(tmp_path: Path) -> None:
    begun = threading.Event()
    begun.set()
    with takes_no_connection() as url:
        fetcher = make(tmp_path, url, idle_timeout_s=NEVER_S)
        assert isinstance(outcome(fetcher, begun), Interrupted)


def test_while_tls_is_agreed_on(tmp_path: Path) -> None:
    begun = threading.Event()
    begun.set()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}/"
        fetcher = make(tmp_path, url, idle_timeout_s=NEVER_S)
        assert isinstance(outcome(fetcher, begun), Interrupted)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("slow", [silent, drips_heads, drips])
def test_while_a_server_is_silent_or_drips(tmp_path: Path, slow: Behaviour, tls: bool) -> None:
    authority = Authority(tmp_path)
    begun = threading.Event()

    def answer(request: Handler, offset: int) -> None:
        begun.set()
        slow(request, offset)

    with FileServer(answer, tls=tls_of(authority) if tls else None) as server:
        fetcher = make(tmp_path, server.url, idle_timeout_s=NEVER_S, ca=authority.certificate)
        assert isinstance(outcome(fetcher, begun), Interrupted)
        assert server.offsets == [0]


def test_while_a_body_stalls_and_what_came_of_it_stays(tmp_path: Path) -> None:
    begun = threading.Event()
    with FileServer() as server, LinkProxy(server.address) as link:
        link.set(Conditions(bytes_s=1_000_000))

        def progress(_: float) -> None:
            link.set(Conditions(stalled=True))
            begun.set()

        fetcher = make(tmp_path, link.url(), idle_timeout_s=NEVER_S)
        assert isinstance(outcome(fetcher, begun, progress=progress), Interrupted)

        held = fetcher.part(wanted()).read_bytes()
        assert held == DATA[: len(held)] != b""
        link.set(Conditions())
        assert get(fetcher) == DATA
        assert server.offsets == [0, len(held)]


def test_an_error_of_who_is_asked_whether_to_end_is_not_lost(tmp_path: Path) -> None:
    def wait(_: float) -> bool:
        raise StorageError("the folder of requests cannot be read")

    with FileServer(silent) as server, pytest.raises(StorageError, match="requests"):
        get(make(tmp_path, server.url, idle_timeout_s=NEVER_S), wait=wait)
