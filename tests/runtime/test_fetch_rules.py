"""The rules of a download, with plain values: window, ranges, waits, pace, mirrors, room."""

from __future__ import annotations

import datetime as dt
from email.utils import format_datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edgekit.errors import LinkError
from edgekit_runtime.config import WINDOW
from edgekit_runtime.fetch import address, answer, backoff
from edgekit_runtime.fetch.allowance import (
    BESIDE_BYTES,
    HOLD_S,
    STEP_BYTES,
    TIMES,
    Allowance,
    held_s,
    hold_s,
)
from edgekit_runtime.fetch.mirrors import Mirrors
from edgekit_runtime.fetch.pace import Bucket, Pulse
from edgekit_runtime.fetch.retry import (
    FIRST_WAIT_S,
    LONGEST_RETRY_AFTER_S,
    LONGEST_WAIT_S,
    retry_after,
)
from edgekit_runtime.fetch.room import Need
from edgekit_runtime.fetch.window import DAY_S, Window
from edgekit_runtime.update import Reason, UpdateFailed
from tests.clock import ManualClock

NOW_MS = 1_700_000_000_000

seconds_of_day = st.integers(0, DAY_S - 1)
minutes_of_day = st.integers(0, 1439)


def text_of(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@given(opens=minutes_of_day, closes=minutes_of_day, second=seconds_of_day)
@example(opens=22 * 60, closes=4 * 60, second=0)
@example(opens=60, closes=60, second=60 * 60)
def test_a_window_is_open_from_its_first_minute_until_its_last(
    opens: int, closes: int, second: int
) -> None:
    window = Window.parse(f"{text_of(opens)}-{text_of(closes)}")
    minute = second // 60

    if opens == closes:
        expected = True
    elif opens < closes:
        expected = opens <= minute < closes
    else:
        expected = minute >= opens or minute < closes
    assert (window.opens_in_s(second) == 0) is expected


@given(opens=minutes_of_day, closes=minutes_of_day, second=seconds_of_day)
def test_a_window_is_open_when_it_said_it_would_be_and_not_before(
    opens: int, closes: int, second: int
) -> None:
    window = Window(opens * 60, closes * 60)
    wait_s = window.opens_in_s(second)

    assert 0 <= wait_s < DAY_S
    assert window.opens_in_s((second + wait_s) % DAY_S) == 0
    if wait_s > 0:
        assert window.opens_in_s((second + wait_s - 1) % DAY_S) > 0


@given(st.from_regex(WINDOW))
def test_every_window_that_a_configuration_may_name_can_be_read(text: str) -> None:
    window = Window.parse(text)

    assert 0 <= window.opens_s < DAY_S
    assert 0 <= window.closes_s < DAY_S


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9]{1,2}:[0-9]{1,2}-[0-9:]{0,5}")))
def test_text_that_is_no_window_is_refused(text: str) -> None:
    try:
        window = Window.parse(text)
    except ValueError:
        return
    read = "".join(str(int(char)) if char.isdecimal() else char for char in text)
    assert read == f"{text_of(window.opens_s // 60)}-{text_of(window.closes_s // 60)}"


@given(first=st.integers(0, 10**12), length=st.integers(1, 10**12), more=st.integers(0, 10**6))
def test_a_content_range_is_read_as_it_was_written(first: int, length: int, more: int) -> None:
    last, total = first + length - 1, first + length + more

    assert answer.content_range(f"bytes {first}-{last}/{total}") == (first, last, total)
    assert answer.content_range(f"Bytes {first}-{last}/*") == (first, last, None)
    assert answer.content_range(f"bytes */{total}") == (None, None, total)


@given(st.one_of(st.text(max_size=40), st.from_regex(r"bytes [0-9*-]{0,9}/[0-9*]{0,9}")))
def test_a_content_range_never_contradicts_itself(text: str) -> None:
    found = answer.content_range(text)
    if found is None:
        return
    assert (found.first is None) == (found.last is None)
    if found.first is not None and found.last is not None:
        assert found.first <= found.last
        assert found.total is None or found.last < found.total
    else:
        assert found.total is not None


@given(
    status=st.integers(100, 999),
    values=st.dictionaries(
        st.sampled_from(
            ["Content-Range", "Content-Length", "Content-Encoding", "Transfer-Encoding"]
        ),
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(["bytes 5-9/10", "bytes 0-9/10", "10", "11", "gzip", "chunked"]),
        ),
    ),
    asked=st.integers(0, 9),
)
def test_any_answer_begins_where_it_was_asked_or_at_0_or_is_refused(
    status: int, values: dict[str, str], asked: int
) -> None:
    try:
        begin = answer.begins_at(
            status, lambda name: values.get(name, ""), asked=asked, size_bytes=10, what="it"
        )
    except UpdateFailed as e:
        assert e.reason in (Reason.FETCH_REFUSED, Reason.WRONG_SIZE)  # noqa: PT017
    except LinkError:
        assert status not in (200, 302, 404)
    else:
        assert (status, begin) in ((200, 0), (206, asked))
        assert "gzip" not in (values.get("Content-Encoding"), values.get("Transfer-Encoding"))


@pytest.mark.parametrize(
    ("text", "expected"), [('"v1"', '"v1"'), ('W/"v1"', ""), ("v1", ""), ("", ""), ('"a b"', "")]
)
def test_only_a_strong_validator_is_kept(text: str, expected: str) -> None:
    assert answer.etag(lambda _: text) == expected


@given(attempt=st.integers(0, 10_000), seed=st.integers())
def test_waits_are_drawn_below_a_bound_that_doubles(attempt: int, seed: int) -> None:
    bound = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 16))

    assert 0 <= backoff(attempt, rng=Random(seed)) <= bound


def test_waits_of_a_fleet_are_spread_over_the_whole_bound() -> None:
    waits = [backoff(20, rng=Random(seed)) for seed in range(200)]

    assert min(waits) < LONGEST_WAIT_S * 0.1
    assert max(waits) > LONGEST_WAIT_S * 0.9


@given(st.text(max_size=60))
@example("9" * 10_000)
@example("Fri, 31 Dec 9999 23:59:59 GMT")
@example("Fri, 31 Dec 0001 23:59:59 -2359")
def test_no_wish_of_a_server_is_longer_than_an_hour(text: str) -> None:
    assert 0 <= retry_after(text, now_ms=NOW_MS) <= LONGEST_RETRY_AFTER_S


@given(st.integers(0, int(LONGEST_RETRY_AFTER_S)))
def test_a_server_may_name_seconds_or_a_date(seconds: int) -> None:
    date = dt.datetime.fromtimestamp(NOW_MS / 1000 + seconds, dt.timezone.utc)

    assert retry_after(str(seconds), now_ms=NOW_MS) == seconds
    assert retry_after(format_datetime(date, usegmt=True), now_ms=NOW_MS) == pytest.approx(seconds)


@given(
    takes=st.lists(
        st.tuples(st.integers(0, 50_000), st.floats(0, 5, allow_nan=False)), max_size=40
    ),
    rate=st.floats(100, 1e6),
    burst=st.floats(1, 1e5),
)
def test_a_bucket_lets_no_more_through_than_rate_and_burst(
    takes: list[tuple[int, float]], rate: float, burst: float
) -> None:
    bucket = Bucket(rate, burst_bytes=burst, now_s=0.0)
    now_s = total = 0.0
    for size, pause_s in takes:
        now_s += pause_s
        wait_s = bucket.take(size, now_s=now_s)
        assert wait_s >= 0
        total += size
        # Who waits as told has by then used no more than is allowed.
        now_s += wait_s
        assert total <= (rate * now_s + burst) * 1.000001 + 1


def test_a_connection_that_drips_is_found_out_and_one_that_was_held_back_is_not() -> None:
    drips = Pulse(1000, window_s=10, now_s=0)
    assert drips.beat(500, now_s=5) is None
    assert drips.beat(500, now_s=10) == pytest.approx(100)

    held_back = Pulse(1000, window_s=10, now_s=0)
    held_back.paused(9.0)
    assert held_back.beat(1_000, now_s=10) is None
    assert held_back.beat(20_000, now_s=19) is None


def mirrors(number: int, *, best: str | None = None) -> Mirrors:
    places = address.every([f"http://m{index}/" for index in range(number)], "it.edge")
    return Mirrors(places, best=best, rng=Random(3))


def host(made: Mirrors, now_s: float = 0.0) -> str:
    return str(made.next(now_s).url.hostname)


def test_mirrors_are_asked_in_order_and_the_best_one_first() -> None:
    assert host(mirrors(3)) == "m0"
    assert host(mirrors(3, best="http://m2")) == "m2"


def test_a_mirror_that_fails_makes_way_at_once() -> None:
    made = mirrors(2)
    made.failed(made.next(0.0), now_s=0.0)

    assert host(made) == "m1"
    assert made.next(0.0).ready_s == 0.0


def test_a_mirror_whose_connection_broke_is_asked_again() -> None:
    made = mirrors(3)
    made.failed(made.next(0.0), now_s=0.0)
    made.broke(made.next(0.0), now_s=0.0)

    assert host(made) == "m1"


def test_a_mirror_that_asked_for_time_is_left_alone_while_others_are_there() -> None:
    made = mirrors(2)
    made.failed(made.next(0.0), now_s=0.0, retry_after_s=600)
    for now_s in (0.0, 200.0, 400.0):
        assert host(made, now_s) == "m1"
        made.failed(made.next(now_s), now_s=now_s)

    assert made.next(599.0).ready_s >= 599.0 or host(made, 599.0) == "m1"


def test_when_all_mirrors_refused_the_first_ones_reason_is_told() -> None:
    made = mirrors(2)
    for number in range(2):
        made.refused(made.next(0.0), UpdateFailed(Reason.FETCH_REFUSED, f"reason {number}"))

    with pytest.raises(UpdateFailed, match="reason 0"):
        made.next(0.0)


def test_a_mirror_with_a_wrong_file_is_left_alone_for_hours_and_others_are_asked() -> None:
    made = mirrors(2)
    made.hold(made.next(0.0), now_s=0.0, for_s=HOLD_S)
    for now_s in (0.0, 200.0, 400.0):
        assert host(made, now_s) == "m1"
        assert made.held_s(now_s) == 0.0
        assert not made.has_others(made.next(now_s))
        made.failed(made.next(now_s), now_s=now_s)

    made.refused(made.next(500.0), UpdateFailed(Reason.FETCH_REFUSED, "no"))
    assert made.held_s(500.0) == HOLD_S - 500.0
    assert made.held_s(HOLD_S) == 0.0
    assert host(made, HOLD_S) == "m0"


def test_a_server_that_may_send_no_more_hides_no_reason_that_may_pass() -> None:
    made = mirrors(2)
    made.refused(made.next(0.0), UpdateFailed(Reason.FETCH_EXHAUSTED, "too much"))
    made.refused(made.next(0.0), UpdateFailed(Reason.FETCH_REFUSED, "not here yet"))

    with pytest.raises(UpdateFailed, match="not here yet"):
        made.next(0.0)


@given(drawn=st.integers(), at_ms=st.integers(0, 1 << 41), passed_s=st.floats(0, 4 * HOLD_S))
def test_a_hold_lasts_hours_and_ends_whatever_the_clock_does(
    drawn: int, at_ms: int, passed_s: float
) -> None:
    seconds = hold_s(Random(drawn))
    assert HOLD_S <= seconds <= 2 * HOLD_S

    again_ms = at_ms + round(seconds * 1000)
    left_s = held_s(again_ms, now_ms=at_ms + round(passed_s * 1000))
    assert left_s == pytest.approx(max(0.0, seconds - passed_s), abs=0.01)
    # A clock that was set back by more than a hold says nothing of how much of it is over.
    assert held_s(again_ms, now_ms=again_ms - round(2 * HOLD_S * 1000) - 1) == 0.0


@given(
    spent=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9 << 20)), max_size=12),
    size_bytes=st.integers(1, 8 << 20),
)
def test_what_a_server_sent_is_known_after_a_start_and_costs_no_other_one(
    tmp_path_factory: pytest.TempPathFactory, spent: list[tuple[str, int]], size_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("spent") / "x.spent"

    def opened() -> Allowance:
        return Allowance(path, size_bytes=size_bytes, clock=ManualClock(), rng=Random(1))

    made = opened()
    for base, sent in spent:
        made.spend(base, body_bytes=sent)
    killed = opened()
    made.save()
    for base in "abc":
        sent = sum(sent for other, sent in spent if other == base)
        assert made.left_bytes(base) == max(0, TIMES * size_bytes - sent)
        assert opened().left_bytes(base) == made.left_bytes(base)
        assert killed.left_bytes(base) - made.left_bytes(base) < STEP_BYTES


def test_who_sends_too_much_beside_files_may_send_no_file(tmp_path: Path) -> None:
    made = Allowance(tmp_path / "x.spent", size_bytes=100, clock=ManualClock(), rng=Random(1))
    made.spend("http://x/", beside_bytes=BESIDE_BYTES - 1)
    assert made.left_bytes("http://x/") == TIMES * 100

    made.spend("http://x/", beside_bytes=1)
    assert made.left_bytes("http://x/") == 0
    assert made.left_bytes("http://y/") == TIMES * 100


def test_accounts_that_cannot_be_read_are_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.spent"
    path.write_bytes(b'{"http://x/": {"spent_')
    made = Allowance(path, size_bytes=100, clock=ManualClock(), rng=Random(1))

    assert made.left_bytes("http://x/") == TIMES * 100
    assert made.held_s("http://x/") == 0.0


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["failed", "broke", "refused"]), st.floats(0, 300)), max_size=30
    ),
    number=st.integers(1, 4),
    seed=st.integers(),
)
def test_somebody_is_always_asked_within_the_longest_wait_until_all_refused(
    events: list[tuple[str, float]], number: int, seed: int
) -> None:
    places = address.every([f"http://m{index}/" for index in range(number)], "it.edge")
    made = Mirrors(places, best=None, rng=Random(seed))
    now_s = 0.0
    refused = 0
    for what, passed_s in events:
        assume(refused < number)
        mirror = made.next(now_s)
        assert mirror.refused is None
        assert mirror.ready_s - now_s <= LONGEST_WAIT_S
        now_s = max(now_s, mirror.ready_s) + passed_s
        if what == "refused":
            made.refused(mirror, UpdateFailed(Reason.FETCH_REFUSED, "no"))
            refused += 1
        elif what == "failed":
            made.failed(mirror, now_s=now_s)
        else:
            made.broke(mirror, now_s=now_s)


@given(*[st.integers(0, 1 << 40)] * 5)
def test_the_room_that_is_needed_is_the_most_that_is_taken_at_one_time(
    download: int, rebuilt: int, slot: int, freed: int, reserve: int
) -> None:
    total = Need(download, rebuilt, slot, freed, reserve).total

    before_unpacking = download + rebuilt
    after_unpacking = download + rebuilt + slot - freed
    assert total == max(before_unpacking, after_unpacking) + reserve
