"""An update by a delta: the announced file, byte for byte, and never worse than the whole one."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from edgekit import delta
from edgekit.bundle import Bundle
from edgekit.messages import Wanted
from edgekit_runtime.fetch import Fetcher, Interrupted
from edgekit_runtime.fetch.shortcut import REBUILD_LIMIT_S
from edgekit_runtime.trusted.target import Delta, Target
from edgekit_runtime.update import Reason
from tests import bundles
from tests.clock import ManualClock
from tests.faults import LinkProxy
from tests.runtime.fetching import get, hold, make
from tests.runtime.file_server import FileServer, Handler, files, says
from tests.runtime.rebuild_once import Job, is_rebuilding

BUNDLE, DELTA = "tiny/1.1.0/new.edge", "tiny/1.1.0/new.delta"


class Release(NamedTuple):
    """A new bundle, what is installed, and the way between them."""

    slot: Path
    base_digest: str
    new: bytes
    patch: bytes
    digest: str


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    model = bundles.mlp((16, 256, 4), seed=1)
    old = bundles.write(folder, version="1.0.0", model=model)
    # As after training: the weights of the last layer moved a little.
    moved = bytearray(model)
    for place in range(len(moved) - 2000, len(moved) - 1000, 40):
        moved[place] ^= 1
    new = bundles.write(folder, version="1.1.0", model=bytes(moved))
    patch = folder / "new.delta"
    report = delta.make(old, new, patch)
    with Bundle.open(old) as opened:
        opened.unpack(folder / "slot")
    assert report.size_bytes < new.stat().st_size / 3
    return Release(
        folder / "slot", report.base_digest, new.read_bytes(), patch.read_bytes(), report.digest
    )


@pytest.fixture
def server(release: Release) -> Iterator[FileServer]:
    with FileServer(files({BUNDLE: release.new, DELTA: release.patch})) as made:
        yield made


def wanted(release: Release) -> Wanted:
    return Wanted(
        version="1.1.0",
        digest=release.digest,
        url="tiny/1.1.0/board.edge",
        sha256=hashlib.sha256(release.new).hexdigest(),
        size_bytes=len(release.new),
    )


def target(release: Release, *urls: str, patch: bytes | None = None) -> Target:
    announced = release.patch if patch is None else patch
    what = wanted(release)
    return Target(
        path=what.url,
        sha256=what.sha256,
        size_bytes=what.size_bytes,
        digest=what.digest,
        urls=tuple(url + BUNDLE for url in urls),
        deltas=(
            Delta(
                base=release.base_digest,
                path="tiny/1.1.0/board.from-0.delta",
                sha256=hashlib.sha256(announced).hexdigest(),
                size_bytes=len(announced),
                urls=tuple(url + DELTA for url in urls),
            ),
        ),
        keys=(),
        candidate=False,
    )


def update(
    fetcher: Fetcher, release: Release, signed: Target, **options: Any
) -> tuple[bytes, list[Reason]]:
    told: list[Reason] = []
    data = get(
        fetcher,
        wanted(release),
        base=release.slot,
        base_digest=release.base_digest,
        target=signed,
        tell=lambda reason, _: told.append(reason),
        **options,
    )
    return data, told


def test_an_installed_bundle_is_updated_by_its_delta_alone(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    with LinkProxy(server.address) as proxy:
        fetcher = make(tmp_path, "http://unused/")
        assert update(fetcher, release, target(release, proxy.url())) == (release.new, [])
        assert proxy.counts().down_bytes < len(release.patch) + 1000

    assert server.paths == [DELTA]
    # Of the delta nothing is left.
    names = {path.name for path in fetcher.part(wanted(release)).parent.iterdir()}
    kept = (".part", ".part.mark", ".spent")
    assert names == {wanted(release).sha256 + suffix for suffix in kept}


def test_a_rebuilt_bundle_is_not_fetched_again_after_a_restart(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    update(make(tmp_path, "http://unused/"), release, target(release, server.url))

    update(make(tmp_path, "http://unused/", boot="later"), release, target(release, server.url))

    assert server.paths == [DELTA]


def test_a_delta_goes_on_where_the_link_broke(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    with LinkProxy(server.address) as proxy:
        proxy.cut_at([1000])
        fetcher = make(tmp_path, "http://unused/")
        assert update(fetcher, release, target(release, proxy.url()))[0] == release.new

    assert server.paths == [DELTA, DELTA]
    assert server.offsets[1] > 0


@pytest.mark.parametrize("installed", ["sha256:" + "1" * 64, ""])
def test_without_the_deltas_base_the_whole_bundle_is_fetched(
    server: FileServer, release: Release, tmp_path: Path, installed: str
) -> None:
    data = get(
        make(tmp_path, "http://unused/"),
        wanted(release),
        base=release.slot if installed else None,
        base_digest=installed or None,
        target=target(release, server.url),
    )

    assert data == release.new
    assert server.paths == [BUNDLE]


def test_a_delta_that_is_not_smaller_is_left_alone(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    signed = target(release, server.url, patch=bytes(len(release.new)))

    assert update(make(tmp_path, "http://unused/"), release, signed) == (release.new, [])
    assert server.paths == [BUNDLE]


@pytest.mark.parametrize("what", ["missing", "other bytes", "damaged", "another base"])
def test_a_delta_that_is_of_no_use_costs_one_whole_download_and_is_told(
    release: Release, tmp_path: Path, what: str
) -> None:
    held = {BUNDLE: release.new, DELTA: release.patch}
    patch = release.patch
    if what == "missing":
        del held[DELTA]
    elif what == "other bytes":
        held[DELTA] = release.patch[::-1]
    elif what == "damaged":
        # Signed as it is: whoever made it made it wrong.
        patch = held[DELTA] = release.patch[:-10] + bytes(10)
    else:
        with Bundle.open(bundles.write(tmp_path, version="0.9.0", seed=9)) as other:
            other.unpack(tmp_path / "slot")
        release = release._replace(slot=tmp_path / "slot")
    with FileServer(files(held)) as server:
        signed = target(release, server.url, patch=patch)
        data, told = update(make(tmp_path, "http://unused/"), release, signed)

        assert data == release.new
        assert told == [Reason.DELTA_BROKEN]
        assert server.paths.count(BUNDLE) == 1


def test_a_repository_that_holds_back_deltas_alone_is_waited_out(
    release: Release, tmp_path: Path
) -> None:
    def busy_with_deltas(request: Handler, offset: int) -> None:
        answer = says(503) if request.path.endswith(DELTA) else files({BUNDLE: release.new})
        answer(request, offset)

    with FileServer(busy_with_deltas) as server:
        fetcher = make(tmp_path, "http://unused/")
        data, told = update(fetcher, release, target(release, server.url))

    assert data == release.new
    assert told == [Reason.DELTA_BROKEN]


def test_a_whole_download_that_was_begun_is_gone_on_with(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    fetcher = make(tmp_path, "http://unused/")
    hold(fetcher, release.new[:5000], wanted(release))

    assert update(fetcher, release, target(release, server.url))[0] == release.new
    assert (server.paths, server.offsets) == ([BUNDLE], [5000])


def test_a_mirror_helps_out_with_the_delta(release: Release, tmp_path: Path) -> None:
    held = {DELTA: release.patch}
    with FileServer(files({})) as first, FileServer(files(held)) as second:
        signed = target(release, first.url, second.url)
        assert update(make(tmp_path, "http://unused/"), release, signed) == (release.new, [])
        assert (first.paths, second.paths) == ([DELTA], [DELTA])


def test_a_delta_that_kills_its_reader_is_read_once(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    signed = target(release, server.url)
    job = Job(
        folder=str(tmp_path),
        base=str(release.slot),
        base_digest=release.base_digest,
        wanted=wanted(release),
        target=signed,
    )
    killed = subprocess.run(
        [sys.executable, "-m", "tests.runtime.rebuild_once"],
        input=msgspec.json.encode(job),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    fetcher = make(tmp_path, "http://unused/")
    assert is_rebuilding(fetcher.part(wanted(release)))

    assert update(fetcher, release, signed) == (release.new, [Reason.DELTA_BROKEN])
    assert server.paths == [DELTA, BUNDLE]
    assert not is_rebuilding(fetcher.part(wanted(release)))
    assert not fetcher.part(wanted(release)).with_suffix(".delta").exists()


def test_a_rebuilding_that_is_asked_to_end_does_so_and_is_done_by_the_next_start(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    fetcher = make(tmp_path, "http://unused/")
    part = fetcher.part(wanted(release))
    signed = target(release, server.url)

    with pytest.raises(Interrupted):
        update(fetcher, release, signed, wait=lambda _: is_rebuilding(part))

    assert not is_rebuilding(part)
    assert update(make(tmp_path, "http://unused/"), release, signed) == (release.new, [])
    assert server.paths == [DELTA]


def test_a_rebuilding_that_takes_too_long_gives_way_to_the_whole_bundle(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    clock = ManualClock()
    fetcher = make(tmp_path, "http://unused/", clock=clock)
    part = fetcher.part(wanted(release))

    def wait(_: float) -> bool:
        if is_rebuilding(part):
            clock.advance(REBUILD_LIMIT_S + 1)
        return False

    data, told = update(fetcher, release, target(release, server.url), wait=wait, limit_s=86400)

    assert (data, told) == (release.new, [Reason.DELTA_BROKEN])
    assert server.paths == [DELTA, BUNDLE]


def test_an_error_that_no_reader_of_deltas_foresaw_costs_one_whole_download(
    server: FileServer, release: Release, tmp_path: Path
) -> None:
    nowhere = release._replace(slot=Path("no\0path"))
    fetcher = make(tmp_path, "http://unused/")

    data, told = update(fetcher, nowhere, target(release, server.url))

    assert (data, told) == (release.new, [Reason.DELTA_BROKEN])
    assert server.paths == [DELTA, BUNDLE]
