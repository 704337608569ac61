"""HTTP as clients send it: whole, in pieces, ahead of time, wrongly, slowly, or not to the end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ServingError, UsageError
from edgekit_runtime.serving import http
from edgekit_runtime.serving.address import Tcp, Unix, may_speak, parse
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.http import HttpError
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.served import (
    Wire,
    get,
    infer,
    inline,
    load,
    output,
    port,
    post,
    serving,
    worker,
)

LIMITS = Limits(head_bytes=2048, body_bytes=4 << 20)
SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = Models(measure=inline)
    load(models, tmp_path_factory.mktemp("bundle"))
    with serving(models, limits=LIMITS) as running:
        yield running


@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
@settings(max_examples=30, deadline=None)
def test_requests_cut_anywhere_are_answered_alike(server: Server, cuts: list[int]) -> None:
    stream = get("/v2/health/live") + infer(SAMPLES[:2]) + infer(SAMPLES[2:3])
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})

    with Wire(server) as wire:
        for start, end in pairwise(edges):
            wire.send(stream[start:end])

        assert wire.answer().status == 200
        np.testing.assert_allclose(output(wire.answer()), EXPECTED[:2], atol=1e-6)
        np.testing.assert_array_equal(output(wire.answer()), EXPECTED[2:3])


def test_a_body_larger_than_the_buffer_is_received_in_place(server: Server) -> None:
    many = bundles.samples(2000)

    with Wire(server) as wire:
        for _ in range(2):
            got = output(wire.ask(infer(many)))

    np.testing.assert_allclose(got, bundles.directly(bundles.mlp(), many), atol=1e-5)


def test_requests_sent_ahead_are_answered_in_their_order(server: Server) -> None:
    count = 60
    with Wire(server) as wire:
        sender = threading.Thread(
            target=wire.send, args=(b"".join(infer(SAMPLES[i % 4][None]) for i in range(count)),)
        )
        sender.start()
        for i in range(count):
            np.testing.assert_allclose(output(wire.answer()), EXPECTED[i % 4][None], atol=1e-6)
        sender.join()


def test_a_client_that_stops_sending_still_gets_its_answers(server: Server) -> None:
    with Wire(server) as wire:
        wire.send(infer(SAMPLES[:1]) + infer(SAMPLES[1:2]))
        wire.socket.shutdown(socket.SHUT_WR)

        np.testing.assert_array_equal(output(wire.answer()), EXPECTED[:1])
        np.testing.assert_array_equal(output(wire.answer()), EXPECTED[1:2])
        assert wire.is_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\nX: 1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", 400),
        (get("/v2", "Host: localhost"), 400),
        (get("/v2", "Content-Length: 2", "Content-Length: 2"), 400),
        (get("/v2", "Content-Length: -2"), 400),
        (get("/v2", "Content-Length: +2"), 400),
        (get("/v2", "Content-Length: \xb2"), 400),
        (get("/v2", f"Content-Length: {10**40}"), 400),
        (get("/v2", f"Content-Length: {5 << 20}", method="POST"), 413),
        (get("/v2", "Inference-Header-Content-Length: 2"), 400),
        (get("/v2", "Transfer-Encoding: chunked"), 411),
        (get("/v2", "Transfer-Encoding: gzip"), 501),
        (get("/v2", "Expect: 200-maybe"), 417),
        (get("/v2", "Content-Encoding: gzip", "Content-Length: 3") + b"abc", 415),
        (get("/v2", "Origin: https://example.com"), 403),
        (get("/v2", "Origin: null"), 403),
        (b"GET /v2 HTTP/1.1\r\nHost: evil.example:8500\r\n\r\n", 403),
        (get("/v2", "X: " + "y" * 3000), 431),
    ],
)
def test_a_request_that_cannot_be_read_on_is_answered_and_closed(
    server: Server, request_bytes: bytes, status: int
) -> None:
    with Wire(server) as wire:
        answer = wire.ask(request_bytes)

        assert answer.status == status
        assert answer.error
        assert answer.headers["connection"] == "close"
        assert wire.is_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/nothing"), 404),
        (get("/v2/models/none"), 404),
        (get("/v2/models/tiny/versions/9.9.9/ready"), 404),
        (get("/v2/models/tiny/nothing"), 404),
        (get("/v2/models/tiny/infer"), 405),
        (post("/v2/models/tiny", b"{}"), 405),
        (post("/v2/models/none/infer", b"{}"), 404),
        (post("/v2/models/tiny/infer", b"{"), 400),
        (post("/v2/models/tiny/infer", b"[" * 100_000), 400),
    ],
)
def test_a_request_that_is_only_wrong_leaves_the_connection_open(
    server: Server, request_bytes: bytes, status: int
) -> None:
    with Wire(server) as wire:
        answer = wire.ask(request_bytes)

        assert answer.status == status
        assert answer.error
        assert wire.ask(get("/v2/health/ready")).status == 200


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:80"])
def test_a_page_of_this_machine_may_ask(server: Server, origin: str) -> None:
    with Wire(server) as wire:
        assert wire.ask(get("/v2", f"Origin: {origin}")).status == 200


def test_a_client_may_ask_before_it_sends_much(server: Server) -> None:
    many = bundles.samples(200)
    request = infer(many, headers=["Expect: 100-continue"])
    end = request.index(b"\r\n\r\n") + 4

    with Wire(server) as wire:
        assert wire.ask(request[:end]).status == 100
        assert output(wire.ask(request[end:])).shape == (200, bundles.CLASSES)


def test_a_head_request_gets_no_body(server: Server) -> None:
    with Wire(server) as wire:
        wire.send(get("/v2", method="HEAD") + get("/v2/health/live"))
        raw = b""
        while raw.count(b"\r\n\r\n") < 2:
            raw += wire.socket.recv(65536)

    assert b"{" not in raw


@pytest.mark.parametrize(
    ("line", "headers", "stays"),
    [
        ("HTTP/1.1", "", True),
        ("HTTP/1.1", "Connection: close\r\n", False),
        ("HTTP/1.0", "", False),
        ("HTTP/1.0", "Connection: keep-alive\r\n", True),
    ],
)
def test_a_connection_stays_open_as_its_client_asks(
    server: Server, line: str, headers: str, stays: bool
) -> None:
    with Wire(server) as wire:
        answer = wire.ask(f"GET /v2 {line}\r\nHost: localhost\r\n{headers}\r\n".encode())

        assert answer.status == 200
        if stays:
            assert wire.ask(get("/v2")).status == 200
        else:
            assert wire.is_closed()


@given(garbage=st.binary(max_size=3000))
@settings(max_examples=40, deadline=None)
def test_garbage_never_ends_the_server(server: Server, garbage: bytes) -> None:
    with Wire(server) as wire:
        wire.send(garbage)
        wire.socket.shutdown(socket.SHUT_WR)
        while wire.socket.recv(65536):
            pass

    with Wire(server) as wire:
        assert wire.ask(get("/v2/health/live")).status == 200


@given(raw=st.binary(max_size=300).map(lambda data: b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n"))
def test_a_head_is_read_or_refused(raw: bytes) -> None:
    try:
        head = http.parse(raw)
    except HttpError:
        return

    assert head.length >= 0
    assert head.host is not None


def test_a_client_that_is_too_slow_is_told_so(tmp_path: Path) -> None:
    models = Models(measure=inline)
    with serving(models, limits=Limits(receive_s=0.1)) as server, Wire(server) as wire:
        assert wire.ask(b"GET /v2 HTT").status == 408
        assert wire.is_closed()


def test_a_client_that_never_asks_is_closed(tmp_path: Path) -> None:
    with serving(Models(), limits=Limits(idle_s=0.1)) as server, Wire(server) as wire:
        assert wire.is_closed()


def test_a_client_that_takes_no_answers_is_dropped() -> None:
    limits = Limits(send_s=0.2, head_bytes=1 << 16)
    with serving(Models(), limits=limits) as server, Wire(server) as wire:
        wire.socket.settimeout(60)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            # More than the sockets of both ends can hold.
            wire.send(get("/metrics") * 1_000_000)


def test_a_client_that_dies_in_its_request_harms_nobody(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path)
    with serving(models) as server:
        for request in (infer(SAMPLES[:1]), infer(SAMPLES[:1])[:-10]):
            with Wire(server) as wire:
                wire.send(request)
        with Wire(server) as wire:
            np.testing.assert_array_equal(output(wire.ask(infer(SAMPLES[:1]))), EXPECTED[:1])


def test_closing_finishes_what_is_under_way(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path)
    request = infer(SAMPLES[:1])
    with serving(models) as server:
        wire = Wire(server)
        wire.send(request[:-4])
        assert wire.socket.getpeername()
        with Wire(server) as other:
            assert other.ask(get("/v2")).status == 200
        late = threading.Timer(0.1, wire.send, [request[-4:]])
        late.start()
    late.join()

    answer = wire.answer()
    np.testing.assert_array_equal(output(answer), EXPECTED[:1])
    assert answer.headers["connection"] == "close"
    wire.socket.close()


def test_a_unix_socket_serves_any_host_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.sock"
    with serving(Models(), listen=[Unix(path)]) as server, Wire(server) as wire:
        assert wire.ask(b"GET /v2 HTTP/1.1\r\nHost: whatever\r\n\r\n").status == 200
        assert path.stat().st_mode & 0o007 == 0

    assert not path.exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with serving(Models(), listen=[Unix(path)]) as server, Wire(server) as wire:
        assert wire.ask(get("/v2")).status == 200


@pytest.mark.parametrize("kind", ["port", "socket", "file"])
def test_an_address_in_use_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "edgekit.sock"
    with serving(Models(), listen=[Tcp("127.0.0.1", 0), Unix(path)]) as first:
        taken: Tcp | Unix = Tcp("127.0.0.1", port(first)) if kind == "port" else Unix(path)
        if kind == "file":
            taken = Unix(tmp_path / "file")
            taken.path.write_text("precious")
        with pytest.raises(ServingError, match=r"in use|not a socket|cannot listen") as caught:
            asyncio.run(Server(Models(), listen=[taken]).start())
        assert str(taken) in caught.value.message
        assert path.exists()


def test_other_machines_are_refused_unless_asked_for() -> None:
    with pytest.raises(UsageError, match="other machines") as caught:
        Server(Models(), listen=[Tcp("0.0.0.0", 0)])
    assert "--insecure" in (caught.value.hint or "")

    models = Models()
    with (
        serving(models, listen=[Tcp("0.0.0.0", 0)], insecure=True) as server,
        Wire(server) as wire,
    ):
        assert wire.ask(b"GET /v2 HTTP/1.1\r\nHost: board.local\r\n\r\n").status == 200


def test_the_server_runs_on_asyncios_own_loop_too(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path)
    with serving(models, loop=asyncio.new_event_loop()) as server, Wire(server) as wire:
        many = bundles.samples(1000)
        assert output(wire.ask(infer(many))).shape == (1000, bundles.CLASSES)
        wire.send(infer(SAMPLES[:1]))
        wire.socket.shutdown(socket.SHUT_WR)
        np.testing.assert_array_equal(output(wire.answer()), EXPECTED[:1])
        assert wire.is_closed()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8500", Tcp("127.0.0.1", 8500)),
        ("[::1]:0", Tcp("::1", 0)),
        ("localhost:1", Tcp("localhost", 1)),
    ],
)
def test_an_address_is_read(text: str, address: Tcp) -> None:
    assert parse(text) == address
    assert address.is_loopback


@pytest.mark.parametrize("text", ["", "8500", ":8500", "host:", "host:x", "host:70000", "h:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse(text)


@given(host=st.text(max_size=40), origin=st.none() | st.text(max_size=40))
def test_who_may_speak_is_decided_for_any_text(host: str, origin: str | None) -> None:
    assert isinstance(may_speak(Tcp("127.0.0.1", 1), host=host, origin=origin), bool)


def test_an_unforeseen_error_is_logged_with_the_id_that_the_client_gets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    del models.served()[0].digest
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(get("/v2/models/tiny"))

        assert answer.status == 500
        assert answer.json["request_id"] in [r.__dict__.get("request_id") for r in caplog.records]
        assert wire.ask(get("/v2/health/live")).status == 200
