"""The link-fault proxy does what it says, with a real echo server behind it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import GOOD, Conditions, How, LinkProxy


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65_536):
                self.request.sendall(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    with _Server(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()


@pytest.fixture
def proxy(upstream: tuple[str, int]) -> Iterator[LinkProxy]:
    with LinkProxy(upstream) as made:
        yield made


def connect(proxy: LinkProxy, *, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def receive(end: socket.socket, size_bytes: int) -> bytes:
    got = bytearray()
    while len(got) < size_bytes and (data := end.recv(size_bytes - len(got))):
        got += data
    return bytes(got)


def is_silent(end: socket.socket, *, for_s: float = 0.1) -> bool:
    end.settimeout(for_s)
    try:
        return end.recv(1) is None
    except TimeoutError:
        return True


@settings(max_examples=15, deadline=None)
@given(data=st.binary(min_size=1, max_size=200_000), rate=st.sampled_from([None, 3e6, 2e7]))
def test_a_good_link_changes_no_byte(
    upstream: tuple[str, int], data: bytes, rate: float | None
) -> None:
    with LinkProxy(upstream, conditions=Conditions(bytes_s=rate)) as proxy, connect(proxy) as end:
        sending = threading.Thread(target=end.sendall, args=(data,))
        sending.start()
        assert receive(end, len(data)) == data
        sending.join()
        assert (proxy.counts().up_bytes, proxy.counts().down_bytes) == (len(data), len(data))


def test_an_end_of_the_stream_reaches_the_other_side(proxy: LinkProxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"last words")
        end.shutdown(socket.SHUT_WR)
        assert receive(end, 100) == b"last words"
        assert end.recv(1) == b""


def test_a_cut_with_reset_is_an_error_at_the_client(proxy: LinkProxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"x")
        assert receive(end, 1) == b"x"
        assert proxy.cut("rst") == 1
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_a_cut_with_fin_is_an_end_at_the_client(proxy: LinkProxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"x")
        assert receive(end, 1) == b"x"
        assert proxy.cut("fin") == 1
        assert end.recv(1) == b""
    assert proxy.open_connections() == 0


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_link_is_cut_after_exactly_so_many_bytes(proxy: LinkProxy, how: How) -> None:
    proxy.cut_at([1_000, 1_500], how=how)
    for expected in (1_000, 500):
        with connect(proxy) as end, contextlib.suppress(ConnectionResetError):
            end.sendall(b"x" * 5_000)
            assert len(receive(end, 5_000)) == expected
    assert proxy.counts().down_bytes == 1_500
    assert proxy.counts().cuts == 2


def test_a_stalled_link_loses_nothing(proxy: LinkProxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"a")
        assert receive(end, 1) == b"a"
        proxy.set(Conditions(stalled=True))
        end.sendall(b"later")
        assert is_silent(end)
        proxy.set(GOOD)
        end.settimeout(5)
        assert receive(end, 5) == b"later"


def test_a_half_open_link_swallows_and_never_answers(proxy: LinkProxy) -> None:
    with connect(proxy) as before:
        before.sendall(b"a")
        assert receive(before, 1) == b"a"
        proxy.set(Conditions(half_open=True))
        with connect(proxy) as after:
            before.sendall(b"b")
            after.sendall(b"c")
            assert is_silent(before)
            assert is_silent(after)
        proxy.set(GOOD)
        before.sendall(b"d")
        assert is_silent(before)
        with connect(proxy) as anew:
            anew.sendall(b"e")
            assert receive(anew, 1) == b"e"


def test_a_link_that_refuses_resets_new_connections_only(proxy: LinkProxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"a")
        assert receive(old, 1) == b"a"
        proxy.set(Conditions(refuses=True))
        with pytest.raises(ConnectionResetError), connect(proxy) as new:
            new.recv(1)
        old.sendall(b"b")
        assert receive(old, 1) == b"b"


def test_a_slow_link_lets_no_more_through_than_its_rate(proxy: LinkProxy) -> None:
    rate = 400_000
    proxy.set(Conditions(bytes_s=rate))
    begun = time.monotonic()
    with connect(proxy) as end:
        threading.Thread(target=end.sendall, args=(b"x" * 100_000,), daemon=True).start()
        receive(end, 100_000)
    passed_s = time.monotonic() - begun
    # Only the lower bound is the proxy's promise: the machine may be busy.
    assert passed_s >= 100_000 / rate * 0.9


def test_latency_delays_each_byte_and_keeps_the_order(proxy: LinkProxy) -> None:
    proxy.set(Conditions(latency_s=0.05))
    begun = time.monotonic()
    with connect(proxy) as end:
        for byte in b"abc":
            end.sendall(bytes([byte]))
        assert receive(end, 3) == b"abc"
    assert time.monotonic() - begun >= 0.1


def test_a_script_is_played_over_time(proxy: LinkProxy) -> None:
    with connect(proxy) as end:
        end.sendall(b"a")
        assert receive(end, 1) == b"a"
        proxy.follow([(0.0, Conditions(stalled=True)), (0.1, GOOD), (0.2, "fin")])
        end.sendall(b"b")
        assert receive(end, 1) == b"b"
        assert end.recv(1) == b""


def test_a_server_that_is_away_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = LinkProxy(("127.0.0.1", unused.getsockname()[1]))
        with away as proxy, pytest.raises(ConnectionResetError), connect(proxy) as end:
            end.recv(1)
