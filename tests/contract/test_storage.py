"""Files that are whole or absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgekit import storage
from edgekit.errors import StorageError


def test_a_file_is_written_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"

    storage.write(path, b"one", mode=0o600)

    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    storage.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with storage.replacing(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        half()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_not_seen_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with storage.replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.exists()


def test_an_exclusive_write_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write(path, b"first", exclusive=True)

    with pytest.raises(storage.FileExists, match="is there already"):
        storage.write(path, b"second", exclusive=True)

    assert path.read_bytes() == b"first"
    assert path.stat().st_nlink == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder cannot be written: Is a directory") as caught:
        storage.write(tmp_path / "folder", b"")
    assert caught.value.hint is not None
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/below cannot be made: Not a directory"):
        storage.write(tmp_path / "file/below/x", b"")


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    storage.write(tmp_path / "a/b/file", b"x")

    assert (tmp_path / "a/b/file").read_bytes() == b"x"


def test_a_file_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcde")

    assert list(storage.chunks(path, chunk_bytes=2)) == [b"ab", b"cd", b"e"]
    with pytest.raises(StorageError, match="none cannot be read"):
        list(storage.chunks(tmp_path / "none"))


def test_state_lives_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = {
        "XDG_CONFIG_HOME": (storage.config_home, ".config"),
        "XDG_CACHE_HOME": (storage.cache_home, ".cache"),
        "XDG_DATA_HOME": (storage.data_home, ".local/share"),
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, (home, default) in homes.items():
        monkeypatch.setenv(variable, "/elsewhere")
        assert home() == Path("/elsewhere/edgekit")
        monkeypatch.setenv(variable, "")
        assert home() == tmp_path / default / "edgekit"


def test_folders_are_made_with_all_above_them(tmp_path: Path) -> None:
    storage.make_folder(tmp_path / "a/b", mode=0o700)
    storage.make_folder(tmp_path / "a/b")

    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    storage.sync_folder(tmp_path / "a/b")
    assert os.listdir(tmp_path / "a/b") == []
