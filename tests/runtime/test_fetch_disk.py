"""What of a download survives a kill or a power cut, and what a bad disk does to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_runtime.fetch import part as parts
from edgekit_runtime.fetch.part import SYNC_BYTES, Part
from tests.faults import Conditions, LinkProxy
from tests.runtime.fetching import get, hold, make, wanted
from tests.runtime.file_server import DATA, FileServer

BIG = Random(2).randbytes(2 * SYNC_BYTES + 1000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as made:
        yield made


def fetch_once(url: str, folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.runtime.fetch_once", url, str(folder), *options]


def big(folder: Path, *, boot: str = "first") -> Part:
    size, sha256 = len(BIG), wanted(BIG).sha256
    return Part(folder / "big.part", size_bytes=size, sha256=sha256, boot=boot)


def take(part: Part, end: int, *, offset: int | None = None, data: bytes = BIG) -> None:
    begin = part.held_bytes() if offset is None else offset
    with part.writing(begin, url="http://x/", etag="") as writer:
        for at in range(begin, end, 100_000):
            writer.put(data[at : min(end, at + 100_000)])


def test_what_a_killed_download_had_is_not_fetched_again(
    server: FileServer, tmp_path: Path
) -> None:
    kills = 2
    part = tmp_path / "fetch" / f"{wanted().sha256}.part"
    with LinkProxy(server.address, conditions=Conditions(bytes_s=400_000)) as proxy:
        for number in range(1, kills + 1):
            child = subprocess.Popen(fetch_once(proxy.url(), tmp_path))
            while not part.exists() or part.stat().st_size < 60_000 * number:
                assert child.poll() is None
            child.kill()
            child.wait()
        end = subprocess.run(fetch_once(proxy.url(), tmp_path), stdout=subprocess.PIPE, check=True)
        sent = proxy.counts().down_bytes

    assert end.stdout == b"done"
    assert part.read_bytes() == DATA
    # Heads of answers, and what was on its way into the killed process.
    assert sent <= len(DATA) + (kills + 1) * 300 + kills * 20_000
    assert server.offsets == sorted(set(server.offsets))


def test_after_a_power_cut_only_what_was_brought_to_the_medium_counts(tmp_path: Path) -> None:
    cut, after = tmp_path / "cut", tmp_path / "after"
    cut.mkdir()
    part = big(cut)
    with part.writing(0, url="http://x/", etag="") as writer:
        for at in range(0, SYNC_BYTES + 900_000, 100_000):
            writer.put(BIG[at : at + 100_000])
        # The power goes now. A file system may keep the size of a file whose tail it loses.
        shutil.copytree(cut, after)
    with (after / "big.part").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(SYNC_BYTES + 100_000)
        file.truncate(size)

    again = big(after, boot="second")

    assert size - SYNC_BYTES <= again.held_bytes() <= SYNC_BYTES + 100_000
    take(again, len(BIG))
    assert again.is_right()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["on", "anew"]), st.sampled_from("ab"), st.integers(0, 500)),
        max_size=5,
    ),
    boots=st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
def test_whatever_servers_send_the_part_holds_what_the_last_one_sent(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]], boots: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("part")
    files = {"a": bytes(range(250)) * 2, "b": bytes(range(200)) + bytes(300)}
    for (how, name, size), boot in zip(steps, boots, strict=False):
        part = Part(folder / "p", size_bytes=500, sha256="", boot=str(boot))
        held = part.held_bytes()
        before = (folder / "p").read_bytes()[:held] if held else b""
        begin = held if how == "on" else 0
        sent = files[name][begin : begin + size]
        with part.writing(begin, url="", etag="") as writer:
            writer.put(sent)

        now = (folder / "p").read_bytes()
        assert now[: begin + len(sent)] == before[:begin] + sent
        # What lies behind it stays only where it agreed up to there.
        rest = now[begin + len(sent) :]
        assert rest == b"" or before == now
        assert Part(folder / "p", size_bytes=500, sha256="", boot="").held_bytes() == len(now)


def test_a_part_without_a_mark_is_not_believed(server: FileServer, tmp_path: Path) -> None:
    fetcher = make(tmp_path, server.url)
    fetcher.part(wanted()).write_bytes(b"x" * 1000)

    assert get(fetcher) == DATA
    assert server.offsets == [0]


def test_a_damaged_mark_is_worth_nothing(server: FileServer, tmp_path: Path) -> None:
    fetcher = make(tmp_path, server.url)
    hold(fetcher, b"x" * 1000)
    mark = fetcher.part(wanted()).with_name(fetcher.part(wanted()).name + parts.MARK_SUFFIX)
    mark.write_bytes(mark.read_bytes()[:-5])

    assert get(fetcher) == DATA
    assert server.offsets == [0]


@pytest.mark.system
@pytest.mark.parametrize(
    ("disk", "options", "reason"),
    [
        ("size=400k", (), b"no_room"),
        ("size=1m", ("--fill",), b"disk_full"),
        ("size=1m", (), b"done"),
        ("ro", (), b"read_only"),
    ],
)
def test_a_bad_disk_is_told_by_its_reason(
    server: FileServer, tmp_path: Path, disk: str, options: tuple[str, ...], reason: bytes
) -> None:
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", script, "sh", disk, str(tmp_path)]
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")

    ended = subprocess.run(
        [*within, *fetch_once(server.url, tmp_path, *options)], capture_output=True, check=True
    )

    assert ended.stdout == reason
