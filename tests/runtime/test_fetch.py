"""Downloads: resumed, bounded, and never trusted."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.clock import SystemClock
from edgekit.messages import Wanted
from edgekit_runtime import fetch
from edgekit_runtime.fetch import Fetcher, Interrupted, backoff, check, resolve
from edgekit_runtime.update import Reason, UpdateFailed

DATA = Random(1).randbytes(300_000)
Handler = http.server.BaseHTTPRequestHandler


def wanted(data: bytes = DATA, *, url: str = "it.edge", size: int | None = None) -> Wanted:
    return Wanted(
        version="1.0.0",
        digest="sha256:" + "0" * 64,
        url=url,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=size or len(data),
    )


class Server:
    """Answers each request with the next behaviour of a list, the last one again and again."""

    def __init__(self) -> None:
        self.behaviours: list[Callable[[Handler, int], None]] = [whole]
        self.offsets: list[int] = []
        outer = self

        class Answer(Handler):
            def do_GET(self) -> None:
                text = self.headers.get("Range", "bytes=0-")
                offset = int(text.removeprefix("bytes=").rstrip("-"))
                outer.offsets.append(offset)
                behaviours = outer.behaviours
                act = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
                act(self, offset)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def whole(request: Handler, offset: int, *, cut: int | None = None) -> None:
    request.send_response(206 if offset else 200)
    if offset:
        end = len(DATA) - 1
        request.send_header("Content-Range", f"bytes {offset}-{end}/{len(DATA)}")
    request.send_header("Content-Length", str(len(DATA) - offset))
    request.end_headers()
    request.wfile.write(DATA[offset:cut])


def cut(request: Handler, offset: int) -> None:
    whole(request, offset, cut=offset + 100_000)
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)


def says(status: int, **headers: str) -> Callable[[Handler, int], None]:
    def answer(request: Handler, offset: int) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def garbage(request: Handler, offset: int) -> None:
    request.wfile.write(b"\x00\xff not http at all\r\n\r\n")
    request.connection.shutdown(socket.SHUT_RDWR)


def silent(request: Handler, offset: int) -> None:
    request.connection.recv(1)


def drips(request: Handler, offset: int) -> None:
    done = threading.Event()
    try:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not done.wait(0.02):
            request.wfile.write(b"x")
    except OSError:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def fetcher(tmp_path: Path, server: Server) -> Fetcher:
    return make(tmp_path, server.url)


def make(folder: Path, repository: str, *, reserve_bytes: int = 1) -> Fetcher:
    return Fetcher(
        folder / "fetch",
        repository=repository,
        reserve_bytes=reserve_bytes,
        clock=SystemClock(),
        rng=Random(1),
        idle_timeout_s=0.2,
    )


def get(fetcher: Fetcher, what: Wanted | None = None, *, limit_s: float = 20.0) -> bytes:
    path = fetcher.fetch(
        what or wanted(), limit_s=limit_s, progress=lambda _: None, wait=lambda _: False
    )
    return path.read_bytes()


def refused(fetcher: Fetcher, what: Wanted | None = None, *, limit_s: float = 20.0) -> Reason:
    with pytest.raises(UpdateFailed) as caught:
        get(fetcher, what, limit_s=limit_s)
    return caught.value.reason


def test_a_file_comes_whole(fetcher: Fetcher) -> None:
    assert get(fetcher) == DATA
    check(fetcher.part(wanted()), wanted())


def test_a_broken_connection_is_gone_on_with_where_it_broke(
    server: Server, fetcher: Fetcher
) -> None:
    server.behaviours = [cut, cut, whole]

    assert get(fetcher) == DATA
    assert server.offsets == [0, 100_000, 200_000]


def test_a_part_from_before_a_restart_is_used(server: Server, fetcher: Fetcher) -> None:
    fetcher.part(wanted()).write_bytes(DATA[:123])

    assert get(fetcher) == DATA
    assert server.offsets == [123]


def test_a_server_without_ranges_begins_anew(server: Server, fetcher: Fetcher) -> None:
    fetcher.part(wanted()).write_bytes(b"x" * 1000)
    server.behaviours = [lambda request, _: whole(request, 0)]

    assert get(fetcher) == DATA


def test_a_whole_part_is_not_fetched_again(server: Server, fetcher: Fetcher) -> None:
    fetcher.part(wanted()).write_bytes(DATA)

    get(fetcher)

    assert server.offsets == []


def test_a_part_that_is_too_long_is_thrown_away(server: Server, fetcher: Fetcher) -> None:
    fetcher.part(wanted()).write_bytes(DATA + b"x")

    assert get(fetcher) == DATA
    assert server.offsets == [0]


@pytest.mark.parametrize("bad", [garbage, silent, drips, says(503), says(429), says(206)])
def test_what_may_pass_is_tried_again(
    server: Server, fetcher: Fetcher, bad: Callable[[Handler, int], None]
) -> None:
    server.behaviours = [bad, whole]

    assert get(fetcher) == DATA


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(404), Reason.FETCH_REFUSED),
        (says(302, Location="http://127.0.0.1:1/it.edge"), Reason.FETCH_REFUSED),
        (says(416), Reason.WRONG_SIZE),
        (says(200), Reason.WRONG_SIZE),
    ],
)
def test_what_will_not_pass_ends_the_download(
    server: Server, fetcher: Fetcher, answer: Callable[[Handler, int], None], reason: Reason
) -> None:
    server.behaviours = [answer]

    assert refused(fetcher) is reason
    assert len(server.offsets) == 1


@pytest.mark.parametrize("bad", [garbage, silent, drips, says(503)])
def test_a_server_that_never_does_its_work_is_bounded_by_the_limit(
    server: Server, fetcher: Fetcher, bad: Callable[[Handler, int], None]
) -> None:
    server.behaviours = [bad]

    assert refused(fetcher, limit_s=0.5) is Reason.FETCH_TIMEOUT


def test_a_repository_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = make(tmp_path, f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert refused(away, limit_s=0.2) is Reason.FETCH_TIMEOUT


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path: Path, server: Server) -> None:
    fetcher = make(tmp_path, server.url, reserve_bytes=1 << 60)

    assert refused(fetcher) is Reason.DISK_FULL
    assert server.offsets == []


def test_somebody_may_end_a_download_and_the_part_stays(server: Server, fetcher: Fetcher) -> None:
    server.behaviours = [cut]

    with pytest.raises(Interrupted):
        fetcher.fetch(wanted(), limit_s=20, progress=lambda _: None, wait=lambda s: s > 0)

    assert fetcher.part(wanted()).read_bytes() == DATA[:100_000]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [(DATA[:-1], Reason.WRONG_SIZE), (b"x" + DATA[1:], Reason.WRONG_SHA256)],
)
def test_a_file_that_is_not_the_announced_one_is_deleted(
    fetcher: Fetcher, stored: bytes, reason: Reason
) -> None:
    part = fetcher.part(wanted())
    part.write_bytes(stored)

    with pytest.raises(UpdateFailed) as caught:
        check(part, wanted())

    assert caught.value.reason is reason
    assert not part.exists()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "http://user:secret@host/x",
        "http://host:99999/x",
        "http://[::1/x",
        "it.edge\r\nX-Header: 1",
        "a b",
    ],
)
def test_an_address_that_is_not_plain_http_is_refused(fetcher: Fetcher, url: str) -> None:
    assert refused(fetcher, wanted(url=url)) is Reason.BAD_URL


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_is_refused_with_its_reason(url: str) -> None:
    try:
        parts = resolve("http://127.0.0.1:8600/repository/", url)
    except UpdateFailed as e:
        assert e.reason is Reason.BAD_URL  # noqa: PT017 - both outcomes are right
    else:
        assert parts.scheme in ("http", "https")


def test_relative_addresses_are_below_the_repository() -> None:
    base = "http://127.0.0.1:8600/repository/"

    assert resolve(base, "x.edge").geturl() == base + "x.edge"
    assert resolve(base, "https://other/x.edge").geturl() == "https://other/x.edge"


@given(attempt=st.integers(0, 1000), seed=st.integers())
def test_waits_grow_to_a_bound_and_differ_between_devices(attempt: int, seed: int) -> None:
    wait_s = backoff(attempt, rng=Random(seed))

    assert min(fetch.LONGEST_WAIT_S, 2.0 ** min(attempt, 7)) / 2 <= wait_s <= fetch.LONGEST_WAIT_S


def test_parts_that_nobody_needs_are_deleted(fetcher: Fetcher) -> None:
    keep, other = wanted(), wanted(b"other")
    for part in (fetcher.part(keep), fetcher.part(other)):
        part.write_bytes(b"x")

    fetcher.tidy({keep.sha256})

    assert fetcher.part(keep).exists()
    assert not fetcher.part(other).exists()
