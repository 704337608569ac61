"""What a server may cost a device's link and flash for one bundle, whatever it sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from edgekit.clock import Clock
from edgekit_runtime.fetch import OnHold
from edgekit_runtime.fetch.allowance import BESIDE_BYTES, HOLD_S, TIMES
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Level
from edgekit_runtime.trusted.repository import Repository
from edgekit_runtime.trusted.target import Target
from edgekit_runtime.update import Reason, UpdateFailed
from tests.clock import ManualClock
from tests.faults import Conditions, LinkProxy
from tests.runtime.fetching import get, make, refused, wanted
from tests.runtime.file_server import DATA, FileServer, Handler, another_file, files, says, whole

SIZE = len(DATA)
DAY_S = 86_400.0
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


def never_the_same(request: Handler, _: int) -> None:
    """Nearly a whole file, each time another one."""
    whole(request, 0, data=Random().randbytes(SIZE), end=SIZE - 1)


def only_heads(request: Handler, _: int) -> None:
    """Heads that say that the answer is still to come, for as long as anybody reads."""
    head = b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 8000 + b"\r\n\r\n"
    try:
        while True:
            request.wfile.write(head)
    except OSError:
        return


class Signs(Repository):
    """A signed repository that says the truth of the bundle; its files lie elsewhere."""

    def __init__(self, folder: Path, *urls: str) -> None:
        super().__init__(urls=urls, root=folder / "root.json", state=folder / "trusted")
        self._bases = urls

    def find(self, path: str, *, cancelled: Callable[[], bool]) -> Target:
        found = wanted(url=path)
        return Target(
            path=path,
            urls=tuple(base + path for base in self._bases),
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            digest=found.digest,
            deltas=(),
            keys=(),
            candidate=False,
        )


class Device:
    """A device that wants one bundle, and can be started anew."""

    def __init__(self, folder: Path, *urls: str, clock: ManualClock) -> None:
        self._folder = folder
        self._urls = urls
        self.clock = clock
        self.told: list[tuple[str, object]] = []

    def fetch(self, *, limit_s: float = DAY_S) -> None:
        """From a start on."""
        clock: Clock = self.clock
        source = Source(
            make(self._folder, "http://unused/", clock=clock),
            repository=Signs(self._folder, *self._urls),
            events=self.tell,
            clock=clock,
            rng=Random(1),
        )
        source.fetch(
            wanted(),
            base=None,
            frees_bytes=0,
            limit_s=limit_s,
            progress=lambda _: None,
            wait=self.wait,
        )

    def tell(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        self.told.append((kind, facts["reason"]))

    def wait(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return False


def test_a_repository_of_garbage_costs_three_bundles_in_hours_and_then_the_update(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [another_file]
    clock = ManualClock()
    with LinkProxy(server.address) as proxy:
        device = Device(tmp_path, proxy.url(), clock=clock)
        with pytest.raises(UpdateFailed) as caught:
            device.fetch()
        sent = proxy.counts().down_bytes

    assert caught.value.reason is Reason.FETCH_EXHAUSTED
    assert sent <= TIMES * (SIZE + HEAD_BYTES)
    assert server.offsets == [0] * TIMES
    assert TIMES * HOLD_S <= clock.monotonic() < DAY_S
    assert device.told == [("repository_refused", "wrong_sha256")]


def test_starts_give_a_repository_of_garbage_nothing_anew(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [another_file]
    device = Device(tmp_path, server.url, clock=ManualClock())
    reasons = []
    for _ in range(30):
        # A limit below every hold: each start asks once, where it may.
        with pytest.raises(UpdateFailed) as caught:
            device.fetch(limit_s=HOLD_S / 2)
        reasons.append(caught.value.reason)
        device.clock.advance(HOLD_S / 2)

    assert server.offsets == [0] * TIMES
    assert reasons[0] is Reason.WRONG_SHA256
    assert reasons[-1] is Reason.FETCH_EXHAUSTED


def test_a_repository_that_is_mended_is_asked_again_when_its_time_is_over(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [another_file, whole]
    device = Device(tmp_path, server.url, clock=ManualClock())

    device.fetch()

    assert device.clock.monotonic() >= HOLD_S
    assert server.offsets == [0, 0]


def test_a_server_that_never_ends_a_file_sends_no_more_than_three(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [never_the_same]
    with LinkProxy(server.address) as proxy:
        assert refused(make(tmp_path, proxy.url()), limit_s=DAY_S) is Reason.FETCH_EXHAUSTED
        sent = proxy.counts().down_bytes

    # Of one file more the kernel takes in what nobody reads.
    assert sent < (TIMES + 1) * SIZE


def test_heads_without_end_are_left_and_count(server: FileServer, tmp_path: Path) -> None:
    server.behaviours = [only_heads]
    rate = 20_000_000
    with LinkProxy(server.address, conditions=Conditions(bytes_s=rate)) as proxy:
        assert refused(make(tmp_path, proxy.url()), limit_s=DAY_S) is Reason.FETCH_EXHAUSTED
        counts = proxy.counts()

    assert counts.connections == 1
    # It is noticed at a look; the machine of the test may be late.
    limit = TIMES * SIZE + BESIDE_BYTES
    assert limit < counts.down_bytes < limit + 2 * rate


def test_who_sends_all_that_it_may_costs_another_mirror_nothing(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [never_the_same]

    assert get(make(tmp_path, first.url, second.url), limit_s=DAY_S) == DATA
    assert len(first.offsets) <= TIMES


def test_a_wrong_file_of_one_mirror_keeps_nobody_from_asking_the_other(
    servers: tuple[FileServer, FileServer], tmp_path: Path
) -> None:
    first, second = servers
    first.behaviours = [another_file]
    second.behaviours = [says(503)] * 5 + [whole]

    assert get(make(tmp_path, first.url, second.url)) == DATA
    assert first.offsets == [0]
    assert len(second.offsets) == 6


def test_two_repositories_on_one_server_have_accounts_of_their_own(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [files({"bad/it.edge": DATA[::-1], "good/it.edge": DATA})]
    fetcher = make(tmp_path, f"{server.url}bad/", f"{server.url}good/")

    assert get(fetcher) == DATA
    assert server.paths == ["bad/it.edge", "good/it.edge"]


def test_a_clock_that_is_set_back_by_a_year_keeps_nobody_waiting_for_a_year(
    server: FileServer, tmp_path: Path
) -> None:
    server.behaviours = [another_file, whole]
    with pytest.raises(OnHold):
        get(make(tmp_path, server.url, clock=ManualClock()))
    clock = ManualClock(now_ms=ManualClock().now_ms() - 365 * 86_400_000)

    assert get(make(tmp_path, server.url, clock=clock)) == DATA
