"""Downloads over bad links, from several mirrors and over TLS, with real servers behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ConfigError
from edgekit_runtime.update import Reason, UpdateFailed
from tests.faults import GOOD, Conditions, How, LinkProxy
from tests.runtime.authority import Authority
from tests.runtime.fetching import get, make, refused, tls_of, wanted
from tests.runtime.file_server import (
    DATA,
    Behaviour,
    FileServer,
    Handler,
    another_file,
    cut,
    cut_without_ranges,
    drips,
    encoded,
    endless,
    garbage,
    says,
    silent,
    whole,
    without_ranges,
)

_MISBEHAVIOURS = (
    another_file,
    cut,
    cut_without_ranges,
    encoded,
    endless,
    garbage,
    says(206),
    says(404),
    says(416),
    says(429, Retry_After="3"),
    says(503),
    without_ranges,
)

_REFUSALS = (
    Reason.FETCH_EXHAUSTED,
    Reason.FETCH_REFUSED,
    Reason.WRONG_SHA256,
    Reason.WRONG_SIZE,
)

# The head of an answer, with room to spare.
HEAD_BYTES = 400


@pytest.fixture
def servers() -> Iterator[tuple[FileServer, FileServer]]:
    with ExitStack() as stack:
        yield stack.enter_context(FileServer()), stack.enter_context(FileServer())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as made:
        yield made


def halfway(act: Callable[[], None]) -> Behaviour:
    """The whole file, and something that happens when a part of it is on its way."""

    def answer(request: Handler, offset: int) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(DATA)))
        request.end_headers()
        request.wfile.write(DATA[:100_000])
        act()
        request.wfile.write(DATA[100_000:])

    return answer


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_link_that_breaks_ten_times_carries_each_byte_once(
    server: FileServer, tmp_path: Path, how: How
) -> None:
    breaks = [25_000 * number for number in range(1, 11)]
    with LinkProxy(server.address, conditions=Conditions(bytes_s=2_000_000)) as proxy:
        proxy.cut_at(breaks, how=how)
        assert get(make(tmp_path, proxy.url())) == DATA
        counts = proxy.counts()

    assert counts.cuts == len(breaks)
    assert counts.down_bytes <= len(DATA) * 1.03 + HEAD_BYTES * len(breaks)


def test_a_link_that_stalls_and_comes_back_is_used_on(server: FileServer, tmp_path: Path) -> None:
    with LinkProxy(server.address, conditions=Conditions(bytes_s=2_000_000)) as proxy:
        stall = [(0.0, Conditions(stalled=True)), (0.2, GOOD)]
        server.behaviours = [halfway(lambda: proxy.follow(stall))]
        assert get(make(tmp_path, proxy.url())) == DATA
        assert proxy.counts().connections == 1


def test_a_half_open_link_is_given_up_and_tried_anew(server: FileServer, tmp_path: Path) -> None:
    with LinkProxy(server.address, conditions=Conditions(bytes_s=1_000_000)) as proxy:
        server.behaviours = [halfway(lambda: proxy.set(Conditions(half_open=True))), whole]

        def wait(seconds: float) -> bool:
            if seconds:
                proxy.set(GOOD)
            return False

        assert get(make(tmp_path, proxy.url(), idle_timeout_s=1.0), wait=wait) == DATA
        counts = proxy.counts()

    assert counts.connections == 2
    assert counts.down_bytes <= len(DATA) + 2 * HEAD_BYTES


def test_a_link_that_refuses_is_waited_for(server: FileServer, tmp_path: Path) -> None:
    with LinkProxy(server.address, conditions=Conditions(refuses=True)) as proxy:
        proxy.follow([(0.2, GOOD)])

        def wait(seconds: float) -> bool:
            time.sleep(min(seconds, 0.02))
            return False

        assert get(make(tmp_path, proxy.url()), limit_s=7200, wait=wait) == DATA


def test_a_limit_of_bandwidth_holds_on_the_link_and_not_only_in_the_reader(
    server: FileServer, tmp_path: Path
) -> None:
    rate = 200_000
    ahead: list[float] = []
    with LinkProxy(server.address) as proxy:
        fetcher = make(tmp_path, proxy.url(), bandwidth_bytes_s=rate)

        def progress(share: float) -> None:
            ahead.append(proxy.counts().down_bytes - share * len(DATA))

        def wait(seconds: float) -> bool:
            time.sleep(seconds / 10)
            return False

        assert get(fetcher, progress=progress, wait=wait) == DATA

    # A quarter second's worth is the window that is asked for; kernels take it generously.
    assert max(ahead) < rate


@pytest.mark.parametrize(
    "bad", [says(404), says(503), says(416), encoded, garbage, silent, another_file]
)
def test_where_one_mirror_fails_the_next_one_delivers(
    servers: tuple[FileServer, FileServer], tmp_path: Path, bad: Behaviour
) -> None:
    first, second = servers
    first.behaviours = [bad]

    assert get(make(tmp_path, first.url, second.url, idle_timeout_s=0.3)) == DATA
    assert set(second.offsets) == {0}


def test_the_mirror_that_delivers_is_kept_for_the_next_download(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [says(503)]
    fetcher = make(tmp_path, first.url, second.url)
    get(fetcher)
    fetcher.tidy(set())

    get(fetcher)

    assert first.offsets == [0]
    assert second.offsets == [0, 0]


def test_what_one_mirror_began_another_one_ends(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [cut, says(404)]

    assert get(make(tmp_path, first.url, second.url)) == DATA
    assert second.offsets == [100_000]


def test_a_mirror_that_lies_at_the_beginning_of_the_file_spoils_nothing_that_another_one_gives(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    lies = partial(whole, data=DATA[::-1], end=1_000)
    first.behaviours = [lies, says(503)] * 20

    assert get(make(tmp_path, first.url, second.url), limit_s=7200) == DATA
    assert second.offsets == [1_000, 0]


def test_a_validator_of_one_mirror_is_not_told_to_another(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [partial(whole, end=1_000, etag='"first"'), says(404)]

    assert get(make(tmp_path, first.url, second.url)) == DATA
    assert "If-Range" in first.headers[1]
    assert "If-Range" not in second.headers[0]


def test_a_mirror_that_drips_is_left_for_one_that_flows(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [drips]
    fetcher = make(tmp_path, first.url, second.url, slow_window_s=0.2, slowest_bytes_s=10_000)

    assert get(fetcher) == DATA
    # What did drip in is kept.
    assert second.offsets[0] > 0


def test_a_single_repository_may_be_as_slow_as_it_is(server: FileServer, tmp_path: Path) -> None:
    server.behaviours = [drips]
    fetcher = make(tmp_path, server.url, slow_window_s=0.1, slowest_bytes_s=10_000)

    assert refused(fetcher, limit_s=0.5) is Reason.FETCH_TIMEOUT
    assert len(server.offsets) <= 1


def test_every_mirror_refusing_tells_why_the_first_one_did(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours, second.behaviours = [says(416)], [says(404)]

    assert refused(make(tmp_path, first.url, second.url)) is Reason.WRONG_SIZE


def test_the_same_absolute_address_is_asked_only_once(server: FileServer, tmp_path: Path) -> None:
    server.behaviours = [says(404)]
    fetcher = make(tmp_path, "http://127.0.0.1:1/", "http://127.0.0.1:2/")

    assert refused(fetcher, wanted(url=f"{server.url}it.edge")) is Reason.FETCH_REFUSED
    assert server.offsets == [0]


@settings(max_examples=25, deadline=None)
@given(
    answers=st.lists(st.lists(st.sampled_from(_MISBEHAVIOURS), max_size=4), min_size=1, max_size=3)
)
def test_whatever_servers_do_what_comes_is_the_announced_file_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, answers: list[list[Behaviour]]
) -> None:
    folder = tmp_path_factory.mktemp("fetch")
    with ExitStack() as stack:
        made = [stack.enter_context(FileServer(*each, whole)) for each in answers]
        fetcher = make(folder, *(server.url for server in made))
        try:
            assert get(fetcher, limit_s=7200) == DATA
        except UpdateFailed as e:
            # No server is left, since each of them refused once, or sent too much.
            assert e.reason in _REFUSALS  # noqa: PT017
        part = fetcher.part(wanted())
        assert not part.exists() or part.stat().st_size <= len(DATA)


def test_a_repository_with_a_certificate_of_the_fleet_is_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with FileServer(cut, whole, tls=tls_of(authority)) as server:
        fetcher = make(tmp_path, server.url, ca=authority.certificate)
        assert get(fetcher) == DATA
        assert server.offsets == [0, 100_000]


@pytest.mark.parametrize("other", [True, False])
def test_a_repository_with_a_strange_certificate_is_sent_no_request(
    tmp_path: Path, other: bool
) -> None:
    authority = Authority(tmp_path)
    ca = Authority(tmp_path, "other").certificate if other else None
    with FileServer(tls=tls_of(authority)) as server:
        fetcher = make(tmp_path, server.url, ca=ca)
        reason = refused(fetcher, match="CERTIFICATE_VERIFY_FAILED")
        assert reason is Reason.FETCH_TIMEOUT
        assert server.offsets == []


def test_a_file_that_holds_no_certificates_is_named(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("nothing", "utf-8")

    with pytest.raises(ConfigError, match=r"ca\.crt"):
        get(make(tmp_path, "https://127.0.0.1:1/", ca=ca))
