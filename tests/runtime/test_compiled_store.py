"""What was compiled, on disk: whole or absent, for what it was made for, within its limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import StorageError
from edgekit_runtime.compiled_store import ENTRY, HoldsFor, Store

LIMIT_BYTES = 1 << 30


def holds_for(**changed: Any) -> HoldsFor:
    facts: dict[str, Any] = {
        "artifact_sha256": "0" * 64,
        "engine": "onnxruntime",
        "engine_version": "1.31.1",
        "device": {"kernel": "6.1"},
        "options": {"threads": 1},
    }
    return HoldsFor(**{**facts, **changed})


def keep(store: Store, facts: HoldsFor, *, size_bytes: int = 10, took_s: float = 1.0) -> Path:
    work = store.work_folder()
    (work / "model").write_bytes(b"x" * size_bytes)
    return store.keep(work, facts, took_s=took_s, artifact_bytes=100)


@pytest.mark.parametrize(
    "changed",
    [
        {"artifact_sha256": "1" * 64},
        {"engine": "openvino"},
        {"engine_version": "1.32.0"},
        {"device": {"kernel": "6.2"}},
        {"options": {"threads": 2}},
    ],
)
def test_anything_that_it_holds_for_makes_another_entry(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    store = Store(tmp_path, limit_bytes=LIMIT_BYTES)
    kept = keep(store, holds_for())

    assert store.find(holds_for()) == kept
    assert store.find(holds_for(**changed)) is None


def test_an_entry_under_another_key_is_foreign(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=LIMIT_BYTES)
    other = holds_for(options={"threads": 2})
    keep(store, holds_for()).rename(tmp_path / other.key)

    assert store.find(other) is None
    assert not (tmp_path / other.key).exists()


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(b"other")])
def test_an_entry_with_another_file_is_removed(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = Store(tmp_path, limit_bytes=LIMIT_BYTES)
    folder = keep(store, holds_for())
    damage(folder / "model")

    assert store.find(holds_for()) is None
    assert not folder.exists()


def test_a_compiler_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=LIMIT_BYTES)

    with pytest.raises(StorageError, match="wrote nothing"):
        store.keep(store.work_folder(), holds_for(), took_s=1, artifact_bytes=1)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(20, 100))
def test_the_limit_is_held_and_the_newest_stays(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"), limit_bytes=limit)
    for number, size in enumerate(sizes):
        facts = holds_for(options={"threads": number})
        folder = keep(store, facts, size_bytes=size)
        os.utime(folder, (number, number))

    kept = [n for n in range(len(sizes)) if store.find(holds_for(options={"threads": n}))]

    assert sum(sizes[n] for n in kept) <= max(limit, sizes[-1])
    # Those that were not used for longest went: what is left are the last ones.
    assert kept == list(range(len(sizes)))[len(sizes) - len(kept) :]


def test_work_of_a_process_that_is_gone_is_removed(tmp_path: Path) -> None:
    mine = Store(tmp_path, limit_bytes=LIMIT_BYTES).work_folder()
    gone = tmp_path / "work-4194999-abc"
    gone.mkdir()
    log = tmp_path / "work-4194999-abc.log"
    log.touch()

    Store(tmp_path, limit_bytes=LIMIT_BYTES)

    assert mine.is_dir()
    assert not gone.exists()
    assert not log.exists()


def test_an_earlier_compilation_tells_what_the_next_one_may_take(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=LIMIT_BYTES)
    assert store.expected_s(holds_for(), artifact_bytes=100) is None

    keep(store, holds_for(), took_s=8)

    # The same artefact under another driver; another one in proportion to its size.
    assert store.expected_s(holds_for(device={}), artifact_bytes=100) == 8
    assert store.expected_s(holds_for(artifact_sha256="1" * 64), artifact_bytes=50) == 4
    assert store.expected_s(holds_for(engine="openvino"), artifact_bytes=100) is None


def test_an_entry_says_what_it_holds_for(tmp_path: Path) -> None:
    folder = keep(Store(tmp_path, limit_bytes=LIMIT_BYTES), holds_for())

    found = msgspec.json.decode((folder / ENTRY).read_bytes())

    assert found["holds_for"]["engine_version"] == "1.31.1"
    assert found["files"]["model"]["size_bytes"] == 10
