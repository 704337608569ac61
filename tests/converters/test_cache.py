"""The cache: whole entries or none, and never a reason for a build to fail."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgekit_converters.cache import Cache, key_of, sources
from edgekit_runtime.engines import versions


def found(cache: Cache, key: str) -> dict[str, bytes] | None:
    return cache.recall(
        "trial", key, lambda entry: {file.name: file.read_bytes() for file in entry.iterdir()}
    )


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"from a file")

    Cache(tmp_path / "cache").put("trial", "k", {"a": b"bytes", "b": file})

    assert found(Cache(tmp_path / "cache"), "k") == {"a": b"bytes", "b": b"from a file"}


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("trial", "k", {"a": b"first"})
    cache.put("trial", "k", {"a": b"second"})

    assert found(cache, "k") == {"a": b"first"}
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["k"]


def test_a_cache_without_a_folder_keeps_nothing() -> None:
    cache = Cache(None)
    cache.put("trial", "k", {"a": b""})
    cache.trim(max_bytes=0)

    assert found(cache, "k") is None


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

    assert found(cache, "k") is None
    assert list((tmp_path / "trial").iterdir()) == []


def test_what_was_used_least_lately_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for age, name in enumerate(("old", "older", "oldest")):
        cache.put("trial", name, {"a": bytes(1000)})
        os.utime(tmp_path / "trial" / name, (1000 - age, 1000 - age))
    assert found(cache, "oldest")

    cache.trim(max_bytes=2000)

    assert found(cache, "older") is None
    assert found(cache, "old")
    assert found(cache, "oldest")


def test_an_entry_that_another_build_trims_while_it_is_read_is_not_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("trial", "k", {"a": b"x", "b": b"y"})

    def slow(entry: Path) -> bytes:
        first = (entry / "a").read_bytes()
        Cache(tmp_path).trim(max_bytes=0)
        return first + (entry / "b").read_bytes()

    assert cache.recall("trial", "k", slow) is None
    assert list((tmp_path / "trial").iterdir()) == []


def test_what_a_build_left_behind_goes_with_the_rest(tmp_path: Path) -> None:
    for name in (".new-x", ".old-y"):
        (tmp_path / "trial" / name).mkdir(parents=True)
        (tmp_path / "trial" / name / "a").write_bytes(bytes(1000))

    Cache(tmp_path).trim(max_bytes=0)

    assert list((tmp_path / "trial").iterdir()) == []


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
        assert found(Cache(tmp_path), str(n)) == {"a": bytes(2000), "b": b"end"}
    assert len(list((tmp_path / "trial").iterdir())) == 50


def test_what_is_kept_depends_on_code_on_operator_lists_and_on_engines() -> None:
    names = {str(file.relative_to(folder)) for folder, file in sources()}

    assert {"trials.py", "toolchains/drivers/rknn.py", "targets/lists/rknn.yaml"} <= names
    assert "litert.py" in names
    assert {"onnxruntime", "litert"} <= versions().keys()


def test_a_key_depends_on_every_fact_and_not_on_the_order_of_names() -> None:
    assert key_of(1, {"a": 1, "b": 2}) == key_of(1, {"b": 2, "a": 1})
    assert len({key_of(1), key_of(2), key_of(1, 2), key_of("1"), key_of([1, 2])}) == 5
