"""How long a device goes on asking a repository that gives nothing, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import LinkError
from edgekit.messages import Wanted
from edgekit_runtime.fetch import Fetcher, Hours
from edgekit_runtime.fetch.window import Window, second_of_day
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Level
from edgekit_runtime.trusted.repository import Repository
from edgekit_runtime.trusted.target import Target
from edgekit_runtime.update import Reason, UpdateFailed
from tests.clock import ManualClock
from tests.runtime.fetching import wanted

NIGHT = "22:00-23:00"
HOUR_S = 3600.0
LIMIT_S = HOUR_S / 2


def at(text: str, *, day: int = 14) -> int:
    """A moment of local time, in milliseconds, on a day on which no clock is changed."""
    hour, minute = (int(part) for part in text.split(":"))
    return round(time.mktime((2026, 1, day, hour, minute, 0, 0, 0, -1)) * 1000)


class Down(Repository):
    """Gives nothing until a moment; remembers when it was asked."""

    def __init__(
        self,
        folder: Path,
        clock: ManualClock,
        *,
        until_ms: float,
        error: Exception,
    ) -> None:
        super().__init__(urls=["http://host/"], root=folder / "root.json", state=folder / "trusted")
        self.asked_ms: list[int] = []
        self._clock = clock
        self._until_ms = until_ms
        self._error = error

    def find(self, path: str, *, cancelled: Callable[[], bool]) -> Target:
        self.asked_ms.append(self._clock.now_ms())
        if self._clock.now_ms() < self._until_ms:
            raise self._error
        found = wanted(url=path)
        return Target(
            path=path,
            urls=(f"http://host/{path}",),
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            digest=found.digest,
            deltas=(),
            keys=(),
            candidate=False,
        )


class Copies(Fetcher):
    """Has every file at once."""

    def fetch(self, wanted: Wanted, **_: object) -> Path:
        return self.part(wanted)


class Device:
    """A device that begins to ask at a moment."""

    def __init__(
        self,
        folder: Path,
        *,
        begins: str,
        until_ms: float,
        window: str = NIGHT,
        error: Exception | None = None,
    ) -> None:
        self.clock = ManualClock(now_ms=at(begins))
        self.repository = Down(
            folder,
            self.clock,
            until_ms=until_ms,
            error=error or LinkError("it does not answer"),
        )
        fetcher = Copies(
            folder / "fetch",
            repository="http://host/",
            reserve_bytes=1,
            clock=self.clock,
            rng=Random(1),
            window=window,
        )
        self.told: list[tuple[str, object]] = []
        self.source = Source(
            fetcher,
            repository=self.repository,
            events=self.tell,
            clock=self.clock,
            rng=Random(1),
        )

    def tell(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        self.told.append((kind, facts["reason"]))

    def wait(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return False

    def fetch(self, *, limit_s: float = LIMIT_S) -> None:
        self.source.fetch(
            wanted(),
            base=None,
            frees_bytes=0,
            limit_s=limit_s,
            progress=lambda _: None,
            wait=self.wait,
        )


def test_a_repository_that_comes_back_in_the_next_window_is_not_given_up_before(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path, begins="22:50", until_ms=at("22:05", day=15))
    device.fetch()

    opens = Window.parse(NIGHT).opens_in_s
    assert device.clock.now_ms() < at("22:10", day=15)
    assert all(opens(second_of_day(asked)) == 0 for asked in device.repository.asked_ms)
    assert device.told == [("repository_refused", "repository_unreachable")]


def test_a_repository_that_never_comes_back_is_given_up_after_its_time_in_the_window(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path, begins="12:00", until_ms=float("inf"))
    with pytest.raises(UpdateFailed, match="tried for 1800 s") as caught:
        device.fetch()

    first, *later = device.repository.asked_ms
    assert caught.value.reason is Reason.REPOSITORY_UNREACHABLE
    # It is asked once at once, so that a wish that can never be met is refused by day.
    assert first == at("12:00")
    assert at("22:00") <= later[0]
    assert at("22:25") < device.clock.now_ms() <= at("22:30")


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (LinkError("it does not answer"), 1000, 4000),
        (UpdateFailed(Reason.REPOSITORY_UNTRUSTED, "not signed"), 20, 120),
    ],
)
def test_a_repository_that_sends_what_cannot_be_believed_is_asked_an_hour_apart(
    tmp_path: Path, error: Exception, least: int, most: int
) -> None:
    always = "00:00-23:59"
    device = Device(tmp_path, begins="00:01", until_ms=float("inf"), window=always, error=error)
    with pytest.raises(UpdateFailed):
        device.fetch(limit_s=24 * HOUR_S)

    assert least < len(device.repository.asked_ms) < most


@given(
    opens=st.integers(0, 1439),
    minutes=st.integers(1, 1440),
    begins=st.integers(0, 1439),
    pauses=st.lists(st.integers(1, 600), max_size=20),
)
def test_what_is_waited_counts_either_as_closed_or_as_open(
    opens: int, minutes: int, begins: int, pauses: list[int]
) -> None:
    window = Window(opens * 60, (opens + minutes) % 1440 * 60)
    clock = ManualClock(now_ms=at("00:00") + begins * 60_000)

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        return False

    hours = Hours(window, clock=clock, wait=wait)
    closed_s = 0.0
    for pause_s in pauses:
        was_open = hours.is_open()
        hours.wait(pause_s)
        closed_s += 0 if was_open else pause_s
        before_s = clock.monotonic()
        hours.wait_open()
        closed_s += clock.monotonic() - before_s
        assert hours.is_open()
    assert hours.closed_s == pytest.approx(closed_s)
