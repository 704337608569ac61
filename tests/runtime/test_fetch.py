"""Downloads: resumed, bounded, and never trusted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.fetch import Fetcher, Interrupted, OnHold, check, resolve
from edgekit_runtime.fetch.allowance import HOLD_S
from edgekit_runtime.update import Reason, UpdateFailed
from tests.clock import ManualClock
from tests.runtime.fetching import get, hold, make, refused, wanted
from tests.runtime.file_server import (
    DATA,
    Behaviour,
    FileServer,
    another_file,
    cut,
    cut_without_ranges,
    drips,
    drips_heads,
    encoded,
    endless,
    garbage,
    says,
    silent,
    whole,
    without_ranges,
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as made:
        yield made


@pytest.fixture
def fetcher(tmp_path: Path, server: FileServer) -> Fetcher:
    return make(tmp_path, server.url)


def test_a_file_comes_whole(fetcher: Fetcher) -> None:
    assert get(fetcher) == DATA
    check(fetcher.part(wanted()), wanted())


def test_a_broken_connection_is_gone_on_with_where_it_broke(
    server: FileServer, fetcher: Fetcher
) -> None:
    server.behaviours = [cut, cut, whole]

    assert get(fetcher) == DATA
    assert server.offsets == [0, 100_000, 200_000]


def test_a_part_from_before_a_restart_is_used(server: FileServer, fetcher: Fetcher) -> None:
    hold(fetcher, DATA[:123])

    assert get(fetcher) == DATA
    assert server.offsets == [123]


def test_a_whole_part_is_not_fetched_again(server: FileServer, fetcher: Fetcher) -> None:
    hold(fetcher, DATA)

    get(fetcher)

    assert server.offsets == []


def test_a_part_that_is_too_long_is_thrown_away(server: FileServer, fetcher: Fetcher) -> None:
    hold(fetcher, DATA + b"x")

    assert get(fetcher) == DATA
    assert server.offsets == [0]


def test_a_whole_part_of_wrong_bytes_is_fetched_anew(server: FileServer, fetcher: Fetcher) -> None:
    hold(fetcher, DATA[::-1])

    assert get(fetcher) == DATA
    assert server.offsets == [0]


def test_a_server_without_ranges_takes_nothing_away_that_is_here(
    server: FileServer, fetcher: Fetcher
) -> None:
    hold(fetcher, DATA[:200_000])
    server.behaviours = [cut_without_ranges, without_ranges]
    seen: list[float] = []

    assert get(fetcher, progress=seen.append) == DATA
    assert min(seen) >= 200_000 / len(DATA)


def test_a_server_without_ranges_replaces_what_differs(
    server: FileServer, fetcher: Fetcher
) -> None:
    hold(fetcher, DATA[:50_000] + b"x" * 100_000)
    server.behaviours = [without_ranges]

    assert get(fetcher) == DATA


def test_a_validator_goes_along_to_the_server_that_gave_it(
    server: FileServer, fetcher: Fetcher
) -> None:
    server.behaviours = [
        partial(whole, end=1_000, etag='"one"'),
        partial(whole, end=2_000),
        whole,
    ]

    assert get(fetcher) == DATA
    assert [headers.get("If-Range") for headers in server.headers] == [None, '"one"', None]


def test_a_file_that_was_replaced_meanwhile_comes_whole(
    server: FileServer, fetcher: Fetcher
) -> None:
    old = partial(whole, data=DATA[::-1], end=150_000, etag='"old"')
    server.behaviours = [old, without_ranges]

    assert get(fetcher) == DATA
    assert server.offsets == [0, 150_000]


@pytest.mark.parametrize(
    "bad", [garbage, silent, drips_heads, says(503), says(429), says(408), says(206)]
)
def test_what_may_pass_is_tried_again(server: FileServer, tmp_path: Path, bad: Behaviour) -> None:
    server.behaviours = [bad, whole]

    assert get(make(tmp_path, server.url, idle_timeout_s=0.2)) == DATA


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(404), Reason.FETCH_REFUSED),
        (says(302, Location="http://127.0.0.1:1/it.edge"), Reason.FETCH_REFUSED),
        (encoded, Reason.FETCH_REFUSED),
        (says(416), Reason.WRONG_SIZE),
        (says(200), Reason.WRONG_SIZE),
        (says(206, Content_Range="bytes 0-9/10"), Reason.WRONG_SIZE),
    ],
)
def test_what_will_not_pass_ends_the_download(
    server: FileServer, fetcher: Fetcher, answer: Behaviour, reason: Reason
) -> None:
    server.behaviours = [answer]

    assert refused(fetcher) is reason
    assert len(server.offsets) == 1


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        (garbage, "http at all"),
        (silent, "timed out"),
        (drips_heads, "no answer had begun"),
        (says(503), "answers 503"),
    ],
)
def test_a_server_that_never_does_its_work_is_bounded_by_the_limit_and_named(
    server: FileServer, tmp_path: Path, bad: Behaviour, trouble: str
) -> None:
    server.behaviours = [bad]
    fetcher = make(tmp_path, server.url, idle_timeout_s=0.2)

    assert refused(fetcher, limit_s=4, match=trouble) is Reason.FETCH_TIMEOUT


def test_a_body_that_drips_is_bounded_by_the_limit(server: FileServer, fetcher: Fetcher) -> None:
    server.behaviours = [drips]

    assert refused(fetcher, limit_s=0.4) is Reason.FETCH_TIMEOUT


@pytest.mark.parametrize("bad", [another_file, endless])
def test_wrong_bytes_are_fetched_once_and_not_again_for_hours(
    server: FileServer, fetcher: Fetcher, bad: Behaviour
) -> None:
    server.behaviours = [bad]

    with pytest.raises(OnHold, match="not the announced file") as caught:
        get(fetcher)

    assert caught.value.reason is Reason.WRONG_SHA256
    assert HOLD_S <= caught.value.wait_s <= 2 * HOLD_S
    assert server.offsets == [0]
    assert not fetcher.part(wanted()).exists()


def test_endless_data_takes_no_more_disk_than_was_announced(
    server: FileServer, fetcher: Fetcher
) -> None:
    server.behaviours = [endless]
    part = fetcher.part(wanted())
    sizes: list[int] = []

    refused(fetcher, progress=lambda _: sizes.append(part.stat().st_size))

    assert max(sizes) == len(DATA)


def test_a_repository_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = make(tmp_path, f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert refused(away, limit_s=0.2) is Reason.FETCH_TIMEOUT


def test_a_server_that_asks_for_time_gets_it(server: FileServer, tmp_path: Path) -> None:
    server.behaviours = [says(503, Retry_After="600"), whole]
    clock = ManualClock()

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    assert get(make(tmp_path, server.url, clock=clock), limit_s=3600, wait=wait) == DATA
    assert clock.monotonic() >= 600


def test_no_room_for_file_and_second_slot_is_noticed_before_the_first_byte(
    tmp_path: Path, server: FileServer
) -> None:
    fetcher = make(tmp_path, server.url, reserve_bytes=1 << 60)

    assert refused(fetcher, match=f"{len(DATA)} for the second slot") is Reason.NO_ROOM
    assert server.offsets == []


def test_somebody_may_end_a_download_and_the_part_stays(
    server: FileServer, fetcher: Fetcher
) -> None:
    server.behaviours = [cut]

    with pytest.raises(Interrupted):
        get(fetcher, wait=lambda s: s > 0)

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


def test_what_nobody_needs_is_deleted(fetcher: Fetcher) -> None:
    keep, other = wanted(), wanted(b"other")
    for bundle in (keep, other):
        hold(fetcher, b"x", bundle)
        for suffix in (".delta", ".spent"):
            fetcher.part(bundle).with_suffix(suffix).write_bytes(b"x")
    folder = fetcher.part(keep).parent
    (folder / f".{keep.sha256}.part.0123abcd.tmp").write_bytes(b"x")

    fetcher.tidy({keep.sha256})

    names = {keep.sha256 + suffix for suffix in (".part", ".part.mark", ".delta", ".spent")}
    assert {path.name for path in folder.iterdir()} == names


def test_the_bandwidth_is_kept(server: FileServer, tmp_path: Path) -> None:
    clock = ManualClock()

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    fetcher = make(tmp_path, server.url, clock=clock, bandwidth_bytes_s=10_000)

    assert get(fetcher, limit_s=3600, wait=wait) == DATA
    # All is paid for by waiting, but the burst at first and the piece that came last.
    pieces = (0.25 * 10_000 + 4096) / 10_000
    assert len(DATA) / 10_000 - pieces <= clock.monotonic() <= len(DATA) / 10_000


def test_a_download_pauses_outside_its_window_and_goes_on_inside(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    # 2023-11-14 22:13:20 UTC; the window closes within the download and opens the next night.
    clock = ManualClock(now_ms=1_700_000_000_000)
    hours: list[float] = []

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    def progress(_: float) -> None:
        hours.append(clock.now_ms() / 3_600_000 % 24)

    fetcher = make(tmp_path, server.url, clock=clock, bandwidth_bytes_s=1024, window="22:10-22:15")

    assert get(fetcher, limit_s=300, wait=wait, progress=progress) == DATA
    # A read that was under way when the window closed is the last one.
    assert {int(hour) for hour in hours} == {22}
    assert all(10 / 60 <= hour - 22 < 15.2 / 60 for hour in hours)
    assert len(server.offsets) == 2


def test_a_download_whose_window_is_shut_can_be_ended(server: FileServer, tmp_path: Path) -> None:
    fetcher = make(tmp_path, server.url, clock=ManualClock(), window="00:00-00:01")

    with pytest.raises(Interrupted):
        get(fetcher, wait=lambda s: s > 0)

    assert server.offsets == []
