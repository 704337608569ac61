"""The cache: whole entries or none, and never a reason for a build to fail."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgekit_converters.cache import Cache, key_of


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"from a file")

    Cache(tmp_path / "cache").put("trial", "k", {"a": b"bytes", "b": file})

    entry = Cache(tmp_path / "cache").get("trial", "k")
    assert entry is not None
    assert (entry / "a").read_bytes() == b"bytes"
    assert (entry / "b").read_bytes() == b"from a file"


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("trial", "k", {"a": b"first"})
    cache.put("trial", "k", {"a": b"second"})

    entry = cache.get("trial", "k")
    assert entry is not None
    assert (entry / "a").read_bytes() == b"first"
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["k"]


def test_a_cache_without_a_folder_keeps_nothing() -> None:
    cache = Cache(None)
    cache.put("trial", "k", {"a": b""})
    cache.trim(max_bytes=0)

    assert cache.get("trial", "k") is None


def test_a_disk_that_cannot_be_written_is_logged_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")

    Cache(blocked).put("trial", "k", {"a": b"x"})

    assert "nothing is kept" in caplog.text


def test_an_entry_that_cannot_be_read_whole_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("trial", "k", {"a": b"x", "b": tmp_path / "absent"})

    assert cache.get("trial", "k") is None
    assert list((tmp_path / "trial").iterdir()) == []


def test_what_was_used_least_lately_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for age, name in enumerate(("old", "older", "oldest")):
        cache.put("trial", name, {"a": bytes(1000)})
        os.utime(tmp_path / "trial" / name, (1000 - age, 1000 - age))
    assert cache.get("trial", "oldest")

    cache.trim(max_bytes=2000)

    assert cache.get("trial", "older") is None
    assert cache.get("trial", "old")
    assert cache.get("trial", "oldest")


def test_two_builds_that_put_the_same_entry_at_once_both_go_on(tmp_path: Path) -> None:
    def put() -> None:
        for n in range(50):
            Cache(tmp_path).put("trial", str(n), {"a": bytes(2000), "b": b"end"})

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for n in range(50):
        entry = Cache(tmp_path).get("trial", str(n))
        assert entry is not None
        assert sorted(file.name for file in entry.iterdir()) == ["a", "b"]
    assert len(list((tmp_path / "trial").iterdir())) == 50


def test_a_key_depends_on_every_fact_and_not_on_the_order_of_names() -> None:
    assert key_of(1, {"a": 1, "b": 2}) == key_of(1, {"b": 2, "a": 1})
    assert len({key_of(1), key_of(2), key_of(1, 2), key_of("1"), key_of([1, 2])}) == 5
